"""A policy that acts some updates behind the one that learns, to study staleness."""

import collections
from typing import Any

import numpy as np

from trpo_tf.rollout.sources import RolloutSource, Weights
from trpo_tf.state import part, prefixed
from trpo_tf.types import Rollout


class LaggingSource:
    """Hands versions on `lag` updates late; until there are as many, the first one acts.

    Args:
      source: makes the rollouts.
      lag: >= 1.
    """

    def __init__(self, source: RolloutSource, lag: int):
        self._source = source
        self._past: collections.deque[tuple[int, Weights]] = collections.deque(maxlen=lag + 1)

    def publish(self, version: int, weights: Weights) -> None:
        """As RolloutSource says; a version published again, after a failure, is kept once."""
        if not self._past or self._past[-1][0] != version:
            self._past.append((version, weights))
        self._source.publish(*self._past[0])

    def next(self) -> Rollout:
        """As RolloutSource says."""
        return self._source.next()

    def work_ahead(self) -> None:
        """As RolloutSource says."""
        self._source.work_ahead()

    def learned(self, env_steps: int) -> dict[str, Any]:
        """As RolloutSource says."""
        return self._source.learned(env_steps)

    def renew(self, update: int) -> None:
        """As RolloutSource says."""
        self._source.renew(update)

    def state(self) -> dict[str, np.ndarray]:
        """As RolloutSource says."""
        arrays = prefixed("source", self._source.state())
        for k, (version, weights) in enumerate(self._past):
            arrays |= {f"past/{k}/version": np.array(version)} | prefixed(f"past/{k}/weights", weights)
        return arrays

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """As RolloutSource says."""
        self._past.clear()
        while past := part(f"past/{len(self._past)}", state):
            self._past.append((int(past["version"]), part("weights", past)))
        return self._source.restore(part("source", state))

    def close(self) -> None:
        """As RolloutSource says."""
        self._source.close()
