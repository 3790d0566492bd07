"""Independent bits."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.acting.samplers import BernoulliSampler

tfd = tfp.distributions


class Bernoulli:
    """Independent bits, params = logits [N, A], for MultiBinary of any shape."""

    def __init__(self, sampler: BernoulliSampler):
        self.sampler = sampler

    def __call__(self, params: tf.Tensor) -> tfp.distributions.Distribution:
        return tfd.Independent(tfd.Bernoulli(params, dtype=tf.float32), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(p (1 - p)) in the logits. params, tangent: [N, A]. Returns [N, A]."""
        return tf.sigmoid(params) * tf.sigmoid(-params) * tangent

    def noise(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard logistic [*shape, A]. seed: [2] int32."""
        tiny = np.finfo(np.float32).tiny
        uniform = tf.random.stateless_uniform([*shape, self.sampler.size], seed, tiny, 1.0)
        return tf.math.log(uniform) - tf.math.log1p(-uniform)

    def draw(self, params, noise, xp=tf):
        """1 where logit + noise > 0: [N, A], [N, A] -> [N, A]."""
        return self.sampler.draw(params, noise, xp)

    def bound(self, raw_action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw actions [N, A] made 0 or 1, and which samples [N] were."""
        known = tf.where(raw_action > 0.5, tf.ones_like(raw_action), tf.zeros_like(raw_action))
        return known, tf.reduce_all(known == raw_action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """logits and probs, [N, A]."""
        return {"logits": params, "probs": tf.sigmoid(params)}
