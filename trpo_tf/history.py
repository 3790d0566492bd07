"""What a training looked like: its rows, as a table or a picture."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from trpo_tf.paths import absolute
from trpo_tf.plotting import Curve, draw
from trpo_tf.run.callback import LAST, Callback
from trpo_tf.run.metrics.declaration import ordered
from trpo_tf.run.metrics.row import Row


class History(Sequence[Row]):
    """The rows of a training, one per update, each a mapping from metric names to values."""

    def __init__(self, rows: Sequence[Row] = ()):
        self._rows = list(rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "History": ...

    def __getitem__(self, index: int | slice) -> "Row | History":
        return History(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"History of {len(self)} updates"

    def append(self, row: Row) -> None:
        """Adds an update's row."""
        self._rows.append(row)

    def columns(self) -> list[str]:
        """The names of all metrics in it."""
        return ordered({name: None for row in self._rows for name in row})

    def column(self, name: str) -> list[Any]:
        """The values of a metric, None where a row has none.

        Raises:
          KeyError: no row has it.
        """
        if not any(name in row for row in self._rows):
            raise KeyError(f"{name}: not a metric; there are {', '.join(self.columns())}")
        return [row.get(name) for row in self._rows]

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes all rows to a CSV file; its directory is made."""
        path = Path(absolute("path", path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns(), restval="")
            writer.writeheader()
            writer.writerows(dict(row) for row in self._rows)

    def plot(
        self, path: str | os.PathLike, metrics: Sequence[str] = ("env/episode_return", "policy/kl", "policy/entropy")
    ) -> None:
        """Draws metrics over environment steps into a .png, .svg or .pdf file; its directory is made."""
        path = Path(absolute("path", path))
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = self.column("env_steps")
        curves = {name: [Curve("", steps, self.column(name))] for name in metrics}
        draw(curves, path)


class Recorder(Callback):
    """Keeps the rows of a training in a History."""

    order = LAST

    def __init__(self, history: History):
        self.history = history

    def __call__(self, agent: Any, row: Row) -> None:
        """As Callback says."""
        if self.history:
            len(self.history[-1])  # completes it: what it would wait with takes as much memory as its numbers
        self.history.append(row)
