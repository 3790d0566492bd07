"""python -m trpo_tf.evaluate: runs episodes with a trained policy."""

import json

import rich.console
import rich.progress

from trpo_tf import cli
from trpo_tf.config import EvaluateConfig


def main(given):
    """Prints mean, spread, minimum and maximum of return and length, as a table and as JSON."""
    config = EvaluateConfig(**given)
    runs = cli.load_runs()
    from trpo_tf.run.metrics.screen import evaluation_table

    console = rich.console.Console(stderr=config.json == "-")
    with rich.progress.Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("episodes", total=config.episodes)
        result = runs.run_evaluation(config, progress=lambda done: bar.update(task, completed=done))
    summary = result.summary()
    text = json.dumps(summary | {"returns": result.returns.tolist(), "lengths": result.lengths.tolist()})
    if config.json == "-":
        print(text)
        return
    console.print(evaluation_table(summary, "stochastic" if config.stochastic else "deterministic"))
    print(json.dumps(summary))
    if config.json:
        with open(config.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, "evaluate", "Runs whole episodes with a checkpoint or a SavedModel.")
