"""The observation normaliser's formula: clip((x - mean) / sqrt(variance + 1e-8), -10, 10)."""

import numpy as np

from trpo_tf.acting.arrays import cast

# Names of the moments among the weights of a policy: count [], mean [D] and m2 [D], float64.
MOMENTS = ("normalizer/count", "normalizer/mean", "normalizer/m2")
_CLIP = 10.0  # of normalised features (Engstrom et al. 2020)
_BOUND = 1e6  # of features that are not standardised, so that no request can overflow a network


def variance(count, m2, xp=np):
    """m2 / count [D]; ones before the first sample. count: []. m2: [D], the sum of squared deviations."""
    return xp.where(count > 0, m2 / xp.maximum(count, 1.0), xp.ones_like(m2))


def constants(count, mean, m2, enabled: np.ndarray, xp=np) -> tuple:
    """What `standardize` needs, computed in float64.

    Args:
      count, mean, m2: [], [D], [D] float64, the moments.
      enabled: [D] bool, the columns to standardise.

    Returns:
      What is subtracted [D], multiplied by [D], and the bound [D]; float32.
    """
    scale = 1.0 / xp.sqrt(variance(count, m2, xp) + 1e-8)
    if not enabled.all():
        mean = xp.where(enabled, mean, xp.zeros_like(mean))
        scale = xp.where(enabled, scale, xp.ones_like(scale))
    bound = np.where(enabled, _CLIP, _BOUND).astype(np.float32)
    return cast(mean, np.float32, xp), cast(scale, np.float32, xp), bound


def standardize(features, constants: tuple, xp=np):
    """[N, D] float32 -> [N, D] float32, finite: NaN becomes the mean, anything beyond the bound the bound."""
    mean, scale, bound = constants
    known = xp.where(xp.not_equal(features, features), mean, features)  # only NaN is not equal to itself
    return xp.minimum(xp.maximum((known - mean) * scale, -bound), bound)
