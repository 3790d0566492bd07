"""Independent choices."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.acting.samplers import NEVER, CategoricalSampler

tfd = tfp.distributions


class Categorical:
    """Independent choices, params = logits [N, K] of all of them in a row, for Discrete and MultiDiscrete.

    The raw action is the number of each choice, from 0; [N, M] for M choices.
    """

    def __init__(self, sampler: CategoricalSampler):
        self.sampler = sampler

    def __call__(self, params: tf.Tensor) -> tfp.distributions.Distribution:
        return tfd.Independent(tfd.Categorical(self.sampler.table(params, NEVER, tf), dtype=tf.float32), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(p) - p p^T in the logits of each choice: p * (v - p.v).

        Args:
          params: [N, K]. tangent: [N, K].

        Returns:
          [N, K].
        """
        probs, v = tf.nn.softmax(self.sampler.table(params, NEVER, tf)), self.sampler.table(tangent, 0.0, tf)
        return self.sampler.flat(probs * (v - tf.reduce_sum(probs * v, -1, keepdims=True)), tf)

    def noise(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard Gumbel [*shape, K]. seed: [2] int32."""
        tiny = np.finfo(np.float32).tiny
        return -tf.math.log(-tf.math.log(tf.random.stateless_uniform([*shape, self.sampler.size], seed, tiny, 1.0)))

    def draw(self, params, noise, xp=tf):
        """argmax(logits + noise): [N, K], [N, K] -> [N, M]."""
        return self.sampler.draw(params, noise, xp)

    def bound(self, raw_action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw actions [N, M] made numbers of choices, and which samples [N] were."""
        clipped = tf.clip_by_value(tf.round(raw_action), 0.0, self.sampler.sizes - 1.0)
        known = tf.where(tf.math.is_nan(raw_action), 0.0, clipped)
        return known, tf.reduce_all(known == raw_action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """logits and probs, [N, K]."""
        probs = tf.nn.softmax(self.sampler.table(params, NEVER, tf))
        return {"logits": params, "probs": self.sampler.flat(probs, tf)}
