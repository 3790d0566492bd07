"""python -m trpo_tf.plot: draws learning curves."""

import csv
import os
from pathlib import Path

from trpo_tf import cli
from trpo_tf.config import PlotConfig
from trpo_tf.errors import UsageError, reason
from trpo_tf.messages import tell


def main(given):
    """Draws the chosen columns of every run's progress.csv over environment steps."""
    config = PlotConfig(**given)
    cli.check_paths(config)
    os.environ["MPLBACKEND"] = "agg"  # no window is opened, whatever it was
    from trpo_tf.plotting import Curve, draw

    panels: dict[str, list] = {name: [] for name in config.metric}
    for run_dir in config.run_dirs:
        rows = _rows(run_dir)
        steps = [_number(row["env_steps"]) for row in rows]
        for name, curves in panels.items():
            if name not in rows[0]:
                raise UsageError(f"--metric={name}: not a column; there are {', '.join(rows[0])}")
            curves.append(Curve(Path(run_dir).name, steps, [_number(row[name]) for row in rows]))
    draw(panels, config.output)
    tell(config.output)


def _rows(run_dir: str) -> list[dict[str, str]]:
    """The rows of a run's progress.csv.

    Raises:
      UsageError: there is none, or it cannot be read.
    """
    from trpo_tf.run.metrics.csv import read_csv

    try:
        rows = read_csv(Path(run_dir) / "progress.csv")
    except FileNotFoundError:
        raise UsageError(f"--run_dirs={run_dir}: no progress.csv there") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"--run_dirs={run_dir}: progress.csv cannot be read: {reason(error)}") from error
    if not rows:
        raise UsageError(f"--run_dirs={run_dir}: its progress.csv has no whole row")
    if not all(isinstance(_number(row.get("env_steps", "")), float) for row in rows):
        raise UsageError(f"--run_dirs={run_dir}: its progress.csv has no column env_steps of numbers")
    return rows


def _number(text: str) -> float | str | None:
    """What a cell holds: a number, a word, or None where it is empty."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


if __name__ == "__main__":
    cli.run(main, PlotConfig, "plot", "Draws learning curves of one or more runs.")
