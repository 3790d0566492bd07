"""Vine against single path, at equal environment steps, those of branches among them.

    python benchmarks/vine.py --jobs=2                          # half an hour on two cores
    python benchmarks/vine.py --envs=Hopper-v5 --seeds=400,401
    python benchmarks/vine.py --envs=                           # a report of the records that are there

Both have the recipe of mujoco.flags, with a Gaussian and without normalised layers, on gymnasium's environments, and
Atari is learned from its RAM without sticky actions. A vine has half of the trunk, and the default branches: an update
has about 3000 environment steps where single path has 2048. Runs and records are those of runs.py.

Results go to results/vine.json and results/vine.md, the picture to docs/vine.png.
"""

import json
import math
import os
from pathlib import Path

from absl import app, flags
from against import Case
from against_report import as_json, draw_curves
from curves import with_interval
from recipes import BEFORE
from runs import ONE_CORE, SHARED, Record, finished, grouped, read_records, run_all

ROOT = Path(__file__).resolve().parents[1]
ATARI = "ALE/SpaceInvaders-v5"
ENVS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", ATARI)
OF_ENV = {ATARI: ('--env_options=repeat_action_probability=0.0,obs_type="ram"', "--gamma=0.99")}
SAMPLING = {
    "single-path": ("--sampling=single_path", "--env_backend=gymnasium"),
    "vine": ("--sampling=vine", "--steps_per_update=1024"),
}


class VineCase(Case):
    """A run; `algorithm` is the sampling, `value` is 0."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Beside those of the recipe."""
        own = (*SAMPLING[self.algorithm], *OF_ENV.get(self.env, ()))
        return (*SHARED, *BEFORE[self.recipe], f"--total_steps={self.steps}", *own)


def table(records: list[Record]) -> list[str]:
    """A line per environment and sampling: means over seeds with 95 % bootstrap intervals."""
    lines = ["| environment | sampling | runs | final return | area under the training return | updates | steps/s |"]
    lines.append("|---" * 7 + "|")
    for (env, sampling), found in grouped(finished(records), "env", "algorithm").items():
        cells = [env, sampling, str(len(found))]
        cells += [with_interval([r[name] for r in found]) for name in ("final", "area")]
        cells += [f"{sum(r[name] for r in found) / len(found):,.0f}" for name in ("updates", "env_steps_per_second")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv):
    """Runs what is missing, then reports what is there. Returns the exit code."""
    del argv
    os.environ |= ONE_CORE
    given = flags.FLAGS
    work_dir, steps = Path(given.work_dir), given.steps
    (work_dir / "records").mkdir(parents=True, exist_ok=True)
    cases = [
        VineCase("vine", e, s, 0.0, int(seed), steps) for seed in given.seeds for e in given.envs for s in SAMPLING
    ]
    known = read_records(work_dir)
    left, failed = run_all([c for c in cases if c.name not in known], work_dir, given.jobs, math.inf, math.inf)
    records = [r for r in read_records(work_dir).values() if r["part"] == "vine" and r["steps"] == steps]
    if finished(records):
        order = {env: k for k, env in enumerate(ENVS)}
        records.sort(key=lambda r: (order[r["env"]], r["algorithm"], r["seed"]))
        text = "\n".join([f"{steps:,} environment steps. Steps/s with other runs beside.", "", *table(records)]) + "\n"
        results = ROOT / "benchmarks" / "results"
        (results / "vine.md").write_text(text, encoding="utf-8")
        (results / "vine.json").write_text(as_json(records, []), encoding="utf-8")
        draw_curves(records, ENVS, list(SAMPLING), ROOT / "docs" / "vine.png")
        print(text)
    print(json.dumps({"left": left, "failed": failed}))
    return int(failed > 0)


if __name__ == "__main__":
    flags.DEFINE_list("envs", list(ENVS), "environments to train on")
    flags.DEFINE_list("seeds", ["400", "401", "402", "403", "404"], "seeds of each")
    flags.DEFINE_integer("steps", 200_000, "environment steps of a run", lower_bound=10_000)
    flags.DEFINE_string("work_dir", "runs/vine", "where runs and their records go")
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)
    app.run(main)
