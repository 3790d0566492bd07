"""Kills inside saves of checkpoints: after each, the newest whole checkpoint is found and the next save cleans up.

    python benchmarks/faults/saves.py                     # at every file operation, in recoveries, and by the clock
    python benchmarks/faults/saves.py --recoveries=5 --timed=20

Every scenario is a save into a directory that holds something. A forked process saves, and is killed before its first
file operation, its second, and so on; operations are seen by Python's audit hook, and by fsync, before which the file
that is written is cut at random besides, as a kill within a write leaves it. What a kill left is where the next process
begins, which is killed, too. After every kill:

- the newest checkpoint is the one from before or the one that was saved, with all its arrays, and nothing else;
- a directory that holds any trace of a run is not begun afresh, unless it is that of a first save before any update;
- the next save succeeds, is what is found, and leaves nothing but whole checkpoints.

Prints a table; exits with 1 if anything is wrong.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from trpo_tf.errors import NoCheckpointError, UsageError
from trpo_tf.run import checkpoint
from trpo_tf.run.checkpoint import Checkpoint
from trpo_tf.run.directory import RunDirectory

_SEED = flags.DEFINE_integer("seed", 0, "of cuts, recoveries and times")
_RECOVERIES = flags.DEFINE_integer(
    "recoveries", 40, "kills in a row, per scenario, each where the last one left off", 0
)
_SCENARIOS = flags.DEFINE_multi_string("scenarios", [], "titles of those to run; none: all")
_TIMED = flags.DEFINE_integer("timed", 300, "kills by the clock", 0)

AGENT = "agent"  # the name of a directory that TRPO.save writes


def content(update: int, version: int = 0) -> Checkpoint:
    """A small checkpoint; another version has other arrays."""
    random = np.random.default_rng([update, version])
    arrays = {"policy/w": random.normal(size=(7, 3)), "session/episodes": np.array(update), "none": np.zeros((0, 4))}
    meta = {"update": update, "evaluation": None, "backend": "envpool", "own_networks": [False, False]}
    return Checkpoint(arrays, meta | {"config": {"env": "CartPole-v1"}, "versions": {"numpy": "2"}, "version": version})


class Save(NamedTuple):
    """One save: into which directory of the run, of what, and how many are kept; keep 0: as TRPO.save."""

    place: str
    saved: Checkpoint
    keep: int

    def __call__(self, run: Path) -> None:
        if self.keep:
            checkpoint.save(run / self.place, self.saved, self.keep)
        else:
            checkpoint.write(run / self.place, self.saved)


class Scenario(NamedTuple):
    """A save into a run where others were saved before, and something else was done."""

    before: list[Save]
    save: Save
    also: Callable[[Path], None] = lambda run: None


def legacy(run: Path) -> None:
    """As an older version left it, killed between its two renames: two whole checkpoints, both hidden."""
    place = run / "checkpoints"
    checkpoint.write(place / ".update_000000050.old", content(50))
    checkpoint.write(place / ".update_000000050.tmp", content(50, 1))


def spoil(run: Path) -> None:
    """Damages the newest checkpoint: a directory in the place of its manifest."""
    manifest = run / "checkpoints" / "update_000000050" / "manifest.json"
    manifest.unlink()
    (manifest / "below").mkdir(parents=True)


def _saves(keep: int, *updates: int) -> list[Save]:
    return [Save("checkpoints", content(update), 9) for update in updates[:-1]] + [
        Save("checkpoints", content(update), keep) for update in updates[-1:]
    ]


SCENARIOS = {
    "first": Scenario([], Save("checkpoints", content(0), 2)),
    "first, of update 7": Scenario([], Save("checkpoints", content(7), 2)),
    "next, keep 1": Scenario(_saves(1, 50), Save("checkpoints", content(100), 1)),
    "next, keep 2": Scenario(_saves(2, 50, 100), Save("checkpoints", content(150), 2)),
    "again, keep 1": Scenario(_saves(1, 50), Save("checkpoints", content(50, 1), 1)),
    "again, keep 2": Scenario(_saves(2, 50, 100), Save("checkpoints", content(100, 1), 2)),
    "again, the same": Scenario(_saves(1, 50), Save("checkpoints", content(50), 1)),
    "set back": Scenario(_saves(3, 50, 90, 100), Save("checkpoints", content(60), 2)),
    "best": Scenario([Save("best", content(40), 1)], Save("best", content(80), 1)),
    "best again": Scenario([Save("best", content(40), 1)], Save("best", content(40, 1), 1)),
    "agent": Scenario([], Save(AGENT, content(7), 0)),
    "agent again": Scenario([Save(AGENT, content(7), 0)], Save(AGENT, content(8), 0)),
    "format 3, next": Scenario([], Save("checkpoints", content(100), 1), legacy),
    "format 3, again": Scenario([], Save("checkpoints", content(50, 2), 2), legacy),
    "damaged, again": Scenario(_saves(2, 40, 50), Save("checkpoints", content(50, 1), 2), spoil),
}


def newest(run: Path, save: Save) -> Checkpoint | None:
    """What a resume, or TRPO.load, finds; None where there is nothing."""
    try:
        return checkpoint.load_saved(run / AGENT) if save.place == AGENT else checkpoint.newest(run / save.place)
    except (NoCheckpointError, UsageError):
        return None


def same(a: Checkpoint | None, b: Checkpoint | None) -> bool:
    """Whether both are the same to the bit, or both nothing."""
    if a is None or b is None:
        return a is b
    return a.meta == b.meta and {k: (x.dtype, x.shape, x.tobytes()) for k, x in a.arrays.items()} == {
        k: (x.dtype, x.shape, x.tobytes()) for k, x in b.arrays.items()
    }


def kill_at(count: int, cut: float) -> None:
    """Lets this process be killed before its file operation of this number, 1 is the first.

    cut: how much of a file is left where the operation is an fsync, of 1.
    """
    seen, fsync = [0], os.fsync

    def reached(descriptor: int | None = None) -> None:
        seen[0] += 1
        if seen[0] == count:
            if descriptor is not None and cut < 1 and os.path.isfile(f"/proc/self/fd/{descriptor}"):
                os.ftruncate(descriptor, int(cut * os.fstat(descriptor).st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    def synced(descriptor: int) -> None:
        reached(descriptor)
        fsync(descriptor)

    def audited(event: str, _) -> None:
        if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
            reached()

    os.fsync = synced
    sys.addaudithook(audited)


def saved_until(save: Save, run: Path, count: int, cut: float) -> None:
    """Saves, killed as `kill_at` says."""
    kill_at(count, cut)
    save(run)


def in_child(work: Callable[[], None], delay: float | None = None) -> bool:
    """Does something in a forked process; whether it was killed. delay: kill it after so many seconds.

    Raises:
      RuntimeError: it failed.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(3)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a save failed: {status}")
    return status != 0


def wrong(run: Path, save: Save, allowed: list[Checkpoint | None]) -> list[str]:
    """What is not as it must be after a kill, but for the next save."""
    lines, here = [], newest(run, save)
    if not any(same(here, one) for one in allowed):
        lines.append(f"found {here and here.meta}, not one of {[one and one.meta for one in allowed]}")
    if save.place != AGENT and (run / save.place).is_dir() and any((run / save.place).iterdir()):
        try:
            RunDirectory(run, resumed=False).close()
            if here is not None or save.saved.meta["update"] > 0:  # of update 0 there is nothing to lose
                lines.append("a run would begin afresh")
        except UsageError as error:
            if "holds a run" not in str(error):
                lines.append(str(error))
    return lines


def finished(run: Path, save: Save) -> list[str]:
    """What is not as it must be after the next save: this one is found, and nothing but whole checkpoints is there."""
    save(run)
    lines = [] if same(newest(run, save), save.saved) else ["the next save is not what is found"]
    places = [run / save.place] if save.place == AGENT else list((run / save.place).iterdir())
    if save.keep and len(places) > save.keep:
        lines.append(f"{len(places)} checkpoints are kept")
    for place in places:
        checkpoint.load(place)
        if len(list(place.iterdir())) != 2:
            lines.append(f"left over: {sorted(path.name for path in place.iterdir())}")
    return lines


def prepared(scenario: Scenario, run: Path) -> list[Checkpoint | None]:
    """Makes the directory; what may be found after a kill."""
    for save in scenario.before:
        save(run)
    scenario.also(run)
    return [newest(run, scenario.save), scenario.save.saved]


def at_every_operation(scenario: Scenario, directory: Path, random: np.random.Generator) -> tuple[int, list[str]]:
    """Kills before each operation of the save, the files whole and cut; how many there were, and what was wrong."""
    kills, lines, operation, killed = 0, [], 1, True
    while killed:
        for cut in (1.0, random.uniform()):
            run = directory / "run"
            allowed = prepared(scenario, run)
            killed = in_child(partial(saved_until, scenario.save, run, operation, cut))
            lines += [f"operation {operation}: {x}" for x in wrong(run, scenario.save, allowed)]
            lines += [f"after operation {operation}: {x}" for x in finished(run, scenario.save)]
            shutil.rmtree(run)
            kills += killed
        operation += 1
    return kills, lines


def in_recoveries(
    scenario: Scenario, directory: Path, random: np.random.Generator, rounds: int
) -> tuple[int, list[str]]:
    """Kills the saves that follow a kill, too, each at an operation by chance; otherwise as `at_every_operation`."""
    kills, lines, run = 0, [], directory / "run"
    allowed = prepared(scenario, run)
    for k in range(rounds):
        operation, cut = int(random.integers(1, 60)), random.uniform(0, 2)
        killed = in_child(partial(saved_until, scenario.save, run, operation, cut))
        kills += killed
        lines += [f"recovery {k}: {x}" for x in wrong(run, scenario.save, allowed)]
        if same(newest(run, scenario.save), scenario.save.saved):
            lines += [f"recovery {k}: {x}" for x in finished(run, scenario.save)]
            shutil.rmtree(run)
            allowed = prepared(scenario, run)
    lines += finished(run, scenario.save)
    shutil.rmtree(run)
    return kills, lines


def by_the_clock(directory: Path, random: np.random.Generator, count: int) -> tuple[int, list[str]]:
    """Kills a process that saves and saves again, wherever it is."""
    run, kills, lines, last = directory / "run", 0, [], None
    saves = [Save("checkpoints", content(10 * (k // 3), k), 2) for k in range(3000)]
    (run / "checkpoints").mkdir(parents=True)
    reader, writer = os.pipe()
    first = 0
    for _ in range(count):

        def work(first=first) -> None:
            for k, save in enumerate(saves[first:], first):
                os.write(writer, k.to_bytes(4))
                save(run)

        try:
            kills += in_child(work, random.uniform(0.001, 0.05))
        except RuntimeError as error:
            lines.append(str(error))
        os.write(writer, b"\xff" * 4)
        begun = [k for k in iter(lambda: int.from_bytes(os.read(reader, 4)), 2**32 - 1)]
        allowed = [last, *(saves[k].saved for k in begun[-2:])]
        lines += [f"killed in save {begun[-1:]}: {x}" for x in wrong(run, saves[0], allowed)]
        last = newest(run, saves[0])
        first = begun[-1] if begun else first
    os.close(reader)
    os.close(writer)
    lines += finished(run, saves[first])
    return kills, lines


def main(_) -> None:
    """Runs all scenarios."""
    random, total, failures = np.random.default_rng(_SEED.value), 0, []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for title in _SCENARIOS.value or SCENARIOS:
            scenario = SCENARIOS[title]
            kills, lines = at_every_operation(scenario, directory, random)
            more, others = in_recoveries(scenario, directory, random, _RECOVERIES.value)
            print(
                f"{title:16} {kills:4} kills at operations, {more:3} in a row, {len(lines + others)} wrong", flush=True
            )
            total, failures = total + kills + more, failures + [f"{title}: {x}" for x in lines + others]
        kills, lines = by_the_clock(directory, random, _TIMED.value)
        print(f"{'by the clock':16} {kills:4} kills, {len(lines)} wrong")
        total, failures = total + kills, failures + lines
    print(f"{total} kills, {len(failures)} wrong")
    print(*failures[:20], sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    app.run(main)
