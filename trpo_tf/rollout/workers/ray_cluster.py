"""Which Ray the workers run on: one of this process on this machine, that of --ray_address, or what the user began."""

import atexit
import contextlib
import dataclasses
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.backends.base import usable_cores
from trpo_tf.rollout.workers.ray_access import auth_mode

_LONGEST_CALL = 5.0  # seconds
_LONGEST_DIRECTORY = 36  # characters; paths of sockets below it have an end
_LOOPBACK = "127.0.0.1"
_STORE = 2**27  # bytes of shared memory beside what fragments and weights need
_ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": every socket of Ray is on 127.0.0.1
_SUPPORTED = "ray>=2.55,<3"

_QUIET = {  # read while Ray is imported or begun
    "RAY_USAGE_STATS_ENABLED": "0",
    # Crew says the first, in one line; the second is meant
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|PYTHON worker processes have been started",
}


@dataclasses.dataclass
class _Held:
    """The Ray that fleets of this process use."""

    ray: Any  # the module
    identity: tuple[str, str]  # see `_identity`
    ours: bool  # whether it was begun, or joined, for the fleets
    joined: bool  # whether it is the cluster of --ray_address
    undo: contextlib.ExitStack  # gives the process what it had before
    users: list["RayCluster"] = dataclasses.field(default_factory=list)
    ending: bool = False  # with the process

    def lives(self) -> bool:
        """Whether it is still there: the user may have ended it, and begun another one."""
        try:
            return not self.ending and self.ray.is_initialized() and _identity(self.ray) == self.identity
        except Exception:  # it ended meanwhile
            return False


class RayCluster:
    """A connection to Ray, shared by all fleets of this process.

    Args:
      config: ray_address, workers and allow_insecure_ray are read.
      store: bytes that fragments and weights need at once.

    Attributes:
      ray: the module.
      calls: held by the thread that sends workers out, while it calls Ray.
      local: whether it is a Ray on this machine that was begun for the fleets.

    Raises:
      UsageError: Ray is not installed, or cannot be reached, or is not secure, or is another one than is asked for.
    """

    _lock = threading.RLock()  # a fleet that nobody has any more may be closed anywhere, here too
    _current: _Held | None = None
    _directory = ""  # of the Ray on this machine, and of its token

    def __init__(self, config: WorkersConfig, store: int):
        self.calls = threading.RLock()
        quiet = {name: os.environ.get(name, value) for name, value in _QUIET.items()}
        with RayCluster._lock, _quiet_signals(), _environment(quiet):
            self.ray = ray = _imported()
            _at_exit()
            with _named(ray, config):
                held = RayCluster._current = _found(ray, config) or self._begun(ray, config, store)
            held.users.append(self)
        self._held: _Held | None = held
        self.local = held.ours and not held.joined

    @staticmethod
    def _begun(ray: Any, config: WorkersConfig, store: int) -> _Held:
        """A Ray that is begun here, or joined."""
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        with contextlib.ExitStack() as undo:
            undo.callback(_forget_token, ray)
            if config.ray_address:
                options["address"] = _canonical(ray, config)
                auth: dict[str, str | None] = {"RAY_AUTH_MODE": auth_mode(config, options["address"])}
            else:
                RayCluster._directory = directory = RayCluster._directory or _own_directory()
                options |= _local(directory, store)
                token = os.path.join(directory, "token")
                auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token, "RAY_AUTH_TOKEN": None}
            undo.enter_context(_environment(auth))
            _forget_token(ray)
            undo.enter_context(_no_other(ray))
            try:
                with contextlib.nullcontext() if config.ray_address else _only_here(ray):
                    ray.init(**options)
                return _Held(ray, _identity(ray), True, bool(config.ray_address), undo.pop_all())
            except BaseException:  # it may have begun by half
                with contextlib.suppress(Exception):
                    ray.shutdown()
                raise

    def lives(self) -> bool:
        """Whether the Ray is still there."""
        return self._held is not None and self._held.lives()

    def close(self) -> None:
        """Leaves Ray, with the last fleet that uses it; a Ray that the user began stays."""
        with RayCluster._lock, _quiet_signals():
            held, self._held = self._held, None
            if held is None:
                return
            held.users.remove(self)
            if not held.users:
                with held.undo:
                    if held.ours and held.lives():
                        self.ray.shutdown()
                if RayCluster._current is held:
                    RayCluster._current = None


def check(config: WorkersConfig) -> None:
    """Raises UsageError where Ray is not installed, or the cluster of ray_address cannot be joined."""
    if importlib.util.find_spec("ray") is None:
        _imported()
    if config.ray_address:
        RayCluster(config, 0).close()


def _found(ray: Any, config: WorkersConfig) -> _Held | None:
    """The Ray that this process has already.

    Raises:
      UsageError: it is another one than is asked for.
    """
    held = RayCluster._current
    if held is not None and not held.lives():
        held.undo.close()
        held = RayCluster._current = None
    if not ray.is_initialized():
        return None
    here = _identity(ray)
    if _canonical(ray, config) != here[0] if config.ray_address else held is not None and held.joined:
        raise UsageError(
            f"--ray_address={config.ray_address or '(none)'}: this process uses the Ray at {here[0]} already; close "
            "what uses it first"
        )
    if held is None:
        held = _Held(ray, here, ours=False, joined=False, undo=contextlib.ExitStack())
        held.undo.enter_context(_no_other(ray))
    return held


def _local(directory: str, store: int) -> dict[str, Any]:
    """What a Ray on this machine is begun with: loopback only."""
    return {
        "address": "local",
        "num_cpus": len(usable_cores()),
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": _STORE + store,
        "_node_ip_address": _LOOPBACK,
        "_temp_dir": os.path.join(directory, "ray"),  # Ray lets everybody write there
    }


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"--workers: Ray is missing ({first_line(error)}); try: pip install 'trpo_tf[ray]'") from error
    return ray


def _identity(ray: Any) -> tuple[str, str]:
    """Where the Ray of this process is, and as what the process joined it: no other Ray has both."""
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_job_id()


def _canonical(ray: Any, config: WorkersConfig) -> str:
    """--ray_address as Ray names it."""
    return ray._private.services.canonicalize_bootstrap_address(config.ray_address)


def _own_directory() -> str:
    """The directory of a Ray of this process, which only this user can enter, and the token in it, for this process.

    Its path is short: those of sockets below it are bounded.
    """
    directory = tempfile.mkdtemp(prefix="trpo-")
    if len(directory) > _LONGEST_DIRECTORY and os.name == "posix":
        shutil.rmtree(directory)
        directory = tempfile.mkdtemp(prefix="trpo-", dir="/tmp")
    token = Path(directory) / "token"
    with open(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return directory


@functools.cache
def _at_exit() -> None:
    """What is to happen at the process's end, before what Ray does there: it was imported before."""
    atexit.register(_end, os.getpid())


def _end(pid: int) -> None:
    """Before the process ends: threads that send workers out, then Ray, then its directory. A fork has none of them."""
    if os.getpid() != pid:
        return
    with contextlib.ExitStack() as locks:
        _take(RayCluster._lock, locks)
        if (held := RayCluster._current) is not None:
            held.ending = True
            for user in list(held.users):  # a call that Ray's end overtakes would end the process with a failure
                _take(user.calls, locks)
            with contextlib.suppress(Exception):
                if held.ours:
                    held.ray.shutdown()
    if RayCluster._directory:
        shutil.rmtree(RayCluster._directory, ignore_errors=True)


def _take(lock: Any, locks: contextlib.ExitStack) -> None:
    """Takes a lock that somebody may never give back."""
    if lock.acquire(timeout=_LONGEST_CALL):
        locks.callback(lock.release)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Meanwhile the environment has these; None: not at all."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _forget_token(ray: Any) -> None:
    """Ray reads RAY_AUTH_* again, in this order: else a call still under way would miss a token."""
    if not ray.is_initialized():
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _replaced(module: Any, name: str) -> Iterator[None]:
    """Meanwhile a constant of a module is False."""
    before = getattr(module, name)
    setattr(module, name, False)
    try:
        yield
    finally:
        setattr(module, name, before)


def _no_other(ray: Any) -> contextlib.AbstractContextManager[None]:
    """Meanwhile no call begins a Ray: a thread that outlives the one it uses would."""
    return _replaced(ray._private.auto_init_hook, "enable_auto_connect")


@contextlib.contextmanager
def _only_here(ray: Any) -> Iterator[None]:
    """Meanwhile a Ray that is begun listens on loopback only: this process read `_ONLY_HERE` long ago."""
    with _environment({_ONLY_HERE: "0"}), _replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER"):
        yield


@contextlib.contextmanager
def _named(ray: Any, config: WorkersConfig) -> Iterator[None]:
    """What Ray raises while it is begun, as a line for users."""
    try:
        yield
    except UsageError:
        raise
    except (AttributeError, ImportError) as error:  # names of Ray that are not public
        raise UsageError(
            f"--workers={config.workers}: Ray {ray.__version__} is not supported ({first_line(error)}); try: "
            f"pip install '{_SUPPORTED}'"
        ) from error
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
    main = threading.current_thread() is threading.main_thread()  # others cannot set any
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that is not of Python
                signal.signal(number, handler)
