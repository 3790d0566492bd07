"""Rollouts from workers that nobody waits for: batches of the first fragments to arrive, whatever their versions."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.errors import EnvironmentFailure, Interrupted, UsageError
from trpo_tf.messages import warn
from trpo_tf.rollout.finite import check_invalid
from trpo_tf.rollout.sources import Weights
from trpo_tf.rollout.workers.crew import Crew
from trpo_tf.rollout.workers.fleet import Answer, Death
from trpo_tf.rollout.workers.fragments import Shapes, joined
from trpo_tf.rollout.workers.ledger import Ledger
from trpo_tf.state import part, prefixed
from trpo_tf.types import Rollout

_HELD = 0.003  # seconds until slots are looked at again that are held back until a batch is taken
_WAIT = 0.2  # seconds until anything else is
_FATAL = {"usage": UsageError, "environment": EnvironmentFailure}  # a worker has the limits of the whole run
_OF_COLLECTOR = ("invalid", "restarts", "dropped")  # totals that a run without such workers has, too
_TOTALS = ("serial", "deaths", "unasked", *_OF_COLLECTOR)


class AsynchronousSource:
    """Interface: see RolloutSource. A thread sends the workers out, each again the moment it is back.

    A batch is made of the first W fragments to arrive. While nobody waits for a batch, none is begun that the next one
    has no room for: it would wait, and get old; a learner slower than its workers would learn from ever older ones.

    Args:
      make_crew: from the serial of the first worker to workers that begin.
      workers: W.
      shapes: of a fragment.
      log_prob: from parameters [N, K] and raw actions [N, A] to log-probabilities [N].
      max_invalid: transitions with NaN or infinity to mask before EnvironmentFailure is raised.
      max_restarts: environments that may be made anew.
      stopping: whether the run is to end.
    """

    def __init__(
        self,
        make_crew: Callable[[int], Crew],
        workers: int,
        shapes: Shapes,
        log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray],
        max_invalid: int,
        max_restarts: int,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._make_crew, self._count, self._shapes, self._log_prob = make_crew, workers, shapes, log_prob
        self._limits, self._stopping = (max_invalid, max_restarts), stopping
        self.ledger = Ledger()
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._published: tuple[int, Any, int] | None = None  # version, weights, and the number of the publication
        self._publications = 0
        self._batch: Rollout | None = None  # taken, and not learned from
        self._awaited = False  # somebody waits for a batch
        self._crew: Crew | None = None
        self._ends: weakref.finalize | None = None  # closes it
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._change = threading.Condition()  # guards all above; told when a fragment has arrived, or an error

    def publish(self, version: int, weights: Weights) -> None:
        """As RolloutSource says: workers act with this version from their next time step on."""
        with self._change:
            self._ensure_thread()
            crew = self._begun()
            self._publications += 1
            self._published = version, crew.share(weights), self._publications
            crew.tell("take_weights", *self._published)

    def next(self) -> Rollout:
        """As RolloutSource says. A batch that no update has learned from is given again.

        Raises:
          Interrupted: the run is to end, and no batch is there yet.
          UsageError: a worker cannot make the environments as asked for.
        """
        if self._batch is not None:
            return self._batch
        with self._change:
            self.ledger.lose_taken()
            self._awaited = True
            try:
                self._await_batch()
            finally:
                self._awaited = False
            fragments = self.ledger.first(self._count)
        rollout = self._within(joined(fragments, self._log_prob, (self._totals["restarts"], self._totals["dropped"])))
        with self._change:
            self.ledger.take([int(x.sum()) for x in np.split(rollout.trajectory.mask, self._count, 1)])
            self._totals["invalid"] += rollout.invalid
            self._totals |= {"restarts": rollout.restarts, "dropped": rollout.dropped}
            self._batch = rollout
        return rollout

    def _await_batch(self) -> None:
        while self.ledger.waiting < self._count:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._ensure_thread()
            if self._stopping():
                raise Interrupted("the run ends without the batch that the workers were making")
            self._change.wait(_WAIT)

    def _within(self, rollout: Rollout) -> Rollout:
        """The rollout, unless environments fail, or give NaN or infinity, too often."""
        invalid, (most_invalid, most_restarts) = self._totals["invalid"] + rollout.invalid, self._limits
        check_invalid(invalid, most_invalid)
        if rollout.restarts > most_restarts:
            raise EnvironmentFailure(
                f"environments failed {rollout.restarts} times; --max_env_restarts={most_restarts}"
            )
        return rollout

    def work_ahead(self) -> None:
        """Nothing: workers always do."""

    def renew(self, update: int) -> None:
        """Nothing: environments go on, and episodes are not cut."""

    def learned(self, env_steps: int) -> dict[str, Any]:
        """As RolloutSource says."""
        with self._change:
            self.ledger.learned(env_steps)
            self._batch = None
            self._count_crew()
            return {
                "workers/alive": self._crew.alive if self._crew else 0,
                "workers/deaths": self._totals["deaths"],
                "workers/lost_fragments": self.ledger.lost,
                "workers/refused_fragments": self.ledger.refused + self._totals["unasked"],
                "workers/fastest_share": self.ledger.fastest_share(),
            }

    def state(self) -> dict[str, np.ndarray]:
        """As RolloutSource says: the books, and nothing of the environments."""
        with self._change:
            self._count_crew()
            totals = {name: np.array(value) for name, value in self._totals.items()}
            return prefixed("ledger", self.ledger.state()) | prefixed("totals", totals)

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """As RolloutSource says. The books go on; the workers are new ones, with seeds that nobody had.

        A run that had no such workers begins its books here.
        """
        totals = part("totals", state)
        with self._change:
            if totals:
                self.ledger.restore(part("ledger", state))
                self._totals = {name: int(totals[name]) for name in _TOTALS}
            else:
                self.ledger.begin_late()
                while inner := part("source", state):  # of whatever is around the collector
                    state = inner
                self._totals |= {name: int(state[name]) for name in _OF_COLLECTOR if name in state}
                warn("the run had no asynchronous workers before: its environments begin anew")
        return True

    def close(self) -> None:
        """As RolloutSource says. What is asked for afterwards begins other workers."""
        with self._change:
            self._closing = True
            thread = self._thread
        try:
            if thread is not None:
                thread.join()
        finally:
            self._closing = False
        with self._change:
            self._count_crew()
            self._crew = self._error = self._published = None
            self.ledger.lose_all()
        if self._ends is not None:
            self._ends()

    def _count_crew(self) -> None:
        if self._crew is not None:
            for name in ("serial", "deaths", "unasked"):
                self._totals[name] = getattr(self._crew, name)

    def _ensure_thread(self) -> None:
        """Begins workers and thread, where there are none: Ray in the thread that asks, whose signals it would take."""
        if self._thread is None and not self._closing:
            arguments = weakref.ref(self), self._begun()
            self._thread = threading.Thread(target=_dispatch, args=arguments, name="workers", daemon=True)
            self._thread.start()

    def dispatch(self, crew: Crew) -> bool:
        """As `dispatch_once`; False where the source is closed or something failed, and the thread is to end."""
        error: BaseException | None = None
        try:
            self.dispatch_once(crew)
        except BaseException as raised:
            error = raised
        with self._change:
            self._error = error or self._error
            if not self._closing and self._error is None:
                return True
            self._thread = None  # with the error at once: whoever takes it finds no thread, and begins another
            self._change.notify_all()
            return False

    def _begun(self) -> Crew:
        if self._crew is None:
            crew = self._make_crew(self._totals["serial"])
            crew.deaths, crew.unasked = self._totals["deaths"], self._totals["unasked"]
            self._crew, self._ends = crew, weakref.finalize(self, crew.close)  # where nobody closes this
            self._ends.atexit = False  # the thread may still be at it; RayCluster sees to the end of the process
        return self._crew

    def dispatch_once(self, crew: Crew) -> None:
        """Sends out whoever may go, waits a moment, and takes in what has come back."""
        with self._change:
            held = self._send_out(crew)
        for event in crew.poll(_HELD if held else _WAIT):
            with self._change:
                self._take_in(crew, event)
                self._change.notify_all()

    def _send_out(self, crew: Crew) -> bool:
        """Asks workers that are ready for their next fragment; whether some are held back."""
        ledger, ready = self.ledger, crew.ready()
        hungry = self._awaited and ledger.waiting < self._count
        room = self._count if hungry else max(0, self._count - ledger.waiting - ledger.flying)
        free = ready[:room] if self._published else []
        for slot in free:
            crew.ask(slot, "fragment", ledger.ask(slot, crew.serial_of(slot)), *(self._published or ()))
        return len(free) < len(ready)

    def _take_in(self, crew: Crew, event: Answer | Death) -> None:
        """Puts what has happened into the books."""
        slot = event.slot
        identity = self.ledger.outstanding(slot)
        if isinstance(event, Death) or identity is None:
            self.ledger.lose(slot)
        elif event.reply.trouble is not None:
            self.ledger.lose(slot)
            kind, message = _FATAL.get(event.reply.trouble.kind), event.reply.trouble.message
            crew.replace(slot, message, told=kind is not None)
            self._error = self._error if kind is None else kind(message)
        elif misfit := self._shapes.misfit(event.reply.value, identity):
            self.ledger.refuse(slot)
            crew.replace(slot, misfit)
        else:
            crew.accept(slot)
            self.ledger.arrive(slot, event.reply.value)


def _dispatch(of_source: Callable[[], AsynchronousSource | None], crew: Crew) -> None:
    """Sends workers out and takes in what they bring, until the source is closed or nobody's, or something fails."""
    while (source := of_source()) is not None:
        if not source.dispatch(crew):
            return
        del source  # here it may go, and the crew with it
