"""Trains the recipes over many seeds: what they reach, and what other settings are worth.

    python benchmarks/returns.py --seeds=reporting --jobs=2      # the README's table; hours
    python benchmarks/returns.py --jobs=2 --count=3 --envs=Hopper-v5,Ant-v5 --tried="" --tried="--gae_lambda=0.9"
    python benchmarks/returns.py --seeds=reporting --count=3 --jobs=2 --peer             # sb3-contrib; see peers.py
    python benchmarks/returns.py --seeds=reporting --before --jobs=2 --envs=Hopper-v5    # recipes as they once were
    python benchmarks/returns.py --seeds=reporting --envs=       # a report of the records that are there

Seeds 100 to 109 are for choosing settings, seeds 10 to 19 for reporting what the chosen ones reach: nothing is chosen
by the latter. `--tried` are settings in place of the recipe's, and the empty one is the recipe itself. Each is compared
with the recipe at as many steps.

Area is the mean training return over the steps of a run, final is the mean return of 20 deterministic episodes at its
end. IQM is the interquartile mean over runs (Agarwal et al. 2021, arXiv:2108.13264). Brackets hold 95 % bootstrap
intervals over runs.

Runs and their records are those of runs.py. They are put together with those in results/choosing.json or
results/reporting.json, a curve per seed, and are not run again. The report of the reporting seeds goes to
results/reporting.md and docs/returns.png, too.
"""

import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import peers
from absl import app, flags
from curves import area, on_grid
from recipes import BEFORE, RECIPE, TABLE
from returns_report import PEER, before, draw, gains, settings_table, table
from runs import ONE_CORE, SHARED, Record, as_lines, ours, read_records, run_all

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = {"choosing": range(100, 110), "reporting": range(10, 20)}


class Case(NamedTuple):
    """A run. recipe: PEER for sb3-contrib. tried: settings in place of the recipe's, as on a command line."""

    env: str
    recipe: str
    seed: int
    steps: int
    tried: str

    @property
    def name(self) -> str:
        """Of its record."""
        settings = re.sub(r"[^\w.=-]+", "_", self.tried)
        return f"{self.env.replace('/', '_')}-{self.recipe}-{self.steps}{settings}-s{self.seed}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Beside those of the recipe."""
        return (*SHARED, f"--total_steps={self.steps}", *shlex.split(self.tried))


def before_cases(envs: Sequence[str], seeds: Iterable[int]) -> Iterator[Case]:
    """The runs of the recipes as they were before, where they have been changed."""
    for seed in seeds:
        for env, recipe in RECIPE.items():
            if env in envs and recipe in BEFORE:
                yield Case(env, recipe, seed, TABLE[env, recipe][0], before(recipe))


def case_of(record: Record) -> Case:
    """What a record is of."""
    return Case(*(record[name] for name in Case._fields))


def cases(
    envs: Sequence[str], recipes: Sequence[str], tried: Sequence[str], seeds: Iterable[int], steps: int
) -> Iterator[Case]:
    """The runs that are asked for, seed after seed.

    Args:
      envs, recipes: of the table in recipes.py; no recipes: all.
      tried: settings beside each recipe.
      steps: of each run; 0: the table's.
    """
    for seed in seeds:
        for (env, recipe), (usual, _) in TABLE.items():
            if env in envs and recipe in (recipes or [recipe]):
                for settings in tried:
                    yield Case(env, recipe, seed, steps or usual, settings)


def peer_cases(envs: Sequence[str], seeds: Iterable[int], steps: int) -> Iterator[Case]:
    """The runs of sb3-contrib, with as many steps; it has no recipe for images."""
    for seed in seeds:
        for env, recipe in RECIPE.items():
            if env in envs and recipe != "atari":
                yield Case(env, PEER, seed, steps or TABLE[env, recipe][0], "")


def peer(case: Case, run_dir: Path, seconds: float | None) -> Record:
    """Trains sb3-contrib with its recipe; as runs.ours."""
    del run_dir
    start = time.monotonic()
    found = peers.ask(seconds, task="learn", env=case.env, seed=case.seed, steps=case.steps, **peers.zoo(case.env))
    curve = found["steps"], found["returns"], case.steps
    measured = {"seconds": time.monotonic() - start, "final": found["final"], "area": area(*curve)}
    return case._asdict() | measured | {"curve": on_grid(*curve).tolist()}


def load(path: Path) -> dict[Case, Record]:
    """The results that `save` wrote; none where there is no file."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {case_of(record): record for record in records}


def save(records: dict[Case, Record], path: Path) -> None:
    """Writes results, a run per line."""
    path.write_text(as_lines(records[case] for case in sorted(records)) + "\n", encoding="utf-8")


def main(argv):
    """Trains what is missing, then reports. Returns the exit code."""
    del argv
    os.environ |= ONE_CORE
    given, start = flags.FLAGS, time.monotonic()
    seeds, path, work_dir = SEEDS[given.seeds], RESULTS / f"{given.seeds}.json", Path(given.work_dir)
    (work_dir / "records").mkdir(parents=True, exist_ok=True)
    known = {*load(path), *map(case_of, read_records(work_dir).values())}
    wanted, train = cases(given.envs, given.recipes, given.tried, seeds[: given.count], given.steps), ours
    if given.peer:
        wanted, train = peer_cases(given.envs, seeds[: given.count], given.steps), peer
    elif given.before:
        wanted = before_cases(given.envs, seeds[: given.count])
    missing = [case for case in wanted if case not in known]
    limits = start + (given.budget_seconds or math.inf), math.inf
    left, failed = run_all(missing, work_dir, given.jobs, *limits, train)
    found = {case_of(record): record for record in read_records(work_dir).values()}
    records = load(path) | {case: record for case, record in found.items() if case.seed in seeds}
    save(records, path)
    if given.seeds == "reporting":
        text = table([*records.values()]) + "\n" + gains([*records.values()])
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        draw([*records.values()], ROOT / "docs" / "returns.png")
    else:
        text = settings_table([r for case, r in records.items() if case.env in (given.envs or [case.env])])
    print(text)
    print(f"{left} runs are left, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    flags.DEFINE_enum("seeds", "choosing", list(SEEDS), "which seeds")
    flags.DEFINE_integer("count", 10, "how many of them, from the first one on", lower_bound=1)
    flags.DEFINE_list("envs", list(dict.fromkeys(env for env, _ in TABLE)), "environments to train on")
    flags.DEFINE_bool("peer", False, "train sb3-contrib with its recipes of rl-zoo instead; see benchmarks/peers.py")
    flags.DEFINE_bool("before", False, "train the recipes as they were before the settings of recipes.BEFORE changed")
    flags.DEFINE_list("recipes", [], "recipes to train; empty: all of the environments")
    flags.DEFINE_multi_string("tried", [""], "settings in place of the recipe's; may be given several times")
    flags.DEFINE_integer("steps", 0, "environment steps of each run; 0: those of the recipe", lower_bound=0)
    flags.DEFINE_string("work_dir", "runs/returns", "where runs and their records go")
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1)
    flags.DEFINE_float("budget_seconds", 0, "after so many no run is begun; 0: no limit", lower_bound=0)
    app.run(main)
