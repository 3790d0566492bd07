"""Advantages and value targets of stale transitions: V-trace.

mu is the policy that acted, pi the current one (theta_old), ratio = pi(a|s) / mu(a|s).
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.config import AdvantageConfig, OffPolicyConfig
from trpo_tf.learner.estimate import Estimate
from trpo_tf.learner.reuse import Mixture
from trpo_tf.learner.shapes import has_shape, same_shape
from trpo_tf.learner.statistics import masked_mean, standardize


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

    The ratio of a transition's own action is in its target and not in its advantage: the surrogate multiplies the
    advantage by it. Where every ratio is 1, A is the generalised advantage, and the target is A + V. Rows with mask 0
    are treated as by generalized_advantage.

    Reference: Espeholt et al. 2018 (arXiv:1802.01561), equation 1 and remark 2; with lambda 1, A is the advantage of
    their policy gradient.

    Args:
      reward, ratio, terminated, truncated, mask: [T, B].
      values: [T+1, B].
      gamma, gae_lambda: in [0, 1].
      rho_max: truncation of rho. The targets are values of pi where every ratio is <= rho_max, else of the policy
        proportional to min(rho_max mu, pi).
      c_max: bounds the traces, and with them the variance; it leaves the fixed point alone.
      c_mean: of `trace_mean`, [T, B]. 1 is V-trace as published.

    Returns:
      advantage [T, B], targets [T, B].

    Raises:
      ValueError: a shape differs from these.
    """
    has_shape("reward", reward, [None, None])
    same_shape(reward=reward, ratio=ratio, terminated=terminated, truncated=truncated, mask=mask)
    has_shape("values", values, [reward.shape[0] + 1, reward.shape[1]])
    if not isinstance(c_mean, float):
        same_shape(reward=reward, c_mean=c_mean)
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
    """E_mu[min(c_max, ratio)] / min(c_max, 1), from the KL(mu || pi) of each state; 1 where the KL is 0.

    Truncation multiplies a trace by this mean at every step, on average; with c_max 1 the mean is 1 - TV(mu, pi). That
    acts as a smaller lambda. Dividing the trace by the mean gives lambda back its meaning, however stale a transition
    is. The mean is taken for each state by itself: divided by a mean over many states, traces would grow without bound
    along states where mu and pi agree.

    Log ratios are taken as normal, N(-s^2 / 2, s^2) with KL = s^2 / 2. That is exact for Gaussians that differ in their
    means. For a Bernoulli variable, TV is 1.25 times what this approximation gives.

    The mean is at least 3/4. There E[c^2] is 1.12, and (gamma lambda)^2 compensates that at gamma 0.995 and lambda
    0.95. With a smaller bound the variance of a trace would grow with its length.

    Args:
      kl: [...], KL(mu || pi), nats. c_max: > 0.
    """
    s, log_c = tf.sqrt(2.0 * tf.maximum(kl, 1e-18)), np.log(min(c_max, 1e6))
    below = tf.math.erfc((s / 2 + log_c / s) / np.sqrt(2)) / 2, tf.math.erfc((s / 2 - log_c / s) / np.sqrt(2)) / 2
    return tf.maximum((min(c_max, 1e6) * below[0] + below[1]) / min(c_max, 1.0), 0.75)


class Comparison(NamedTuple):
    """The current policy beside the one that acted, on every transition; [T, W] each."""

    logp: tf.Tensor  # log pi(a|s)
    kl: tf.Tensor  # KL(mu || pi), nats, float64


class StaleEstimate(NamedTuple):
    """The Estimate of a Mixture, and what belongs beside it."""

    estimate: Estimate
    new_advantage: tf.Tensor  # [T, C], in the environment's units of reward, for `Replay.settle`
    ratio: tf.Tensor  # [T, W], pi / mu, 1 where the mask is 0; not truncated
    kl: tf.Tensor  # [T, W], KL(mu || pi), nats, float64, 0 where the mask is 0


def vtrace_estimate(
    mixture: Mixture,
    reward: tf.Tensor,
    values: tf.Tensor,
    compared: Comparison,
    staleness: tf.Tensor,
    scale: tf.Tensor,
    config: AdvantageConfig,
    off_policy: OffPolicyConfig,
) -> StaleEstimate:
    """The Estimate of new and kept transitions [T, W], of which the first C columns are new.

    An advantage is computed once, when its transition is new, and then stored. Later, pi has moved along the
    transition's own noise, and V-trace would count that noise as a gain. The value network is fitted to new transitions
    only, for the same reason.

    Args:
      mixture: W columns.
      reward: [T, W], scaled.
      values: [T+1, C], of new transitions.
      compared: W columns.
      staleness: [T, W] int32, how many updates old a transition is.
      scale: scalar, what rewards were divided by.
      config: gamma and gae_lambda are read.
      off_policy: correct_stale, max_staleness, vtrace_rho and vtrace_c are read.

    Raises:
      ValueError: a shape differs from these.
    """
    same_shape(reward=reward, staleness=staleness, advantage=mixture.advantage, **compared._asdict())
    trajectory, new, rho = mixture.trajectory, values.shape[1], off_policy.vtrace_rho
    young = tf.cast(staleness <= off_policy.max_staleness, tf.float32)
    weights = trajectory.mask * mixture.column_weights * young
    found = tf.where(trajectory.mask > 0, tf.exp(compared.logp - trajectory.behavior_logp), 1.0)
    kl = tf.where(trajectory.mask > 0, compared.kl, 0.0)
    ratio, behavior_logp, c_mean = tf.ones_like(found), compared.logp, 1.0
    if off_policy.correct_stale:
        ratio, c_mean = found, trace_mean(tf.cast(kl[:, :new], found.dtype), off_policy.vtrace_c)
        # such that ratios in the surrogate are at most rho before the step
        behavior_logp = tf.maximum(trajectory.behavior_logp, compared.logp - np.float32(np.log(rho)))
    terminated, truncated, mask = (x[:, :new] for x in (trajectory.terminated, trajectory.truncated, trajectory.mask))
    limits = config.gamma, config.gae_lambda, rho, off_policy.vtrace_c, c_mean
    advantage, targets = vtrace(reward[:, :new], values, ratio[:, :new], terminated, truncated, mask, *limits)
    trusted = weights * tf.minimum(ratio, rho)
    standardized, std = _standardize(tf.concat([advantage, mixture.advantage[:, new:] / scale], 1), trusted, new)
    estimate = Estimate(standardized, targets, weights, behavior_logp, std)
    return StaleEstimate(estimate, advantage * scale, found, kl)


def _standardize(advantage: tf.Tensor, weights: tf.Tensor, new: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Advantages less the mean of each batch, divided by their common std, and the std.

    The batches are groups of `new` columns. Each batch has its own mean, because the advantages of different batches
    were found with different value networks.
    """
    batches = zip(*(tf.split(x, x.shape[1] // new, 1) for x in (advantage, weights)), strict=True)
    centered = tf.concat([x - tf.cast(masked_mean(x, w), x.dtype) for x, w in batches], 1)
    return standardize(centered, weights)
