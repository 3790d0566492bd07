"""python -m trpo_tf.evaluate: runs episodes with a trained policy."""

from trpo_tf import cli
from trpo_tf.config import EvaluateConfig
from trpo_tf.files import to_json
from trpo_tf.messages import tell


def main(given):
    """Prints mean, spread, minimum and maximum of return and length, as a table and as JSON."""
    config = EvaluateConfig(**given)
    cli.check_paths(config)
    runs = cli.load_runs()
    import rich.progress

    from trpo_tf.run.metrics.screen import evaluation_table, make_console

    console = make_console(stderr=config.json == "-")
    with rich.progress.Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("episodes", total=config.episodes)
        result = runs.run_evaluation(config, progress=lambda done: bar.update(task, completed=done))
    summary = result.summary()
    text = to_json(summary | {"returns": result.returns.tolist(), "lengths": result.lengths.tolist()})
    if config.json == "-":
        tell(text)
        return
    if config.json:
        with open(config.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    console.print(evaluation_table(summary, "stochastic" if config.stochastic else "deterministic"))
    tell(to_json(summary))


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, "evaluate", "Runs whole episodes with a checkpoint or a SavedModel.")
