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


class ImageMoments(tf.Module):
    """The mean of each number of an image of bytes, and one variance, that around those means over all numbers.

    Merging is the same rule. All is float32.

    Args:
      shape: of an image, [...].
    """

    def __init__(self, shape: tuple[int, ...], name: str):
        super().__init__(name=name)
        self.count = tf.Variable(0.0, trainable=False, name=f"{name}/count")
        self.mean = tf.Variable(tf.zeros(shape), trainable=False, name=f"{name}/mean")
        self.variance = tf.Variable(0.0, trainable=False, name=f"{name}/variance")

    def merge(self, images: tf.Tensor, mask: tf.Tensor) -> None:
        """Adds the images [N, ...] uint8 whose mask [N] is 1."""
        flat = tf.cast(tf.reshape(images, [-1, self.mean.shape.num_elements()]), tf.float32)
        weights = tf.cast(mask, tf.float32)[:, None]
        added = tf.reduce_sum(weights)
        mean = tf.reshape(tf.matmul(weights, flat, transpose_a=True) / tf.maximum(added, 1.0), self.mean.shape)
        total = tf.maximum(self.count + added, 1.0)
        delta = mean - self.mean
        variance = tf.reduce_sum(weights * (flat - tf.reshape(mean, [1, -1])) ** 2) / float(flat.shape[1])
        between = tf.reduce_mean(delta**2) * self.count * added
        merged = (self.variance * self.count + variance + between / total) / total
        self.variance.assign(tf.where(added > 0, merged, self.variance))
        self.mean.assign_add(tf.where(added > 0, delta * added / total, 0.0))
        self.count.assign_add(added)


class Normalizer(tf.Module):
    """Standardises features: clip((x - mean) / sqrt(variance + 1e-8), -10, 10).

    Each number of the vector has moments of its own. Each number of an image has its own mean, so that what never
    changes there is 0, and all of them share a variance, to which 1 is added for the rounding to bytes. Before the
    first merge they are divided by 255.

    The moments move only in `commit`, between updates; a policy and the batch it made see the same ones. NaN becomes
    the mean, so the answer is finite for any input. Features that are not `enabled` are only made finite. Other
    features pass, images that are not named here among them.

    Args:
      enabled: [D] bool, of the vector.
      images: shape of each image to standardise, by name.
    """

    def __init__(self, enabled, images: dict[str, tuple[int, ...]] | None = None):
        super().__init__(name="normalizer")
        self.enabled = np.asarray(enabled, bool)
        self.moments = RunningMoments(self.enabled.shape, "obs_moments")
        self.images = {name: ImageMoments(shape, f"{name}_moments") for name, shape in (images or {}).items()}

    @property
    def active(self) -> bool:
        """There is something to standardise."""
        return bool(self.enabled.any() or self.images)

    def __call__(self, features: dict[str, tf.Tensor], constants: dict | None = None) -> dict[str, tf.Tensor]:
        """Features [N, ...] by name, those that are standardised as float32, finite.

        Args:
          features: `vector` [N, D] is float32 or float64, an image [N, ...] uint8.
          constants: of `constants`, by default those of now.
        """
        constants = constants or self.constants()
        done = {name: _standardized_image(features[name], *constants[name]) for name in self.images}
        if "vector" in features:
            done["vector"] = standardize.standardize(features["vector"], constants["vector"], tf)
        return features | done

    def constants(self) -> dict[str, tuple]:
        """By image what is subtracted [...] and multiplied by []; of the vector both [D] and the bound [D], float64."""
        count, mean, m2 = (variable.value() for variable in (self.moments.count, self.moments.mean, self.moments.m2))
        mean, scale, bound = standardize.constants(count, mean, m2, self.enabled, tf)
        found: dict[str, tuple] = {"vector": (mean, scale, tf.constant(bound))}
        for name, moments in self.images.items():
            variance = tf.where(moments.count > 0, moments.variance.value(), 255.0**2)
            found[name] = moments.mean.value(), tf.math.rsqrt(variance + 1.0)
        return found

    def commit(self, features: dict[str, tf.Tensor], mask: tf.Tensor) -> None:
        """Merges the raw features [N, ...] whose mask [N] is 1."""
        if self.enabled.any():
            self.moments.merge(features["vector"], mask)
        for name, moments in self.images.items():
            moments.merge(features[name], mask)


def _standardized_image(image: tf.Tensor, mean: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """[N, ...] uint8 -> float32."""
    return tf.clip_by_value((tf.cast(image, tf.float32) - mean) * scale, -standardize.CLIP, standardize.CLIP)
