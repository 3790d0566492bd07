"""The recipes of flags/ that the benchmarks train, the return expected of each, and a function that trains one."""

import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "flags"
# (environment, recipe): (environment steps, the mean return that releases have to reach)
TABLE = {
    ("CartPole-v1", "classic_control"): (100_000, 500),
    ("Acrobot-v1", "classic_control"): (200_000, -90),
    ("MountainCar-v0", "classic_control"): (200_000, -115),
    ("Pendulum-v1", "pendulum"): (200_000, -200),
    ("MountainCarContinuous-v0", "mountain_car_continuous"): (100_000, 93),
    ("InvertedPendulum-v5", "inverted_pendulum"): (1_000_000, 1000),
    ("InvertedDoublePendulum-v5", "inverted_pendulum"): (1_000_000, 9300),
    ("Reacher-v5", "mujoco"): (1_000_000, -4),
    ("Pusher-v5", "mujoco"): (1_000_000, -32),
    ("Hopper-v5", "mujoco"): (1_000_000, 3200),
    ("HalfCheetah-v5", "half_cheetah"): (1_000_000, 6500),
    ("Walker2d-v5", "walker2d"): (1_000_000, 4500),
    ("Swimmer-v5", "swimmer"): (1_000_000, 340),
    ("Ant-v5", "ant"): (1_000_000, 3800),
    ("Humanoid-v5", "humanoid"): (1_000_000, 4500),
    ("HumanoidStandup-v5", "mujoco"): (1_000_000, 145_000),
    ("LunarLander-v3", "box2d"): (1_000_000, 250),
    ("LunarLanderContinuous-v3", "box2d"): (1_000_000, 220),
    ("BipedalWalker-v3", "box2d"): (1_000_000, 270),
    ("Pong-v5", "atari"): (2_000_000, 15),
    ("Breakout-v5", "atari"): (2_000_000, 20),
}
# By recipe: settings as they were until November 2026. Others were measured with them: results/against.json and
# results/vine.json; and returns.py --before compares with them. half_cheetah, walker2d: the recipe mujoco of then.
_PLAIN = ("--action_distribution=gaussian", "--layer_norm=none")
BEFORE = {
    "mujoco": _PLAIN,
    "half_cheetah": (*_PLAIN, "--num_envs=16", "--gae_lambda=0.95", "--max_step=0.1"),
    "walker2d": _PLAIN,
    "ant": (*_PLAIN, "--gae_lambda=0.8"),
    "swimmer": (*_PLAIN, "--noise_color=0"),
    "classic_control": ("--layer_norm=none",),
}
RECIPE = dict(TABLE.keys())  # of each environment


def trained(
    run_dir: Path, env: str, recipe: str, seed: int, more: tuple[str, ...] = (), seconds: float | None = None
) -> Path:
    """Trains a run to its end, and returns run_dir. A finished run is left as it is, an interrupted one is resumed.

    Args:
      run_dir: of the run.
      env, recipe: a key of TABLE; another one where `more` has the steps.
      seed: of the run.
      more: flags beside those of the recipe, of a new run.
      seconds: after so many the run is killed; None: never.

    Raises:
      subprocess.CalledProcessError: the run failed.
      subprocess.TimeoutExpired: it was killed.
    """
    if (run_dir / "evaluation.json").exists():
        return run_dir
    command = [sys.executable, "-m", "trpo_tf.train", f"--run_dir={run_dir.absolute()}"]
    if any((run_dir / "checkpoints").glob("update_*")):
        command.append("--resume")
    else:
        command += [f"--flagfile={RECIPES / recipe}.flags", f"--env={env}", f"--seed={seed}"]
        if (env, recipe) in TABLE:
            command.append(f"--total_steps={TABLE[env, recipe][0]}")
        command += more
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=seconds, cwd=RECIPES.parent)
    return run_dir
