"""python -m trpo_tf.export: saves a checkpoint's policy as a SavedModel."""

from trpo_tf import cli
from trpo_tf.config import ExportConfig


def main(given):
    """Exports, and prints the version's directory."""
    config = ExportConfig(**given)
    api = cli.load_api()

    print(api.export(config))


if __name__ == "__main__":
    cli.run(main, ExportConfig, "export", "Saves a run's checkpoint as the next numbered SavedModel.")
