"""Where metrics go: progress.csv, TensorBoard and the screen. None of them ever stops a run."""

import contextlib
import csv
import io
import json
import os
import sys
from concurrent.futures import Future
from pathlib import Path

import rich.console
import rich.live
import rich.progress
import rich.table
import tensorflow as tf

Metrics = dict[str, float | int | str | None]

_SHOWN = (
    ("return", "env/episode_return", ".1f"),
    ("length", "env/episode_length", ".0f"),
    ("KL", "policy/kl", ".2e"),
    ("step fraction", "policy/step_fraction", ".2f"),
    ("improvement", "policy/improvement", ".4f"),
    ("entropy", "policy/entropy", ".2f"),
    ("explained var.", "value/explained_variance", ".3f"),
    ("CG residual", "cg/residual", ".1e"),
)


def warn(message: str) -> None:
    """One line on stderr, control characters escaped; silent when stderr is gone."""
    try:
        print(f"trpo_tf: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in message)}", file=sys.stderr)
    except (OSError, ValueError):
        sys.stderr = io.StringIO()


def to_json(values) -> bytes:
    """JSON as it is written to a file of a run."""
    return (json.dumps(values, indent=1) + "\n").encode()


class Csv:
    """progress.csv: one row per update, each exactly once, also over interruptions and a disk that was full.

    Args:
      path: of the file.
      update: rows after this update are from before the run was set back, and dropped.
    """

    def __init__(self, path: Path, update: int):
        self._path = path
        self._waiting: list[Metrics] = []
        rows = read_csv(path) if path.exists() else []
        kept = [row for row in rows if row["update"].isdigit() and int(row["update"]) <= update]
        self._columns = list(kept[0]) if kept else []
        if path.exists():  # also rids the file of a line that was cut off
            temporary = path.with_name(f".{path.name}.tmp")
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                if kept:
                    writer = csv.DictWriter(file, self._columns)
                    writer.writeheader()
                    writer.writerows(kept)
            temporary.replace(path)

    def write(self, metrics: Metrics) -> None:
        """Adds a row; the first one sets the columns. Rows that the disk refuses are kept for the next call."""
        self._waiting.append(metrics)
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns or list(metrics), extrasaction="ignore", restval="")
        if not self._columns:
            writer.writeheader()
        writer.writerows(self._waiting)
        with open(self._path, "ab") as file:
            end = file.tell()
            try:
                file.write(text.getvalue().encode())
                file.flush()
            except OSError:
                file.truncate(end)
                raise
        self._columns, self._waiting = list(writer.fieldnames), []


def read_csv(path: Path) -> list[dict[str, str]]:
    """The whole rows of a progress.csv; a last line that was cut off is left out."""
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if None not in row and None not in row.values()]


class TensorBoard:
    """TensorBoard event files, by environment steps."""

    def __init__(self, directory: Path):
        self._writer = tf.summary.create_file_writer(str(directory))

    def write(self, metrics: Metrics) -> None:
        """Adds the numbers among the metrics; words are left out."""
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        # One record for all of them: tf.summary.scalar, one call each, would take longer than a policy step's search.
        summary = tf.compat.v1.Summary(
            value=[tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        )
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=int(metrics["env_steps"]))
        self._writer.flush()


class _PatientConsole(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """`| head` has read enough; the run goes on without a screen."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Screen:
    """A progress bar over a table on a terminal; elsewhere a plain line now and then.

    Args:
      total_steps: of the run.
      line_every: updates between plain lines.
    """

    def __init__(self, total_steps: int, env_steps: int, line_every: int = 10):
        self._console = _PatientConsole()
        self._line_every = line_every
        self._total = total_steps
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:,}/{task.total:,} steps"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[speed]:,.0f} steps/s"),
            rich.progress.TextColumn("time left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=env_steps, speed=0.0)
        self._live = None
        if self._console.is_terminal:
            self._live = rich.live.Live(self._bar, console=self._console, auto_refresh=False)
            self._live.start()

    def say(self, message: str) -> None:
        """A line of its own, above the table."""
        with forgiving("screen"):
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def write(self, metrics: Metrics) -> None:
        """Shows an update."""
        steps, speed = int(metrics["env_steps"]), float(metrics["time/env_steps_per_second"])
        if self._live is not None:
            self._bar.update(self._task, completed=min(steps, self._total), speed=speed)
            self._live.update(rich.console.Group(self._table(metrics), self._bar), refresh=True)
        elif metrics["update"] % self._line_every == 1:
            left = max(0, self._total - steps) / max(speed, 1e-9)
            parts = [f"{name} {_format(metrics.get(key), form)}" for name, key, form in _SHOWN]
            self.say(f"{steps:>9,} steps, {speed:,.0f}/s, {left:.0f} s left | {', '.join(parts)}")

    def _table(self, metrics: Metrics) -> rich.table.Table:
        """Two rows of name and value, so that it fits into 80 columns."""
        table = rich.table.Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        for _ in range(len(_SHOWN) // 2):
            table.add_column(style="dim", no_wrap=True)
            table.add_column(justify="right", no_wrap=True)
        cells = [(name, _format(metrics.get(key), form)) for name, key, form in _SHOWN]
        for row in (cells[::2], cells[1::2]):
            table.add_row(*(text for cell in row for text in cell))
        return table

    def evaluation(self, summary: Metrics) -> None:
        """The table of an evaluation's summary."""
        with forgiving("screen"):
            self._console.print(evaluation_table(summary))

    def close(self) -> None:
        """Leaves the last view standing."""
        if self._live is not None:
            self._live.stop()


def _format(value, form: str) -> str:
    return "-" if value is None else format(float(value), form)


def evaluation_table(summary: Metrics, kind: str = "deterministic") -> rich.table.Table:
    """Mean, spread, minimum and maximum of an evaluation's returns and lengths."""
    table = rich.table.Table("", "mean", "std", "min", "max", title=f"{summary['episodes']} {kind} episodes")
    for name in ("return", "length"):
        table.add_row(name, *(f"{summary[f'{name}_{statistic}']:.2f}" for statistic in ("mean", "std", "min", "max")))
    return table


class Metering:
    """All the places at once; one that fails is named once and does not keep the others from writing."""

    def __init__(self, *places):
        self._places = places
        self._named: set[str] = set()
        self._waiting: tuple[Metrics, Future] | None = None

    def write(self, metrics: Metrics, rest: Future) -> None:
        """Takes an update's metrics; every place gets them once the rest is there, at the latest at the next call."""
        self.flush()
        self._waiting = metrics, rest
        if rest.done():
            self.flush()

    def flush(self) -> None:
        """Waits for the rest of what waits, and hands it over.

        Raises:
          Exception: what the rest ended with.
        """
        if self._waiting is None:
            return
        (metrics, rest), self._waiting = self._waiting, None
        metrics = metrics | rest.result()
        for place in self._places:
            with forgiving(type(place).__name__, self._named):
                place.write(metrics)


@contextlib.contextmanager
def forgiving(what: str, named: set[str] | None = None):
    """Turns an output that fails, a full disk say, into a warning; with `named`, into one warning per name."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if named is None or what not in named:
            warn(f"{what} failed, training goes on: {str(error).splitlines()[0]}")
        if named is not None:
            named.add(what)
