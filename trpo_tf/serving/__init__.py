"""A trained policy as a SavedModel: its signatures, its files, a loader, and a server for development."""
