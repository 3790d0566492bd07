"""How far stale transitions are from the current policy: metrics, and steps that are not taken because of it.

mu is the policy that acted, pi the current one (theta_old), ratio = pi(a|s) / mu(a|s).
"""

from typing import NamedTuple

import tensorflow as tf

from trpo_tf.learner import line_search
from trpo_tf.learner.policy_step import PolicyStep
from trpo_tf.learner.statistics import mean_weights, weighted_sum

COUNTED = 8  # versions of new transitions that have a metric of their own, where their staleness is not fixed


class Seen(NamedTuple):
    """What `diagnostics` looks at, of N transitions."""

    weights: tf.Tensor  # [N]
    ratio: tf.Tensor  # [N], not truncated
    advantage: tf.Tensor  # [N], standardised
    kl: tf.Tensor  # [N], KL(mu || pi), nats, float64
    staleness: tf.Tensor  # [N] int32, updates


def diagnostics(seen: Seen, counted: int, rho_max: float) -> dict[str, tf.Tensor]:
    """Scalars by metric name.

    With rho = min(rho_max, ratio), the weight of a transition in the surrogate, effective_sample_size is
    (sum rho)^2 / sum rho^2 as a fraction of the transitions. surrogate_variance is the variance of the surrogate's
    estimate at theta_old. kl_behavior_old is the mean KL(mu || pi). share_of_staleness_k is a histogram.

    Args:
      seen: of N transitions.
      counted: the histogram has 0 to `counted` - 1.
      rho_max: > 0.
    """
    weights, ratio = mean_weights(seen.weights), tf.cast(seen.ratio, tf.float64)
    rho = tf.minimum(ratio, rho_max)
    gain = rho * tf.cast(seen.advantage, tf.float64)
    mean, square = weighted_sum(rho, weights), weighted_sum(rho**2, weights)
    found = {
        "effective_sample_size": tf.where(square > 0, mean**2 / tf.where(square > 0, square, 1.0), 0.0),
        "max_ratio": tf.reduce_max(tf.where(weights > 0, ratio, 0.0)),
        "mean_ratio_error": weighted_sum(tf.abs(ratio - 1.0), weights),
        "surrogate_variance": weighted_sum((gain - weighted_sum(gain, weights)) ** 2, weights**2),
        "kl_behavior_old": weighted_sum(seen.kl, weights),
    }
    for k in range(counted):
        found[f"share_of_staleness_{k}"] = weighted_sum(tf.cast(seen.staleness == k, tf.float64), weights)
    return {f"stale/{name}": value for name, value in found.items()}


def mean(staleness: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The mean staleness of transitions where mask is 1, a scalar, float64; 0 where it is 1 nowhere."""
    return weighted_sum(tf.cast(staleness, tf.float64), mean_weights(mask))


def spread(seen: Seen, counted: int, lag: tf.Tensor) -> dict[str, tf.Tensor]:
    """Metrics of transitions whose staleness is not known beforehand.

    Args:
      seen: of N transitions.
      counted: as `diagnostics`; the last bin of the histogram has all that are older.
      lag: mean staleness of the new transitions.
    """
    weights = mean_weights(seen.weights)
    older = tf.cast(seen.staleness >= counted, tf.float64)
    largest = tf.reduce_max(tf.where(seen.weights > 0, seen.staleness, 0))
    return {
        "stale/mean_staleness": lag,
        "stale/max_staleness": largest,
        "stale/share_of_older": weighted_sum(older, weights),
    }


def accept(step: PolicyStep, theta_old: tf.Tensor, usable: tf.Tensor) -> PolicyStep:
    """The step where `usable`, a bool scalar, is true; else the same step not taken, with the reason "stale"."""
    zero = tf.constant(0.0, tf.float64)
    return step._replace(
        theta=tf.where(usable, step.theta, theta_old),
        kl=tf.where(usable, step.kl, zero),
        improvement=tf.where(usable, step.improvement, zero),
        expected_improvement=tf.where(usable, step.expected_improvement, zero),
        step_fraction=tf.where(usable, step.step_fraction, zero),
        reason=tf.where(usable, step.reason, line_search.STALE),
    )
