"""The diagonal Gaussian."""

import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.acting.samplers import GaussianSampler

tfd = tfp.distributions
_LARGEST = 1e6  # size of a raw action that is taken from a request


class DiagonalGaussian:
    """Independent normals, params = [mean, log_std] of shape [N, 2A], for a Box of any shape.

    Squashed by tanh, the raw action is what tanh is taken of, and so are log-probability, entropy and KL: ratios,
    KL and Fisher matrix are the same on both sides of a function that can be undone.
    """

    def __init__(self, sampler: GaussianSampler):
        self.sampler = sampler

    def __call__(self, params: tf.Tensor) -> tfp.distributions.Distribution:
        mean, log_std = tf.split(params, 2, axis=-1)
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_std))

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(1 / std^2, 2) in (mean, log_std).

        Args:
          params: [N, 2A]. tangent: [N, 2A].

        Returns:
          [N, 2A].
        """
        _, log_std = tf.split(params, 2, axis=-1)
        return tf.concat([tf.exp(-2.0 * log_std), 2.0 * tf.ones_like(log_std)], -1) * tangent

    def noise(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard normal [*shape, A]. seed: [2] int32."""
        return tf.random.stateless_normal([*shape, self.sampler.noise_size], seed)

    def draw(self, params, noise, xp=tf):
        """mean + std * noise: [N, 2A], [N, A] -> [N, A]."""
        return self.sampler.draw(params, noise, xp)

    def bound(self, raw_action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw actions [N, A] made finite, at most 1e6 in size, and which samples [N] were."""
        zero = tf.zeros_like(raw_action)
        known = tf.where(tf.math.is_nan(raw_action), zero, tf.clip_by_value(raw_action, -_LARGEST, _LARGEST))
        return known, tf.reduce_all(known == raw_action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and std, [N, A]."""
        mean, log_std = tf.split(params, 2, axis=-1)
        return {"mean": mean, "std": tf.exp(log_std)}
