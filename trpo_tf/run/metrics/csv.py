"""progress.csv: one row per update, each exactly once, also over interruptions and a disk that was full."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from trpo_tf import faults
from trpo_tf.messages import warn_on_failure
from trpo_tf.run.metrics.declaration import ordered
from trpo_tf.run.metrics.logger import Logger


class CsvLogger(Logger):
    """Writes rows to a CSV file. A metric that first appears later becomes a column, empty in earlier rows.

    When training starts, rows after the agent's update are dropped: they are from before it was set back.

    Args:
      path: of the file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self._path = Path(path)
        self._unwritten: list[dict[str, Any]] = []
        self._columns: list[str] = []

    def start(self, agent: Any) -> None:
        """As Callback says."""
        with warn_on_failure(type(self).__name__, self.failures, self._named):
            rows = read_csv(self._path) if self._path.exists() else []
            kept = [row for row in rows if row["update"].isdigit() and int(row["update"]) <= agent.update]
            if self._path.exists():  # also rids the file of a line that was cut off
                self._rewrite(kept, list(kept[0]) if kept else [])

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row. Rows that the disk refuses are kept for the next call."""
        self._unwritten.append(row)
        columns = ordered({name: None for one in [dict.fromkeys(self._columns), *self._unwritten] for name in one})
        if columns != self._columns or not self._path.exists() or not self._path.stat().st_size:
            self._rewrite(read_csv(self._path) if self._path.exists() else [], columns)
        text = io.StringIO()
        csv.DictWriter(text, columns, restval="").writerows(self._unwritten)
        faults.point("write_row")
        with open(self._path, "ab") as file:
            end = file.tell()
            try:
                file.write(text.getvalue().encode())
                file.flush()
            except OSError:
                file.truncate(end)
                raise
        self._unwritten = []

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        """Replaces the file by these rows, with these columns; without any column it is empty."""
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                if columns:
                    writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
                    writer.writeheader()
                    writer.writerows(rows)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._columns = columns


def read_csv(path: Path) -> list[dict[str, str]]:
    """The whole rows of a progress.csv; a last line that was cut off is left out, and rows that are of another file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if None not in row and None not in row.values() and "update" in row]
