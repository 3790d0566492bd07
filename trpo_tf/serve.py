"""python -m trpo_tf.serve: a server for development, where TF Serving is not at hand."""

import os

from trpo_tf import cli
from trpo_tf.config import ServeConfig
from trpo_tf.errors import UsageError
from trpo_tf.messages import tell

_WARNING = """\
For development: one model, no batching of requests, no labels, no monitoring, no authentication, no encryption.
For production, TF Serving runs the same directory: see export/README.md."""


def main(given):
    """Serves until it is interrupted."""
    config = ServeConfig(**given)
    cli.check_paths(config)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says of a port that is taken, it raises, too
    try:
        server = cli.import_quietly("trpo_tf.serving.server.serve")
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'trpo_tf[serving]'") from error

    tell(_WARNING)
    server.serve(config)


if __name__ == "__main__":
    cli.run(main, ServeConfig, "serve", "Serves the newest SavedModel of a directory over REST and gRPC.")
