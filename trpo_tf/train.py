"""python -m trpo_tf.train: trains a policy."""

from pathlib import Path

from trpo_tf import cli
from trpo_tf.config import Config, check_address, from_dict, of_checkpoint

TEXT = "Trains a policy by Trust Region Policy Optimization."


def main(given):
    """Trains with the flags given; a resumed run takes the others from its checkpoint, but for places and imports."""
    if given.get("resume") and given.get("run_dir"):
        from trpo_tf.run import checkpoint

        settings = checkpoint.newest(Path(given["run_dir"]) / "checkpoints").meta["config"]
        check_address(settings, given)
        config = of_checkpoint(settings, given)
    else:
        config = from_dict(given)
    if not config.run.run_dir:
        from trpo_tf.run.directory import default_name

        config = config.replace(run_dir=default_name(config))
    cli.check_paths(config)
    return cli.PREEMPTED if cli.load_runs().run_training(config).preempted else cli.OK


if __name__ == "__main__":
    cli.run(main, Config, "train", TEXT)
