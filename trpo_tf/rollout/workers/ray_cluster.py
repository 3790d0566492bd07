"""Which Ray the workers run on: one of this process on this machine, that of --ray_address, or what the user began."""

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.backends.base import usable_cores

_LONGEST_DIRECTORY = 36  # characters; paths of sockets below it have an end
_LOOPBACK = "127.0.0.1"
_STORE = 2**27  # bytes of shared memory beside what fragments and weights need
_TOKEN = "RAY_AUTH_TOKEN"
_ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": every socket of Ray is on 127.0.0.1

_QUIET = {  # read while Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives Ray would begin another one
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # Crew says so, in one line
}


class RayCluster:
    """A connection to Ray, shared by all fleets of this process.

    Args:
      config: ray_address, workers and allow_insecure_ray are read.
      store: bytes that fragments and weights need at once.

    Attributes:
      ray: the module.

    Raises:
      UsageError: Ray is not installed, or cannot be reached, or is not secure.
    """

    _lock = threading.Lock()
    _users = 0  # fleets of this process on a Ray that this class began
    _directory = ""  # of the Ray on this machine, and of its token

    def __init__(self, config: WorkersConfig, store: int):
        with RayCluster._lock, _quiet_signals():
            self._ours = self._begin(config, store)
            RayCluster._users += self._ours

    def _begin(self, config: WorkersConfig, store: int) -> bool:
        if config.ray_address:
            _check_token(config)
        else:
            RayCluster._directory = RayCluster._directory or _own_directory()
        with _environment(_QUIET if config.ray_address else _QUIET | {_ONLY_HERE: "0"}):
            self.ray = ray = _imported()
            if ray.is_initialized():
                return RayCluster._users > 0
            ray._raylet.Config.initialize("")  # it may have been imported before the token was chosen
            options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
            if config.ray_address:
                options |= {"address": config.ray_address}
            else:
                options |= self._local(store)
            with _constants(ray, config), _named(config):
                ray.init(**options)
        return True

    @staticmethod
    def _local(store: int) -> dict[str, Any]:
        """What a Ray on this machine is begun with: loopback only."""
        return {
            "address": "local",
            "num_cpus": len(usable_cores()),
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": _STORE + store,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": os.path.join(RayCluster._directory, "ray"),  # Ray lets everybody write there
        }

    def close(self) -> None:
        """Leaves Ray, with the last fleet that uses it; a Ray that the user began stays."""
        with RayCluster._lock, _quiet_signals():
            if self._ours:
                self._ours = False
                RayCluster._users -= 1
                if not RayCluster._users:
                    self.ray.shutdown()


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(f"--workers: Ray is missing ({first_line(error)}); try: pip install 'trpo_tf[ray]'") from error
    return ray


def _check_token(config: WorkersConfig) -> None:
    """Refuses a cluster on other machines that asks nobody who he is.

    Ray runs what any of its members sends: without a token, that is everybody who reaches its ports.
    """
    host = config.ray_address.rpartition(":")[0].strip("[]")
    known = any(os.environ.get(name) for name in (_TOKEN, "RAY_AUTH_TOKEN_PATH"))
    known = known or (Path.home() / ".ray" / "auth_token").exists()
    if known and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
    secure = known and os.environ["RAY_AUTH_MODE"].lower() == "token"
    if not (secure or config.allow_insecure_ray or host in (_LOOPBACK, "localhost", "::1")):
        raise UsageError(
            f"--ray_address={config.ray_address}: without a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on "
            "every host, or pass --allow_insecure_ray, if nobody else can reach the cluster"
        )


def _own_directory() -> str:
    """The directory of a Ray of this process, which only this user can enter, and the token in it, for this process.

    Its path is short: those of sockets below it are bounded.
    """
    directory = tempfile.mkdtemp(prefix="trpo-")
    if len(directory) > _LONGEST_DIRECTORY:
        shutil.rmtree(directory)
        directory = tempfile.mkdtemp(prefix="trpo-", dir="/tmp")
    atexit.register(_end, directory)
    token = Path(directory) / "token"
    with open(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    os.environ.pop(_TOKEN, None)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return directory


def _end(directory: str) -> None:
    """Before the process ends: Ray first, then its directory."""
    with contextlib.suppress(Exception):
        _imported().shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Meanwhile the environment has these; a user's own settings stay."""
    missing = [name for name in changes if name not in os.environ]
    os.environ |= {name: changes[name] for name in missing}
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _constants(ray: Any, config: WorkersConfig) -> Iterator[None]:
    """Meanwhile a Ray that was imported before `_ONLY_HERE` was set obeys it, too."""
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = before and bool(config.ray_address)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _named(config: WorkersConfig) -> Iterator[None]:
    """What Ray raises while it is begun, as a line for users."""
    try:
        yield
    except Exception as error:
        if config.ray_address:
            raise UsageError(
                f"--ray_address={config.ray_address}: {first_line(error)}; has this host joined the cluster by ray "
                "start, with the same token and the same versions of Python and Ray?"
            ) from error
        raise UsageError(f"--workers={config.workers}: Ray cannot be begun here: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """Keeps the handlers of signals that Ray would replace, and Ray quiet."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
