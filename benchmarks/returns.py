"""Trains the recipes that the README's table reports, several seeds each, and writes that table.

    python benchmarks/returns.py                       # all of the table, an hour or two on two cores
    python benchmarks/returns.py --envs=Hopper-v5 --seeds=0,1,2,3,4
    python benchmarks/returns.py --envs=Hopper-v5,HalfCheetah-v5 --vary=num_envs=4,8,16,32,64,128
    python benchmarks/returns.py --envs=Hopper-v5 --vary=action_distribution=gaussian,squashed_gaussian,beta

The final evaluation of every run (20 deterministic episodes) goes to results/returns.json, and the table to
results/returns.md. At most 200 rows of its progress.csv go to results/<env>-s<seed>.csv.

With --vary, the first recipe of each environment is trained with several values of one flag. Returns and speeds by
value go to results/<flag>.json and .md.

A finished run in --work_dir is not trained again, and an interrupted one is resumed.
"""

import csv
import itertools
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import app, flags
from recipes import FIRST, TABLE, trained

from trpo_tf.run.metrics.csv import read_csv

RESULTS = Path(__file__).resolve().parent / "results"
MOST_ROWS = 200

FLAGS = flags.FLAGS
flags.DEFINE_list("envs", list(FIRST), "environments to train on")
flags.DEFINE_list("recipes", [], "recipes to train; empty: all of the table")
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of each")
flags.DEFINE_string("vary", "", "a flag and its values, flag=value,value, in place of the recipe's")
flags.register_validator("vary", lambda x: not x or all(x.partition("=")), message="give it as flag=value,value")
flags.DEFINE_string("work_dir", "runs/returns", "where the runs themselves go")
flags.DEFINE_integer("jobs", 1, "runs at a time; more than one spoils the speeds that are recorded", lower_bound=1)


def train(env: str, recipe: str, seed: int, work_dir: Path, varied: tuple[str, ...] = ()) -> dict:
    """Trains one run to its end, and returns its record. varied: a flag and its value, in place of the recipe's."""
    name = env if recipe == FIRST[env] else f"{env}-{recipe}"
    more = ("--{}={}".format(*varied),) if varied else ()
    run_dir = trained(work_dir / f"{'-'.join([name, *varied])}-s{seed}", env, recipe, seed, more)
    rows = read_csv(run_dir / "progress.csv")
    if not varied:
        thin(rows, RESULTS / f"{name}-s{seed}.csv")
    evaluation = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    # A run that ends before the first periodic evaluation has no such column.
    best = max((float(row["eval/episode_return"]) for row in rows if row.get("eval/episode_return")), default=None)
    # Wall-clock time from the end of the first update on: evaluations, checkpoints and logging are in it, compilation
    # is not.
    seconds = float(rows[-1]["time/elapsed_seconds"]) - float(rows[0]["time/elapsed_seconds"])
    speed = (int(rows[-1]["env_steps"]) - int(rows[0]["env_steps"])) / seconds
    record = {"env": env, "seed": seed, "recipe": recipe, "env_steps": int(rows[-1]["env_steps"])}
    record |= dict([varied] if varied else [])
    return record | {"final": evaluation, "best_periodic_return": best, "env_steps_per_second": speed}


def thin(rows: list[dict[str, str]], path: Path) -> None:
    """Writes at most MOST_ROWS rows to a CSV file, evenly spaced, the last one among them."""
    count = min(MOST_ROWS, len(rows))
    kept = [rows[round((k + 1) * len(rows) / count) - 1] for k in range(count)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)


def summary(records: list[dict]) -> tuple[str, str, str]:
    """Returns by seed, their mean, and the median speed, for a table."""
    seeds = ", ".join(f"{r['seed']}: {r['final']['return_mean']:.0f}" for r in records)
    mean = statistics.mean(r["final"]["return_mean"] for r in records)
    speed = statistics.median(r["env_steps_per_second"] for r in records)
    return seeds, f"{round(mean)}", f"{speed:,.0f}"


def markdown(records: list[dict]) -> str:
    """A line per environment and recipe, seeds side by side."""
    lines = [
        "| environment | recipe | steps | return by seed | mean | expected | steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (env, recipe), (steps, expected) in TABLE.items():
        mine = sorted((r for r in records if (r["env"], r["recipe"]) == (env, recipe)), key=lambda r: r["seed"])
        if not mine:
            continue
        seeds, mean, speed = summary(mine)
        lines.append(f"| {env} | `flags/{recipe}.flags` | {steps:,} | {seeds} | {mean} | {expected} | {speed} |")
    return "\n".join(lines) + "\n"


def by_value(records: list[dict], flag: str) -> str:
    """A line per environment and value of a flag, in the order of the records."""
    lines = [f"| environment | {flag} | return by seed | mean | steps/s |", "|---|---|---|---|---|"]
    for env, value in dict.fromkeys((r["env"], r[flag]) for r in records):
        mine = sorted((r for r in records if (r["env"], r[flag]) == (env, value)), key=lambda r: r["seed"])
        lines.append(f"| {env} | {value} | {' | '.join(summary(mine))} |")
    return "\n".join(lines) + "\n"


def main(argv):
    """Trains, then merges the records with those of earlier calls."""
    del argv
    RESULTS.mkdir(exist_ok=True)
    flag, _, values = FLAGS.vary.partition("=")
    path = RESULTS / f"{flag or 'returns'}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    records = {(r["env"], r["recipe"], r.get(flag), r["seed"]): r for r in earlier}
    chosen = [(env, recipe) for env, recipe in TABLE if env in FLAGS.envs and recipe in (FLAGS.recipes or [recipe])]
    if flag:
        chosen = [(env, recipe) for env, recipe in chosen if recipe == FIRST[env]]
    varied = [(flag, value) for value in values.split(",")] if flag else [()]
    wanted = [
        (*key, int(seed), Path(FLAGS.work_dir), setting)
        for key, setting, seed in itertools.product(chosen, varied, FLAGS.seeds)
    ]
    with ThreadPoolExecutor(FLAGS.jobs) as pool:
        for record in pool.map(lambda run: train(*run), wanted):
            key = record["env"], record["recipe"], record.get(flag), record["seed"]
            records[key] = record
            print(*(x for x in key if x is not None), round(record["final"]["return_mean"], 1), flush=True)
    path.write_text(json.dumps(list(records.values()), indent=1) + "\n", encoding="utf-8")
    table = by_value(list(records.values()), flag) if flag else markdown(list(records.values()))
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    app.run(main)
