"""Weighted sums, means and standard deviations by hand, at limits and behind masks."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import statistics


def test_standardize_uses_valid_rows_only():
    x, mask = np.array([1.0, 2.0, 1e9, 3.0]), np.array([1.0, 1.0, 0.0, 1.0])
    valid = np.array([1.0, 2.0, 3.0])
    expected = (valid - valid.mean()) / valid.std()
    result, std = statistics.standardize(tf.constant(x), tf.constant(mask))
    np.testing.assert_allclose(result, [expected[0], expected[1], 0.0, expected[2]], atol=1e-12)
    np.testing.assert_allclose(std, valid.std())


@pytest.mark.parametrize("x", [[3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [1e30, 1e30, 1e30], [5.0]])
def test_standardize_of_equal_rows_is_zero(x):
    x = tf.constant(x, tf.float32)
    result, _ = statistics.standardize(x, tf.ones_like(x))
    np.testing.assert_array_equal(result, np.zeros(len(x)))


def test_masked_mean_ignores_nan_behind_the_mask_and_nothing_at_all_is_zero():
    x = tf.constant([1.0, np.nan, 3.0])
    assert float(statistics.masked_mean(x, tf.constant([1.0, 0.0, 1.0]))) == 2.0
    assert float(statistics.masked_mean(x, tf.zeros(3))) == 0.0


def test_explained_variance_by_hand():
    returns, mask = tf.constant([1.0, 2.0, 3.0, 99.0]), tf.constant([1.0, 1.0, 1.0, 0.0])

    def ev(values):
        return float(statistics.explained_variance(returns, tf.constant(values), mask))

    assert ev([1.0, 2.0, 3.0, 0.0]) == 1.0
    assert ev([2.0, 2.0, 2.0, 0.0]) == 0.0
    np.testing.assert_allclose(ev([3.0, 2.0, 1.0, 0.0]), 1 - (8 / 3) / (2 / 3))
    constant = statistics.explained_variance(tf.ones(4), tf.zeros(4), mask)
    assert float(constant) == 0.0


def test_weighted_sum_ignores_what_has_no_weight_and_is_float64():
    total = statistics.weighted_sum(tf.constant([1.0, np.inf, 1e-9]), tf.constant([1.0, 0.0, 0.5]))
    assert total.dtype == tf.float64
    assert float(total) == pytest.approx(1.0 + 0.5e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("mask", "expected"), [([1.0, 0.0, 1.0], [0.5, 0, 0.5]), ([3.0, 1.0, 0.0], [0.75, 0.25, 0]), ([0.0] * 3, [0.0] * 3)]
)
def test_mean_weights_are_the_mask_divided_by_its_sum(mask, expected):
    np.testing.assert_allclose(statistics.mean_weights(tf.constant(mask)), expected)


def test_standardize_by_weights_is_standardize_of_repeated_rows():
    x, weights = np.array([1.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0])
    repeated = np.repeat(x, weights.astype(int))
    result, std = statistics.standardize(tf.constant(x), tf.constant(weights))
    np.testing.assert_allclose(result, (x - repeated.mean()) / repeated.std())
    np.testing.assert_allclose(std, repeated.std())


@pytest.mark.parametrize("function", [statistics.weighted_sum, statistics.masked_mean, statistics.standardize])
@pytest.mark.parametrize("place", [0, 1])
def test_a_column_where_a_vector_belongs_is_refused(function, place, column):
    both = [np.ones(4), np.ones(4)]
    both[place] = column(both[place])
    with pytest.raises(ValueError, match="has shape"):
        function(*both)


def test_explained_variance_of_a_column_is_refused(column):
    with pytest.raises(ValueError, match="has shape"):
        statistics.explained_variance(tf.ones(4), column(np.ones(4)), tf.ones(4))
