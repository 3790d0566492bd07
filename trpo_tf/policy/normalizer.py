"""Running moments, and the observation normaliser made of them."""

import numpy as np
import tensorflow as tf

_CLIP = 10.0  # of normalised features (Engstrom et al. 2020)
_BOUND = 1e6  # of features that are not standardised, so that no request can overflow a network


class RunningMoments(tf.Module):
    """Count, mean and variance of all rows so far, in float64.

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
        return tf.where(self.count > 0, self.m2 / tf.maximum(self.count, 1.0), tf.ones_like(self.m2))

    def merge(self, rows: tf.Tensor, mask: tf.Tensor) -> None:
        """Adds the rows whose mask is 1.

        Args:
          rows: [N, ...], any float type.
          mask: [N], 0 or 1.
        """
        rows = tf.cast(rows, tf.float64)
        weights = tf.reshape(tf.cast(mask, tf.float64), [-1] + [1] * (rows.shape.rank - 1))
        rows = tf.where(weights > 0, rows, 0.0)
        added = tf.reduce_sum(weights)
        batch_mean = tf.reduce_sum(rows, 0) / tf.maximum(added, 1.0)
        batch_m2 = tf.reduce_sum(weights * (rows - batch_mean) ** 2, 0)
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

    def __call__(self, features, constants=None, xp=tf):
        """[N, D] float32 -> [N, D] float32, finite. xp=np: of arrays, with `constants` as arrays."""
        mean, scale, bound = constants or self.constants()
        known = xp.where(xp.not_equal(features, features), mean, features)  # only NaN is not equal to itself
        return xp.minimum(xp.maximum((known - mean) * scale, -bound), bound)

    def constants(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What is subtracted [D], multiplied by [D], and the bound [D]; float32."""
        mean, scale = self.moments.mean.value(), tf.math.rsqrt(self.moments.variance() + 1e-8)
        if not self.enabled.all():
            mean = tf.where(self.enabled, mean, tf.zeros_like(mean))
            scale = tf.where(self.enabled, scale, tf.ones_like(scale))
        bound = tf.constant(np.where(self.enabled, _CLIP, _BOUND), tf.float32)
        return tf.cast(mean, tf.float32), tf.cast(scale, tf.float32), bound

    def commit(self, features: tf.Tensor, mask: tf.Tensor) -> None:
        """Merges the raw features [N, D] of the rows whose mask [N] is 1."""
        if self.enabled.any():
            self.moments.merge(features, mask)
