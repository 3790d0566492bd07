"""Variants of the learner on several environments and seeds: the area under the return curve, and the final return.

    pip install 'trpo_tf[benchmarks]'
    python benchmarks/compare.py --study=reuse
    python benchmarks/compare.py --study=staleness --seeds=0,1,2 --jobs=2

Area: mean of the training return (drawn actions, 20 episodes) over the steps of a run. Final: 20 deterministic
episodes. Both are divided by the mean of the study's first variant on that environment; over all runs of a variant, the
interquartile mean with a stratified bootstrap interval of 95 % (Agarwal et al. 2021, arXiv:2108.13264).
Results go to results/<study>.json and .md after every run. What is in there, or in --work_dir, is not trained again.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from absl import app, flags
from recipes import FIRST, RECIPES, trained
from scipy import stats

from trpo_tf.rollout.envs import usable_cores
from trpo_tf.run.metrics import read_csv

RESULTS = Path(__file__).resolve().parent / "results"
# Trajectories stay as long as the recipe's; environments start again, at checkpoints, and are evaluated as often.
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
    """The mean of the training return over the steps of a run, from the first episode's end on."""
    steps, returns = np.array(
        [(int(row["env_steps"]), float(row["env/episode_return"])) for row in rows if row["env/episode_return"]]
    ).T
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def record(env: str, variant: str, seed: int, more: tuple[str, ...]) -> dict:
    """One run's numbers, after training it where it is not there yet. Runs at a time share the cores."""
    recipe = (RECIPES / f"{FIRST[env]}.flags").read_text(encoding="utf-8")
    half = int(re.search(r"^--num_envs=(\d+)$", recipe, re.MULTILINE)[1]) // 2
    more = tuple(flag.format(half=half) for flag in more)
    if FLAGS.jobs > 1:
        more += (f"--env_threads={max(1, len(usable_cores()) // FLAGS.jobs)}",)
    run_dir = Path(FLAGS.work_dir) / f"{env}-{variant.replace(' ', '-')}-s{seed}"
    trained(run_dir, env, FIRST[env], seed, more)
    final = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))["return_mean"]
    return {"area": area(read_csv(run_dir / "progress.csv")), "final": final}


def interquartile_mean(*samples) -> float:
    """Of all samples together; axis -1, as scipy.stats.bootstrap wants it."""
    return stats.trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=-1)


def table(found: dict[tuple[str, str, int], dict], envs, variants) -> str:
    """Markdown: per environment the means over seeds, then, in those of the first variant with the same seeds, their
    mean, and from four runs on the interquartile mean of all; neither for variants that lack an environment."""
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
                    interval = stats.bootstrap(scores, interquartile_mean, method="percentile", rng=0)
                    low, high = interval.confidence_interval
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
