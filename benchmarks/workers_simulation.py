"""Simulates rollout workers and a learner: throughput and staleness with 1 to 1,000 workers, without any of them.

    python benchmarks/workers_simulation.py --picture=workers.png             # a table and a picture, in seconds
    python benchmarks/workers_simulation.py --batch=2048                      # more workers, shorter fragments
    python benchmarks/workers_simulation.py --measured=benchmarks/results/workers.json --setting=host_sigma=0.1

A discrete-event simulation: transitions are counted and not made. A fragment is T time steps of the B environments of
one worker. A batch is W fragments, for W workers.

Synchronous: all workers begin together with the newest policy. The batch is complete with the slowest fragment. The
next fragments are dispatched when the update has ended.

Asynchronous:
- One fragment per worker is in flight. Each version reaches all workers d seconds after the end of its update. A worker
  takes it over at its next time step, in the middle of a fragment.
- A worker is sent its next fragment the moment its last one has arrived. Only while the learner is busy none is begun
  that the next batch has no room for: W fragments wait or fly. Those begun before go on.
- A batch is the first W fragments that wait. When the learner takes it, idle workers are dispatched at once.

Time steps are taken as infinitely short: the share of a fragment with a version is the share of its work done with that
version. With T time steps a version is taken over up to 1 / T of a fragment later.

The staleness of a time step is the number of updates done when the update that uses it begins, minus its version: the
number of updates that end between d before the time step and the beginning of that update. A batch is taken when W
fragments wait and fewer than W fly. So at most W wait or fly during an update. What arrives during an update is in the
next batch. What arrives while the learner waits is in the batch that it waits for. Therefore
- staleness <= 1 + the updates that end between d before the time step and the arrival of its fragment;
- staleness <= 1 + the updates that end within d before the sending of the fragment, where none overtakes another: one
  sent during an update is in the next batch, one sent while the learner waits is in the next but one at the latest.

For equal workers, fragments of time F, updates of time U, and no other costs, in the long run
- mean staleness = (U + d + the mean time that a fragment waits) / F, if U <= F. With one worker, or workers in step,
  none waits. If fragments end evenly spread over F, and U <= F / W, they wait (1 - 1 / W) F / 2;
- mean staleness = 1 + d / F, if U >= F >= d: all begin with an update, and wait for its end;
- mean staleness <= 1 + d / F, if U >= d, by the second bound.

Rates and staleness are of the time between the end of the first update and the end of the last. --measured names a
file of benchmarks/workers.py, each point of which is simulated with its own setting. The exit code is 1 where
throughput differs by more than 10 % or mean staleness by more than 0.2.
"""

import bisect
import dataclasses
import heapq
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

WORKERS = "1,2,4,8,16,20,32,64,128,256,512,1000"
FRAGMENTS = 10_000  # about so many for a point of the sweep, or more: stragglers are rare
SEEDS = 8  # simulations of a measured point; their mean is compared
MAX_RATIO, MAX_DIFFERENCE = 0.10, 0.2  # of throughput and of mean staleness, measured against simulated

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_string("picture", None, "file to draw efficiency and staleness into, such as workers.png")
    flags.DEFINE_string("measured", None, "JSON file of benchmarks/workers.py to compare with")
    flags.DEFINE_list("workers", WORKERS, "numbers of workers")
    flags.DEFINE_integer("batch", None, "transitions per update, T = max(1, batch // (W B)). None: T is fixed", 1)
    flags.DEFINE_list("setting", [], "name=value of fields of Setting. Default: those of `fitted`, or Setting's")
    flags.DEFINE_integer("seed", 0, "of the first simulation; each has the next", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is simulated. Times are in seconds. Sigmas are of the logarithm of what is lognormal."""

    workers: int = 16  # W
    envs_per_worker: int = 1  # B, stepped one after the other
    time_steps: int = 128  # T, of a fragment
    step_seconds: float = 0.005  # mean time of one step of one environment
    step_sigma: float = 0.5  # of that time
    straggler_share: float = 0.0  # probability that a fragment is a straggler, in [0, 1]
    straggler_factor: float = 5.0  # a straggler takes so many times as long, acting included
    host_sigma: float = 0.0  # of a worker's speed, which has mean 1
    act_seconds: float = 0.00015  # a worker's own cost per time step: acting for its B environments
    send_seconds: float = 0.001  # from the sending of a fragment to its begin. Sending is not serial
    receive_seconds: float = 0.0005  # the dispatching thread's cost per fragment, one after the other
    publish_seconds: float = 0.002  # d, from the end of an update until workers act with its version. Synchronous: none
    update_seconds: float = 0.01  # fixed cost of an update
    update_seconds_per_transition: float = 15e-6  # what each of the W * B * T transitions adds to it
    asynchronous: bool = True  # the semantics, see above
    cores: float | None = None  # shared equally by collecting workers, at most one each. None: one each, or all sleep
    updates: int = 60  # until the simulation ends, at least 2

    def __post_init__(self):
        if min(self.workers, self.envs_per_worker, self.time_steps, self.updates - 1) < 1:
            raise ValueError(f"at least one worker, environment and time step, two updates are needed: {self}")
        if not self.fragment_seconds > 0 or (self.cores is not None and not self.cores > 0):
            raise ValueError(f"a fragment takes time and needs cores: {self}")

    @property
    def mode(self) -> str:
        """The name of a line of the picture."""
        return ("asynchronous" if self.asynchronous else "synchronous") + ", stragglers" * (self.straggler_share > 0)

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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a simulation found, between the end of the first update and the end of the last. Shares are of that time."""

    transitions_per_second: float  # learned from
    efficiency: float  # that, over what the workers would collect if none ever waited. Chance can lift it above 1
    mean_staleness: float  # over transitions used
    max_staleness: int
    staleness: dict[int, float]  # fragments used, by staleness; fractions of one where it changes within
    updates_per_second: float
    learner_busy: float  # share of time in which an update is under way
    thread_busy: float  # share of time in which the dispatching thread receives
    wait_share: float  # share of the workers' time in which they collect nothing
    fastest_share: float  # share of the fragments used that came from the worker with most of them; 1 / W if all equal


def simulate(setting: Setting, seed: int = 0) -> Outcome:
    """Simulates a setting with random speeds and times. Equal seeds give equal outcomes."""
    rng, sigma = np.random.default_rng(seed), setting.host_sigma
    speeds = np.exp(sigma * rng.standard_normal(setting.workers) - sigma**2 / 2).tolist()
    return Simulation(setting, speeds, fragment_times(setting, rng)).run()


def fragment_times(setting: Setting, rng: np.random.Generator, block: int = 4096) -> Iterator[float]:
    """Yields the times of fragments at speed 1 without end, in seconds. A straggler is slow throughout.

    The sum of a fragment's n lognormal times is drawn as one lognormal time with the mean and the variance of the sum
    (Fenton 1960): sigma_n^2 = log(1 + (exp(sigma^2) - 1) / n). That is exact for n = 1.
    """
    steps = setting.transitions
    sigma = math.sqrt(math.log1p(math.expm1(setting.step_sigma**2) / steps))
    while True:
        noise = rng.standard_normal(block)
        seconds = np.exp(sigma * noise - sigma**2 / 2) * steps * setting.step_seconds
        seconds += setting.time_steps * setting.act_seconds
        slow = rng.random(block) < setting.straggler_share
        yield from (seconds * np.where(slow, setting.straggler_factor, 1.0)).tolist()


Shares = list[tuple[int, float]]  # (version, fraction of a fragment's work done with it)


class Simulation:
    """The state of workers, dispatching thread and learner at one moment, and what happens next.

    A fragment is sent, begun, collected and received. It flies until it has been received, and waits until an update
    uses it. Cores are shared by a clock of progress: it runs at the share of a core that each collecting worker has. A
    fragment is collected when its own time has passed on that clock, and its work with a version is read off it, too.
    """

    def __init__(self, setting: Setting, speeds: Sequence[float], times: Iterable[float]):
        """Speeds [W] relative to 1; seconds of fragments at speed 1, in the order of their dispatch."""
        self.setting, self.speeds, self.times = setting, speeds, iter(times)
        self.now = self.progress = self.thread_free = 0.0
        self.version, self.updating = 0, False  # updates done; whether one is under way
        self.reached = [0.0]  # progress when each version reached the workers
        self.idle = [*reversed(range(setting.workers))]
        self.waiting: list[tuple[int, Shares]] = []  # (worker, shares) of fragments received
        self.collecting: list[tuple[float, int, int, float]] = []  # heap of (progress at the end, order, worker, begin)
        self.events: list[tuple[float, int, Callable, tuple]] = []  # heap of (time, order, handler, its arguments)
        self.order = itertools.count()  # of equal times, the first scheduled comes first
        self._measure()

    def run(self) -> Outcome:
        """Goes from event to event until the last update has ended."""
        self._proceed()
        while self.version < self.setting.updates:
            collecting = len(self.collecting)
            share = min(1.0, (self.setting.cores or math.inf) / max(1, collecting))  # of a core, for each
            left = max(0.0, self.collecting[0][0] - self.progress) / share if collecting else math.inf
            event = bool(self.events) and self.events[0][0] <= self.now + left
            time = self.events[0][0] if event else self.now + left
            self.progress += (time - self.now) * share
            self.worked += (time - self.now) * collecting
            self.received += max(0.0, min(time, self.thread_free) - self.now)
            self.now = time
            if event:
                _, _, handler, arguments = heapq.heappop(self.events)
                handler(*arguments)
            else:
                self.progress, _, worker, start = heapq.heappop(self.collecting)
                self._collected(worker, start)
        return self._outcome()

    def _at(self, time: float, handler: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (time, next(self.order), handler, arguments))

    def _proceed(self) -> None:
        """Begins an update, if a whole batch waits and none is under way, and fragments, unless they are held back."""
        workers = self.setting.workers
        if len(self.waiting) >= workers and not self.updating:
            for worker, shares in self.waiting[:workers]:
                for version, share in shares:
                    self.staleness[self.version - version] += share
                self.used_from[worker] += 1
            self.waiting, self.updating = self.waiting[workers:], True
            self._at(self.now + self.setting.update_time, self._updated)
        while self.idle and self._may_begin():
            self._at(self.now + self.setting.send_seconds, self._begun, self.idle.pop(), next(self.times))

    def _begun(self, worker: int, seconds: float) -> None:
        end = self.progress + seconds / self.speeds[worker]
        heapq.heappush(self.collecting, (end, next(self.order), worker, self.progress))

    def _collected(self, worker: int, start: float) -> None:
        self.thread_free = max(self.now, self.thread_free) + self.setting.receive_seconds
        self._at(self.thread_free, self._arrived, worker, self._shares(start, self.progress))

    def _shares(self, start: float, end: float) -> Shares:
        """Of a fragment collected between these moments of progress."""
        first = bisect.bisect(self.reached, start) - 1
        moments = itertools.pairwise([start, *self.reached[first + 1 :], end])
        return [(first + i, (till - since) / (end - start)) for i, (since, till) in enumerate(moments) if till > since]

    def _arrived(self, worker: int, shares: Shares) -> None:
        self.waiting.append((worker, shares))
        self.idle.append(worker)
        self._proceed()

    def _may_begin(self) -> bool:
        """Whether a fragment may be begun."""
        if not self.setting.asynchronous:
            return not (self.waiting or self.updating)
        return not self.updating or len(self.waiting) < len(self.idle)  # there is room: W - idle fly

    def _updated(self) -> None:
        self.version, self.updating = self.version + 1, False
        delay = self.setting.publish_seconds if self.setting.asynchronous else 0.0
        self._at(self.now + delay, lambda: self.reached.append(self.progress))
        if self.version == 1:
            self._measure()
        if self.version < self.setting.updates:
            self._proceed()

    def _measure(self) -> None:
        """Begins to measure anew."""
        self.since = self.now
        self.worked = self.received = 0.0  # seconds of collecting workers, and of the dispatching thread at work
        self.staleness: defaultdict[int, float] = defaultdict(float)  # fragments used, by staleness
        self.used_from: Counter[int] = Counter()  # fragments used, by worker

    def _outcome(self) -> Outcome:
        setting, seconds = self.setting, self.now - self.since
        rate = (setting.updates - 1) / seconds
        return Outcome(
            transitions_per_second=rate * setting.workers * setting.transitions,
            efficiency=rate * setting.workers * setting.fragment_seconds / sum(self.speeds),
            mean_staleness=sum(value * count for value, count in self.staleness.items()) / self.used_from.total(),
            max_staleness=max(self.staleness),
            staleness=dict(sorted(self.staleness.items())),
            updates_per_second=rate,
            learner_busy=rate * setting.update_time,
            thread_busy=self.received / seconds,
            wait_share=1 - self.worked / (setting.workers * seconds),
            fastest_share=max(self.used_from.values()) / self.used_from.total(),
        )


class Point(NamedTuple):
    """A point of benchmarks/workers.py: the setting that stands for it, and what was measured."""

    setting: Setting
    transitions_per_second: float
    efficiency: float
    mean_staleness: float


def read_measured(path: str | Path) -> list[Point]:
    """The points of a file of benchmarks/workers.py. Raises ValueError where one contradicts its own setting."""
    points = []
    for record in json.loads(Path(path).read_text(encoding="utf-8"))["points"]:
        setting = Setting(**record["setting"])
        if (setting.workers, setting.asynchronous) != (record["workers"], record["asynchronous"]):
            raise ValueError(f"a point contradicts its own setting: {record}")
        points.append(Point(setting, *(record[name] for name in Point._fields[1:])))
    return points


def compare(point: Point, seed: int = 0) -> tuple[Point, float, float, bool]:
    """The mean of simulations of a measured point's setting, and how the point differs.

    Returns:
      The mean; measured throughput over it; measured mean staleness minus it; whether both are within what is allowed.
    """
    outcomes = [simulate(point.setting, seed + i) for i in range(SEEDS)]
    means = (float(np.mean([getattr(outcome, name) for outcome in outcomes])) for name in Point._fields[1:])
    found = Point(point.setting, *means)
    ratio = point.transitions_per_second / found.transitions_per_second
    difference = point.mean_staleness - found.mean_staleness
    return found, ratio, difference, abs(ratio - 1) <= MAX_RATIO and abs(difference) <= MAX_DIFFERENCE


def sweep(base: Setting, workers: Iterable[int], batch: int | None) -> Iterator[Setting]:
    """Settings with each number of workers in every mode; T = max(1, batch // (W B)), or that of base without batch."""
    for asynchronous, share, number in itertools.product((False, True), (0.0, 0.01), workers):
        yield dataclasses.replace(
            base,
            workers=number,
            asynchronous=asynchronous,
            time_steps=max(1, batch // (number * base.envs_per_worker)) if batch else base.time_steps,
            updates=max(base.updates, FRAGMENTS // number),
            straggler_share=share,
        )


# name=format, of (setting, outcome) and of (measured, *compare(), verdict); _ is a blank
SWEEP_COLUMNS = (
    "mode={0.mode} W={0.workers} T={0.time_steps} transitions/s={1.transitions_per_second:,.0f} "
    "efficiency={1.efficiency:.2f} mean_staleness={1.mean_staleness:.2f} max={1.max_staleness} "
    "updates/s={1.updates_per_second:.2f} learner_busy={1.learner_busy:.2f} thread_busy={1.thread_busy:.2f} "
    "workers_wait={1.wait_share:.2f} fastest's_share={1.fastest_share:.4f}"
)
COMPARISON_COLUMNS = (
    "mode={0.setting.mode} W={0.setting.workers} transitions/s={0.transitions_per_second:,.0f} "
    "simulated={1.transitions_per_second:,.0f} ratio={2:.3f} mean_staleness={0.mean_staleness:.2f} "
    "simulated={1.mean_staleness:.2f} difference={3:+.2f} agrees={5}"
)


def show(title: str, cells: str, rows: Iterable[tuple]) -> None:
    """Prints a table; see SWEEP_COLUMNS."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = [column.split("=") for column in cells.split()]
    table = Table(*(Column(name.replace("_", " "), justify="right") for name, _ in columns), title=title)
    for row in rows:
        table.add_row(*(text.format(*row) for _, text in columns))
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table)  # a file has no width: nothing is cut there


def draw(found: list[tuple[Setting, Outcome]], measured: list[Point], path: str) -> None:
    """Draws efficiency and mean staleness over workers: lines are simulated, markers are measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    ticks = sorted({setting.workers for setting, _ in found})
    markers = [(point.setting, point) for point in measured]
    for axis, quantity in zip(figure.subplots(1, 2), ("efficiency", "mean_staleness"), strict=True):
        for index, mode in enumerate(dict.fromkeys(setting.mode for setting, _ in found)):
            line, marker = ("--", "^") if "stragglers" in mode else ("-", "o")
            kinds = (found, line, {"label": mode}), (markers, marker, {"markeredgecolor": "black"})
            for points, style, how in kinds:
                xy = [(setting.workers, getattr(of, quantity)) for setting, of in points if setting.mode == mode]
                axis.plot(*np.reshape(xy, (-1, 2)).T, style, color=f"C{index}", **how)
        axis.set(xscale="log", xlabel="workers", ylabel=quantity.replace("_", " "), ylim=(-0.04, None))
        axis.set_xticks(ticks, [str(n) for n in ticks], fontsize="x-small", rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small", title="markers are measured" if measured else None)
    figure.savefig(path, dpi=120)


def fitted(settings: list[Setting]) -> Setting:
    """The first of the settings. Where batches differ, the time of its updates is a line through that of all."""
    rows = np.array([setting.workers * setting.transitions for setting in settings], float)
    if np.ptp(rows) == 0:
        return settings[0]
    slope, constant = np.polyfit(rows, [setting.update_time for setting in settings], 1).clip(0).tolist()
    return dataclasses.replace(settings[0], update_seconds=constant, update_seconds_per_transition=slope)


def changed(base: Setting, changes: Iterable[str]) -> Setting:
    """The setting with other values: changes are name=value, the value in JSON."""
    pairs = (change.split("=", 1) for change in changes)
    return dataclasses.replace(base, **{name: json.loads(value) for name, value in pairs})


def main(argv):
    """Simulates the sweep, compares with what was measured, draws. Returns the exit code."""
    del argv
    try:
        measured = read_measured(FLAGS.measured) if FLAGS.measured else []
        base = changed(fitted([point.setting for point in measured]) if measured else Setting(), FLAGS.setting)
        settings = list(sweep(base, [int(number) for number in FLAGS.workers], FLAGS.batch))
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise app.UsageError(f"{type(error).__name__}: {error}") from error
    found = [(setting, simulate(setting, FLAGS.seed + i)) for i, setting in enumerate(settings)]
    show("simulated", SWEEP_COLUMNS, found)
    compared = [(point, *compare(point, FLAGS.seed)) for point in measured]
    if compared:
        rows = ((*row, "yes" if row[-1] else "NO") for row in compared)
        show("measured against simulated", COMPARISON_COLUMNS, rows)
    if FLAGS.picture:
        draw(found, measured, FLAGS.picture)
        print(FLAGS.picture)
    return int(not all(agrees for *_, agrees in compared))


if __name__ == "__main__":
    app.run(main)
