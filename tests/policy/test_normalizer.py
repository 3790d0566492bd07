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
    np.testing.assert_allclose(Normalizer([True] * 2)({"vector": x})["vector"], x, rtol=1e-6)


def test_standardises_and_clips():
    normalizer = Normalizer([True])
    normalizer.commit({"vector": tf.constant([[1.0], [3.0]])}, tf.ones(2))
    given = {"vector": tf.constant([[2.0], [3.0], [1e4], [-1e4]])}
    np.testing.assert_allclose(normalizer(given)["vector"], [[0], [1], [10], [-10]], 1e-6)


def test_answers_are_finite_for_any_request():
    for enabled in (True, False):
        normalizer = Normalizer([enabled] * 3)
        normalizer.commit({"vector": tf.constant([[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]])}, tf.ones(2))
        given = {"vector": tf.constant([[np.nan, np.inf, -np.inf], [3e38, -3e38, np.float32(1e39)]])}
        assert np.isfinite(normalizer(given)["vector"]).all()


def test_moments_move_only_by_commit_and_not_when_switched_off():
    normalizer = Normalizer([True])
    normalizer({"vector": tf.ones([5, 1])})
    assert float(normalizer.moments.count) == 0
    off = Normalizer([False])
    off.commit({"vector": tf.ones([5, 1])}, tf.ones(5))
    assert float(off.moments.count) == 0


def test_features_that_are_not_normalised_pass_beside_those_that_are():
    normalizer = Normalizer([True, False])
    normalizer.commit({"vector": tf.constant([[1.0, 5.0], [3.0, 7.0]])}, tf.ones(2))
    given = {"vector": tf.constant([[3.0, 7.0], [1e4, 1e4], [np.nan, np.nan], [-1e9, -1e9]])}
    out = normalizer(given)["vector"]
    np.testing.assert_allclose(out, [[1, 7], [10, 1e4], [0, 0], [-10, -1e6]], atol=1e-6)


def test_image_moments_of_batches_equal_moments_of_everything():
    rng = np.random.default_rng(0)
    normalizer, seen = Normalizer([], {"camera": (2, 3)}), []
    moments = normalizer.images["camera"]
    level = np.array([[0, 9, 40], [90, 200, 250]])
    for rows in (1, 50, 0, 7):
        x = (level + rng.integers(0, 6, (rows + 5, 2, 3))).astype(np.uint8)
        mask = np.r_[np.ones(rows), np.zeros(5)].astype(np.float32)
        normalizer.commit({"camera": tf.constant(x)}, tf.constant(mask))
        seen.extend(x[:rows].astype(float))
        np.testing.assert_allclose(moments.mean, np.mean(seen, 0), rtol=1e-6)
        np.testing.assert_allclose(moments.variance, np.var(seen, 0).mean(), rtol=1e-5)
    assert float(moments.count) == len(seen) == 58


def test_images_lose_what_never_changes_and_share_one_scale():
    normalizer = Normalizer([], {"camera": (3,)})
    image = np.array([[7, 10, 250], [7, 14, 250], [7, 10, 250], [7, 14, 250]], np.uint8)  # variances 0, 4, 0
    before = normalizer({"camera": tf.constant(image), "other": tf.constant(image)})
    np.testing.assert_allclose(before["camera"], image / 255, rtol=1e-4)
    normalizer.commit({"camera": tf.constant(image)}, tf.ones(4))
    out = normalizer({"camera": tf.constant(image), "other": tf.constant(image)})
    scaled = 2 / np.sqrt(4 / 3 + 1)
    np.testing.assert_allclose(out["camera"], [[0, -scaled, 0], [0, scaled, 0]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(out["other"], image)
    far = normalizer({"camera": tf.constant([[255, 0, 0]], tf.uint8)})["camera"]
    np.testing.assert_allclose(far, [[10, -12 / np.sqrt(4 / 3 + 1), -10]], rtol=1e-6)
