"""python -m trpo_tf.serve: a server for development, where TF Serving is not at hand."""

from trpo_tf import cli
from trpo_tf.config import ServeConfig
from trpo_tf.errors import UsageError

_WARNING = """\
For development: one model, no batching of requests, no labels, no monitoring, no authentication, no encryption.
For production, TF Serving runs the same directory: see export/README.md."""


def main(given):
    """Serves until it is interrupted."""
    config = ServeConfig(**given)
    try:
        server = cli.import_quietly("trpo_tf.serving.server.serve")
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'trpo_tf[serving]'") from error

    print(_WARNING, flush=True)
    server.serve(config)


if __name__ == "__main__":
    cli.run(main, ServeConfig, "serve", "Serves the newest SavedModel of a directory over REST and gRPC.")
