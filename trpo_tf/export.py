"""python -m trpo_tf.export: saves a checkpoint's policy as a SavedModel."""

from trpo_tf import cli
from trpo_tf.config import ExportConfig
from trpo_tf.messages import tell


def main(given):
    """Exports, and prints the version's directory and fingerprint."""
    config = ExportConfig(**given)
    cli.check_paths(config)
    version = cli.load_runs().run_export(config)
    from trpo_tf.serving.saved_model import fingerprint

    tell(f"{version}\nfingerprint {fingerprint(version)}")


if __name__ == "__main__":
    cli.run(main, ExportConfig, "export", "Saves a run's checkpoint as the next numbered SavedModel.")
