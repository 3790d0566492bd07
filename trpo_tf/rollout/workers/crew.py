"""Slots, and the worker in each: started, asked one thing at a time, given up after a time-out, replaced."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from trpo_tf.errors import EnvironmentFailure
from trpo_tf.messages import warn
from trpo_tf.rollout.workers.fleet import BEGIN, Answer, Death, Fleet

_DEATHS = 3  # per slot, in a row and without a fragment, after which the run fails
_LONGEST_PAUSE = 30.0  # seconds before a worker is begun whose predecessors gave nothing
_ALONE = 300.0  # seconds without the workers that are needed after which the run fails
_MISSED = 60.0  # seconds after which the user is told of workers that are not there

_ABSENT, _STARTING, _READY, _BUSY = "absent", "starting", "ready", "busy"


@dataclasses.dataclass
class _Slot:
    state: str = _ABSENT
    serial: int = -1  # of its newest worker
    ticket: int = BEGIN
    since: float = 0.0  # when it was asked
    begin_at: float = 0.0  # when the next worker is begun
    limit: float = 0.0  # seconds that it may take
    abandoned: bool = False  # nobody waits for its answer any more
    fruitless: int = 0  # workers in a row that gave nothing


class Crew:
    """W slots with a worker each.

    A worker is known by its slot and its serial, which counts the starts of workers over the whole run. Whoever asks a
    worker says afterwards whether the answer was good: `accept` or `replace`.

    Args:
      fleet: starts workers.
      slots: W.
      timeout: seconds for an answer; 0: any time.
      serial: of the first worker.
      needed: workers without which the run cannot go on for long.
      clock: seconds; for tests.

    Attributes:
      serial: of the next worker.
      deaths: workers so far that died or were given up.
      unasked: answers so far that nobody waited for.
    """

    def __init__(
        self,
        fleet: Fleet,
        slots: int,
        timeout: float,
        serial: int = 0,
        needed: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._fleet, self._timeout, self._clock = fleet, timeout, clock
        self._slots = [_Slot() for _ in range(slots)]
        self.serial, self.deaths, self.unasked = serial, 0, 0
        self._ticket = BEGIN
        self._fruitless = 0  # deaths in a row without anything from anybody
        self._needed = needed
        self._since: dict[int, float] = {}  # since when there are not so many workers, by their number
        self._last = ""  # what was said of the last death
        self._said: set[str] = set()  # what is said once
        self._error: EnvironmentFailure | None = None  # raised by the next `poll`, such that no event is lost
        self._begin_due()

    @property
    def alive(self) -> int:
        """Workers that are ready or busy."""
        return sum(slot.state in (_READY, _BUSY) for slot in self._slots)

    def serial_of(self, slot: int) -> int:
        """Of the slot's newest worker."""
        return self._slots[slot].serial

    def ready(self) -> list[int]:
        """The slots whose workers can be asked."""
        return [index for index, slot in enumerate(self._slots) if slot.state == _READY]

    def share(self, value: Any) -> Any:
        """As Fleet says."""
        return self._fleet.share(value)

    def tell(self, method: str, *args: Any) -> None:
        """Calls a method of all workers that have begun, beside whatever they do; any thread may."""
        for index, slot in enumerate(self._slots):
            if slot.state in (_READY, _BUSY):
                self._fleet.tell(index, method, *args)

    def ask(self, index: int, method: str, *args: Any, allowance: float = 1.0) -> None:
        """Asks the worker of a slot that is ready. allowance: multiple of the time-out."""
        slot = self._slots[index]
        assert slot.state == _READY
        self._ticket += 1
        slot.state, slot.ticket, slot.since = _BUSY, self._ticket, self._clock()
        slot.limit, slot.abandoned = self._timeout * allowance, False
        self._fleet.send(index, slot.ticket, method, *args)

    def poll(self, seconds: float) -> list[Answer | Death]:
        """Waits so long at most; answers to what was asked, and deaths. Begins workers where they are missing.

        Raises:
          EnvironmentFailure: workers die one after the other without an answer, or too few have been there for long.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._begin_due()
        found: list[Answer | Death] = []
        for event in self._fleet.wait(seconds):
            slot = self._slots[event.slot]
            if slot.serial != event.serial or slot.state not in (_STARTING, _BUSY, _READY):
                self.unasked += isinstance(event, Answer)
            elif isinstance(event, Death):
                found.append(self._lost(event.slot, event.message))
            elif event.ticket == slot.ticket and slot.state != _READY:
                for line in event.reply.said:  # perhaps by other workers, too
                    self._say(line, line)
                if slot.state == _STARTING and event.reply.trouble:
                    found.append(self.replace(event.slot, event.reply.trouble.message))
                    continue
                found += [event] if slot.state == _BUSY and not slot.abandoned else []
                slot.state = _READY
            else:
                self.unasked += 1
        found += self._overdue()
        self._check_alive()
        return found

    def abandon(self) -> None:
        """Nobody waits any more for what workers were asked."""
        for slot in self._slots:
            slot.abandoned = True

    def accept(self, index: int) -> None:
        """The slot's last answer was good."""
        self._slots[index].fruitless = self._fruitless = 0

    def replace(self, index: int, why: str, told: bool = False) -> Death:
        """Gives the slot's worker up; another one is begun. told: the user learns of it in another way."""
        self._fleet.kill(index)
        return self._lost(index, why, told)

    def close(self) -> None:
        """Ends all workers."""
        for slot in self._slots:
            slot.state, slot.begin_at = _ABSENT, float("inf")
        self._fleet.close()

    def _begin_due(self) -> None:
        now = self._clock()
        for index, slot in enumerate(self._slots):
            if slot.state == _ABSENT and now >= slot.begin_at:
                slot.state, slot.serial, slot.ticket = _STARTING, self.serial, BEGIN
                self.serial += 1
                self._fleet.start(index, slot.serial)

    def _lost(self, index: int, why: str, told: bool = False) -> Death:
        slot = self._slots[index]
        if told:
            self._fruitless = 0  # the run ends, or begins again
        else:
            self._say("lost", f"a rollout worker is lost, and another one begun: {why}")
        self.deaths, self._last = self.deaths + 1, why
        pause = min(2.0 ** (slot.fruitless - 1), _LONGEST_PAUSE) if slot.fruitless else 0.0
        slot.state, slot.begin_at = _ABSENT, self._clock() + pause
        slot.fruitless, self._fruitless = slot.fruitless + 1, self._fruitless + 1
        if self._fruitless >= _DEATHS * len(self._slots):
            count, self._fruitless = self._fruitless, 0
            self._error = EnvironmentFailure(f"{why}; {count} workers in a row were lost before they gave a fragment")
        death = Death(index, slot.serial, why)
        self._begin_due()
        return death

    def _overdue(self) -> list[Answer | Death]:
        now = self._clock()
        return [
            self.replace(index, f"no answer within --fragment_timeout={self._timeout:g} seconds")
            for index, slot in enumerate(self._slots)
            if slot.state == _BUSY and slot.limit and now - slot.since > slot.limit
        ]

    def _check_alive(self) -> None:
        why = self._last or "they could not be placed; does the cluster have cores, and memory, that are free?"
        there = f"only {self.alive} of {len(self._slots)} rollout workers"
        if self._missing_for(len(self._slots)) > _MISSED:
            self._say("missing", f"for {_MISSED:.0f} seconds {there} are there: {why}")
        if self._missing_for(self._needed) > _ALONE:
            self._since.clear()
            self._error = EnvironmentFailure(f"for {_ALONE / 60:.0f} minutes {there} were there: {why}")

    def _missing_for(self, count: int) -> float:
        """Seconds without so many workers."""
        now = self._clock()
        if self.alive >= count:
            self._since.pop(count, None)
            return 0.0
        return now - self._since.setdefault(count, now)

    def _say(self, about: str, line: str) -> None:
        """Warns, once of each thing."""
        if about not in self._said:
            self._said.add(about)
            warn(line)
