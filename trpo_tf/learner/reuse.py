"""Transitions used more than once: how they are mixed, how much shorter that makes a step, and where they are kept."""

import collections
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.config import OffPolicyConfig
from trpo_tf.types import Rollout, Trajectory, pack, unpack


def reuse_weights(reuse: int, optimal: bool) -> np.ndarray:
    """The weight of the batch that the policy i updates ago made, i = 0, 1, ...; they sum to 1.

    Uniform: 1 / reuse each of `reuse` batches. Optimal: the least stale of all weights whose effective number of
    batches, 1 / sum_i w_i^2, is `reuse` as well:

      minimise sum_i w_i (i + 1)  subject to  sum_i w_i^2 <= 1 / reuse,  sum_i w_i = 1,  w_i >= 0.

    A linear objective over a ball: w_i = max(0, a - b i). Over K batches, with the mean 1 / K and the variance that the
    ball asks for, b^2 = (1 / reuse - 1 / K) 12 / (K (K^2 - 1)); K is the largest whose last weight is not negative.

    Reference: the program is that of Queeney, Paschalidis, Cassandras 2021 (arXiv:2111.00072), section 5, at equal
    sample size.
    """
    if not optimal or reuse == 1:
        return np.full(reuse, 1.0 / reuse)
    best = np.full(reuse, 1.0 / reuse)
    for count in range(reuse + 1, 2 * reuse + 1):
        slope = np.sqrt((1 / reuse - 1 / count) * 12 / (count * (count**2 - 1)))
        weights = 1 / count + slope * ((count - 1) / 2 - np.arange(count))
        if weights[-1] < 0:
            break
        best = weights
    return best


def batch_weights(config: OffPolicyConfig) -> np.ndarray:
    """The weights of `reuse_weights`, without batches that would be older than max_staleness; they sum to 1."""
    weights = reuse_weights(config.reuse, config.reuse_weights == "optimal")
    weights = weights[: config.max_staleness - config.lag + 1]
    return weights / weights.sum()


def length_factor(weights: np.ndarray, lag: int = 0) -> float:
    """The factor of a step's length where batches of older policies are mixed with these weights.

    The improvement bound has the distance from the new policy to each policy that acted, on average over the mixture.
    Where every update moves by at most s, the policy i updates ago is at most (i + 1) s away from the next one. The
    average is s sum_i w_i (i + 1). For the average to stay within the distance s_1 of a single batch, s is s_1 over
    that sum, 2 s_1 / (M + 1) with M equal weights. A KL is quadratic in s.

    A lag of all transitions divides by sqrt(1 + lag) besides. There the mean advantage of a state, too, is taken as
    at most proportional to s, as in theorem 1 of TRPO, and the penalty as proportional to s^2 (1 + lag).

    Reference: Queeney, Paschalidis, Cassandras 2021 (arXiv:2111.00072), theorem 1; derived in
    docs/theory/derivations.md.
    """
    return float(1.0 / np.sum(np.asarray(weights) * np.arange(1, len(weights) + 1)) / np.sqrt(1 + lag))


class Mixture(NamedTuple):
    """The newest rollouts side by side, [T, W], the newest first; places not yet used are masked."""

    trajectory: Trajectory
    behavior_params: Any  # [T, W, K]
    version: Any  # [T, W] int32
    advantage: Any  # [T, W], of when the transition was new, in the environment's units of reward; 0 while it is
    column_weights: Any  # [W]; their mean is 1


class Replay:
    """Keeps the newest rollouts and mixes them. Shapes are the same in every update.

    Args:
      weights: of the rollouts, the newest first; they sum to 1.
    """

    def __init__(self, weights: np.ndarray):
        self._weights = weights * len(weights)
        self._kept: collections.deque[tuple[Rollout, np.ndarray]] = collections.deque(maxlen=len(weights))

    def add(self, rollout: Rollout) -> Mixture:
        """Keeps a rollout, and returns all of them."""
        shape = rollout.trajectory.reward.shape
        self._kept.appendleft((rollout, np.zeros(shape, np.float32)))
        parts = [(one.trajectory, one.behavior_params, one.version, kept) for one, kept in self._kept]
        empty = rollout.trajectory._replace(mask=np.zeros_like(rollout.trajectory.mask))
        parts += [(empty, *parts[0][1:])] * (len(self._weights) - len(parts))
        trajectory, params, version, advantage = parts[0]
        if len(parts) > 1:
            joined = tf.nest.map_structure(lambda *x: np.concatenate(x, axis=1), *parts)
            trajectory, params, version, advantage = joined
        column_weights = np.repeat(self._weights, shape[1]).astype(np.float32)
        return Mixture(trajectory, params, version, advantage, column_weights)

    def settle(self, advantage: np.ndarray) -> None:
        """Keeps the advantages [T, B] found for the newest rollout, for the updates that use it again."""
        self._kept[0] = self._kept[0][0], advantage

    def kept(self) -> list[tuple[Rollout, np.ndarray]]:
        """The rollouts that are kept, the newest first, and their advantages; for `keep`."""
        return list(self._kept)

    def keep(self, kept: list[tuple[Rollout, np.ndarray]]) -> None:
        """Keeps what was kept when `kept` gave this."""
        self._kept = collections.deque(kept, self._kept.maxlen)

    def state(self) -> dict[str, np.ndarray]:
        """What the next `add` will need, by name."""
        arrays: dict[str, np.ndarray] = {}
        for k, (rollout, advantage) in enumerate(list(self._kept)[: len(self._weights) - 1]):
            arrays |= pack(rollout, f"{k}/rollout") | {f"{k}/advantage": advantage}
        return arrays

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes back what `state` gave."""
        self._kept.clear()
        for k in range(len(self._weights) - 1):
            rollout = unpack(state, f"{k}/rollout")
            if rollout is not None:
                self._kept.append((rollout, state[f"{k}/advantage"]))
