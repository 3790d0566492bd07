"""SIGKILL at random instants of real training runs: what is resumed has to end as the run that nobody disturbed.

    python benchmarks/faults/kills.py --kills=600

For every configuration a reference is trained by `python -m trpo_tf.train` in a process of its own. Then in loops: the
command is started, killed, taken up with --resume, killed again, and so on until it ends by itself. Where --resume
finds no checkpoint, the command is given without it, as a user would. After every loop the newest checkpoint, best/,
progress.csv (but for time/ columns), evaluation.json and the SavedModel's variables have to be those of the reference,
each bit of them. After every kill no work that was saved may be gone and no process may be left.

A sixth of the kills comes before the run's first line on the screen, a third is uniform over what is left of it after
that line. Half of them come up to 5 ms after a random point of trpo_tf.faults: inside saves, exports, evaluations.
Every other kill goes to the process alone, the rest to its group; processes of environments have to end by themselves
within a second. Exit code 1 where anything differs; the directories of such loops stay.
"""

import collections
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
from absl import app, flags

TINY = [
    "--num_envs=4", "--steps_per_update=64", "--hidden_sizes=8", "--checkpoint_every=4", "--eval_every=3",
    "--eval_episodes=2", "--final_eval_episodes=2", "--value_epochs=2", "--value_minibatch_size=32",
    "--cg_iterations=3", "--total_steps=960", "--run_dir=run", "--xla=off",
]  # fmt: skip
CARTPOLE, PENDULUM = ["--env=CartPole-v1", *TINY], ["--env=Pendulum-v1", *TINY]
CONFIGURATIONS = {
    "envpool": CARTPOLE,
    "gymnasium": [*PENDULUM, "--env_backend=gymnasium", "--keep_checkpoints=1"],
    "gru": [*CARTPOLE, "--network=gru", "--sequence_length=4", "--checkpoint_every=5"],
    "reuse": [*PENDULUM, "--reuse=2", "--reuse_weights=optimal"],
    "pipeline": [*CARTPOLE, "--pipeline", "--checkpoint_every=5", "--keep_checkpoints=1"],
    "adaptive": [*PENDULUM, "--radius=adaptive", "--hidden_sizes=16"],
    "processes": [*PENDULUM, "--env_backend=gymnasium", "--env_processes", "--checkpoint_every=3", "--num_envs=2"],
    "xla": [*CARTPOLE, "--xla=on", "--checkpoint_every=3"],
    "lag": [*CARTPOLE, "--behavior_lag=2", "--checkpoint_every=3"],
    "penalty": [*PENDULUM, "--objective=penalty"],
}
MOST_KILLS = 12  # of a loop
REFUSALS = 0.1  # fraction of the kills after which the command is tried without --resume, to be refused
LONGEST = 240.0  # seconds of an attempt, then it counts as hung
LATE = 0.005  # seconds after a point within which its kill comes

_KILLS = flags.DEFINE_integer("kills", 600, "how many, of all configurations together", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the random instants")
_CONFIGS = flags.DEFINE_list("configs", [], f"which of {', '.join(CONFIGURATIONS)}; empty: all")
_JOBS = flags.DEFINE_integer("jobs", 2, "loops at a time", lower_bound=1)
_DIRECTORY = flags.DEFINE_string("directory", "", "where runs are made; empty: a new temporary directory")
flags.register_validator(
    "configs", lambda names: set(names) <= set(CONFIGURATIONS), f"have to be among {', '.join(CONFIGURATIONS)}"
)


@dataclasses.dataclass
class Tally:
    """What happened in the loops of a configuration."""

    kills: int = 0
    loops: int = 0
    resumes: int = 0
    fresh: int = 0  # started without --resume after a kill: there was no checkpoint yet
    refused: int = 0  # started without --resume although there was one: refused, as it should be
    stuck: int = 0  # neither with --resume, there being no checkpoint, nor without, there being a trace of one
    leftovers: int = 0  # hidden files and directories when a loop was over
    seconds: float = 0.0
    after: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # kills by the last point
    mismatches: list[str] = dataclasses.field(default_factory=list)

    def line(self, name: str) -> str:
        """For people."""
        parts = ("kills", "loops", "resumes", "fresh", "refused", "stuck", "leftovers")
        counts = ", ".join(f"{getattr(self, part)} {part}" for part in parts)
        return f"{name}: {counts}, {len(self.mismatches)} mismatches, {self.seconds:.0f} s"


@dataclasses.dataclass
class Undisturbed:
    """How long a run takes that nobody kills, and what it reaches."""

    first_line: float  # seconds until there is something on the screen
    updating: float  # seconds from then on until the last update
    ending: float  # seconds of the last evaluation, save and export
    updates: int
    points: collections.Counter


@dataclasses.dataclass
class Kill:
    """When an attempt is killed; of `start`, `line` and `point` one is given."""

    group: bool
    start: float | None = None  # seconds after its start
    line: float | None = None  # seconds after its first line on the screen
    point: tuple[str, int] | None = None  # a point, and the how manieth time it is reached
    late: float = 0.0  # seconds after that

    @classmethod
    def drawn(cls, draw: random.Random, usual: Undisturbed, left: float) -> "Kill":
        """A random one in what is left of a run, as a fraction of its updates."""
        group, kind = draw.random() < 0.5, draw.random()
        if kind < 1 / 6:
            return cls(group, start=draw.uniform(0.0, usual.first_line))
        if kind < 1 / 2:
            return cls(group, line=draw.uniform(0.0, usual.updating * left + usual.ending))
        name = draw.choice(sorted(usual.points))
        count = draw.randint(1, max(1, round(usual.points[name] * left)))
        return cls(group, point=(name, count), late=draw.uniform(0.0, LATE))

    def due(self, attempt: common.Attempt, lined: float | None, now: float) -> float | None:
        """The time to kill it, None as long as that is not known. lined: when its first line was there."""
        if self.start is not None:
            return attempt.began + self.start
        if self.line is not None:
            return None if lined is None else lined + self.line
        name, count = self.point or ("", 1)
        return now + self.late if attempt.points.count(name) >= count else None


class Configuration:
    """A command, its reference, and the loops of kills.

    Args:
      name: of CONFIGURATIONS.
      directory: where it may write.
    """

    def __init__(self, name: str, directory: Path):
        self.name, self.arguments, self.directory = name, CONFIGURATIONS[name], directory / name
        self.tally, self.busy, self.number = Tally(), 0, 0
        self.prepared = False
        self.running: list[common.Attempt] = []

    def prepare(self) -> Iterator[None]:
        """Trains the reference in a real process, and measures a forked one, which has to give the same."""
        began = time.perf_counter()
        reference, measured = self.directory / "reference", self.directory / "measured"
        for path in (reference, measured):
            path.mkdir(parents=True)
        with open(reference / "log", "w", encoding="utf-8") as log:
            command = [sys.executable, "-m", common.NAME, *self.arguments]
            process = subprocess.Popen(command, cwd=reference, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            try:
                while process.poll() is None:
                    yield
            finally:
                process.kill()
        if process.returncode:
            sys.exit(f"{self.name}: the undisturbed run ended with {process.returncode}; see {reference / 'log'}")
        self.reference = common.Result.of(reference / "run")
        attempt, lined, last = self._start(measured, self.arguments), None, 0.0
        while not attempt.wait():
            learned = attempt.points.count("learn")
            attempt.read()
            lined = lined or (attempt.seconds if attempt.out.stat().st_size else None)
            last = attempt.seconds if attempt.points.count("learn") > learned else last
            yield
        self.running.remove(attempt)
        if attempt.code or lined is None:
            sys.exit(f"{self.name}: the undisturbed run ended with {attempt.code}; see {attempt.err}")
        updates, points = len(self.reference.found["progress.csv: updates"]), collections.Counter(attempt.points)
        self.usual = Undisturbed(lined, last - lined, attempt.seconds - last, updates, points)
        for difference in self.reference.differences(common.Result.of(measured / "run")):
            self._mismatch(measured, f"a forked process is not a real one: {difference}")
        self.prepared = True
        print(
            f"{self.name}: undisturbed {lined:.1f} s to the first line, {last - lined:.1f} s to the last of {updates} "
            f"updates, {attempt.seconds - last:.1f} s to the end, {attempt.cpu_seconds:.1f} s of the CPU in all",
            flush=True,
        )
        self.tally.seconds += time.perf_counter() - began

    def _start(self, directory: Path, arguments: list[str]) -> common.Attempt:
        log = directory / f"attempt_{len(list(directory.glob('attempt_*.out'))):02d}"
        self.running.append(common.Attempt(directory, arguments, log))
        self.running[-1].out.touch()
        return self.running[-1]

    def _mismatch(self, directory: Path, what: str) -> None:
        self.tally.mismatches.append(f"{what} ({directory})")
        print(f"{self.name}: MISMATCH: {what} ({directory})", flush=True)

    def loop(self, draw: random.Random) -> Iterator[None]:
        """Start, kill, resume, kill, ..., until a run has ended by itself; then compares."""
        began, before = time.perf_counter(), len(self.tally.mismatches)
        directory = self.directory / f"loop_{self.number:03d}"
        self.number += 1
        directory.mkdir()
        resume, kills = False, 0
        while True:
            done = self._update_of(directory)
            left = 1 - (done or 0) / self.usual.updates
            kill = Kill.drawn(draw, self.usual, left) if kills < MOST_KILLS else None
            attempt = self._start(directory, [*self.arguments, *["--resume"] * resume])
            killed = yield from self._watch(attempt, kill, directory)
            if killed:
                kills += 1
                self._after_kill(directory, attempt, done)
                resume = True
                if self._update_of(directory) is not None and draw.random() < REFUSALS:
                    yield from self._refused(directory)
            elif resume and _says(attempt, "no valid checkpoint"):
                resume = False
            elif not resume and kills and _says(attempt, "holds a run"):
                self.tally.stuck += 1
                shutil.rmtree(directory / "run")
            else:
                self._over(directory, attempt)
                break
            self.tally.resumes += resume
            self.tally.fresh += not resume
        self.tally.loops += 1
        self.tally.seconds += time.perf_counter() - began
        if len(self.tally.mismatches) == before:
            shutil.rmtree(directory)

    def _watch(self, attempt: common.Attempt, kill: Kill | None, directory: Path) -> Iterator[None]:
        """Until the attempt has ended; kills it when it is time; whether that ended it."""
        lined = due = None
        killed = False
        while not attempt.wait():
            attempt.read()
            now = time.perf_counter()
            if lined is None and attempt.out.stat().st_size:
                lined = now
            if kill and due is None:
                due = kill.due(attempt, lined, now)
            if kill and due is not None and now >= due:
                killed = attempt.kill(kill.group)
            elif attempt.seconds > LONGEST:
                os.kill(attempt.pid, signal.SIGUSR1)  # stacks to its stderr
                time.sleep(1.0)
                attempt.kill(group=True)
                self._mismatch(directory, f"{attempt.err} hung")
            else:
                yield
        deadline = time.perf_counter() + 1.0
        while (orphans := attempt.orphans()) and time.perf_counter() < deadline:
            yield
        if orphans:
            self._mismatch(directory, f"processes {orphans} were left a second after {attempt.err.stem}")
            os.killpg(attempt.pid, signal.SIGKILL)
        self.running.remove(attempt)
        return killed

    def _after_kill(self, directory: Path, attempt: common.Attempt, done: int | None) -> None:
        """Counts it; what was saved before the attempt has to be there."""
        self.tally.kills += 1
        self.tally.after[attempt.points[-1] if attempt.points else "start"] += 1
        left = self._update_of(directory)
        if done is not None and (left is None or left < done):
            self._mismatch(directory, f"there was a checkpoint of update {done}, and after {attempt.err.stem} {left}")

    def _update_of(self, directory: Path) -> int | None:
        """The update of the newest whole checkpoint."""
        from trpo_tf.errors import NoCheckpointError

        try:
            return common.newest(directory / "run" / "checkpoints").meta["update"]
        except NoCheckpointError:
            return None

    def _refused(self, directory: Path) -> Iterator[None]:
        """Without --resume the command has to refuse a directory with a run, and to leave it as it is."""
        before = _listing(directory / "run")
        attempt = self._start(directory, self.arguments)
        yield from self._watch(attempt, None, directory)
        self.tally.refused += 1
        if attempt.code != 2 or not _says(attempt, "holds a run"):
            self._mismatch(directory, f"{attempt.err.stem}: a run was not refused, exit code {attempt.code}")
        elif _listing(directory / "run") != before:
            self._mismatch(directory, f"{attempt.err.stem}: a run was refused, and changed")

    def _over(self, directory: Path, attempt: common.Attempt) -> None:
        """Compares what a finished loop left with the reference."""
        if attempt.code:
            said = attempt.err.read_text().strip().splitlines()[-1:] or ["nothing"]
            self._mismatch(directory, f"{attempt.err.stem}: exit code {attempt.code}, said: {said[0]}")
            return
        try:
            differences = self.reference.differences(common.Result.of(directory / "run"))
        except Exception as error:
            differences = [f"{type(error).__name__}: {error}"]
        for difference in differences:
            self._mismatch(directory, difference)
        self.tally.leftovers += sum(path.name.startswith(".") for path in (directory / "run").rglob("*"))


def _says(attempt: common.Attempt, what: str) -> bool:
    """Whether it failed with these words."""
    return attempt.code in (1, 2) and what in attempt.err.read_text(encoding="utf-8")


def _listing(run: Path) -> list[tuple]:
    """Names, sizes and times of a directory's files."""
    found = [(str(path), path.lstat()) for path in sorted(run.rglob("*"))]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def campaign(configurations: list[Configuration], draw: random.Random) -> None:
    """Loops, several at a time, until there are enough kills; the configuration with the fewest goes on."""
    active: list[tuple[Configuration, Iterator[None]]] = []
    shown = 0
    while True:
        enough = sum(one.tally.kills for one in configurations) >= _KILLS.value
        while not enough and len(active) < _JOBS.value:
            # One that is not prepared yet has one job until it is.
            ready = [one for one in configurations if one.prepared or not one.busy]
            if not ready:
                break
            one = min(ready, key=lambda one: (one.tally.kills + 3 * one.busy, one.busy))
            one.busy += 1
            seeded = random.Random(f"{draw.random()}")
            active.append((one, one.loop(seeded) if one.prepared else one.prepare()))
        if not active:
            return
        for one, steps in list(active):
            try:
                next(steps)
            except StopIteration:
                active.remove((one, steps))
                one.busy -= 1
        kills = sum(one.tally.kills for one in configurations)
        if kills // 50 > shown:
            shown = kills // 50
            print(f"{kills} kills, {sum(len(one.tally.mismatches) for one in configurations)} mismatches", flush=True)
        common.wait_for([attempt for one in configurations for attempt in one.running], 0.002)


def main(_: list[str]) -> None:
    """Runs the campaign, prints what happened, and exits with 1 where anything differed."""
    common.import_all()
    directory = Path(_DIRECTORY.value or tempfile.mkdtemp(prefix="kills-")).resolve()
    configurations = [Configuration(name, directory) for name in _CONFIGS.value or CONFIGURATIONS]
    began = time.perf_counter()
    try:
        campaign(configurations, random.Random(_SEED.value))
    finally:
        for attempt in (attempt for one in configurations for attempt in one.running):
            attempt.kill(group=True)
    kills, after = sum(one.tally.kills for one in configurations), collections.Counter()
    for one in configurations:
        print(one.tally.line(one.name))
        after += one.tally.after
    print(f"last point before the kill: {', '.join(f'{name} {count}' for name, count in after.most_common())}")
    seconds, wrong = time.perf_counter() - began, [what for one in configurations for what in one.tally.mismatches]
    print(f"{kills} kills, {len(wrong)} mismatches, {seconds:.0f} s, {seconds / max(1, kills):.1f} s a kill")
    if wrong:
        sys.exit(1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    app.run(main)
