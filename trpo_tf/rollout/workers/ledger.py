"""The books of asynchronous workers: where every fragment that was asked for is."""

import collections
import itertools
from typing import Any, NamedTuple

import numpy as np


class Identity(NamedTuple):
    """Which fragment: no two of a run are the same."""

    slot: int
    serial: int  # of the worker
    fragment: int  # of that worker, from 0


COUNTERS = ("asked", "consumed", "lost", "refused", "steps")


class Ledger:
    """Every fragment that was asked for is in one place: consumed, waiting, taken, flying, lost or refused.

    asked = consumed + taken + waiting + flying + lost + refused;  env_steps = the transitions of consumed fragments.
    A fragment is consumed when an update has learned from it, not before.

    Attributes:
      asked, consumed, lost, refused: fragments.
      steps: transitions of consumed fragments.
    """

    def __init__(self) -> None:
        self.asked = self.consumed = self.lost = self.refused = self.steps = 0
        self._before: int | None = 0  # transitions of the run that no fragment gave; None: not known yet
        self._flying: dict[int, Identity] = {}  # by slot
        self._waiting: collections.deque[tuple[Identity, Any]] = collections.deque()
        self._taken: list[tuple[int, int]] = []  # slot and transitions, of the batch that is learned from
        self._fragments: collections.Counter[int] = collections.Counter()  # by serial
        self._by_slot: collections.Counter[int] = collections.Counter()  # transitions consumed

    @property
    def waiting(self) -> int:
        """Fragments that have arrived, and that no batch holds yet."""
        return len(self._waiting)

    @property
    def flying(self) -> int:
        """Fragments that were asked for and have not arrived."""
        return len(self._flying)

    def ask(self, slot: int, serial: int) -> Identity:
        """The next fragment of a worker is asked for."""
        assert slot not in self._flying, "one fragment in flight per slot"
        identity = Identity(slot, serial, self._fragments[serial])
        self._fragments[serial] += 1
        self.asked += 1
        self._flying[slot] = identity
        return identity

    def outstanding(self, slot: int) -> Identity | None:
        """What the slot was asked for and has not given."""
        return self._flying.get(slot)

    def arrive(self, slot: int, fragment: Any) -> None:
        """What the slot was asked for is there."""
        self._waiting.append((self._flying.pop(slot), fragment))

    def lose(self, slot: int) -> None:
        """The slot's worker is gone; what it was asked for, if anything, will never be counted."""
        self.lost += self._flying.pop(slot, None) is not None

    def lose_all(self) -> None:
        """The workers are gone; what flies or waits will never be counted."""
        self.lost += len(self._flying) + len(self._waiting)
        self._flying.clear()
        self._waiting.clear()

    def lose_taken(self) -> None:
        """The batch is gone, and no update has learned from it."""
        self.lost += len(self._taken)
        self._taken = []

    def refuse(self, slot: int) -> None:
        """What the slot gave is not what it was asked for."""
        del self._flying[slot]
        self.refused += 1

    def first(self, count: int) -> list[Any]:
        """The first fragments to arrive."""
        return [fragment for _, fragment in itertools.islice(self._waiting, count)]

    def take(self, steps: list[int]) -> None:
        """The first fragments to arrive, with so many transitions each, are the next batch."""
        assert not self._taken, "a batch at a time"
        self._taken = [(self._waiting.popleft()[0].slot, count) for count in steps]

    def learned(self, env_steps: int) -> None:
        """An update has learned from the batch, and the run has so many transitions now.

        Raises:
          AssertionError: a fragment is nowhere, or twice.
        """
        for slot, steps in self._taken:
            self.consumed, self.steps = self.consumed + 1, self.steps + steps
            self._by_slot[slot] += steps
        self._taken = []
        self._before = env_steps - self.steps if self._before is None else self._before
        self.check(env_steps)

    def check(self, env_steps: int) -> None:
        """Raises AssertionError where the books do not balance."""
        places = self.consumed, len(self._taken), self.waiting, len(self._flying), self.lost, self.refused
        assert self.asked == sum(places), f"{self.asked} fragments asked for, {places} found"
        of_fragments = env_steps - (self._before or 0)
        assert of_fragments == self.steps, f"{of_fragments} transitions counted, {self.steps} in fragments"

    def fastest_share(self) -> float:
        """The fraction of the consumed transitions that the slot with most of them gave."""
        total = sum(self._by_slot.values())
        return max(self._by_slot.values()) / total if total else 0.0

    def begin_late(self) -> None:
        """The run has transitions of another origin; how many, the next `learned` tells."""
        self._before = None

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        counters = {name: np.array(getattr(self, name)) for name in COUNTERS}
        known = {} if self._before is None else {"before": np.array(self._before)}
        return counters | known | {"taken": np.array(self._taken, np.int64).reshape(-1, 2)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes back what `state` gave; what was flying or waiting then is lost. A batch that was taken is still."""
        for name in COUNTERS:
            setattr(self, name, int(state[name]))
        self._before = int(state["before"]) if "before" in state else None
        self._taken = [(slot, steps) for slot, steps in state["taken"].tolist()]
        self.lost = self.asked - self.consumed - len(self._taken) - self.refused
