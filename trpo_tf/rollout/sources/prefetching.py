"""Rollouts made ahead, in a thread of their own, while the learner works."""

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np

from trpo_tf.rollout.sources import RolloutSource, Weights
from trpo_tf.state import part, prefixed
from trpo_tf.types import Rollout, pack, unpack


class PrefetchingSource:
    """Begins the next rollout in `work_ahead`, with the newest version published by then.

    Args:
      source: makes the rollouts; while one is made ahead, nothing of it is touched.
    """

    def __init__(self, source: RolloutSource):
        self._source = source
        self._ahead: Future[Rollout] | None = None
        self._waiting: tuple[int, Weights] | None = None

    def publish(self, version: int, weights: Weights) -> None:
        """As RolloutSource says; handed on when no rollout is under way."""
        self._waiting = version, weights

    def next(self) -> Rollout:
        """As RolloutSource says: what `work_ahead` began, or a rollout from here."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            self._hand_on()
            return self._source.next()
        rollout = ahead.result()
        self._hand_on()
        return rollout

    def work_ahead(self) -> None:
        """As RolloutSource says."""
        if self._ahead is not None:  # it was asked for already, before an update that failed
            return
        self._hand_on()
        future: Future[Rollout] = Future()
        threading.Thread(target=self._run, args=(future,), name="rollout").start()
        self._ahead = future

    def learned(self, env_steps: int) -> dict[str, Any]:
        """As RolloutSource says."""
        return self._source.learned(env_steps)

    def renew(self, update: int) -> None:
        """As RolloutSource says; no rollout is under way."""
        self._source.renew(update)

    def state(self) -> dict[str, np.ndarray]:
        """As RolloutSource says, when the rollout under way has ended."""
        arrays = {}
        if self._ahead and not self._ahead.exception():
            arrays = pack(self._ahead.result(), "ahead")
        return arrays | prefixed("source", self._source.state())

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """As RolloutSource says."""
        rollout = unpack(state, "ahead")
        if rollout is not None:
            self._ahead = Future()
            self._ahead.set_result(rollout)
        return self._source.restore(part("source", state))

    def close(self) -> None:
        """As RolloutSource says."""
        self.wait()
        self._source.close()

    def wait(self) -> None:
        """Lets a rollout under way end."""
        if self._ahead:
            self._ahead.exception()

    def _hand_on(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._source.publish(*waiting)

    def _run(self, future: "Future[Rollout]") -> None:
        try:
            future.set_result(self._source.next())
        except BaseException as error:
            future.set_exception(error)
