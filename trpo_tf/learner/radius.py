"""A trust region that grows and shrinks with what steps gain; a penalty coefficient that follows their KL."""

import numpy as np
import tensorflow as tf

from trpo_tf.config import RadiusConfig, TrustRegionConfig
from trpo_tf.learner import line_search
from trpo_tf.learner.conjugate_gradient import dot
from trpo_tf.learner.objective import Objective
from trpo_tf.learner.policy_step import PolicyStep, damped_natural_gradient
from trpo_tf.learner.statistics import mean_weights

_FADE = 0.9  # factor per update of the weights of earlier gains
_SHRINK_BELOW, _GROW_ABOVE = 0.25, 0.75  # gain / predicted gain; between the two the radius returns to the start
_CERTAIN = 2.0  # standard errors between a sum and its threshold, below which the difference is noise
_USED = 0.5  # fraction of the radius that a step has to use before a larger radius is considered
_FACTOR = 1.05  # of the radius
_BACK = 0.05  # of the way to the start, in logarithms, in an update without evidence
_PENALTY_FACTOR, _KL_BAND = 2.0, 1.5
_PENALTIES = 1e-3, 1e6  # smallest and largest coefficient


def adapted(max_kl, start, sums, squares, kl, low: float, high: float) -> tf.Tensor:
    """The radius after an update: smaller where gains fall short of what was predicted, larger where they do not.

    It is divided by 1.05 where gain < predicted / 4 by more than two standard errors. It is multiplied by 1.05 where
    gain > 3/4 predicted, gain > 0 by more than two standard errors, and the step used more than half of the radius.
    Else its logarithm goes 5 % of the way back to that of `start`. It stays within [low, high].

    The rule for growing asks for certainty of the gain only. Certainty that gain > 3/4 predicted cannot be had: the
    difference is at most predicted / 4 where steps are short, and the prediction has an error of its own.

    Reference: the rules and thresholds of Nocedal, Wright 2006, "Numerical Optimization", algorithm 4.1, with factors
    that suit measurements as noisy as these.

    Args:
      max_kl: the radius of the last step. kl: the KL of that step. start: the radius without evidence. Nats.
      sums: [2], the sums of gains and of predicted gains, in one unit, with weights that fade.
      squares: [2, 2], the sums of their products, with the squares of those weights.
      low, high: bounds of the radius.
    """

    def beyond(fraction):
        """(gain - fraction predicted) in standard errors. With mean 0, its variance is the sum of its squares."""
        weights = tf.constant([1.0, -fraction], tf.float64)
        variance = tf.tensordot(weights, tf.linalg.matvec(squares, weights), 1)
        return tf.tensordot(weights, sums, 1) / tf.sqrt(tf.maximum(variance, np.finfo(np.float64).tiny))

    shrink = beyond(_SHRINK_BELOW) < -_CERTAIN
    grow = (beyond(0.0) > _CERTAIN) & (sums[0] > _GROW_ABOVE * sums[1]) & (kl > _USED * max_kl)
    returning = max_kl * (start / max_kl) ** _BACK
    return tf.clip_by_value(tf.where(shrink, max_kl / _FACTOR, tf.where(grow, max_kl * _FACTOR, returning)), low, high)


class AdaptiveRadius(tf.Module):
    """The radius as it follows the steps.

    The gain of a step is measured on the transitions after it, which had no part in choosing it. Let theta_k be the
    policy that drew them. The surrogate there of the policy before, L_k(theta_k-1), is what going back would gain, so
    minus L_k(theta_k-1) is what the step gained. The predicted gain is g.(theta_k - theta_k-1) without the part of it
    that is noise in g; see `predicted_gain`. Gain / predicted is 1 for short steps. Were the gain quadratic in the
    step's length, the ratio would be 1/2 where the gain is largest, and below 0 beyond twice that length. Both sums
    fade over ten updates.

    Args:
      config: min_kl and max_kl_bound are read.
      start: the radius at the start, nats.
      size: P, parameters of the policy.
    """

    def __init__(self, config: RadiusConfig, start: float, size: int):
        super().__init__(name="radius")
        self._start, self._low, self._high = start, config.min_kl, config.max_kl_bound
        self.max_kl = _variable(start, "max_kl")
        self.sums, self.squares = _variable([0.0] * 2, "sums"), _variable([[0.0] * 2] * 2, "squares")
        self.last_predicted, self.last_kl = _variable(0.0, "last_predicted"), _variable(0.0, "last_kl")
        self.theta = tf.Variable(tf.zeros([size]), trainable=False, name="radius/theta")

    def factor(self) -> tf.Tensor:
        """The radius in units of the start, a scalar, float64."""
        return self.max_kl / self._start

    def measure(self, theta: tf.Tensor, surrogate, unit: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adapts the radius to what the last step gained.

        Args:
          theta: [P], the policy now.
          surrogate: theta [P] -> float64, on the newest transitions, with standardised advantages.
          unit: the standard deviation that these advantages had.

        Returns:
          Metrics.
        """
        gained = (surrogate(theta) - surrogate(self.theta.value())) * unit
        known = (self.last_kl > 0) & tf.math.is_finite(gained)
        new = tf.where(known, tf.stack([gained, self.last_predicted.value()]), 0.0)
        self.sums.assign(_FADE * self.sums + new)
        self.squares.assign(_FADE**2 * self.squares + new[:, None] * new)
        before, sums = self.max_kl.value(), self.sums.value()
        after = adapted(before, self._start, sums, self.squares.value(), self.last_kl.value(), self._low, self._high)
        self.max_kl.assign(tf.where(known, after, before))
        return {"radius/max_kl": self.max_kl.value(), "radius/measured": sums[0], "radius/promised": sums[1]}

    def follow(
        self, theta_old: tf.Tensor, step: PolicyStep, predicted: tf.Tensor, max_kl: tf.Tensor, unit: tf.Tensor
    ) -> None:
        """Remembers a step.

        Args:
          theta_old: [P], the policy before it.
          step: as it was taken.
          predicted: its predicted gain, with standardised advantages. unit: their standard deviation.
          max_kl: the KL that the step was allowed, nats.
        """
        gain = predicted * unit
        self.theta.assign(theta_old)
        self.last_predicted.assign(tf.where(tf.math.is_finite(gain), gain, 0.0))
        self.last_kl.assign(step.kl / max_kl * self.max_kl)


def predicted_gain(
    objective: Objective, theta_old: tf.Tensor, step: PolicyStep, half: tf.Tensor, config: TrustRegionConfig
) -> tf.Tensor:
    """The gain that the gradient predicts for a step, without the bias of predicting with the data that chose it.

    The gradient g is a mean over transitions, and so has an error. g F^-1 g counts the error's square as gain. The
    gradients g_1 and g_2 of two halves have independent errors: g_2 F^-1 g_1 has the mean that g F^-1 g would have
    without errors.

    Args:
      objective, theta_old, config: of the step.
      step: as it was taken.
      half: [N], 1 for one half of the transitions, else 0.

    Returns:
      step_fraction * step_size * g_2 . (F + damping I)^-1 g_1, a scalar, float64.
    """
    weights = objective.batch.weights
    _, first = objective.gradient(theta_old, mean_weights(weights * half))
    _, second = objective.gradient(theta_old, mean_weights(weights * (1 - half)))
    direction = damped_natural_gradient(objective, theta_old, first, config).direction
    return step.step_fraction * step.step_size * dot(second, direction)


def adapted_penalty(penalty, kl, max_kl, limited, failed) -> tf.Tensor:
    """The penalty coefficient after a step: doubled where KL > 1.5 max_kl, halved where KL < max_kl / 1.5.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), section 4.

    Args:
      penalty: the coefficient. kl: of the step. max_kl: the KL to stay around.
      limited: whether the penalty alone decided on the step's length; only then the coefficient is halved.
      failed: whether no candidate of the line search was better; then the coefficient is doubled.
    """
    raised = failed | (kl > _KL_BAND * max_kl)
    lowered = limited & (kl < max_kl / _KL_BAND)
    changed = tf.where(raised, penalty * _PENALTY_FACTOR, tf.where(lowered, penalty / _PENALTY_FACTOR, penalty))
    return tf.clip_by_value(changed, *_PENALTIES)


class PenaltyCoefficient(tf.Module):
    """The coefficient C of surrogate - C KL(old || new), as it follows the KL of steps; 1 at the start."""

    def __init__(self) -> None:
        super().__init__(name="penalty")
        self.penalty = _variable(1.0, "penalty")

    def follow(self, step: PolicyStep, max_kl: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adapts the coefficient to a step. max_kl: the KL to stay around, nats. Returns metrics."""
        penalty = self.penalty.value()
        limited = (step.step_fraction == 1.0) & (step.step_size >= 1.0 / penalty)
        failed = (step.reason == line_search.IMPROVEMENT) | (step.reason == line_search.NOT_FINITE)
        self.penalty.assign(adapted_penalty(penalty, step.kl, max_kl, limited, failed))
        return {"radius/penalty": penalty}


def _variable(value, name: str) -> tf.Variable:
    return tf.Variable(tf.constant(value, tf.float64), trainable=False, name=f"radius/{name}")
