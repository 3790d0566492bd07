"""Wall-clock time until the training return reaches a target, against sb3-contrib with rl-zoo's recipe.

    make peers                                                    # their own environment, .venv-peers
    python benchmarks/time_to_return.py                           # half an hour, nearly all of it the peer's

The clock starts with the process, imports and compilation included. It stops at the first row of progress.csv at which
the mean return of the last 20 training episodes is at least the target; for the peer, at the end of the first such
rollout. A run that ends before that counts as endless.

trpo_tf runs with its best recipe for the environment, evaluations and checkpoints included. The peer runs with the
recipe of RL Baselines3 Zoo for MuJoCo: 2 environments of 1024 steps, normalised observations and rewards, 20 critic
passes, 25 CG iterations, target KL 0.04 on HalfCheetah and 0.01 elsewhere. Systems take turns. Writes
results/time_to_return.json and .md; what is not run again stays in them.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from peers import ask, zoo
from recipes import RECIPE, RECIPES

from trpo_tf.run.metrics.csv import read_csv

RESULTS = Path(__file__).resolve().parent / "results"
WINDOW = 20  # episodes

FLAGS = flags.FLAGS
flags.DEFINE_list("envs", ["Hopper-v5", "HalfCheetah-v5"], "environments")
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of each")
flags.DEFINE_float("target", 3000.0, "mean return of the last 20 episodes")
flags.DEFINE_integer("steps", 1_000_000, "environment steps after which a run has failed")
flags.DEFINE_string("results", "time_to_return", "name of the files in results/")


def ours(env: str, seed: str) -> int | None:
    """Environment steps until the target, None if it was not reached. The run is stopped there.

    Raises:
      subprocess.CalledProcessError: the run failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        wanted = [f"--env={env}", f"--seed={seed}", f"--total_steps={FLAGS.steps}", f"--run_dir={directory}/run"]
        command = [sys.executable, "-m", "trpo_tf.train", f"--flagfile={RECIPES / RECIPE[env]}.flags", *wanted]
        process, running = subprocess.Popen(command, stdout=subprocess.DEVNULL), True
        while running:
            time.sleep(0.2)
            running = process.poll() is None
            steps = reached(Path(directory) / "run" / "progress.csv")
            if steps is not None:
                process.kill()
                process.wait()
                return steps
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    return None


def reached(path: Path) -> int | None:
    """Environment steps of the first row at which the return is the target; None if there is none yet."""
    for row in read_csv(path) if path.exists() else []:
        if int(row["env/episodes"]) >= WINDOW and float(row["env/episode_return"]) >= FLAGS.target:
            return int(row["env_steps"])
    return None


def peer(env: str, seed: str) -> int | None:
    """Environment steps until sb3-contrib reaches the target, None if it does not."""
    return ask(task="return", env=env, seed=seed, target=FLAGS.target, steps=FLAGS.steps, window=WINDOW, **zoo(env))


OURS = "trpo_tf"
SYSTEMS = {OURS: ours, "sb3-contrib rl-zoo": peer}


def table(records: list[dict]) -> str:
    """Seconds by seed, their medians, and how many times as long as trpo_tf the peer takes."""
    lines = ["| environment | system | seconds (env steps) by seed | median, s | ours is |", "|---|---|---|---|---|"]
    for env in dict.fromkeys(r["env"] for r in records):
        mine = {name: [r for r in records if (r["env"], r["system"]) == (env, name)] for name in SYSTEMS}
        mine = {name: rows for name, rows in mine.items() if rows}
        medians = {
            name: statistics.median(r["seconds"] if r["env_steps"] else math.inf for r in rows)
            for name, rows in mine.items()
        }
        # Where half of the runs or more missed the target, the median is more than what the shortest of those took.
        ended = {
            name: min((r["seconds"] for r in rows if not r["env_steps"]), default=0) for name, rows in mine.items()
        }
        for name, rows in mine.items():
            seeds = ", ".join(
                f"{r['seconds']:.0f} ({r['env_steps']:,})" if r["env_steps"] else f"not in {r['seconds']:.0f}"
                for r in rows
            )
            reached = math.isfinite(medians[name])
            least = medians[name] if reached else ended[name]
            more = "" if reached else "more than "
            other = name != OURS and math.isfinite(medians.get(OURS, math.inf))
            ratio = f"{more}{least / medians[OURS]:.1f} x as fast" if other else ""
            lines.append(f"| {env} | {name} | {seeds} | {more}{least:.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(argv):
    """Runs in turns and writes what was found."""
    del argv
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{FLAGS.results}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    records = {(r["env"], r["system"], r["seed"]): r for r in earlier}
    for env in FLAGS.envs:
        for seed in FLAGS.seeds:
            for name, run in SYSTEMS.items():
                start = time.perf_counter()
                steps = run(env, seed)
                spent = time.perf_counter() - start
                record = {"env": env, "system": name, "seed": int(seed), "seconds": spent, "env_steps": steps}
                records[env, name, int(seed)] = record
                print(record, flush=True)
                path.write_text(json.dumps(list(records.values()), indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".md").write_text(table(list(records.values())), encoding="utf-8")
    print(table(list(records.values())))


if __name__ == "__main__":
    app.run(main)
