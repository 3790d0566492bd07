"""Weighted sums, means and standard deviations over transitions, in float64."""

import tensorflow as tf

from trpo_tf.learner.shapes import same_shape


def weighted_sum(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_n w_n x_n, in float64. x: [...], anything where the weights [...] are 0.

    Raises:
      ValueError: x and weights have different shapes, here and in all that follow.
    """
    x, weights = tf.cast(x, tf.float64), tf.cast(weights, tf.float64)
    same_shape(x=x, weights=weights)
    return tf.reduce_sum(tf.where(weights > 0, weights * x, 0.0))


def mean_weights(mask: tf.Tensor) -> tf.Tensor:
    """The weights whose `weighted_sum` is the mean of the rows whose mask is 1; all 0 when there is none. Float64.

    Here and below, a mask may hold other weights than 1, too: the mean is weighted by them.
    """
    mask = tf.cast(mask, tf.float64)
    return mask / tf.maximum(tf.reduce_sum(mask), 1.0)


def masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of the rows whose mask is 1, in float64; 0 when there is none.

    Args:
      x: [...]. mask: [...], 0 or 1; x may be anything where it is 0.
    """
    return weighted_sum(x, mean_weights(mask))


def standardize(x: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(x - mean) / std over the rows whose mask is not 0; 0 elsewhere, and everywhere when they are all equal.

    mask: 0 or 1, or the weight of a row in mean and std.

    Returns:
      standardised x, and std, a float64 scalar.
    """
    mean = masked_mean(x, mask)
    centered = tf.where(mask > 0, tf.cast(x, tf.float64) - mean, 0.0)
    std = tf.sqrt(masked_mean(centered**2, mask))
    # Below this, differences are rounding of the float32 inputs and would be blown up to size one.
    noise = 1e-6 * tf.abs(mean) + 1e-12
    return tf.cast(tf.where(std > noise, centered / tf.maximum(std, noise), 0.0), x.dtype), std


def explained_variance(returns: tf.Tensor, values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """1 - Var(returns - values) / Var(returns), masked, float64; 0 when the returns do not vary. All [N]."""

    def variance(x):
        x = tf.cast(x, tf.float64)
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    total = variance(returns)
    return tf.where(total > 0, 1.0 - variance(returns - values) / tf.where(total > 0, total, 1.0), 0.0)
