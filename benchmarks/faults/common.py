"""The training command in a child of a process that has imported TensorFlow but not started it; and what it left.

A fresh process spends five seconds on imports. A forked one begins where those end, chooses its own threads, starts its
own TensorFlow and leaves by the command's own exit code. `kills.py` checks that both give the same bits.
"""

import atexit
import contextlib
import csv
import dataclasses
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
NAME = "trpo_tf.train"


def import_all() -> None:
    """Imports what trains, from this file's tree, and sees to it that processes started later do so, too.

    Raises:
      RuntimeError: TensorFlow has been started, so that a fork would hang.
    """
    os.environ["PYTHONPATH"] = str(TREE)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(TREE))
    from tensorflow.python.eager import context

    import trpo_tf.runs
    import trpo_tf.train  # noqa: F401

    if context.context()._initialized:
        raise RuntimeError("importing trpo_tf.runs has started TensorFlow")
    gc.collect()
    gc.freeze()  # children would copy what their collections walk through


class Attempt:
    """A child that runs the training command in a session of its own.

    Args:
      directory: where it runs.
      arguments: of the command.
      log: its stdout and stderr go to <log>.out and <log>.err.

    Attributes:
      points: names of trpo_tf.faults that it has reached so far, as far as `read` knows.
      code: the exit code, minus the number of the signal that ended it; None while it runs.
      cpu_seconds: that it took, once it has ended.
    """

    def __init__(self, directory: Path, arguments: Sequence[str], log: Path):
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        self.points: list[str] = []
        self.code: int | None = None
        self.cpu_seconds = 0.0
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        sys.stdout.flush()
        sys.stderr.flush()
        self.began = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_command(directory, list(arguments), self.out, self.err, write)
        os.close(write)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self.began

    def read(self) -> None:
        """Looks at what it has reached."""
        with contextlib.suppress(BlockingIOError):
            self.points += os.read(self._read, 1 << 16).decode().split()

    def wait(self, block: bool = False) -> bool:
        """Whether it has ended; its code is known then."""
        if self.code is None:
            pid, status, used = os.wait4(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self.read()
                os.close(self._read)
                self.code = os.waitstatus_to_exitcode(status)
                self.cpu_seconds = used.ru_utime + used.ru_stime
        return self.code is not None

    def kill(self, group: bool) -> bool:
        """SIGKILL, to the process alone or to its group; whether that ended it, and not its own exit before."""
        if self.wait():
            return False
        try:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(self.pid, signal.SIGKILL)
        self.wait(block=True)
        return self.code == -signal.SIGKILL

    def orphans(self) -> list[int]:
        """The processes of its session that still run."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.pid and fields[0] not in "ZX":
                        found.append(int(entry))
        return found

    def fileno(self) -> int:
        """For `select`: readable when a point was reached, and when it has ended."""
        return self._read


@dataclasses.dataclass
class Result:
    """What a run left, as bytes and words by name, times left out."""

    found: dict[str, Any]

    @classmethod
    def of(cls, run: Path) -> "Result":
        """Reads a finished run."""
        from trpo_tf.config import portable

        found: dict[str, Any] = {}
        for kind in ("checkpoints", "best"):
            saved = newest(run / kind)
            found |= {f"{kind}/{name}": (x.dtype.str, x.shape, x.tobytes()) for name, x in saved.arrays.items()}
            meta = {name: saved.meta[name] for name in ("update", "evaluation", "backend")}
            found |= {f"{kind}/{name}": value for name, value in meta.items()}
            found[f"{kind}/config"] = portable(saved.meta["config"])
        rows = table(run / "progress.csv")
        found["progress.csv: updates"] = [row["update"] for row in rows]
        found |= {f"progress.csv: {name}": [row[name] for row in rows] for name in rows[0] if "time/" not in name}
        found["evaluation.json"] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        versions = sorted(path.name for path in (run / "saved_model").iterdir() if path.name[0] != ".")
        found["versions of the SavedModel"] = versions
        for version in versions:
            variables = run / "saved_model" / version / "variables" / "variables.data-00000-of-00001"
            found[f"variables of SavedModel {version}"] = variables.read_bytes()
        return cls(found)

    def differences(self, other: "Result") -> list[str]:
        """What is not the same in the other."""
        names = [*self.found, *(name for name in other.found if name not in self.found)]
        return [f"{name} differs" for name in names if self.found.get(name) != other.found.get(name)]


def newest(directory: Path) -> Any:
    """The newest whole checkpoint, read by trpo_tf."""
    from trpo_tf.run import checkpoint

    return checkpoint.newest(directory)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none of them forgiven anything."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def wait_for(attempts: Sequence[Attempt], seconds: float) -> None:
    """Until one of them has reached a point or ended, but not longer than so many seconds."""
    select.select([attempt for attempt in attempts if attempt.code is None], [], [], seconds)


def _be_the_command(directory: Path, arguments: list[str], out: Path, err: Path, points: int) -> None:
    """What python -m trpo_tf.train does, and no return from it; `points` is told what is reached."""
    code = 70
    try:
        os.setsid()
        for path, target in ((Path(os.devnull), 0), (out, 1), (err, 2)):
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(number, target)
            os.close(number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
        os.chdir(directory)
        sys.argv = [NAME, *arguments]
        from trpo_tf import cli, faults, train
        from trpo_tf.config import Config

        faults.hook = lambda name: os.write(points, f"{name}\n".encode()) and None
        try:
            cli.run(train.main, Config, "train", train.TEXT)
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        threading._shutdown()  # type: ignore[attr-defined] # as Python does before it ends
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
