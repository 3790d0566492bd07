"""Variants of the learner on several environments and seeds: area under the return curve, and final return.

    pip install 'trpo_tf[benchmarks]'
    python benchmarks/compare.py --study=reuse
    python benchmarks/compare.py --study=staleness --seeds=0,1,2 --jobs=2

The area is the mean of the training return over the steps of a run. The training return is that of drawn actions, over
20 episodes. The final return is the mean of 20 deterministic episodes. The last columns are relative to the mean of the
study's first variant on the same environment. IQM is the interquartile mean of all runs of a variant, with a stratified
bootstrap interval of 95 % (Agarwal et al. 2021, arXiv:2108.13264).

Results go to results/<study>.json and .md after every run. Runs that are in there, or in --work_dir, are not trained
again. In the study "reuse", the variant "half the rows" has half of the transitions per update.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from absl import app, flags
from curves import interquartile_mean, interval
from recipes import FIRST, RECIPES, trained

from trpo_tf.rollout.backends.base import usable_cores
from trpo_tf.run.metrics.csv import read_csv

RESULTS = Path(__file__).resolve().parent / "results"
# Trajectories stay as long as the recipe's. Environments are rebuilt, at checkpoints, and evaluations run after as many
# environment steps as with the recipe.
HALF = ("--steps_per_update=1024", "--num_envs={half}", "--checkpoint_every=100", "--eval_every=200")
# study: environments, {variant: flags beside the recipe's}
STUDIES = {
    "reuse": (
        ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Swimmer-v5", "Ant-v5"),
        {
            "plain": (),
            "half the rows": HALF,
            "adaptive": ("--radius=adaptive",),
            "reuse": (*HALF, "--reuse=2"),
            "both": (*HALF, "--reuse=2", "--radius=adaptive"),
        },
    ),
    "staleness": (
        ("Hopper-v5",),
        {"fresh": ()}
        | {f"lag {k} corrected": (f"--behavior_lag={k}",) for k in (1, 2, 4, 8)}
        | {f"lag {k} not corrected": (f"--behavior_lag={k}", "--nocorrect_stale") for k in (1, 2, 4, 8)},
    ),
}

FLAGS = flags.FLAGS
flags.DEFINE_enum("study", "reuse", list(STUDIES), "what to compare")
flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "seeds of each")
flags.register_validator("seeds", lambda seeds: all(x.isdigit() for x in seeds), "--seeds have to be numbers")
flags.DEFINE_list("envs", [], "environments; empty: those of the study")
flags.DEFINE_list("variants", [], "variants; empty: those of the study")
flags.register_multi_flags_validator(
    ["study", "envs", "variants"],
    lambda x: all(
        set(x[name]) <= {*known} for name, known in zip(("envs", "variants"), STUDIES[x["study"]], strict=True)
    ),
    message="--envs and --variants have to be among those of the study",
)
flags.DEFINE_string("work_dir", "runs/compare", "where the runs themselves go")
flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)


def area(rows: list[dict[str, str]]) -> float:
    """The mean of the training return over the steps of a run, from the end of the first episode on."""
    steps, returns = np.array(
        [(int(row["env_steps"]), float(row["env/episode_return"])) for row in rows if row["env/episode_return"]]
    ).T
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def record(env: str, variant: str, seed: int, more: tuple[str, ...]) -> dict:
    """Trains a run where it is not there yet, and returns its numbers. Runs at the same time share the cores."""
    recipe = (RECIPES / f"{FIRST[env]}.flags").read_text(encoding="utf-8")
    half = int(re.search(r"^--num_envs=(\d+)$", recipe, re.MULTILINE)[1]) // 2
    more = tuple(flag.format(half=half) for flag in more)
    if FLAGS.jobs > 1:
        more += (f"--env_threads={max(1, len(usable_cores()) // FLAGS.jobs)}",)
    run_dir = Path(FLAGS.work_dir) / f"{env}-{variant.replace(' ', '-')}-s{seed}"
    trained(run_dir, env, FIRST[env], seed, more)
    final = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))["return_mean"]
    return {"area": area(read_csv(run_dir / "progress.csv")), "final": final}


def table(found: dict[tuple[str, str, int], dict], envs, variants) -> str:
    """A line per variant: means over seeds by environment, then their mean and the interquartile mean of all runs.

    The last two are relative to the first variant's means over the same seeds. A variant that lacks an environment has
    neither; the interquartile mean needs at least 4 runs, and 2 per environment.
    """
    lines = []
    for kind in ("area", "final"):
        lines += [f"| {kind} | {' | '.join(envs)} | mean | IQM (95 %) | seeds |", "|---" * (len(envs) + 4) + "|"]
        for variant in variants:
            means, scores, counts = [], [], []
            for env in envs:
                values, firsts = (
                    {seed: x[kind] for (e, v, seed), x in sorted(found.items()) if (e, v) == (env, name)}
                    for name in (variant, variants[0])
                )
                common = [seed for seed in values if seed in firsts]
                means.append(f"{np.mean([*values.values()]):.0f}" if values else "")
                if common:
                    scores.append(np.array([values[x] for x in common]) / np.mean([firsts[x] for x in common]))
                counts.append(len(common))
            mean = middle = ""
            if all(counts):
                mean = f"{np.mean([x.mean() for x in scores]):.2f}"
                if sum(counts) > 3 and min(counts) > 1:
                    low, high = interval(*scores, statistic=interquartile_mean)
                    middle = f"{interquartile_mean(*scores):.2f} ({low:.2f} to {high:.2f})"
            if any(means):
                seeds = "/".join(str(n) for n in dict.fromkeys(counts))
                lines.append(f"| {variant} | {' | '.join(means)} | {mean} | {middle} | {seeds} |")
        lines.append("")
    return "\n".join(lines)


def main(argv):
    """Trains what is missing, then writes the study's table."""
    del argv
    RESULTS.mkdir(exist_ok=True)
    envs, variants = STUDIES[FLAGS.study]
    path, names = RESULTS / f"{FLAGS.study}.json", ("env", "variant", "seed")
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {tuple(x.pop(name) for name in names): x for x in records}
    failed = 0
    with ThreadPoolExecutor(FLAGS.jobs) as pool:
        wanted = (
            (env, variant, int(seed))
            for seed in FLAGS.seeds
            for variant in FLAGS.variants or variants
            for env in FLAGS.envs or envs
        )
        runs = {pool.submit(record, *key, variants[key[1]]): key for key in wanted if key not in found}
        try:
            for run in as_completed(runs):
                if run.exception():
                    failed += 1
                    print(*runs[run], f"failed: {run.exception()}", file=sys.stderr, flush=True)
                    continue
                found[runs[run]] = run.result()
                records = [dict(zip(names, key, strict=True)) | found[key] for key in sorted(found)]
                path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".md").write_text(table(found, envs, list(variants)), encoding="utf-8")
                print(*runs[run], *(round(x) for x in found[runs[run]].values()), flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(table(found, envs, list(variants)))
    sys.exit(f"{failed} runs failed; once more goes on with them" if failed else 0)


if __name__ == "__main__":
    app.run(main)
