"""python -m trpo_tf.plot: draws learning curves."""

from pathlib import Path

from trpo_tf import cli
from trpo_tf.config import PlotConfig, UsageError


def main(given):
    """Draws the chosen columns of every run's progress.csv over environment steps."""
    config = PlotConfig(**given)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from trpo_tf.run.metrics import read_csv

    figure, axes = plt.subplots(len(config.metric), squeeze=False, sharex=True, figsize=(8, 2.6 * len(config.metric)))
    for run_dir in config.run_dirs:
        path = Path(run_dir) / "progress.csv"
        if not path.is_file():
            raise UsageError(f"--run_dirs={run_dir}: no progress.csv there")
        rows = read_csv(path)
        for axis, name in zip(axes[:, 0], config.metric, strict=True):
            if rows and name not in rows[0]:
                raise UsageError(f"--metric={name}: not a column; there are {', '.join(rows[0])}")
            points = [(int(row["env_steps"]), float(row[name])) for row in rows if row[name]]
            axis.plot(*zip(*points, strict=True), label=Path(run_dir).name, linewidth=1) if points else None
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("environment steps")
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(config.output, dpi=120)
    print(config.output)


if __name__ == "__main__":
    cli.run(main, PlotConfig, "plot", "Draws learning curves of one or more runs.")
