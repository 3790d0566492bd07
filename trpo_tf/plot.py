"""python -m trpo_tf.plot: draws learning curves."""

from pathlib import Path

from trpo_tf import cli
from trpo_tf.config import PlotConfig
from trpo_tf.errors import UsageError


def main(given):
    """Draws the chosen columns of every run's progress.csv over environment steps."""
    config = PlotConfig(**given)
    from trpo_tf.plotting import Curve, draw
    from trpo_tf.run.metrics.csv import read_csv

    panels: dict[str, list] = {name: [] for name in config.metric}
    for run_dir in config.run_dirs:
        path = Path(run_dir) / "progress.csv"
        if not path.is_file():
            raise UsageError(f"--run_dirs={run_dir}: no progress.csv there")
        rows = read_csv(path)
        steps = [int(row["env_steps"]) for row in rows]
        for name, curves in panels.items():
            if rows and name not in rows[0]:
                raise UsageError(f"--metric={name}: not a column; there are {', '.join(rows[0])}")
            curves.append(Curve(Path(run_dir).name, steps, [float(row[name]) if row[name] else None for row in rows]))
    draw(panels, config.output)
    print(config.output)


if __name__ == "__main__":
    cli.run(main, PlotConfig, "plot", "Draws learning curves of one or more runs.")
