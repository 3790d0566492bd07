"""How long a policy step may be, and which candidates are acceptable.

A limit is a record with
  max_kl             largest KL(old || new) of an acceptable step, nats; infinity where nothing bounds it
  penalty            penalty coefficient C: what is maximised is surrogate - C KL(old || new)
  least_improvement  what an acceptable step must improve the objective by
  step_size          from x.F x to the length of the full step in multiples of x, x the conjugate gradient direction
"""

from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from trpo_tf.config import TrustRegionConfig

_UNBOUNDED = np.float64(np.inf)  # no tensor: making one here would start TensorFlow before its threads are chosen


class StepLimit(Protocol):
    """What `policy_step` needs of a limit; see above."""

    @property
    def max_kl(self) -> tf.Tensor | np.float64: ...

    @property
    def penalty(self) -> tf.Tensor | float: ...

    @property
    def least_improvement(self) -> float: ...

    def step_size(self, curvature: tf.Tensor) -> tf.Tensor: ...


class Constraint(NamedTuple):
    """KL(old || new) <= max_kl: the full step is min(sqrt(2 max_kl / x.F x), max_step) x.

    The first term always uses up max_kl, however small the advantages are. Capping step_size at max_step keeps the
    multiplier of the KL constraint, 1 / step_size, at or above 1 / max_step.

    Reference: Schulman et al. 2015, appendix C.
    """

    max_kl: tf.Tensor  # scalar float64, > 0, nats
    max_step: tf.Tensor  # scalar float64, > 0, multiples of x
    penalty: float = 0.0
    least_improvement: float = 0.0

    def step_size(self, curvature: tf.Tensor) -> tf.Tensor:
        """0 where curvature <= 0. curvature: x.F x, scalar float64."""
        longest = tf.sqrt(2.0 * self.max_kl / tf.where(curvature > 0, curvature, 1.0))
        return tf.minimum(tf.where(curvature > 0, longest, 0.0), self.max_step)


class Penalty(NamedTuple):
    """surrogate - C KL(old || new) instead of a constraint: the full step is min(1 / C, max_step) x.

    1 / C is where the quadratic model of this objective is largest. Nothing bounds the KL.

    Reference: Schulman et al. 2015, section 3 (the minorisation of equation 9).
    """

    penalty: tf.Tensor  # scalar float64, > 0
    max_step: tf.Tensor  # scalar float64, > 0, multiples of x
    max_kl: tf.Tensor | np.float64 = _UNBOUNDED
    least_improvement: float = 0.0

    def step_size(self, curvature: tf.Tensor) -> tf.Tensor:
        """0 where curvature <= 0. curvature: x.F x, scalar float64."""
        return tf.minimum(tf.where(curvature > 0, 1.0 / self.penalty, 0.0), self.max_step)


class PlainLength(NamedTuple):
    """A full step of `length` x, taken whatever it does to the surrogate and the KL, if only it is finite.

    Reference: Kakade 2001, "A natural policy gradient", with a fixed learning rate.
    """

    length: tf.Tensor  # scalar float64, multiples of x
    max_kl: tf.Tensor | np.float64 = _UNBOUNDED
    penalty: float = 0.0
    least_improvement: float = -np.inf

    def step_size(self, curvature: tf.Tensor) -> tf.Tensor:
        """0 where curvature <= 0. curvature: x.F x, scalar float64."""
        return tf.where(curvature > 0, tf.cast(self.length, tf.float64), 0.0)


def kl_radius(
    config: TrustRegionConfig, length_factor: float, radius_factor: tf.Tensor, lag: tf.Tensor | None
) -> tf.Tensor:
    """The largest KL of an update, scalar float64. Arguments are those of `step_limit`."""
    radius = tf.convert_to_tensor(config.max_kl * length_factor**2, tf.float64) * radius_factor
    return radius if lag is None else radius / (1.0 + lag)


def step_limit(
    config: TrustRegionConfig,
    advantage_std: tf.Tensor,
    gamma: float,
    length_factor: float,
    radius_factor: tf.Tensor,
    penalty: tf.Tensor | None = None,
    lag: tf.Tensor | None = None,
) -> Constraint | Penalty:
    """The limit of an update's step: everything that makes a step shorter or longer comes together here.

    The surrogate's advantages are standardised. The gradient of the return, divided by the standard deviation of the
    discounted return, is the surrogate's times advantage_std / (1 - gamma).

    Args:
      config: max_kl and max_step are read.
      advantage_std: scalar float64, of the advantages in standard deviations of the discounted return.
      gamma: the discount.
      length_factor: of step lengths, for stale transitions; a KL is quadratic in it.
      radius_factor: scalar float64, of the KL, from an adaptive radius.
      penalty: the coefficient, scalar float64, where a penalty takes the constraint's place.
      lag: mean staleness of the transitions, scalar float64, where settings do not fix it. It divides the KL by
        1 + lag, and leaves max_step: how far small advantages may carry does not depend on whose actions they are.
    """
    max_kl = kl_radius(config, length_factor, radius_factor, lag)
    max_step = config.max_step * advantage_std / max(1.0 - gamma, 1e-9) * length_factor * tf.sqrt(radius_factor)
    return Constraint(max_kl, max_step) if penalty is None else Penalty(penalty, max_step)
