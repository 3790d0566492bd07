"""TRPO against what it is set against: penalty form, natural and plain policy gradient, CMA-ES, random search.

    python benchmarks/against.py --jobs=2                            # all parts; about two hours on two cores
    python benchmarks/against.py --jobs=16 --budget_seconds=500      # as many runs as that allows; once more goes on
    python benchmarks/against.py --part=search --only=trpo,npg --envs=CartPole-v1
    python benchmarks/against.py --part=report                       # of the records that are there
    python benchmarks/against.py --known=benchmarks/results/against.json   # runs what is not in there

| algorithm | what it is | its step size |
|---|---|---|
| trpo | the project's defaults: constraint and max_step | max_kl |
| trpo-paper | the constraint alone, as the paper has it | max_kl |
| trpo-penalty | --objective=penalty | max_kl, around which the penalty holds the KL |
| npg | natural policy gradient | npg_step_size |
| vpg-adam, vpg-sgd | policy gradient, by Adam and plain | vpg_learning_rate |
| cma | CMA-ES | cma_sigma |
| ars | augmented random search, as much noise as step size | ars_step_size |

1. search: 5 step sizes of each algorithm on each environment, 2 seeds. The one with the highest mean area under the
   training return is chosen.
2. compare: 10 other seeds with the chosen step size. Returns, areas, times, KL, and the share of updates after which
   the return fell: 5 training returns after an update, of new episodes, are on average lower than 5 before it by more
   than the standard error of the difference. The whole definition is in curves.py and in the results.
3. sensitivity: 9 step sizes over four decades of lengths, 3 more seeds, on two environments, of the algorithms that
   have a step length. A KL is quadratic in the length of a step: max_kl goes over eight decades.
4. report: results/against.json, results/against.md, docs/against.png, docs/against_step_size.png, of all records whose
   steps are those of the flags, whatever --only and --envs say. What is missing is named.

All runs of an environment share its recipe in recipes.py, of which max_kl and max_step are used by TRPO alone,
with a Gaussian and without normalised layers, which were the defaults when the results were made (BEFORE there).
They are evaluated at the end only, 20 deterministic episodes. CartPole-v1 has a quarter of the steps. A run is a
process with one thread for environments and one for TensorFlow's operations; with --jobs > 1 it keeps to its share of
the cores. It uses no GPU, and no XLA, which on so short runs takes longer to compile than it saves. See runs.py.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from against_report import best, report, scores
from recipes import BEFORE, RECIPE
from runs import ONE_CORE, SHARED, Record, read_records, run_all

ROOT = Path(__file__).resolve().parents[1]
ENVS = ("CartPole-v1", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
SHORTER = {"CartPole-v1": 4}  # steps are divided by
SEEDS = {"search": range(100, 102), "compare": range(200, 210), "sensitivity": range(300, 303)}
SENSITIVE_ENVS = ("Hopper-v5", "HalfCheetah-v5")


class Algorithm(NamedTuple):
    """What is compared. wide: exponents of 10 of the least and the largest step size of the sensitivity; or empty."""

    flags: tuple[str, ...]
    settings: tuple[str, ...]  # that take the step size
    grid: tuple[float, ...]
    wide: tuple[float, ...] = ()


ALGORITHMS = {
    "trpo": Algorithm(("--algorithm=trpo",), ("max_kl",), (0.003, 0.01, 0.03, 0.1, 0.3), (-6, 2)),
    "trpo-paper": Algorithm(
        ("--algorithm=trpo", "--max_step=1e9"), ("max_kl",), (0.001, 0.003, 0.01, 0.03, 0.1), (-6, 2)
    ),
    "trpo-penalty": Algorithm(("--algorithm=trpo", "--objective=penalty"), ("max_kl",), (0.003, 0.01, 0.03, 0.1, 0.3)),
    "npg": Algorithm(("--algorithm=npg",), ("npg_step_size",), (0.03, 0.1, 0.3, 1, 3), (-2, 2)),
    "vpg-adam": Algorithm(
        ("--algorithm=vpg", "--vpg_optimizer=adam"), ("vpg_learning_rate",), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (-4, 0)
    ),
    "vpg-sgd": Algorithm(
        ("--algorithm=vpg", "--vpg_optimizer=sgd"), ("vpg_learning_rate",), (0.03, 0.1, 0.3, 1, 3), (-2.5, 1.5)
    ),
    "cma": Algorithm(("--algorithm=cma",), ("cma_sigma",), (0.02, 0.05, 0.1, 0.2, 0.5)),
    "ars": Algorithm(("--algorithm=ars",), ("ars_step_size", "ars_noise"), (0.005, 0.01, 0.02, 0.05, 0.1)),
}


class Case(NamedTuple):
    """A run."""

    part: str
    env: str
    algorithm: str
    value: float
    seed: int
    steps: int

    @property
    def recipe(self) -> str:
        """Of the environment."""
        return RECIPE.get(self.env, "mujoco")

    @property
    def name(self) -> str:
        """Of its record."""
        env = self.env.replace("/", "_")
        return f"{self.part}-{env}-{self.algorithm}-{self.value:g}-s{self.seed}-{self.steps}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Beside those of the recipe."""
        algorithm = ALGORITHMS[self.algorithm]
        own = (f"--{setting}={self.value:g}" for setting in algorithm.settings)
        return (*SHARED, *BEFORE.get(self.recipe, ()), f"--total_steps={self.steps}", *algorithm.flags, *own)


class Plan(NamedTuple):
    """What is asked for. steps: by part, of environments that are not in SHORTER."""

    envs: Sequence[str]
    algorithms: Sequence[str]
    steps: dict[str, int]

    def steps_of(self, part: str, env: str) -> int:
        """Environment steps of a run."""
        return self.steps[part] // SHORTER.get(env, 1)

    def cases(self, part: str, chosen: dict[tuple[str, str], float]) -> Iterator[Case]:
        """The runs of a part, seed after seed. chosen: step sizes by environment and algorithm, of the comparison."""
        for seed in SEEDS[part]:
            for env in self.envs:
                for name in self.algorithms:
                    for value in self._values(part, env, name, chosen):
                        yield Case(part, env, name, value, seed, self.steps_of(part, env))

    def _values(self, part: str, env: str, name: str, chosen: dict[tuple[str, str], float]) -> Sequence[float]:
        if part == "search":
            return ALGORITHMS[name].grid
        if part == "compare":
            return [chosen[env, name]] if (env, name) in chosen else []
        wide = ALGORITHMS[name].wide if env in SENSITIVE_ENVS else ()
        return [float(f"{x:.3g}") for x in np.logspace(*wide, 9)] if wide else []

    def chosen(self, records: dict[str, Record]) -> dict[tuple[str, str], float]:
        """The best step sizes, where the whole grid is there. records: by name."""
        cases = [*self.cases("search", {})]
        choices = {}
        for env in self.envs:
            for name in self.algorithms:
                names = [c.name for c in cases if (c.env, c.algorithm) == (env, name)]
                if all(x in records for x in names):
                    choices[env, name] = best(scores([records[x] for x in names], "area"))
        return choices

    def of_records(self, records: dict[str, Record]) -> list[Record]:
        """Those that belong to the plan; in the comparison with any step size, so that none is lost with the search."""
        planned = {case.name for part in SEEDS for case in self.cases(part, {})}
        return [
            r
            for name, r in records.items()
            if name in planned
            or (
                r["part"] == "compare"
                and r["env"] in self.envs
                and r["algorithm"] in self.algorithms
                and r["steps"] == self.steps_of(r["part"], r["env"])
            )
        ]

    def missing(self, records: dict[str, Record]) -> list[tuple[str, str, str]]:
        """Part, environment and algorithm of every run that has no record."""
        anything = {(env, name): math.nan for env in self.envs for name in self.algorithms}
        cases = [case for part in SEEDS for case in self.cases(part, anything)]
        compared = {_without_value(record) for record in records.values() if record["part"] == "compare"}
        return [
            case[:3]
            for case in cases
            if case.name not in records and (case.part != "compare" or _without_value(case._asdict()) not in compared)
        ]


def _without_value(case: Record) -> tuple:
    return tuple(case[name] for name in ("env", "algorithm", "seed", "steps"))


def reported(path: Path) -> dict[str, Record]:
    """The records in results that `report` wrote, by name."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {Case(*(run[name] for name in Case._fields)).name: run for run in runs}


def main(argv):
    """Runs the parts that are asked for. Returns the exit code."""
    del argv
    given, start = flags.FLAGS, time.monotonic()
    os.environ |= ONE_CORE
    steps = {part: given[f"{part}_steps"].value for part in SEEDS}
    plan, work_dir = Plan(given.envs, given.only, steps), Path(given.work_dir)
    known = reported(Path(given.known)) if given.known else {}
    (work_dir / "records").mkdir(parents=True, exist_ok=True)
    left = failed = 0
    for part in (part for part in SEEDS if part in given.part):
        records = known | read_records(work_dir)
        wanted = [case for case in plan.cases(part, plan.chosen(records)) if case.name not in records]
        limits = (start + (seconds or math.inf) for seconds in (given.budget_seconds, given.hard_seconds))
        unfinished = run_all(wanted, work_dir, given.jobs, *limits)
        left, failed = left + unfinished[0], failed + unfinished[1]
        for env, name in ((env, name) for env in given.envs for name in given.only):
            if part == "compare" and (env, name) not in plan.chosen(records):
                print(f"{env}, {name}: its search is not complete, so it is not compared")
                left += len(SEEDS[part])
    if "report" in given.part:
        records = known | read_records(work_dir)
        whole = Plan(ENVS, list(ALGORITHMS), steps)
        places = ROOT / "benchmarks" / "results", ROOT / "docs"
        print(report(whole.of_records(records), whole.missing(records), ENVS, list(ALGORITHMS), *places))
    print(f"{left} runs are left, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    flags.DEFINE_list("part", [*SEEDS, "report"], "parts, in this order")
    flags.register_validator("part", lambda x: {*x} <= {*SEEDS, "report"}, f"among {', '.join(SEEDS)}, report")
    flags.DEFINE_list("only", list(ALGORITHMS), "algorithms")
    flags.register_validator("only", lambda x: {*x} <= {*ALGORITHMS}, f"among {', '.join(ALGORITHMS)}")
    flags.DEFINE_list("envs", list(ENVS), "environments")
    flags.register_validator("envs", lambda x: {*x} <= {*ENVS}, f"among {', '.join(ENVS)}")
    flags.DEFINE_integer("search_steps", 100_000, "environment steps of a run of the search", lower_bound=10_000)
    flags.DEFINE_integer("compare_steps", 200_000, "environment steps of a run of the comparison", lower_bound=10_000)
    flags.DEFINE_integer("sensitivity_steps", 100_000, "environment steps of the sensitivity", lower_bound=10_000)
    flags.DEFINE_string("work_dir", "runs/against", "where runs and their records go")
    flags.DEFINE_string("known", "", "results of earlier runs that are not run again")
    flags.register_validator("known", lambda x: not x or Path(x).is_file(), "a file, such as results/against.json")
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)
    flags.DEFINE_float("budget_seconds", 0, "after so many no run is begun; 0: no limit", lower_bound=0)
    flags.DEFINE_float("hard_seconds", 0, "after so many runs are killed; 0: no limit", lower_bound=0)
    app.run(main)
