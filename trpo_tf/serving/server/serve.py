"""Both interfaces on the newest version below a directory."""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from trpo_tf.config import ServeConfig
from trpo_tf.errors import UsageError, first_line
from trpo_tf.messages import warn
from trpo_tf.serving.server import rest, rpc
from trpo_tf.serving.server.model import Model


@contextlib.contextmanager
def running(
    config: ServeConfig, changed: Callable[[int], None] = lambda number: None
) -> Iterator[tuple[Model, int, int]]:
    """Serves while the context is entered; yields the model, the port of REST and the port of gRPC.

    Args:
      changed: called with the number of a version that has taken the place of another.

    Raises:
      UsageError: a port is taken.
    """
    model = Model(config.model_name, Path(config.model_dir), warn)
    model.refresh()
    watcher = threading.Thread(target=model.watch, args=(config.poll_seconds, changed), daemon=True)
    with contextlib.ExitStack() as stack:
        try:
            grpc_port = stack.enter_context(rpc.listening(model, f"{config.host}:{config.grpc_port}"))
            rest_port = stack.enter_context(rest.listening(model, config.host, config.rest_port))
        except (OSError, RuntimeError) as error:
            ports = f"--rest_port={config.rest_port} --grpc_port={config.grpc_port}"
            raise UsageError(f"{ports}: {first_line(error)}") from error
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(model.close)
        yield model, rest_port, grpc_port


def serve(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM. Prints the addresses and every change of the version.

    Raises:
      UsageError: a port is taken.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with running(config, lambda number: print(f"version {number}", flush=True)) as (model, rest_port, grpc_port):
        url = f"http://{config.host}:{rest_port}/v1/models/{model.name}"
        print(f"REST {url}  gRPC {config.host}:{grpc_port}", flush=True)
        waiting = f"waiting for a version in {config.model_dir}"
        print(waiting if model.number is None else f"version {model.number}", flush=True)
        # A large request makes many objects; a collection that walks TensorFlow's, too, takes a second each time.
        gc.collect()
        gc.freeze()
        stopped.wait()
