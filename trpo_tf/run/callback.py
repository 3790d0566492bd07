"""What is called after every update: evaluation, checkpoints, loggers, and whatever a user adds are of this kind."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trpo_tf.run.metrics.row import Row

FIRST, SECOND, LOGGERS, LAST = range(4)


class Callback:
    """Called with the agent and an update's metrics; every method may be left as it is.

    A plain function (agent, row) does as well. What is put into `row` is logged with the update's other metrics.
    Callbacks are called in the order of `order`, and in the order they were given within it, so that checkpoints find
    everything else done. They are started the other way round.
    """

    order = FIRST

    def start(self, agent: Any) -> None:
        """Before the first update of `learn`."""

    def secure(self, agent: Any) -> None:
        """Saves what must not be lost: when every callback has started, and before the first one finishes."""

    def __call__(self, agent: Any, row: Row) -> bool | None:
        """After an update; False ends the training."""

    def flush(self) -> None:
        """Writes what waits to be written; before a checkpoint, and at the end."""

    def finish(self, agent: Any, done: bool) -> None:
        """After the last update. done: the training is over; False: it was interrupted, or failed."""

    def close(self) -> None:
        """Frees what `start` took, whatever happened."""

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a callback of the same class needs; kept in checkpoints."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes back what `state` gave."""


class Function(Callback):
    """A plain function as a callback."""

    def __init__(self, function: Callable[[Any, Row], bool | None]):
        self._function = function

    def __call__(self, agent: Any, row: Row) -> bool | None:
        """As Callback says."""
        return self._function(agent, row)


def as_callbacks(given: Any) -> list[Callback]:
    """A list of callbacks or functions as callbacks, in the order they are called."""
    callbacks = [one if isinstance(one, Callback) else Function(one) for one in given]
    return sorted(callbacks, key=lambda callback: callback.order)


def by_name(callbacks: list[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each with its class/number, the same in a run and its resumption."""
    counts: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        counts[kind] = counts.get(kind, -1) + 1
        yield f"{kind}/{counts[kind]}", callback
