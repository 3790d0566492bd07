"""A run on the terminal: progress, time left, and the metrics that are declared to be shown."""

import sys
from typing import Any, TextIO, cast

import rich.console
import rich.live
import rich.progress
import rich.table

from trpo_tf.messages import Outlet, warn_on_failure
from trpo_tf.run.metrics.declaration import METRICS, Metric
from trpo_tf.run.metrics.logger import Logger

_COLUMNS = 4
_OF_WORKERS = {"stale/mean_staleness", "workers/alive", "workers/deaths"}


def make_console(stderr: bool = False) -> rich.console.Console:
    """A console on stdout, or stderr, whose failures stop nothing: a full disk, `| head`, letters that it has not."""
    return rich.console.Console(file=cast(TextIO, Outlet(lambda: sys.stderr if stderr else sys.stdout)))


class Screen(Logger):
    """A progress bar under a table on a terminal; elsewhere a plain line now and then.

    Args:
      line_every: updates between plain lines.
      greeting: a line to begin with.
    """

    def __init__(self, line_every: int = 10, greeting: str = ""):
        super().__init__()
        self._greeting = greeting
        self._console = make_console()
        self._line_every = line_every
        self._total = 0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:,}/{task.total:,} steps"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[speed]:,.0f} steps/s"),
            rich.progress.TextColumn("time left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._task: Any = None
        self._live: rich.live.Live | None = None

    def start(self, agent: Any) -> None:
        """As Callback says."""
        if self._greeting:
            self.say(self._greeting)
        self._total = agent.total_steps
        self._task = self._bar.add_task("", total=self._total, completed=agent.env_steps, speed=0.0)
        if self._console.is_terminal:
            self._live = rich.live.Live(self._bar, console=self._console, auto_refresh=False)
            self._live.start()

    def say(self, message: str) -> None:
        """A line of its own, above the table."""
        with warn_on_failure("screen", self.failures, self._named):
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def write(self, row: dict[str, Any]) -> None:
        """Shows an update."""
        steps, speed = int(row["env_steps"]), float(row["time/env_steps_per_second"])
        if self._live is not None:
            self._bar.update(self._task, completed=min(steps, self._total), speed=speed)
            self._live.update(rich.console.Group(self._table(row), self._bar), refresh=True)
        elif row["update"] % self._line_every == 1:
            left = max(0, self._total - steps) / max(speed, 1e-9)
            parts = [f"{metric.label} {_format(row.get(metric.name), metric.form)}" for metric in _shown(row)]
            self.say(f"{steps:>9,} steps, {speed:,.0f}/s, {left:.0f} s left | {', '.join(parts)}")

    def _table(self, row: dict[str, Any]) -> rich.table.Table:
        """Rows of four names and values each, so that it fits into 80 columns."""
        table = rich.table.Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        for _ in range(_COLUMNS):
            table.add_column(style="dim", no_wrap=True)
            table.add_column(justify="right", no_wrap=True)
        shown = _shown(row)
        cells = [(metric.label, _format(row.get(metric.name), metric.form)) for metric in shown]
        rows = -(-len(cells) // _COLUMNS)
        for first in range(rows):
            table.add_row(*(text for cell in cells[first::rows] for text in cell))
        return table

    def evaluation(self, summary: dict[str, Any]) -> None:
        """The table of an evaluation's summary."""
        with warn_on_failure("screen", self.failures, self._named):
            self._console.print(evaluation_table(summary))

    def close(self) -> None:
        """Leaves the last view standing."""
        if self._live is not None:
            self._live.stop()


def _shown(row: dict[str, Any]) -> list[Metric]:
    """The metrics with a label, of the parts that the row has metrics of; those of workers only where it has them."""
    parts = {name.partition("/")[0] for name in row}
    expected = {m.name for m in METRICS if m.name.partition("/")[0] in parts} - _OF_WORKERS
    return [m for m in METRICS if m.label and m.name in expected | row.keys()]


def _format(value: Any, form: str) -> str:
    return "-" if value is None else format(float(value), form)


def evaluation_table(summary: dict[str, Any], kind: str = "deterministic") -> rich.table.Table:
    """Mean, spread, minimum and maximum of an evaluation's returns and lengths."""
    table = rich.table.Table("", "mean", "std", "min", "max", title=f"{summary['episodes']} {kind} episodes")
    for name in ("return", "length"):
        table.add_row(name, *(f"{summary[f'{name}_{statistic}']:.2f}" for statistic in ("mean", "std", "min", "max")))
    return table
