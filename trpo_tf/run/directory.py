"""The run directory: its name, its lock, its flags and versions."""

import contextlib
import importlib.metadata
import os
import platform
import stat
import time
from pathlib import Path

import filelock

from trpo_tf.config import Config, portable, to_dict
from trpo_tf.errors import UsageError, reason
from trpo_tf.files import read_file, to_json, write_file
from trpo_tf.messages import warn
from trpo_tf.paths import check_name
from trpo_tf.run import checkpoint

_PACKAGES = (
    "trpo_tf", "tensorflow", "keras", "tensorflow-probability", "gymnasium", "envpool", "mujoco", "numpy", "safetensors"
)  # fmt: skip
_DIRECTORIES = ("checkpoints", "best", "tensorboard", "saved_model")
_MOST_PID = 100  # bytes


class RunDirectory:
    """An open run directory, locked against other processes until closed or until this process ends.

    What is in the directory may be of anybody: nothing is written through a symbolic link in it. It may be one itself.

    Args:
      path: of the directory.
      resumed: whether the run goes on with what the directory holds.

    Raises:
      UsageError: the name is unfit, the directory cannot be written, another process has it, it holds a run that is not
        resumed, or something that no run leaves.
    """

    def __init__(self, path: str | os.PathLike, resumed: bool):
        self.path = Path(path)
        check_name("run_dir", self.path)
        self.checkpoints = self.path / "checkpoints"
        try:
            self._check_content(resumed)
            self.path.mkdir(parents=True, exist_ok=True)
            # The number of the process is in a file of its own: Windows lets nobody read a file that is locked.
            self._lock = filelock.FileLock(self.path / "lock", thread_local=False)
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise UsageError(f"--run_dir={self.path}: in use by {self._owner()}") from None
        except NotImplementedError:
            warn(f"--run_dir={self.path}: its file system has no locks; let no other process use it")
        except OSError as error:
            raise UsageError(f"--run_dir={self.path}: cannot be written: {reason(error)}") from error
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            write_file(self.path / "lock.pid", f"{os.getpid()}\n".encode())

    def _check_content(self, resumed: bool) -> None:
        for name in _DIRECTORIES:
            if os.path.lexists(self.path / name) and not stat.S_ISDIR(os.lstat(self.path / name).st_mode):
                raise UsageError(f"--run_dir={self.path}: {name} in it is a symbolic link or file, not a directory")
        if (self.path / "lock").is_symlink():
            raise UsageError(f"--run_dir={self.path}: lock in it is a symbolic link")
        if not resumed and self._holds_a_run():
            raise UsageError(f"--run_dir={self.path}: holds a run; pass --resume to go on, or name another")

    def _holds_a_run(self) -> bool:
        """Whether there is any trace of one: a checkpoint, whole or not, a hidden one too, or a row of metrics."""
        for name in ("checkpoints", "best"):
            directory = self.path / name
            if directory.is_dir() and any(directory.iterdir()) and not checkpoint.unfinished_first(directory):
                return True
        progress = self.path / "progress.csv"
        if not progress.is_file():
            return os.path.lexists(progress)
        with open(progress, "rb") as file:
            return bool(file.readline(1 << 20) and file.readline(1))

    def _owner(self) -> str:
        with contextlib.suppress(OSError, ValueError):  # it is being written, or is somebody else's
            return f"process {int(read_file(self.path / 'lock.pid', _MOST_PID))}"
        return "another process"

    def describe(self, config: Config) -> None:
        """Writes flags.txt, to be used with --flagfile, and versions.json.

        Raises:
          OSError: the disk is full.
        """
        lines = [_flag(name, value) for name, value in portable(to_dict(config)).items()]
        write_file(self.path / "flags.txt", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        write_file(self.path / "versions.json", f"{to_json(versions(), indent=1)}\n".encode())

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()


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
