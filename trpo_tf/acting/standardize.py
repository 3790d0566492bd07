"""The observation normaliser's formula: clip((x - mean) / sqrt(variance + 1e-8), -10, 10)."""

import numpy as np

from trpo_tf.acting.arrays import cast

# Names of the moments among the weights of a policy: count [], mean [D] and m2 [D], float64.
MOMENTS = ("normalizer/count", "normalizer/mean", "normalizer/m2")
CLIP = 10.0  # of normalised features (Engstrom et al. 2020)
_BOUND = 1e6  # of features that are not standardised, so that no request can overflow a network


def variance(count, m2, xp=np):
    """m2 / count [D]; ones before the first sample. count: []. m2: [D], the sum of squared deviations."""
    return xp.where(count > 0, m2 / xp.maximum(count, 1.0), xp.ones_like(m2))


def constants(count, mean, m2, enabled: np.ndarray, xp=np) -> tuple:
    """What `standardize` needs.

    Args:
      count, mean, m2: [], [D], [D] float64, the moments.
      enabled: [D] bool, the columns to standardise.

    Returns:
      What is subtracted [D], multiplied by [D], and the bound [D]; float64.
    """
    scale = 1.0 / xp.sqrt(variance(count, m2, xp) + 1e-8)
    if not enabled.all():
        mean = xp.where(enabled, mean, xp.zeros_like(mean))
        scale = xp.where(enabled, scale, xp.ones_like(scale))
    return mean, scale, np.where(enabled, CLIP, _BOUND)


def standardize(features, constants: tuple, xp=np):
    """[N, D] float32 or float64 -> [N, D] float32, finite: NaN becomes the mean, anything beyond the bound the bound.

    Computed in the features' dtype: precision is dropped after the mean is taken off.
    """
    mean, scale, bound = (cast(x, features.dtype, xp) for x in constants)
    known = xp.where(xp.not_equal(features, features), mean, features)  # only NaN is not equal to itself
    return cast(xp.minimum(xp.maximum((known - mean) * scale, -bound), bound), np.float32, xp)


def float32_is_enough(count, mean, m2) -> np.ndarray:
    """Where rounding an observation to float32 moves its standardised value by less than 1e-3, [D] bool.

    Of observations within ten standard deviations of the mean. Arguments as `constants`.
    """
    std = np.sqrt(variance(count, m2) + 1e-8)
    return (np.abs(mean) + CLIP * std) * 2.0**-24 <= 1e-3 * std
