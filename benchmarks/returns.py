"""Trains the recipes that the README's table reports, several seeds each, and writes that table.

    python benchmarks/returns.py                       # everything, an hour or two on two cores
    python benchmarks/returns.py --envs=Hopper-v5 --seeds=0,1,2,3,4

Every run's final evaluation (20 deterministic episodes) goes to results/returns.json, its progress.csv, thinned to at
most 200 rows, to results/<env>-s<seed>.csv, and the table to results/returns.md. Runs that are already in --work_dir
are not trained again; one that was interrupted is resumed.
"""

import csv
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import app, flags

from trpo_tf.run.metrics import read_csv

HERE = Path(__file__).resolve().parent
RESULTS, RECIPES = HERE / "results", HERE.parent / "flags"
# environment: recipe, environment steps, the mean return that the recipe is expected to reach
TABLE = {
    "CartPole-v1": ("classic_control", 100_000, 500),
    "Acrobot-v1": ("classic_control", 200_000, -90),
    "Pendulum-v1": ("pendulum", 200_000, -250),
    "InvertedPendulum-v5": ("inverted_pendulum", 1_000_000, 1000),
    "InvertedDoublePendulum-v5": ("inverted_pendulum", 1_000_000, 8500),
    "Hopper-v5": ("mujoco", 1_000_000, 3200),
    "HalfCheetah-v5": ("mujoco", 1_000_000, 5000),
    "Walker2d-v5": ("mujoco", 1_000_000, 4000),
    "Swimmer-v5": ("swimmer", 1_000_000, 340),
    "Ant-v5": ("ant", 1_000_000, 1500),
}
MOST_ROWS = 200

FLAGS = flags.FLAGS
flags.DEFINE_list("envs", list(TABLE), "environments to train on")
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of each")
flags.DEFINE_string("work_dir", "runs/returns", "where the runs themselves go")
flags.DEFINE_integer("jobs", 1, "runs at a time; more than one spoils the speeds that are recorded", lower_bound=1)


def train(env: str, seed: int, work_dir: Path) -> dict:
    """One run from start to end, or from where it was interrupted. Returns its record."""
    recipe, steps, _ = TABLE[env]
    run_dir = work_dir / f"{env}-s{seed}"
    if not (run_dir / "evaluation.json").exists():
        command = [sys.executable, "-m", "trpo_tf.train", f"--run_dir={run_dir}"]
        if any((run_dir / "checkpoints").glob("update_*")):
            command.append("--resume")
        else:
            command += [
                f"--flagfile={RECIPES / recipe}.flags",
                f"--env={env}",
                f"--seed={seed}",
                f"--total_steps={steps}",
            ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = read_csv(run_dir / "progress.csv")
    thin(rows, RESULTS / f"{env}-s{seed}.csv")
    evaluation = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    best = max((float(row["eval/episode_return"]) for row in rows if row["eval/episode_return"]), default=None)
    # Wall clock from the end of the first update on: evaluations, checkpoints and logging included, compilation not.
    seconds = float(rows[-1]["time/elapsed_seconds"]) - float(rows[0]["time/elapsed_seconds"])
    speed = (int(rows[-1]["env_steps"]) - int(rows[0]["env_steps"])) / seconds
    record = {"env": env, "seed": seed, "recipe": recipe, "env_steps": int(rows[-1]["env_steps"])}
    return record | {"final": evaluation, "best_periodic_return": best, "env_steps_per_second": speed}


def thin(rows: list[dict[str, str]], path: Path) -> None:
    """Writes at most MOST_ROWS rows, evenly spaced, the last one among them."""
    count = min(MOST_ROWS, len(rows))
    kept = [rows[round((k + 1) * len(rows) / count) - 1] for k in range(count)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)


def markdown(records: list[dict]) -> str:
    """The table: one row per environment, seeds side by side."""
    lines = [
        "| environment | recipe | steps | return by seed | mean | expected | steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for env, (recipe, steps, expected) in TABLE.items():
        mine = sorted((r for r in records if r["env"] == env), key=lambda r: r["seed"])
        if not mine:
            continue
        returns = [r["final"]["return_mean"] for r in mine]
        seeds = ", ".join(f"{r['seed']}: {value:.0f}" for r, value in zip(mine, returns, strict=True))
        speed = statistics.median(r["env_steps_per_second"] for r in mine)
        mean = statistics.mean(returns)
        lines.append(
            f"| {env} | `flags/{recipe}.flags` | {steps:,} | {seeds} | {mean:.0f} | {expected} | {speed:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv):
    """Trains, then merges the records with those of earlier calls."""
    del argv
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "returns.json"
    records = {(r["env"], r["seed"]): r for r in (json.loads(path.read_text()) if path.exists() else [])}
    with ThreadPoolExecutor(FLAGS.jobs) as pool:
        wanted = [(env, int(seed)) for env in FLAGS.envs for seed in FLAGS.seeds]
        for record in pool.map(lambda key: train(*key, Path(FLAGS.work_dir)), wanted):
            records[record["env"], record["seed"]] = record
            print(record["env"], record["seed"], round(record["final"]["return_mean"], 1), flush=True)
    path.write_text(json.dumps(list(records.values()), indent=1) + "\n", encoding="utf-8")
    (RESULTS / "returns.md").write_text(markdown(list(records.values())), encoding="utf-8")
    print(markdown(list(records.values())))


if __name__ == "__main__":
    app.run(main)
