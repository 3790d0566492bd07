"""What a run leaves on disk: its directory, checkpoints, metrics and SavedModels."""
