"""The Beta distribution."""

import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.acting.samplers import BetaSampler

tfd = tfp.distributions

_LEAST = 1.0001  # of alpha and beta, so that the mode is there in float32
_EDGE = 1e-6  # how near a draw comes to 0 and 1, where the density may be 0


class Beta:
    """Independent Betas on 0..1, for a bounded Box: alpha and beta are 1 + softplus of params [N, 2A].

    Both are above 1, so there is one mode, and no mass outside the bounds.

    Reference: Chou et al. 2017, "Improving stochastic policy gradients ... using the Beta distribution", section 4.
    """

    def __init__(self, sampler: BetaSampler):
        self.sampler = sampler

    def __call__(self, params: tf.Tensor) -> tfp.distributions.Distribution:
        return tfd.Independent(tfd.Beta(*_concentrations(params)), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(psi(a), psi(b)) - psi(a + b) in (a, b), psi trigamma, times sigmoid on both sides.

        Args:
          params: [N, 2A]. tangent: [N, 2A].

        Returns:
          [N, 2A].
        """
        concentration, slope = _LEAST + tf.nn.softplus(params), tf.sigmoid(params)
        moved = slope * tangent
        total, moved_total = (sum(tf.split(x, 2, axis=-1)) for x in (concentration, moved))
        joint = tf.math.polygamma(tf.ones_like(total), total) * moved_total
        own = tf.math.polygamma(tf.ones_like(concentration), concentration) * moved
        return slope * (own - tf.concat([joint, joint], -1))

    def noise(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Uniform [*shape, A]. seed: [2] int32."""
        return tf.random.stateless_uniform([*shape, self.sampler.noise_size], seed)

    def draw(self, params, noise, xp=tf):
        """The quantile at the noise, by TensorFlow whatever xp is: [N, 2A], [N, A] -> [N, A]."""
        del xp
        return tf.clip_by_value(tfp.math.betaincinv(*_concentrations(params), noise), _EDGE, 1.0 - _EDGE)

    def bound(self, raw_action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw actions [N, A] put inside 0..1, and which samples [N] were there."""
        known = tf.where(tf.math.is_nan(raw_action), 0.5, tf.clip_by_value(raw_action, _EDGE, 1.0 - _EDGE))
        return known, tf.reduce_all(known == raw_action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """alpha and beta, [N, A]."""
        alpha, beta = _concentrations(params)
        return {"alpha": alpha, "beta": beta}


def _concentrations(params: tf.Tensor) -> list[tf.Tensor]:
    """alpha and beta, [N, A] each, of params [N, 2A]."""
    return tf.split(_LEAST + tf.nn.softplus(params), 2, axis=-1)
