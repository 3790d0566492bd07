"""Running moments, and the observation normaliser made of them."""

import numpy as np
import tensorflow as tf

from trpo_tf.acting import standardize


class RunningMoments(tf.Module):
    """Count, mean and variance of all samples so far, in float64.

    Merging is Chan's rule: for two samples a, b with n = n_a + n_b and d = mean_b - mean_a,
      mean = mean_a + d n_b / n,    M2 = M2_a + M2_b + d^2 n_a n_b / n,    variance = M2 / n.

    Reference: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
    """

    def __init__(self, shape, name: str):
        super().__init__(name=name)
        self.count = tf.Variable(tf.zeros([], tf.float64), trainable=False, name=f"{name}/count")
        self.mean = tf.Variable(tf.zeros(shape, tf.float64), trainable=False, name=f"{name}/mean")
        self.m2 = tf.Variable(tf.zeros(shape, tf.float64), trainable=False, name=f"{name}/m2")

    def variance(self) -> tf.Tensor:
        """M2 / n; ones before the first merge."""
        return standardize.variance(self.count, self.m2, tf)

    def merge(self, samples: tf.Tensor, mask: tf.Tensor) -> None:
        """Adds the samples whose mask is 1.

        Args:
          samples: [N, ...], any float type.
          mask: [N], 0 or 1.
        """
        samples = tf.cast(samples, tf.float64)
        weights = tf.reshape(tf.cast(mask, tf.float64), [-1] + [1] * (samples.shape.rank - 1))
        samples = tf.where(weights > 0, samples, 0.0)
        added = tf.reduce_sum(weights)
        batch_mean = tf.reduce_sum(samples, 0) / tf.maximum(added, 1.0)
        batch_m2 = tf.reduce_sum(weights * (samples - batch_mean) ** 2, 0)
        total = tf.maximum(self.count + added, 1.0)
        delta = batch_mean - self.mean
        self.m2.assign(self.m2 + tf.where(added > 0, batch_m2 + delta**2 * self.count * added / total, 0.0))
        self.mean.assign(self.mean + tf.where(added > 0, delta * added / total, 0.0))
        self.count.assign_add(added)


class Normalizer(tf.Module):
    """Standardises features: clip((x - mean) / sqrt(variance + 1e-8), -10, 10).

    The moments move only in `commit`, between updates; a policy and the batch it made see the same ones. NaN becomes
    the mean, so the answer is finite for any input. Features that are not `enabled` are only made finite.

    Args:
      enabled: [D] bool.
    """

    def __init__(self, enabled):
        super().__init__(name="normalizer")
        self.enabled = np.asarray(enabled, bool)
        self.moments = RunningMoments(self.enabled.shape, "obs_moments")

    def __call__(self, features: tf.Tensor, constants=None) -> tf.Tensor:
        """[N, D] float32 or float64 -> [N, D] float32, finite. constants: of `constants`, by default those of now."""
        return standardize.standardize(features, constants or self.constants(), tf)

    def constants(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What is subtracted [D], multiplied by [D], and the bound [D]; float64."""
        count, mean, m2 = (variable.value() for variable in (self.moments.count, self.moments.mean, self.moments.m2))
        mean, scale, bound = standardize.constants(count, mean, m2, self.enabled, tf)
        return mean, scale, tf.constant(bound)

    def commit(self, features: tf.Tensor, mask: tf.Tensor) -> None:
        """Merges the raw features [N, D] whose mask [N] is 1."""
        if self.enabled.any():
            self.moments.merge(features, mask)
