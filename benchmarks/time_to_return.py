"""Wall-clock time until the training return reaches a target, against sb3-contrib with rl-zoo's recipe.

    make peers                                                    # their own environment, .venv-peers
    python benchmarks/time_to_return.py                           # half an hour, nearly all of it the peer's

From the start of the process, imports and compilation included, to the first update after which the mean return of the
last 20 training episodes is at least the target; runs that end without it count as endless. This project runs with its
defaults, evaluations and checkpoints included; the peer with the recipe of RL Baselines3 Zoo for MuJoCo: 2 environments
of 1024 steps, normalised observations and rewards, 20 critic passes, 25 CG iterations, target KL 0.04 on HalfCheetah
and 0.01 elsewhere. Systems take turns. Writes results/time_to_return.json and .md.
"""

import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from peers import ask

from trpo_tf.run.metrics import read_csv

RESULTS = Path(__file__).resolve().parent / "results"
WINDOW = 20  # episodes

FLAGS = flags.FLAGS
flags.DEFINE_list("envs", ["Hopper-v5", "HalfCheetah-v5"], "environments")
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of each")
flags.DEFINE_float("target", 3000.0, "mean return of the last 20 episodes")
flags.DEFINE_integer("steps", 1_000_000, "environment steps after which a run has failed")


def ours(env: str, seed: str) -> int | None:
    """Environment steps until the target; the run is stopped there."""
    with tempfile.TemporaryDirectory() as directory:
        wanted = [f"--env={env}", f"--seed={seed}", f"--total_steps={FLAGS.steps}", f"--run_dir={directory}/run"]
        process = subprocess.Popen([sys.executable, "-m", "trpo_tf.train", *wanted], stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                steps = reached(Path(directory) / "run" / "progress.csv")
                if steps is not None:
                    return steps
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return None


def reached(path: Path) -> int | None:
    """Environment steps of the newest row, if the return is there."""
    rows = read_csv(path) if path.exists() else []
    good = rows and int(rows[-1]["env/episodes"]) >= WINDOW and float(rows[-1]["env/episode_return"]) >= FLAGS.target
    return int(rows[-1]["env_steps"]) if good else None


def peer(env: str, seed: str) -> int | None:
    """The same of sb3-contrib."""
    recipe = {"num_envs": 2, "rows": 2048, "epochs": 20, "cg_iterations": 25, "normalize": True}
    recipe["target_kl"] = 0.04 if env.startswith("HalfCheetah") else 0.01
    return ask(task="return", env=env, seed=seed, target=FLAGS.target, steps=FLAGS.steps, window=WINDOW, **recipe)


SYSTEMS = {"trpo_tf defaults": ours, "sb3-contrib rl-zoo": peer}


def table(records: list[dict]) -> str:
    """Seconds by seed, their medians, and how many times as long the peer takes."""
    lines = ["| environment | system | seconds (env steps) by seed | median, s | ours is |", "|---|---|---|---|---|"]
    for env in dict.fromkeys(r["env"] for r in records):
        mine = {name: [r for r in records if r["env"] == env and r["system"] == name] for name in SYSTEMS}
        medians = {
            name: statistics.median(r["seconds"] if r["env_steps"] else math.inf for r in rows)
            for name, rows in mine.items()
        }
        for name, rows in mine.items():
            seeds = ", ".join(
                f"{r['seconds']:.0f} ({r['env_steps']:,})" if r["env_steps"] else f"not in {r['seconds']:.0f}"
                for r in rows
            )
            ratio = medians[name] / medians["trpo_tf defaults"]
            lines.append(f"| {env} | {name} | {seeds} | {medians[name]:.0f} | {ratio:.1f} x as fast |")
    return "\n".join(lines) + "\n"


def main(argv):
    """Runs in turns and writes what was found."""
    del argv
    records = []
    for env in FLAGS.envs:
        for seed in FLAGS.seeds:
            for name, run in SYSTEMS.items():
                start = time.perf_counter()
                steps = run(env, seed)
                spent = time.perf_counter() - start
                records.append({"env": env, "system": name, "seed": int(seed), "seconds": spent, "env_steps": steps})
                print(records[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "time_to_return.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "time_to_return.md").write_text(table(records), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    app.run(main)
