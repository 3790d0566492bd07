"""What all loggers share: a row waits until it is complete, and an output that fails never stops a run."""

from typing import Any

from trpo_tf.messages import warn_on_failure
from trpo_tf.run.callback import LOGGERS, Callback
from trpo_tf.run.metrics.row import Row


class Logger(Callback):
    """Hands every row to `write` once, when it is complete: at the latest when the next one comes.

    failures: exceptions of `write` that are a warning, once, and no more: all, for a row may hold a user's values.
    """

    order = LOGGERS
    failures: tuple[type[Exception], ...] = (Exception,)

    def __init__(self) -> None:
        self._waiting: Row | None = None
        self._named: set[str] = set()

    def __call__(self, agent: Any, row: Row) -> None:
        """As Callback says."""
        self.flush()
        self._waiting = row
        if row.complete:
            self.flush()

    def flush(self) -> None:
        """Writes the row that waits.

        Raises:
          Exception: what the value fit of its update ended with.
        """
        if self._waiting is None:
            return
        row, self._waiting = dict(self._waiting), None
        with warn_on_failure(type(self).__name__, self.failures, self._named):
            self.write(row)

    def finish(self, agent: Any, done: bool) -> None:
        """As Callback says."""
        self.flush()

    def write(self, row: dict[str, Any]) -> None:
        """Writes an update's metrics."""
        raise NotImplementedError
