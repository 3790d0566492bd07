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
        for ours, theirs in zip(standardize.constants(*given, normalizer.enabled), make()["vector"], strict=True):
            assert ours.dtype == np.float64
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


@pytest.mark.parametrize("traced", [False, True])
def test_precision_is_dropped_after_the_mean_is_taken_off(traced):
    """1.7e9 + x with x of deviation 2, in float64; float32 has only every 128th number there."""
    normalizer = Normalizer([True])
    seen = 1.7e9 + np.array([[-2.0], [2.0]])
    normalizer.commit({"vector": tf.constant(seen)}, tf.ones(2))
    given, expected = 1.7e9 + np.array([[-3.0], [0.0], [0.5], [1e9], [np.nan]]), [[-1.5], [0], [0.25], [10], [0]]
    moments = (x.numpy() for x in (normalizer.moments.count, normalizer.moments.mean, normalizer.moments.m2))
    arrays = standardize.standardize(given, standardize.constants(*moments, normalizer.enabled))
    call = tf.function(normalizer, autograph=False) if traced else normalizer
    tensors = call({"vector": tf.constant(given)})["vector"]
    assert arrays.dtype == tensors.dtype.as_numpy_dtype == np.float32
    np.testing.assert_allclose(arrays, expected, rtol=1e-6)
    assert arrays.tobytes() == tensors.numpy().tobytes()


def test_float32_features_are_computed_in_float32():
    """To the bit as by hand, whatever float64 would give."""
    rng = np.random.default_rng(0)
    mean, m2, given = rng.normal(size=5) * 1e3, rng.random(5) * 1e3, rng.normal(size=(100, 5)).astype(np.float32)
    shift, scale = mean.astype(np.float32), (1 / np.sqrt(m2 / 7.0 + 1e-8)).astype(np.float32)
    expected = np.clip((given - shift) * scale, np.float32(-10), np.float32(10))
    found = standardize.standardize(given, standardize.constants(7.0, mean, m2, np.ones(5, bool)))
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


def test_where_float32_is_enough_by_hand():
    """(|mean| + 10 std) / 2^24 <= std / 1000: up to |mean| = 16767 std."""
    mean, std = np.array([0, 16_760, 16_780, 1.7e9, 1.0, 2.0]), np.array([1, 1, 1, 300, 0, 0])
    enough = standardize.float32_is_enough(8.0, mean, 8 * std**2)
    assert enough.tolist() == [True, True, False, False, True, False]
