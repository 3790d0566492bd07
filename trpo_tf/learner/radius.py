"""How far a step may go: a trust region that grows and shrinks, and a price of KL in the place of a bound."""

import numpy as np
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import trust_region

_FADE = 0.9  # of what earlier updates measured and promised
_SHRINK_BELOW, _GROW_ABOVE = 0.25, 0.75  # measured / promised; between the two the radius is kept
_CERTAIN = 2.0  # standard errors between a sum and its threshold, below which it is noise
_USED = 0.5  # share of the radius that a step has to use before there is reason for a larger one
_FACTOR = 1.05  # of the radius
_BACK = 0.05  # of the way to where it started, in logarithms, in an update without evidence
_PRICE_FACTOR, _PRICE_BAND = 2.0, 1.5
_PRICES = 1e-3, 1e6  # smallest and largest


def adapted(max_kl, start, sums, squares, kl, low: float, high: float) -> tf.Tensor:
    """The radius after an update: smaller where improvement falls short of its promise, larger where it does not.

    gained < 1/4 promised by more than two standard errors: divided by 1.05. gained > 3/4 promised and, by more than two
    standard errors, > 0, and the step used more than half of the radius: times 1.05. Else it goes back towards the
    start, by 5 % of the difference in logarithms. Within [low, high].

    For the radius to grow it is the gain alone that has to be certain. What it is above 3/4 of the promise is a quarter
    of it at most where steps are short, with the error of the promise besides.

    Reference: the rules and thresholds of Nocedal, Wright 2006, "Numerical Optimization", algorithm 4.1, with factors
    that suit measurements as noisy as these.

    Args:
      max_kl: the radius of the last step; kl: what that step used of it. start: the radius without evidence.
      sums: [2], of what steps gained and of what they promised, in one unit, with weights that fade.
      squares: [2, 2], of their products, with the squares of those weights.
    """

    def beyond(share):
        """Standard errors by which the gain is above this share of the promise. Were its mean there, the variance of
        the sum would be that of the squares."""
        weights = tf.constant([1.0, -share], tf.float64)
        variance = tf.tensordot(weights, tf.linalg.matvec(squares, weights), 1)
        return tf.tensordot(weights, sums, 1) / tf.sqrt(tf.maximum(variance, np.finfo(np.float64).tiny))

    shrink = beyond(_SHRINK_BELOW) < -_CERTAIN
    grow = (beyond(0.0) > _CERTAIN) & (sums[0] > _GROW_ABOVE * sums[1]) & (kl > _USED * max_kl)
    kept = max_kl * (start / max_kl) ** _BACK
    return tf.clip_by_value(tf.where(shrink, max_kl / _FACTOR, tf.where(grow, max_kl * _FACTOR, kept)), low, high)


def repriced(penalty, kl, max_kl, held_back, failed) -> tf.Tensor:
    """The price of KL after a step: doubled where the KL was above 1.5 max_kl, halved where it was below max_kl / 1.5.

    Reference: Schulman et al. 2017 (arXiv:1707.06347), section 4.

    Args:
      held_back: whether the price alone decided on the step's length; where it did not, nothing makes it cheaper.
      failed: whether no candidate of the line search was better, which makes it dearer.
    """
    dear = failed | (kl > _PRICE_BAND * max_kl)
    cheap = held_back & (kl < max_kl / _PRICE_BAND)
    changed = tf.where(dear, penalty * _PRICE_FACTOR, tf.where(cheap, penalty / _PRICE_FACTOR, penalty))
    return tf.clip_by_value(changed, *_PRICES)


class Radius(tf.Module):
    """The radius, and with --objective=penalty the price of KL, as they follow the steps.

    What a step gained is measured on the rows after it, which had no part in choosing it: at the policy theta_k that
    drew them, the surrogate of the policy before, L_k(theta_k-1), is what going back would gain, and minus that is what
    the step gained. What it promised is g.(theta_k - theta_k-1) without the share of it that is noise in g, the
    "policy/unbiased_improvement" of policy_step. Their ratio is 1 for short steps, 1/2 where the gain is largest if it
    is quadratic, and below 0 beyond twice that. Both fade over ten updates. Nothing of the kind is there with
    radius=fixed, which has no variables.

    Args:
      config: radius, objective, max_kl, min_kl and max_kl_bound are read.
      size: P, parameters of the policy.
    """

    def __init__(self, config: Config, size: int):
        super().__init__(name="radius")
        self._start, self._low, self._high = config.max_kl, config.min_kl, config.max_kl_bound
        self.adaptive, self.priced = config.radius == "adaptive", config.objective == "penalty"
        if self.adaptive:
            self.max_kl = _variable(config.max_kl, "max_kl")
            self.sums, self.squares = _variable([0.0] * 2, "sums"), _variable([[0.0] * 2] * 2, "squares")
            self.last_promise, self.last_kl = _variable(0.0, "last_promise"), _variable(0.0, "last_kl")
            self.theta = tf.Variable(tf.zeros([size]), trainable=False, name="radius/theta")
        if self.priced:
            self.penalty = _variable(1.0, "penalty")

    def growth(self) -> tf.Tensor:
        """The radius by that of the start, in KL; a scalar, float64."""
        return self.max_kl / self._start if self.adaptive else tf.constant(1.0, tf.float64)

    def measure(self, theta, surrogate, unit) -> dict[str, tf.Tensor]:
        """Adapts the radius to what the last step gained.

        Args:
          theta: [P], the policy now.
          surrogate: theta [P] -> float64, on the newest rows, standardised; `unit`: their standard deviation.

        Returns:
          Metrics.
        """
        if not self.adaptive:
            return {}
        gained = (surrogate(theta) - surrogate(self.theta.value())) * unit
        known = (self.last_kl > 0) & tf.math.is_finite(gained)
        new = tf.where(known, tf.stack([gained, self.last_promise.value()]), 0.0)
        self.sums.assign(_FADE * self.sums + new)
        self.squares.assign(_FADE**2 * self.squares + new[:, None] * new)
        before, sums = self.max_kl.value(), self.sums.value()
        after = adapted(before, self._start, sums, self.squares.value(), self.last_kl.value(), self._low, self._high)
        self.max_kl.assign(tf.where(known, after, before))
        return {"radius/max_kl": self.max_kl.value(), "radius/measured": sums[0], "radius/promised": sums[1]}

    def follow(self, theta_old, step: dict[str, tf.Tensor], limit, unit) -> dict[str, tf.Tensor]:
        """Takes note of a step.

        Args:
          theta_old: [P], before it.
          step: the metrics of `policy_step`. limit: the KL that it could have had. unit: as above.

        Returns:
          Metrics.
        """
        kl, reason, metrics = step["policy/kl"], step["policy/reason"], {}
        if self.adaptive:
            promise = step["policy/unbiased_improvement"] * unit
            self.theta.assign(theta_old)
            self.last_promise.assign(tf.where(tf.math.is_finite(promise), promise, 0.0))
            self.last_kl.assign(kl / limit * self.max_kl)
        if self.priced:
            metrics["radius/penalty"] = penalty = self.penalty.value()
            held_back = (step["policy/step_fraction"] == 1.0) & (step["policy/step_size"] >= 1.0 / penalty)
            failed = (reason == trust_region.IMPROVEMENT) | (reason == trust_region.NOT_FINITE)
            self.penalty.assign(repriced(penalty, kl, limit, held_back, failed))
        return metrics


def _variable(value, name: str) -> tf.Variable:
    return tf.Variable(tf.constant(value, tf.float64), trainable=False, name=f"radius/{name}")
