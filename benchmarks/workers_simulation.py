"""Simulates rollout workers and a learner: throughput and staleness with 1 to 1,000 workers, without any of them.

    python benchmarks/workers_simulation.py                                   # a table, in seconds
    python benchmarks/workers_simulation.py --picture=workers.png             # and a picture
    python benchmarks/workers_simulation.py --batch=2048                      # more workers, shorter fragments
    python benchmarks/workers_simulation.py --setting=step_seconds=0.02,host_sigma=0.1,updates=200
    python benchmarks/workers_simulation.py --picture=workers.png --measured=workers.json

A discrete-event simulation: transitions are counted and not made. A fragment is what a worker collects in one go:
T time steps of B environments. A batch is W fragments, for W workers.

Synchronous: all workers begin together with the newest policy. The batch is complete with the slowest fragment. The
next fragments are dispatched when the update has ended.

Asynchronous:
- One fragment per worker is in flight. A fragment carries the policy version published when it was dispatched.
- A worker is sent its next fragment the moment its last one has arrived.
- Nothing is dispatched while a whole batch waits: W fragments have arrived and the learner is busy.
- A batch is the first W fragments that wait. When the learner takes it, idle workers are dispatched at once.
- Version + 1 is published when an update ends.

The staleness of a fragment is the number of updates done when the update that uses it begins, minus the version that
it carries. It is at most 2 where no fragment overtakes another: at its dispatch fewer than W fragments wait and fewer
than W others fly, so it belongs to the second batch from then at the latest. In general it is at most 2 plus the number
of updates that end during its flight: fewer than 2 W fragments wait or fly, so when it arrives it belongs to the
next batch but one at the latest.

Rates are those between the end of the first update and the end of the last. Staleness, too, leaves the first update
out. --measured names a file of benchmarks/workers.py. Each of its points is simulated with its own setting. The exit
code is 1 where throughput differs by more than 10 % or mean staleness by more than 0.2.
"""

import dataclasses
import heapq
import itertools
import json
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

WORKERS = (1, 2, 4, 8, 16, 20, 32, 64, 128, 256, 512, 1000)
STRAGGLER_SHARE, STRAGGLER_FACTOR = 0.01, 5.0  # of the sweep
FRAGMENTS = 10_000  # about so many for a point of the sweep, or more: stragglers are rare
SEEDS = 8  # simulations of a measured point; their mean is compared
MAX_RATIO, MAX_DIFFERENCE = 0.10, 0.2  # of throughput and of mean staleness, measured against simulated

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_string("picture", None, "file to draw efficiency and staleness into, such as workers.png")
    flags.DEFINE_string("measured", None, "JSON file of benchmarks/workers.py to compare with")
    flags.DEFINE_list("workers", [str(n) for n in WORKERS], "numbers of workers")
    flags.DEFINE_integer(
        "batch", None, "transitions per update; T = max(1, batch // (W B)). Without it T is fixed", lower_bound=1
    )
    flags.DEFINE_list("setting", [], "name=value of fields of Setting. Default: those of `fitted`, or Setting's")
    flags.DEFINE_integer("seed", 0, "of the first simulation; each has the next", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is simulated. Times are in seconds.

    Attributes:
      workers: W, rollout workers.
      envs_per_worker: B, environments of a worker, stepped one after the other.
      time_steps: T, time steps of a fragment.
      step_seconds: mean time of one step of one environment.
      step_sigma: standard deviation of the logarithm of that time, which is lognormal.
      straggler_share: probability that a fragment is a straggler, in [0, 1].
      straggler_factor: a straggler takes so many times as long, acting included.
      host_sigma: standard deviation of the logarithm of a worker's speed, which is lognormal with mean 1.
      act_seconds: a worker's own cost per time step: acting for its B environments.
      send_seconds: from the dispatch of a fragment to its begin. Sending is not serial.
      receive_seconds: the dispatching thread's cost per fragment. It receives one after the other.
      update_seconds: fixed cost of an update.
      update_seconds_per_transition: what each of the W * B * T transitions adds to it.
      asynchronous: the semantics, see above.
      cores: so many cores are shared in equal parts by the workers under way, none using more than one. None: each
        worker has a core of its own, or its environments sleep. The learner's work takes nothing from these cores.
      updates: updates until the simulation ends, at least 2.
    """

    workers: int = 16
    envs_per_worker: int = 1
    time_steps: int = 128
    step_seconds: float = 0.005
    step_sigma: float = 0.5
    straggler_share: float = 0.0
    straggler_factor: float = 5.0
    host_sigma: float = 0.0
    act_seconds: float = 0.00015
    send_seconds: float = 0.001
    receive_seconds: float = 0.0005
    update_seconds: float = 0.01
    update_seconds_per_transition: float = 15e-6
    asynchronous: bool = True
    cores: float | None = None
    updates: int = 60

    def __post_init__(self):
        counts = self.workers, self.envs_per_worker, self.time_steps, self.updates - 1
        if min(counts) < 1:
            raise ValueError(f"at least one worker, environment and time step, and two updates are needed: {self}")
        if not self.fragment_seconds > 0 or (self.cores is not None and not self.cores > 0):
            raise ValueError(f"a fragment takes time and needs cores: {self}")

    @property
    def transitions(self) -> int:
        """Transitions of a fragment, T B."""
        return self.time_steps * self.envs_per_worker

    @property
    def fragment_seconds(self) -> float:
        """Mean time of a fragment at speed 1 on a core of its own, stragglers included."""
        usual = self.time_steps * self.act_seconds + self.transitions * self.step_seconds
        return usual * (1 + self.straggler_share * (self.straggler_factor - 1))

    @property
    def update_time(self) -> float:
        """Time of one update of W fragments."""
        return self.update_seconds + self.workers * self.transitions * self.update_seconds_per_transition

    @property
    def alone(self) -> float:
        """Transitions per second of one worker of speed 1 that never waits."""
        return self.transitions / self.fragment_seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a simulation found. Shares are of the time between the end of the first update and the end of the last.

    Attributes:
      transitions_per_second: transitions learned from, per second.
      efficiency: that, over what the W workers would collect per second if none ever waited. Chance can lift it just
        above 1, where few fragments were slow.
      mean_staleness: over fragments used, first update left out.
      max_staleness: the same.
      staleness: fragments used by their staleness, first update left out.
      updates_per_second: updates per second.
      learner_busy: share of time in which an update is under way.
      wait_share: share of the workers' time in which they collect nothing.
      fastest_share: share of the fragments used that came from the worker with most of them; 1 / W if all are equal.
      sent: fragments dispatched from the begin to the end.
      used: those of them that an update used, first update included.
      waiting: those of them that had arrived and were not used.
      flying: those of them that had not arrived.
    """

    transitions_per_second: float
    efficiency: float
    mean_staleness: float
    max_staleness: int
    staleness: dict[int, int]
    updates_per_second: float
    learner_busy: float
    wait_share: float
    fastest_share: float
    sent: int
    used: int
    waiting: int
    flying: int


def simulate(setting: Setting, seed: int = 0) -> Outcome:
    """Simulates a setting with random speeds and times. Equal seeds give equal outcomes."""
    rng = np.random.default_rng(seed)
    sigma = setting.host_sigma
    speeds = np.exp(sigma * rng.standard_normal(setting.workers) - sigma**2 / 2)
    return Simulation(setting, speeds.tolist(), fragment_times(setting, rng)).run()


def fragment_times(setting: Setting, rng: np.random.Generator, block: int = 4096) -> Iterator[float]:
    """Yields times of fragments at speed 1 without end, in seconds.

    The sum of n = T B lognormal times is drawn as one lognormal time with the mean and the variance of the sum
    (Fenton 1960): sigma_n^2 = log(1 + (exp(sigma^2) - 1) / n). That is exact for n = 1.
    """
    sigma = math.sqrt(math.log1p(math.expm1(setting.step_sigma**2) / setting.transitions))
    while True:
        steps = np.exp(sigma * rng.standard_normal(block) - sigma**2 / 2) * setting.transitions * setting.step_seconds
        factor = np.where(rng.random(block) < setting.straggler_share, setting.straggler_factor, 1.0)
        yield from ((steps + setting.time_steps * setting.act_seconds) * factor).tolist()


class Simulation:
    """The state of workers, dispatching thread and learner at one moment, and what happens next.

    A fragment is sent, collected, received, and waits until an update uses it. It flies until it has been received.

    Cores are shared by a clock of progress: it runs at the share of a core that each fragment under way has, and a
    fragment is collected when its own time has passed on that clock. Without `cores` progress is time.
    """

    def __init__(self, setting: Setting, speeds: Sequence[float], times: Iterable[float]):
        """Speeds [W] relative to 1; times of the fragments at speed 1, in the order in which they begin, in seconds."""
        self.setting, self.speeds, self.times = setting, speeds, iter(times)
        self.now = self.progress = self.thread_free = 0.0
        self.version = 0  # updates done
        self.updating = False
        self.carried = [0] * setting.workers  # version at dispatch, by worker
        self.idle: list[int] = []  # workers
        self.waiting: deque[tuple[int, int]] = deque()  # (worker, version) of fragments received
        self.collecting: list[tuple[float, int, int]] = []  # heap of (progress at the end, order, worker)
        self.events: list[tuple[float, int, Callable, int]] = []  # heap of (time, order, handler, worker)
        self.order = itertools.count()  # of equal times, the first scheduled comes first
        self.sent = self.used = 0
        self._measure()

    def run(self) -> Outcome:
        """Goes from event to event until the last update has ended."""
        for worker in range(self.setting.workers):
            self._dispatch(worker)
        while self.version < self.setting.updates:
            collected = self._next_collected()
            if self.events and self.events[0][0] <= collected:
                time, _, handler, worker = heapq.heappop(self.events)
                self._advance(time)
                handler(worker)
            else:
                self._advance(collected)
                self.progress, _, worker = heapq.heappop(self.collecting)
                self._collected(worker)
        return self._outcome()

    def _next_collected(self) -> float:
        """When the next fragment will have been collected, if nothing else happens before."""
        if not self.collecting:
            return math.inf
        return self.now + max(0.0, self.collecting[0][0] - self.progress) / self._core_share()

    def _core_share(self) -> float:
        """How much of a core each fragment under way has, in (0, 1]."""
        cores = self.setting.cores
        return 1.0 if cores is None else min(1.0, cores / max(1, len(self.collecting)))

    def _advance(self, time: float) -> None:
        spent = time - self.now
        self.progress += spent * self._core_share()
        self.worked += spent * len(self.collecting)
        self.busy += spent * self.updating
        self.now = time

    def _at(self, time: float, handler: Callable[[int], None], worker: int) -> None:
        heapq.heappush(self.events, (time, next(self.order), handler, worker))

    def _dispatch(self, worker: int) -> None:
        self.carried[worker] = self.version
        self.sent += 1
        self._at(self.now + self.setting.send_seconds, self._begun, worker)

    def _begun(self, worker: int) -> None:
        end = self.progress + next(self.times) / self.speeds[worker]
        heapq.heappush(self.collecting, (end, next(self.order), worker))

    def _collected(self, worker: int) -> None:
        self.thread_free = max(self.now, self.thread_free) + self.setting.receive_seconds
        self._at(self.thread_free, self._received, worker)

    def _received(self, worker: int) -> None:
        self.waiting.append((worker, self.carried[worker]))
        self.idle.append(worker)
        self._take()
        if self.setting.asynchronous and not self._batch_waits():
            self._dispatch_idle()

    def _batch_waits(self) -> bool:
        return len(self.waiting) >= self.setting.workers

    def _take(self) -> None:
        """Begins an update, if a whole batch waits and none is under way."""
        if self.updating or not self._batch_waits():
            return
        for _ in range(self.setting.workers):
            worker, version = self.waiting.popleft()
            self.staleness[self.version - version] += 1
            self.used_from[worker] += 1
        self.used += self.setting.workers
        self.updating = True
        self._at(self.now + self.setting.update_time, self._updated, -1)

    def _updated(self, _: int) -> None:
        self.version += 1
        self.updating = False
        if self.version == 1:
            self._measure()
        if self.version < self.setting.updates:
            self._take()
            self._dispatch_idle()  # fewer than 2 W waited, so no whole batch is left

    def _dispatch_idle(self) -> None:
        while self.idle:
            self._dispatch(self.idle.pop())

    def _measure(self) -> None:
        """Begins to measure anew."""
        self.since = self.now
        self.worked = self.busy = 0.0  # seconds of workers that collect, seconds of the learner
        self.staleness: Counter[int] = Counter()
        self.used_from: Counter[int] = Counter()  # fragments used, by worker

    def _outcome(self) -> Outcome:
        setting, seconds, fragments = self.setting, self.now - self.since, self.staleness.total()
        rate = fragments * setting.transitions / seconds
        return Outcome(
            transitions_per_second=rate,
            efficiency=rate / (sum(self.speeds) * setting.alone),
            mean_staleness=sum(value * count for value, count in self.staleness.items()) / fragments,
            max_staleness=max(self.staleness),
            staleness=dict(sorted(self.staleness.items())),
            updates_per_second=(setting.updates - 1) / seconds,
            learner_busy=self.busy / seconds,
            wait_share=1 - self.worked / (setting.workers * seconds),
            fastest_share=max(self.used_from.values()) / fragments,
            sent=self.sent,
            used=self.used,
            waiting=len(self.waiting),
            flying=len(self.collecting) + len(self.events),  # no update is under way, so no event is one's end
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """A point of benchmarks/workers.py: what was measured, and the setting that stands for it."""

    workers: int
    asynchronous: bool
    stragglers: bool
    transitions_per_second: float
    efficiency: float
    mean_staleness: float
    max_staleness: int
    setting: Setting


def read_measured(path: str) -> list[Measured]:
    """The points of a file of benchmarks/workers.py.

    Raises:
      KeyError: a point lacks a field.
      TypeError: its setting has a field that Setting does not have.
      ValueError: a point contradicts its own setting.
    """
    points = []
    for record in json.loads(Path(path).read_text(encoding="utf-8"))["points"]:
        values = {field.name: record[field.name] for field in dataclasses.fields(Measured)}
        setting = Setting(**values.pop("setting"))
        point = Measured(setting=setting, **values)
        if (point.workers, point.asynchronous) != (setting.workers, setting.asynchronous):
            raise ValueError(f"a point contradicts its own setting: {record}")
        points.append(point)
    return points


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A measured point, and the means over simulations of its setting."""

    measured: Measured
    transitions_per_second: float
    mean_staleness: float

    @property
    def ratio(self) -> float:
        """Measured throughput over simulated."""
        return self.measured.transitions_per_second / self.transitions_per_second

    @property
    def difference(self) -> float:
        """Measured mean staleness minus simulated."""
        return self.measured.mean_staleness - self.mean_staleness

    @property
    def agrees(self) -> bool:
        """Both are within what is allowed. NaN never agrees."""
        return abs(self.ratio - 1) <= MAX_RATIO and abs(self.difference) <= MAX_DIFFERENCE


def compare(measured: Measured, seed: int = 0) -> Comparison:
    """Simulates the setting of a measured point, several times."""
    outcomes = [simulate(measured.setting, seed + i) for i in range(SEEDS)]
    return Comparison(
        measured,
        statistics.mean(outcome.transitions_per_second for outcome in outcomes),
        statistics.mean(outcome.mean_staleness for outcome in outcomes),
    )


def sweep(base: Setting, workers: Iterable[int], batch: int | None) -> Iterator[Setting]:
    """Settings with each number of workers, synchronous and asynchronous, without and with stragglers.

    Args:
      base: everything else.
      workers: each W.
      batch: transitions per update, from which T = max(1, batch // (W B)). None: T is that of base.
    """
    for asynchronous, stragglers, number in itertools.product((False, True), (False, True), workers):
        yield dataclasses.replace(
            base,
            workers=number,
            asynchronous=asynchronous,
            time_steps=max(1, batch // (number * base.envs_per_worker)) if batch else base.time_steps,
            updates=max(base.updates, FRAGMENTS // number),
            straggler_share=STRAGGLER_SHARE if stragglers else 0.0,
            straggler_factor=STRAGGLER_FACTOR,
        )


def label(asynchronous: bool, stragglers: bool) -> str:
    """The name of a line of the picture."""
    return f"{'asynchronous' if asynchronous else 'synchronous'}{', stragglers' if stragglers else ''}"


def show(title: str, columns: str, rows: Iterable[tuple]) -> None:
    """Prints a table: columns, a name per word, with _ for a blank; rows of what stands in them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in columns.split():
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    # A file has no width: nothing is cut there.
    (console if console.is_terminal else Console(width=160)).print(table)


def show_sweep(found: list[tuple[Setting, Outcome]]) -> None:
    """Prints the sweep."""
    show(
        "simulated",
        "mode W T transitions/s efficiency mean_staleness max updates/s learner_busy workers_wait fastest's_share",
        (
            (
                label(setting.asynchronous, setting.straggler_share > 0),
                setting.workers,
                setting.time_steps,
                f"{outcome.transitions_per_second:,.0f}",
                f"{outcome.efficiency:.2f}",
                f"{outcome.mean_staleness:.2f}",
                outcome.max_staleness,
                f"{outcome.updates_per_second:.2f}",
                f"{outcome.learner_busy:.2f}",
                f"{outcome.wait_share:.2f}",
                f"{outcome.fastest_share:.4f}",
            )
            for setting, outcome in found
        ),
    )


def show_comparisons(comparisons: list[Comparison]) -> None:
    """Prints measured points against simulated ones."""
    show(
        "measured against simulated",
        "mode W transitions/s simulated ratio mean_staleness simulated difference agrees",
        (
            (
                label(comparison.measured.asynchronous, comparison.measured.stragglers),
                comparison.measured.workers,
                f"{comparison.measured.transitions_per_second:,.0f}",
                f"{comparison.transitions_per_second:,.0f}",
                f"{comparison.ratio:.3f}",
                f"{comparison.measured.mean_staleness:.2f}",
                f"{comparison.mean_staleness:.2f}",
                f"{comparison.difference:+.2f}",
                "yes" if comparison.agrees else "NO",
            )
            for comparison in comparisons
        ),
    )


def draw(found: list[tuple[Setting, Outcome]], measured: list[Measured], path: str) -> None:
    """Draws efficiency and mean staleness over workers: lines are simulated, markers are measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, quantity in zip(figure.subplots(1, 2), ("efficiency", "mean_staleness"), strict=True):
        for index, (asynchronous, stragglers) in enumerate(itertools.product((False, True), (False, True))):
            line = [
                (setting.workers, getattr(outcome, quantity))
                for setting, outcome in found
                if (setting.asynchronous, setting.straggler_share > 0) == (asynchronous, stragglers)
            ]
            points = [
                (point.workers, getattr(point, quantity))
                for point in measured
                if (point.asynchronous, point.stragglers) == (asynchronous, stragglers)
            ]
            style = "--" if stragglers else "-"
            axis.plot(*zip(*line, strict=True), style, color=f"C{index}", label=label(asynchronous, stragglers))
            if points:
                marker = "^" if stragglers else "o"
                axis.plot(*zip(*points, strict=True), marker, color=f"C{index}", markeredgecolor="black")
        ticks = sorted({setting.workers for setting, _ in found})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(n) for n in ticks], fontsize="x-small", rotation=45)
        axis.minorticks_off()
        axis.set(xlabel="workers", ylabel=quantity.replace("_", " "), ylim=(-0.04, None))
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small", title="markers are measured" if measured else None)
    figure.savefig(path, dpi=120)


def fitted(settings: list[Setting]) -> Setting:
    """The first of the settings, with updates whose time is a line through those of all, by least squares.

    It stays that of the first where all have batches of one size.
    """
    rows = np.array([setting.workers * setting.transitions for setting in settings], float)
    if np.ptp(rows) == 0:
        return settings[0]
    slope, constant = np.polyfit(rows, [setting.update_time for setting in settings], 1)
    return dataclasses.replace(
        settings[0],
        update_seconds=max(0.0, float(constant)),
        update_seconds_per_transition=max(0.0, float(slope)),
    )


def changed(base: Setting, changes: Iterable[str]) -> Setting:
    """The setting with other values: changes are name=value, the value in JSON.

    Raises:
      TypeError: there is no such field.
      ValueError: a change is not name=value, or the value cannot be.
    """
    pairs = (change.split("=", 1) for change in changes)
    return dataclasses.replace(base, **{name: json.loads(value) for name, value in pairs})


def main(argv):
    """Simulates the sweep, compares with what was measured, draws. Returns the exit code."""
    del argv
    try:
        measured = read_measured(FLAGS.measured) if FLAGS.measured else []
        base = changed(fitted([point.setting for point in measured]) if measured else Setting(), FLAGS.setting)
        settings = list(sweep(base, [int(number) for number in FLAGS.workers], FLAGS.batch))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise app.UsageError(f"{type(error).__name__}: {error}") from error
    found = [(setting, simulate(setting, FLAGS.seed + i)) for i, setting in enumerate(settings)]
    show_sweep(found)
    comparisons = [compare(point, FLAGS.seed) for point in measured]
    if comparisons:
        show_comparisons(comparisons)
    if FLAGS.picture:
        draw(found, measured, FLAGS.picture)
        print(FLAGS.picture)
    return int(not all(comparison.agrees for comparison in comparisons))


if __name__ == "__main__":
    app.run(main)
