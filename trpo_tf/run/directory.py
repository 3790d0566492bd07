"""The run directory: its name, its lock, its flags and versions."""

import fcntl
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path

from trpo_tf.config import Config, to_dict
from trpo_tf.errors import UsageError

_PACKAGES = (
    "trpo_tf", "tensorflow", "keras", "tensorflow-probability", "gymnasium", "envpool", "mujoco", "numpy", "safetensors"
)  # fmt: skip
_NOT_A_RECIPE = ("run_dir", "resume")


class RunDirectory:
    """An open run directory, locked against other processes until closed or until this process ends.

    Args:
      path: of the directory.
      resumed: whether the run goes on with what the directory holds.

    Raises:
      UsageError: the name is unfit, the directory cannot be written, another process has it, or it holds a run that is
        not resumed.
    """

    def __init__(self, path: str | os.PathLike, resumed: bool):
        self.path = Path(path)
        _check_name(self.path)
        self.checkpoints = self.path / "checkpoints"
        if not resumed and any(self.checkpoints.glob("*update_*")):
            raise UsageError(f"--run_dir={self.path}: holds a run; pass --resume to go on, or name another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "a+")  # noqa: SIM115, held as long as the run
        except OSError as error:
            raise UsageError(f"--run_dir={self.path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UsageError(f"--run_dir={self.path}: in use by process {owner}") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def describe(self, config: Config) -> None:
        """Writes flags.txt, to be used with --flagfile, and versions.json."""
        lines = [_flag(name, value) for name, value in to_dict(config).items() if name not in _NOT_A_RECIPE]
        (self.path / "flags.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.path / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()


def default_name(config: Config) -> str:
    """runs/<env>-s<seed>-<time>, the environment's separators replaced."""
    env = "".join(c if c.isalnum() or c in "-_." else "_" for c in config.environment.env)
    return f"runs/{env}-s{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "not installed"
    return result


def _flag(name: str, value) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _check_name(path: Path) -> None:
    name = path.name
    if name in ("", ".", "..") or not name.isprintable() or len(os.fsencode(name)) > 255:
        raise UsageError(f"--run_dir={str(path)[:80]!r}: its last part must be a printable name of at most 255 bytes")
