"""Chunks against the whole batch."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import chunks

ROWS = np.random.default_rng(0).normal(size=(12, 3))
WEIGHTS = np.random.default_rng(1).uniform(size=10)


def compiled(function, *inputs):
    return tf.function(function, autograph=False, jit_compile=True)(*inputs)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 9, 10, 99])
def test_a_sum_counts_every_row_once(chunk):
    def function(rows, weights):
        return {"sum": tf.reduce_sum(weights[:, None] * rows["x"] ** 2, 0), "count": tf.reduce_sum(weights)}

    result = compiled(lambda x: chunks.add_up(function, {"x": x}, tf.constant(WEIGHTS), chunk), ROWS)
    np.testing.assert_allclose(result["sum"], WEIGHTS @ ROWS[:10] ** 2, rtol=1e-12)
    np.testing.assert_allclose(result["count"], WEIGHTS.sum(), rtol=1e-12)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 9, 10, 99])
def test_rows_keep_their_places(chunk):
    def function(rows):
        return rows[0] * rows[1][:, None]

    factors = np.arange(12.0)
    result = compiled(lambda *x: chunks.apply(function, x, 10, chunk), ROWS, factors)
    np.testing.assert_allclose(result, (ROWS * factors[:, None])[:10], rtol=1e-12)
