"""Running moments against numpy, and the normaliser's answers to anything."""

import numpy as np
import tensorflow as tf

from trpo_tf.policy.normalizer import Normalizer, RunningMoments


def test_moments_of_batches_equal_moments_of_everything():
    rng = np.random.default_rng(0)
    moments, seen = RunningMoments([3], "m"), []
    for rows in (1, 50, 0, 7):
        x = rng.normal(1e4, [1e-2, 1.0, 100.0], size=(rows + 5, 3))
        mask = np.r_[np.ones(rows), np.zeros(5)]
        x[rows:] = np.nan
        moments.merge(tf.constant(x), tf.constant(mask))
        seen.extend(x[:rows])
        if seen:
            np.testing.assert_allclose(moments.mean, np.mean(seen, 0), rtol=1e-12)
            np.testing.assert_allclose(moments.variance(), np.var(seen, 0), rtol=1e-7, atol=1e-15)
    assert float(moments.count) == len(seen) == 58


def test_before_the_first_merge_features_pass_unchanged():
    x = tf.constant([[0.5, -3.0]])
    np.testing.assert_allclose(Normalizer([True] * 2)(x), x, rtol=1e-6)


def test_standardises_and_clips():
    normalizer = Normalizer([True])
    normalizer.commit(tf.constant([[1.0], [3.0]]), tf.ones(2))
    np.testing.assert_allclose(normalizer(tf.constant([[2.0], [3.0], [1e4], [-1e4]])), [[0], [1], [10], [-10]], 1e-6)


def test_answers_are_finite_for_any_request():
    for enabled in (True, False):
        normalizer = Normalizer([enabled] * 3)
        normalizer.commit(tf.constant([[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]]), tf.ones(2))
        out = normalizer(tf.constant([[np.nan, np.inf, -np.inf], [3e38, -3e38, np.float32(1e39)]])).numpy()
        assert np.isfinite(out).all()


def test_moments_move_only_by_commit_and_not_when_switched_off():
    normalizer = Normalizer([True])
    normalizer(tf.ones([5, 1]))
    assert float(normalizer.moments.count) == 0
    off = Normalizer([False])
    off.commit(tf.ones([5, 1]), tf.ones(5))
    assert float(off.moments.count) == 0


def test_features_that_are_not_normalised_pass_beside_those_that_are():
    normalizer = Normalizer([True, False])
    normalizer.commit(tf.constant([[1.0, 5.0], [3.0, 7.0]]), tf.ones(2))
    out = normalizer(tf.constant([[3.0, 7.0], [1e4, 1e4], [np.nan, np.nan], [-1e9, -1e9]]))
    np.testing.assert_allclose(out, [[1, 7], [10, 1e4], [0, 0], [-10, -1e6]], atol=1e-6)
