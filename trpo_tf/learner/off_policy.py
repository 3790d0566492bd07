"""Learning from rows that older policies made: what they are worth to the current one.

mu is the policy that acted, pi the current one (theta_old), ratio = pi(a|s) / mu(a|s).
"""

import collections
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner.advantages import masked_mean, mean_weights, standardize, weighted_sum
from trpo_tf.types import Trajectory, pack, unpack


def vtrace(
    reward,
    values,
    ratio,
    terminated,
    truncated,
    mask,
    gamma: float,
    gae_lambda: float,
    rho_max: float,
    c_max: float,
    c_mean=1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Advantages and value targets of pi from trajectories of mu.

    delta_t = r_t + gamma (1 - terminated_t) V(s_t+1) - V(s_t)
    d_t = min(rho_max, ratio_t) delta_t + gamma lambda min(c_max, ratio_t) / c_mean_t (1 - ended_t) d_t+1
    target_t = V(s_t) + d_t
    A_t = delta_t + gamma lambda (1 - ended_t) d_t+1

    The ratio of a row's own action is in its target and not in its advantage, which the surrogate multiplies by it.
    Where every ratio is 1 this is generalised advantage estimation, and the target A + V. Masked rows as there.

    Reference: Espeholt et al. 2018 (arXiv:1802.01561), equation 1 and remark 2; with lambda 1, A is the advantage of
    their policy gradient.

    Args:
      reward, ratio, terminated, truncated, mask: [T, B].
      values: [T+1, B].
      gamma, gae_lambda: in [0, 1].
      rho_max: decides which policy the targets are of: pi where no ratio is above it.
      c_max: bounds the traces, and with them the variance; it leaves the fixed point alone.
      c_mean: of `trace_mean`, [T, B]. 1 is V-trace as published.

    Returns:
      advantage [T, B], targets [T, B].
    """
    alive = 1.0 - tf.cast(terminated, reward.dtype)
    running = alive * (1.0 - tf.cast(truncated, reward.dtype))
    delta = tf.where(mask > 0, reward + gamma * alive * values[1:] - values[:-1], 0.0)
    decay = tf.where(mask > 0, gamma * gae_lambda * running, 0.0)
    ratio = tf.where(mask > 0, ratio, 0.0)
    rho, c = tf.minimum(ratio, rho_max), tf.minimum(ratio, c_max) / c_mean
    d = tf.scan(
        lambda later, row: row[0] + row[1] * later, (rho * delta, decay * c), tf.zeros_like(delta[0]), reverse=True
    )
    after = tf.concat([d[1:], tf.zeros_like(d[:1])], 0)
    return delta + decay * after, values[:-1] + d


def trace_mean(kl, c_max: float) -> tf.Tensor:
    """E[min(c_max, ratio)] / min(c_max, 1) at states with this KL(mu || pi), each by itself; 1 where it is 0.

    On average truncation makes traces shorter by that, with c_max 1 by 1 - TV(mu, pi) a step, as a smaller lambda
    would. Divided by it, lambda is what it says, in each state, however stale the row is. It is of the state: with the
    mean over many, traces would grow without bound through those where mu and pi agree.

    Log ratios are taken as normal, N(-s^2 / 2, s^2) with KL = s^2 / 2: exact for Gaussians that differ in their means,
    and, by sums of many small terms, nearly so for others; for a coin TV is 1.25 times what this makes of it.

    Not below 3/4: there E[c^2] is 1.12, and (gamma lambda)^2 takes that back at 0.995 and 0.95; with more, the variance
    of what traces add up would grow with their length.
    """
    s, log_c = tf.sqrt(2.0 * tf.maximum(kl, 1e-18)), np.log(min(c_max, 1e6))
    below = tf.math.erfc((s / 2 + log_c / s) / np.sqrt(2)) / 2, tf.math.erfc((s / 2 - log_c / s) / np.sqrt(2)) / 2
    return tf.maximum((min(c_max, 1e6) * below[0] + below[1]) / min(c_max, 1.0), 0.75)


def reuse_weights(reuse: int, optimal: bool) -> np.ndarray:
    """The share that the batch of the policy i updates ago has in an update, i = 0, 1, ...; they sum to 1.

    Uniform: 1 / reuse each of `reuse` batches. Optimal: of all weights whose effective number of batches,
    1 / sum_i w_i^2, is `reuse`, too, those that are least stale:

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


def radius_share(weights, lag: int = 0) -> float:
    """By what a step has to be shorter where batches of older policies are mixed with these weights.

    The improvement bound has the distance from the policy to each of those that acted, on average over the mixture.
    Where every update moves by at most s, the policy i updates ago is at most (i + 1) s away from the next one, on
    average s sum_i w_i (i + 1). For that to stay within the distance s_1 of a single batch, s is s_1 over that sum,
    2 s_1 / (M + 1) with M equal weights. The KL is quadratic in it. Advantages of when rows were new ask for no more.

    A lag of all rows divides by its root, sqrt(1 + lag), besides. There the mean advantage of a state, too, is counted
    to be at most in proportion to s, as in theorem 1 of TRPO, and the penalty to s^2 (1 + lag); with 1 + lag, which is
    the bound without that, learning was measured to be slow (docs/off_policy.md).

    Reference: Queeney, Paschalidis, Cassandras 2021 (arXiv:2111.00072), theorem 1; docs/off_policy.md derives it.
    """
    return float(1.0 / np.sum(np.asarray(weights) * np.arange(1, len(weights) + 1)) / np.sqrt(1 + lag))


def diagnostics(rows, counted: int, rho_max: float) -> dict[str, tf.Tensor]:
    """How far rows are from the current policy's, as scalars.

    With rho = min(rho_max, ratio), which is what a row counts in the surrogate, effective_sample_size is
    (sum rho)^2 / sum rho^2, as a share of the rows, and surrogate_variance that of the surrogate's estimate at
    theta_old. kl_behavior_old is KL(mu || pi), and share_of_staleness_k a histogram.

    Args:
      rows: Rows. counted: of which staleness there are shares, 0 to `counted` - 1.
    """
    weights, ratio = mean_weights(rows.weights), tf.cast(rows.ratio, tf.float64)
    rho = tf.minimum(ratio, rho_max)
    gain = rho * tf.cast(rows.advantage, tf.float64)
    mean, square = weighted_sum(rho, weights), weighted_sum(rho**2, weights)
    found = {
        "effective_sample_size": tf.where(square > 0, mean**2 / tf.where(square > 0, square, 1.0), 0.0),
        "max_ratio": tf.reduce_max(tf.where(weights > 0, ratio, 0.0)),
        "mean_ratio_error": weighted_sum(tf.abs(ratio - 1.0), weights),
        "surrogate_variance": weighted_sum((gain - weighted_sum(gain, weights)) ** 2, weights**2),
        "kl_behavior_old": weighted_sum(rows.kl, weights),
    }
    for k in range(counted):
        found[f"share_of_staleness_{k}"] = weighted_sum(tf.cast(rows.staleness == k, tf.float64), weights)
    return {f"stale/{name}": value for name, value in found.items()}


class Rows(NamedTuple):
    """What `diagnostics` looks at, N rows of each."""

    weights: tf.Tensor
    ratio: tf.Tensor
    advantage: tf.Tensor  # standardised
    kl: tf.Tensor  # KL(mu || pi), float64
    staleness: tf.Tensor  # int32, in updates


class Corrected(NamedTuple):
    """What `correct` makes of a trajectory [T, B] whose first C columns are new."""

    weights: tf.Tensor  # [T, B], in place of its mask
    behavior_logp: tf.Tensor  # [T, B]
    advantage: tf.Tensor  # [T, B], standardised
    advantage_std: tf.Tensor  # scalar, float64
    kept: tf.Tensor  # [T, C], the advantage in units of the reward, for `Replay.settle`
    targets: tf.Tensor  # [T, C], of the value network
    metrics: dict[str, tf.Tensor]  # of `diagnostics`


def correct(trajectory: Trajectory, values, logp, kl, column_weights, scale, config: Config) -> Corrected:
    """What rows of older policies are worth to pi.

    Advantages are found once, when a row is new, and V is fitted to it then. Later, pi has moved by what the row's own
    noise said: V-trace would sum that up, as a gain, and a V that is fitted to its own targets would keep it.

    Args:
      trajectory: arrays [T, B], the first config.num_envs columns its new rows; its `policy_version` is how many
        updates old a row is.
      values: [T+1, C], of new rows.
      logp: [T, B], of the actions, by pi. kl: [T, B], KL(mu || pi), float64.
      column_weights: [B], of the rows of a column.
      scale: what rewards were divided by.
      config: num_envs, correct_stale, lag, max_staleness, vtrace_rho, vtrace_c, gamma and gae_lambda are read.
    """
    new, rho, staleness = config.num_envs, config.vtrace_rho, trajectory.policy_version
    weights = trajectory.mask * column_weights * tf.cast(staleness <= config.max_staleness, tf.float32)
    found = tf.where(trajectory.mask > 0, tf.exp(logp - trajectory.behavior_logp), 1.0)
    kl = tf.where(trajectory.mask > 0, kl, 0.0)
    ratio, behavior_logp, limits = tf.ones_like(found), logp, (rho, config.vtrace_c)
    if config.correct_stale:
        ratio, limits = found, (*limits, trace_mean(tf.cast(kl[:, :new], found.dtype), config.vtrace_c))
        # such that ratios in the surrogate are at most rho before the step
        behavior_logp = tf.maximum(trajectory.behavior_logp, logp - np.float32(np.log(rho)))
    rows = trajectory.reward, ratio, trajectory.terminated, trajectory.truncated, trajectory.mask
    reward, *rows = (x[:, :new] for x in rows)
    advantage, targets = vtrace(reward, values, *rows, config.gamma, config.gae_lambda, *limits)
    # Each batch has its own mean: it was found with a V of its own, and no batch is better for that as a whole.
    trusted = weights * tf.minimum(ratio, rho)
    mixed = tf.concat([advantage, trajectory.advantage[:, new:] / scale], 1)
    batches = zip(*(tf.split(x, x.shape[1] // new, 1) for x in (mixed, trusted)), strict=True)
    centered = tf.concat([x - tf.cast(masked_mean(x, w), x.dtype) for x, w in batches], 1)
    standardized, std = standardize(centered, trusted)
    seen = Rows(*(tf.reshape(x, [-1]) for x in (weights, found, standardized, kl, staleness)))
    metrics = diagnostics(seen, config.lag + weights.shape[1] // new, rho)
    return Corrected(weights, behavior_logp, standardized, std, advantage * scale, targets, metrics)


class Replay:
    """The newest trajectories, side by side: [T, B] each become [T, count B], the newest first.

    Before there are so many, the places of the others are filled with its rows, masked: shapes never change.
    """

    def __init__(self, count: int):
        self._kept: collections.deque[Trajectory] = collections.deque(maxlen=count)

    def add(self, trajectory: Trajectory) -> Trajectory:
        """Keeps one, and returns all. Arrays of NumPy; the advantage of the one is 0 until `settle`."""
        trajectory = trajectory._replace(advantage=np.zeros(trajectory.reward.shape, np.float32))
        self._kept.appendleft(trajectory)
        empty = trajectory._replace(mask=np.zeros_like(trajectory.mask))
        parts = [*self._kept, *[empty] * (self._kept.maxlen - len(self._kept))]
        if len(parts) == 1:
            return trajectory
        return tf.nest.map_structure(lambda *x: np.concatenate(x, axis=1), *parts)

    def settle(self, advantage: np.ndarray) -> None:
        """Puts what was found for the newest trajectory [T, B] into it, for the updates that use it again."""
        self._kept[0] = self._kept[0]._replace(advantage=advantage)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the next `add` will need, by name."""
        kept = list(self._kept)[: self._kept.maxlen - 1]
        return {name: x for k, one in enumerate(kept) for name, x in pack(one, f"replay/{k}").items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes back what `arrays` gave; other entries are left alone."""
        found = (unpack(arrays, f"replay/{k}") for k in range(self._kept.maxlen - 1))
        self._kept.clear()
        self._kept.extend(trajectory for trajectory in found if trajectory is not None)
