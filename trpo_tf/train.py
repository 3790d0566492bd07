"""python -m trpo_tf.train: trains a policy."""

from pathlib import Path

from trpo_tf import cli
from trpo_tf.config import Config, from_dict
from trpo_tf.errors import UsageError


def main(given):
    """Trains with the flags given; a resumed run takes the others from its checkpoint."""
    if given.get("resume"):
        if not given.get("run_dir"):
            raise UsageError("--resume needs --run_dir, the run to go on with")
        from trpo_tf.run import checkpoint

        saved = checkpoint.newest(Path(given["run_dir"]) / "checkpoints").meta["config"]
        given = saved | {"allow_env_module": False} | given
    config = from_dict(given)
    return cli.PREEMPTED if cli.load_runs().run_training(config).preempted else cli.OK


if __name__ == "__main__":
    cli.run(main, Config, "train", "Trains a policy by Trust Region Policy Optimization.")
