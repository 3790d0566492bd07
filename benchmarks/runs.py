"""Runs of a benchmark: so many at a time, each a process with its share of the cores, each leaves one record.

A case is what a run is of, a NamedTuple with `env`, `recipe`, `seed` and `steps`, with `name`, that of its record, and
with `flags`, those of the training command beside its recipe.

A finished run is a file in <work_dir>/records, and is not run again; its directory is deleted. So is a run that broke
down after its first update: that is its result. A run that was cut off leaves nothing. Records of several machines can
be put together in one directory.
"""

import json
import math
import os
import queue
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from curves import area, falls, on_grid
from recipes import trained

from trpo_tf.files import write_file
from trpo_tf.rollout.backends.base import usable_cores
from trpo_tf.run.metrics.csv import read_csv

Record = dict[str, Any]  # of a run, as `record_of` makes it
# Cores are shared by processes: no run takes threads of its own, nor the GPU.
ONE_CORE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
SHARED = (
    "--eval_every=0",
    "--checkpoint_every=1000000",  # environments are rebuilt there, and the first episodes to end are short ones
    "--final_eval_episodes=20",
    "--noexport",
    "--notensorboard",
    "--env_threads=1",
    "--update_threads=1",
    "--xla=off",
)


class Case(Protocol):
    """What a run is of; see above."""

    env: str
    recipe: str
    seed: int
    steps: int

    @property
    def name(self) -> str: ...

    @property
    def flags(self) -> tuple[str, ...]: ...

    def _asdict(self) -> dict[str, Any]: ...


def read_records(work_dir: Path) -> dict[str, Record]:
    """All records by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (work_dir / "records").glob("*.json")}


def finished(records: Iterable[Record]) -> list[Record]:
    """Those that did not fail."""
    return [r for r in records if "failed" not in r]


def grouped(records: Iterable[Record], *names: str) -> dict[tuple, list[Record]]:
    """Records by the values of these names, each group by seed."""
    groups = defaultdict(list)
    for record in sorted(records, key=lambda r: r["seed"]):
        groups[tuple(record[name] for name in names)].append(record)
    return dict(groups)


def as_lines(records: Iterable[Record]) -> str:
    """A JSON list with a record per line, numbers with five digits."""
    return "[\n" + ",\n".join(json.dumps(_rounded(record), allow_nan=False) for record in records) + "\n]"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def record_of(case: Case, run_dir: Path, seconds: float) -> Record:
    """The record of a finished run. seconds: of its process."""
    rows = read_csv(run_dir / "progress.csv")
    known = [row for row in rows if row["env/episode_return"]]
    steps, episodes = ([int(row[name]) for row in known] for name in ("env_steps", "env/episodes"))
    returns = [float(row["env/episode_return"]) for row in known]
    fell, counted = falls(episodes, returns)
    kl = [float(row["policy/kl"]) for row in rows if row.get("policy/kl")]
    finite = [x for x in kl if math.isfinite(x)]
    elapsed = float(rows[-1]["time/elapsed_seconds"]) - float(rows[0]["time/elapsed_seconds"])
    return case._asdict() | {
        "env_steps": int(rows[-1]["env_steps"]),
        "updates": len(rows),
        "seconds": seconds,
        # From the end of the first update on: compilation is not in it.
        "env_steps_per_second": (int(rows[-1]["env_steps"]) - int(rows[0]["env_steps"])) / elapsed if elapsed else None,
        "final": json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))["return_mean"],
        "area": area(steps, returns, case.steps),
        "fell": fell,
        "counted": counted,
        "kl_mean": float(np.mean(finite)) if finite else None,
        "kl_max": max(finite, default=None),
        "kl_not_finite": len(kl) - len(finite),
        "curve": on_grid(steps, returns, case.steps).tolist(),
    }


def ours(case: Case, run_dir: Path, seconds: float | None) -> Record:
    """Trains with this package; arguments and errors as `trained`."""
    start = time.monotonic()
    trained(run_dir, case.env, case.recipe, case.seed, case.flags, seconds)
    return record_of(case, run_dir, time.monotonic() - start)


Train = Callable[[Case, Path, float | None], Record]


def run(case: Case, work_dir: Path, begin_until: float, end_until: float, train: Train = ours) -> Record | None:
    """Trains one run and writes its record; None where there is no time left for it.

    Args:
      train: makes the record, as `ours`.
      begin_until, end_until: of time.monotonic(), infinity for no limit. A run that has not ended by then is killed.

    Raises:
      subprocess.CalledProcessError: it failed before its first update was over.
    """
    run_dir = work_dir / "runs" / case.name
    shutil.rmtree(run_dir, ignore_errors=True)
    start = time.monotonic()
    if start >= min(begin_until, end_until):
        return None
    try:
        seconds = None if math.isinf(end_until) else end_until - start
        record = train(case, run_dir, seconds)
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        progress = run_dir / "progress.csv"
        updates = len(read_csv(progress)) if progress.exists() else 0
        if error.returncode != 1 or not updates:  # a signal, or nothing that its step size did
            raise
        record = case._asdict() | {"failed": f"after {updates} updates"}
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    write_file(work_dir / "records" / f"{case.name}.json", (json.dumps(record) + "\n").encode())
    return record


def shares(cores: Sequence[int], jobs: int) -> list[set[int]]:
    """The cores of each of the runs at a time."""
    return [{*cores[k::jobs]} or {cores[k % len(cores)]} for k in range(jobs)]


def run_all(
    cases: Sequence[Case], work_dir: Path, jobs: int, begin_until: float, end_until: float, train: Train = ours
) -> tuple[int, int]:
    """Trains the runs, so many at a time. How many there was no time for, and how many failed without a record."""
    free: queue.SimpleQueue = queue.SimpleQueue()
    for share in shares(sorted(usable_cores()), jobs):
        free.put(share)

    def keep_to_share() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, free.get())  # of this thread, and of the processes that it starts

    left = failed = 0
    with ThreadPoolExecutor(jobs, initializer=keep_to_share) as pool:
        runs = {pool.submit(run, case, work_dir, begin_until, end_until, train): case for case in cases}
        try:
            for future in as_completed(runs):
                if future.exception():
                    failed += 1
                    print(runs[future].name, f"failed: {future.exception()}", file=sys.stderr, flush=True)
                elif (record := future.result()) is None:
                    left += 1
                else:
                    print(runs[future].name, record.get("failed") or round(record["final"], 1), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return left, failed
