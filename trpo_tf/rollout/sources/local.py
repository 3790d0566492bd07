"""Rollouts made in this process, in the calling thread."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.errors import UsageError
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.sources import Weights
from trpo_tf.types import Rollout


class LocalSource:
    """One collector, its actor, and the draws that its actions need.

    Args:
      collector: of `actor`.
      actor: takes weights over by `set_weights`; an actor, or what hands them to workers.
      draw_noise: from ([T, B], the number of time steps so far) to noise [T, B, noise_size].
      log_prob: as Collector.collect takes it.
      time_steps: T.
    """

    def __init__(
        self,
        collector: Collector,
        actor: Any,
        draw_noise: Callable[[tuple[int, int], int], np.ndarray],
        log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray],
        time_steps: int,
    ):
        self._collector, self._actor, self._time = collector, actor, time_steps
        self._draw_noise, self._log_prob, self._version = draw_noise, log_prob, 0

    def publish(self, version: int, weights: Weights) -> None:
        """As RolloutSource says."""
        self._version = version
        self._actor.set_weights(weights)

    def next(self) -> Rollout:
        """As RolloutSource says."""
        collector = self._collector
        noise = self._draw_noise((self._time, collector.num_envs), collector.act_count)
        return collector.collect(noise, self._log_prob, self._version)

    def work_ahead(self) -> None:
        """Nothing: a rollout is made when it is asked for."""

    def learned(self, env_steps: int) -> dict[str, Any]:
        """As RolloutSource says."""
        return self._collector.metrics()

    def renew(self, update: int) -> None:
        """As RolloutSource says."""
        self._collector.rebuild(update)

    def state(self) -> dict[str, np.ndarray]:
        """As RolloutSource says."""
        return self._collector.state()

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """As RolloutSource says.

        Raises:
          UsageError: the state is of asynchronous workers, of whose environments nothing is kept.
        """
        if "actions" not in state:
            raise UsageError(
                "this checkpoint of asynchronous workers has none of their environments; go on with --workers and "
                "--workers_mode=asynchronous"
            )
        return self._collector.restore(state)

    def close(self) -> None:
        """As RolloutSource says."""
        self._collector.close()
