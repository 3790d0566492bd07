"""progress.csv: one row per update, each exactly once, also over interruptions and a disk that was full."""

import csv
import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf import faults
from trpo_tf.errors import reason
from trpo_tf.files import append_file, read_file, write_file
from trpo_tf.messages import warn, warn_on_failure
from trpo_tf.paths import absolute
from trpo_tf.run.metrics.declaration import ordered
from trpo_tf.run.metrics.logger import Logger

Cells = dict[str, str]  # a row as it stands in the file, by column
_MOST = 1 << 31  # bytes of a file that is read


class CsvLogger(Logger):
    """Writes rows to a CSV file. A metric that first appears later becomes a column, empty in earlier rows.

    When a training goes on, rows after the agent's update are dropped: they are from before it was set back. A file of
    another training, or one that cannot be understood, is renamed to <name>.old or <name>.damaged, never overwritten.
    Rows that the disk refuses wait here, and in checkpoints, until it takes them.

    Args:
      path: of the file; its directory is made.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path = Path(absolute("path", path))
        self._unwritten: list[Cells] = []
        self._columns: list[str] = []
        self._left: tuple[int, ...] | None = None  # the file as this logger left it
        self._update = 0  # rows up to this one may be in the file
        self._goes_on = False  # the training that begins goes on with the one whose rows are in the file

    def start(self, agent: Any) -> None:
        """As Callback says."""
        self._update, self._left, self._columns = agent.update, None, []
        self._unwritten = [row for row in self._unwritten if int(row["update"]) <= agent.update]
        with warn_on_failure(type(self).__name__, self.failures, self._named):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(self._path) or self._unwritten:
                self._take_over()
        self._goes_on = False  # what is in the file now is this training's

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row. Rows that the disk refuses are kept for the next call."""
        self._update = int(row["update"])
        self._unwritten.append({name: "" if value is None else str(value) for name, value in row.items()})
        columns = ordered(dict.fromkeys([*self._columns, *(name for one in self._unwritten for name in one)]))
        faults.point("write_row")
        if columns == self._columns and self._left is not None and self._left == _identity(self._path):
            self._left = _identity_of(append_file(self._path, _text(self._unwritten, columns)))
            self._unwritten = []
        else:
            self._take_over()

    def _take_over(self) -> None:
        """Writes the file anew: the rows that are in it, as far as they are of this training, and those that wait."""
        columns, rows, damage = self._read()
        kept = [row for row in rows if int(row["update"]) <= self._update]
        self._unwritten = list({int(row["update"]): row for row in [*kept, *self._unwritten]}.values())
        self._unwritten.sort(key=lambda row: int(row["update"]))
        if damage:
            self._put_aside("damaged", damage)
        elif len(kept) < len(rows) and not self._goes_on:
            self._put_aside("old", "it is of another training")
        names = [*(columns if kept else ()), *self._columns, *(name for row in self._unwritten for name in row)]
        columns = ordered(dict.fromkeys(names))
        header = _text([dict(zip(columns, columns, strict=True))], columns) if columns else b""
        write_file(self._path, header + _text(self._unwritten, columns))
        self._columns, self._unwritten, self._left = columns, [], _identity(self._path)

    def _read(self) -> tuple[list[str], list[Cells], str]:
        """Columns and rows of the file, and what is wrong with it."""
        try:
            data = read_file(self._path, _MOST)
        except FileNotFoundError:
            return [], [], ""
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # no fault of the file
                raise
            return [], [], reason(error)
        try:
            return _parse(data.decode())
        except (ValueError, csv.Error) as error:
            return [], [], str(error)

    def _put_aside(self, ending: str, why: str) -> None:
        names = (self._path.with_name(f"{self._path.name}.{ending}{f'.{k}' * bool(k)}") for k in range(10**6))
        aside = next(path for path in names if not os.path.lexists(path))
        self._path.rename(aside)
        warn(f"{self._path} was renamed to {aside.name}: {why}")

    def state(self) -> dict[str, np.ndarray]:
        """The rows that the disk refused. The others are on the disk then: no checkpoint is ahead of them."""
        self.flush()
        with warn_on_failure(type(self).__name__, self.failures, self._named):
            if self._left is not None and self._left == _identity(self._path):
                with open(self._path, "rb+") as file:
                    os.fsync(file.fileno())
        return {"unwritten": np.frombuffer(json.dumps(self._unwritten).encode(), np.uint8)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As Callback says.

        Raises:
          ValueError, TypeError: it is not what `state` gives.
        """
        rows = json.loads(state["unwritten"].tobytes())
        self._unwritten = [{str(name): str(value) for name, value in row.items()} for row in rows]
        self._goes_on = all(int(row["update"]) >= 0 for row in self._unwritten)


def read_csv(path: Path) -> list[Cells]:
    """The whole rows of a progress.csv; a last line that was cut off is left out, and rows that are of another file."""
    return _parse(path.read_bytes().decode(errors="replace"))[1]


def _parse(text: str) -> tuple[list[str], list[Cells], str]:
    """Columns, whole rows, and what is wrong, but for a last line that was cut off."""
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if not lines:
        return [], [], "" if "update,".startswith(text[:7]) else "its first line is not whole"
    columns, *rows = lines
    if "update" not in columns or len(set(columns)) < len(columns):
        return [], [], "its first line does not name the columns of a training"
    good = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    good = [row for row in good if row["update"].isascii() and row["update"].isdigit()]
    torn = bool(rows) and len(rows[-1]) != len(columns)
    bad = len(rows) - len(good) - torn
    return columns, good, f"{bad} of its rows cannot be read" if bad else ""


def _text(rows: list[Cells], columns: list[str]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", extrasaction="ignore").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes where a file is removed, replaced, cut or added to; None where there is no regular file."""
    try:
        return _identity_of(os.lstat(path))
    except OSError:
        return None


def _identity_of(status: os.stat_result) -> tuple[int, ...] | None:
    return (status.st_dev, status.st_ino, status.st_size) if stat.S_ISREG(status.st_mode) else None
