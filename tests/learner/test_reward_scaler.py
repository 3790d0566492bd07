"""Reward scaling against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner.reward_scaler import RewardScaler


def test_it_divides_by_the_deviation_of_the_returns_of_every_valid_transition_so_far():
    rng, scaler, seen = np.random.default_rng(0), RewardScaler(True), []
    for _ in range(2):
        discounted_return, reward = rng.normal(size=(2, 11, 3)).astype(np.float32) * 3
        mask = (rng.random((11, 3)) < 0.8).astype(np.float32)
        seen.extend(discounted_return[mask > 0])
        scaler.merge(tf.constant(discounted_return), tf.constant(mask))
        expected = np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -10, 10)
        np.testing.assert_allclose(scaler(tf.constant(reward)), expected, 1e-5)
        np.testing.assert_allclose(scaler.scale(), np.std(seen), rtol=1e-6)
    assert float(scaler.moments.count) == len(seen) < 66


def test_scaled_rewards_are_clipped_at_ten():
    scaler = RewardScaler(True)
    scaler.merge(tf.constant([[1.0, -1.0]]), tf.ones([1, 2]))
    np.testing.assert_allclose(scaler(tf.constant([9.0, 11.0, -1e9])), [9.0, 10.0, -10.0], rtol=1e-6)


def test_switched_off_it_changes_nothing():
    scaler = RewardScaler(False)
    reward = tf.constant([[1.0, 100.0]])
    scaler.merge(reward, tf.ones_like(reward))
    np.testing.assert_array_equal(scaler(reward), reward)
    assert float(scaler.scale()) == 1.0
    np.testing.assert_allclose(scaler.std(), np.std([1.0, 100.0]), rtol=1e-6)  # but the unit of returns is known


def test_returns_of_another_shape_than_their_mask_are_refused(column):
    with pytest.raises(ValueError, match="mask has shape"):
        RewardScaler(True).merge(tf.ones([3, 2]), column(np.ones((3, 2))))


def test_it_is_merged_with_the_returns_of_every_rollout_once(make_session, prepared):
    """Over two updates of a session: moments of the returns that came with the rollouts, scaled rewards by hand."""
    session = make_session(gamma=0.9)
    calls, seen = prepared(session), []
    for update in range(2):
        session.step()
        trajectory, discounted_return, *_ = calls[update].given
        seen.extend(discounted_return.numpy()[trajectory.mask.numpy() > 0])
    scaler = session.learner.reward_scaler
    assert float(scaler.moments.count) == len(seen)
    np.testing.assert_allclose(scaler.std(), np.std(seen), rtol=1e-5)
