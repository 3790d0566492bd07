"""The normaliser's formula in NumPy: by hand, and to the bit what TensorFlow makes of the same moments."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.acting import standardize
from trpo_tf.policy.normalizer import Normalizer


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("traced", [False, True])
def test_constants_equal_tensorflows_to_the_bit(size, traced):
    rng = np.random.default_rng(size)
    for count in (0.0, 1.0, 2048.0, 1e9):
        normalizer = Normalizer(rng.random(size) < 0.8)
        moments = normalizer.moments
        moments.count.assign(count)
        moments.mean.assign(rng.normal(size=size) * 10 ** rng.uniform(-6, 6, size))
        moments.m2.assign(count * 10 ** rng.uniform(-12, 12, size))
        make = tf.function(normalizer.constants, autograph=False) if traced else normalizer.constants
        given = (x.numpy() for x in (moments.count, moments.mean, moments.m2))
        for ours, theirs in zip(standardize.constants(*given, normalizer.enabled), make(), strict=True):
            assert ours.dtype == np.float32
            assert ours.tobytes() == theirs.numpy().tobytes()


def test_constants_by_hand():
    mean, scale, bound = standardize.constants(
        4.0, np.array([1.0, 2.0]), np.array([36.0, 9.0]), np.array([True, False])
    )
    np.testing.assert_allclose(mean, [1, 0])
    np.testing.assert_allclose(scale, [1 / 3, 1])
    np.testing.assert_allclose(bound, [10, 1e6])


def test_before_the_first_sample_the_variance_is_one():
    np.testing.assert_array_equal(standardize.variance(np.float64(0), np.array([0.0, 5.0])), [1, 1])
    np.testing.assert_array_equal(standardize.variance(np.float64(2), np.array([0.0, 5.0])), [0, 2.5])


def test_anything_becomes_finite():
    constants = standardize.constants(4.0, np.array([1.0, 2.0]), np.array([4.0, 4.0]), np.array([True, False]))
    given = np.array([[np.nan, np.nan], [np.inf, -np.inf], [2.0, 2.0]], np.float32)
    np.testing.assert_allclose(standardize.standardize(given, constants), [[0, 0], [10, -1e6], [1, 2]], rtol=1e-6)
