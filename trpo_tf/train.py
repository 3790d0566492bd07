"""python -m trpo_tf.train: trains a policy."""

from trpo_tf import cli
from trpo_tf.config import Config, UsageError


def main(given):
    """Trains with the flags given; a resumed run takes the others from its checkpoint."""
    if given.get("resume"):
        if not given.get("run_dir"):
            raise UsageError("--resume needs --run_dir, the run to go on with")
        from pathlib import Path

        from trpo_tf.run import checkpoint

        saved = checkpoint.newest(Path(given["run_dir"]) / "checkpoints")
        given = saved.meta["config"] | given
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    from trpo_tf import api

    return cli.PREEMPTED if api.train(config).preempted else cli.OK


if __name__ == "__main__":
    cli.run(main, Config, "train", "Trains a policy by Trust Region Policy Optimization.")
