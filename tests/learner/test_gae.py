"""Generalised advantages against a slow loop, at limits and behind masks; the Estimate made of them."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import AdvantageConfig
from trpo_tf.learner.estimate import gae as module
from trpo_tf.learner.estimate.gae import generalized_advantage
from trpo_tf.types import Trajectory


def slow_gae(reward, values, terminated, truncated, mask, gamma, lam):
    """Equation 16 as a sum of discounted deltas, env by env, stopping at ends and invalid rows."""
    time, envs = reward.shape
    result = np.zeros((time, envs))
    for b in range(envs):
        for t in range(time):
            if not mask[t, b]:
                continue
            weight, total = 1.0, 0.0
            for k in range(t, time):
                if not mask[k, b]:
                    break
                bootstrap = 0.0 if terminated[k, b] else gamma * values[k + 1, b]
                total += weight * (reward[k, b] + bootstrap - values[k, b])
                if terminated[k, b] or truncated[k, b]:
                    break
                weight *= gamma * lam
            result[t, b] = total
    return result


def random_rows(seed, time=23, envs=5):
    rng = np.random.default_rng(seed)
    reward, values = rng.normal(size=(time, envs)), rng.normal(size=(time + 1, envs))
    terminated = rng.random((time, envs)) < 0.15
    truncated = rng.random((time, envs)) < 0.15  # both at once on some rows
    mask = np.ones((time, envs))
    mask[1:][(terminated | truncated)[:-1]] = 0
    mask[rng.random((time, envs)) < 0.05] = 0
    return reward, values, terminated, truncated, mask


def advantages(rows, gamma, lam):
    tensors = [tf.constant(x) for x in rows]
    return generalized_advantage(*tensors, gamma, lam).numpy()


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_equals_the_slow_sum(gamma, lam):
    for seed in range(4):
        rows = random_rows(seed)
        np.testing.assert_allclose(advantages(rows, gamma, lam), slow_gae(*rows, gamma, lam), atol=1e-10)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(False, False, 1 + 0.9 * 7 - 2), (False, True, 1 + 0.9 * 7 - 2), (True, False, 1 - 2), (True, True, 1 - 2)],
)
def test_truncation_bootstraps_and_termination_does_not(terminated, truncated, expected):
    rows = ([[1.0]], [[2.0], [7.0]], [[terminated]], [[truncated]], [[1.0]])
    rows = [np.array(x) for x in rows]
    np.testing.assert_allclose(advantages(rows, 0.9, 0.95), [[expected]])


def test_nothing_leaks_over_a_reset_row():
    rows = random_rows(0, time=6, envs=1)
    reward, values, _, _, _ = rows
    terminated, truncated, mask = np.zeros((6, 1), bool), np.zeros((6, 1), bool), np.ones((6, 1))
    truncated[2], mask[3] = True, 0
    before = advantages((reward, values, terminated, truncated, mask), 0.99, 0.95)
    reward, values = reward.copy(), values.copy()
    reward[3:], values[4:] = 1e6, -1e6  # the reset row and the next episode
    after = advantages((reward, values, terminated, truncated, mask), 0.99, 0.95)
    np.testing.assert_array_equal(before[:3], after[:3])
    assert after[3] == 0


def test_everything_masked_gives_zeros():
    rows = list(random_rows(1))
    rows[4] = np.zeros_like(rows[4])
    assert not advantages(rows, 0.99, 0.95).any()


def random_trajectory(seed):
    """A trajectory in float32, and values."""
    reward, values, *flags = random_rows(seed)
    *flags, mask = flags
    logp = np.random.default_rng(seed).normal(size=reward.shape)
    logp, reward, mask, values = map(np.float32, (logp, reward, mask, values))
    return Trajectory((), (), logp, reward, *flags, mask), values


def test_the_estimate_by_numpy():
    """Advantages standardised over the valid rows, targets that are advantage + value, weights that are the mask."""
    trajectory, values = random_trajectory(3)
    reward, valid = trajectory.reward / np.float32(2), trajectory.mask > 0
    found = module.gae(trajectory, reward, values, AdvantageConfig(gamma=0.9, gae_lambda=0.7))
    flags = trajectory.terminated, trajectory.truncated, trajectory.mask
    expected = slow_gae(reward, values, *flags, 0.9, 0.7)
    assert 0 < valid.sum() < valid.size
    standardized = (expected - expected[valid].mean()) / expected[valid].std()
    np.testing.assert_allclose(found.advantage, np.where(valid, standardized, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.advantage_std, expected[valid].std(), rtol=1e-5)
    np.testing.assert_allclose(found.returns, expected + values[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.weights, trajectory.mask)
    np.testing.assert_array_equal(found.behavior_logp, trajectory.behavior_logp)


@pytest.mark.parametrize("place", range(5))
def test_a_column_where_a_matrix_belongs_is_refused(place, column):
    rows = list(random_rows(0))
    rows[place] = column(rows[place])
    with pytest.raises(ValueError, match="has shape"):
        generalized_advantage(*rows, 0.9, 0.9)


def test_values_without_the_last_observation_are_refused():
    reward, values, *flags = random_rows(0)
    with pytest.raises(ValueError, match=r"values has shape \(23, 5\), where \(24, 5\) is needed"):
        generalized_advantage(reward, values[:-1], *flags, 0.9, 0.9)


def test_another_estimate_needs_one_line_of_one_module(make_session, prepared, monkeypatch):
    """Monte Carlo returns without a baseline, put in the place of `gae`: what is learned from is that."""

    def monte_carlo(trajectory, reward, values, config):
        advantage = generalized_advantage(reward, 0 * values, *trajectory[-3:], config.gamma, 1.0)
        one = tf.constant(1.0, tf.float64)
        return module.Estimate(advantage, advantage, trajectory.mask, trajectory.behavior_logp, one)

    monkeypatch.setattr("trpo_tf.learner.prepare.gae", monte_carlo)
    session = make_session(gamma=0.9, scale_reward=False)
    calls = prepared(session)
    row = session.step()
    (trajectory, *_), made, _ = calls[0]
    shape = (session.config.time_steps, 4)
    flags = trajectory.terminated.numpy(), trajectory.truncated.numpy(), trajectory.mask.numpy()
    expected = slow_gae(trajectory.reward.numpy(), np.zeros((shape[0] + 1, 4)), *flags, 0.9, 1.0)
    assert row["policy/reason"] == "accepted"
    np.testing.assert_allclose(tf.reshape(made.batch.advantage, shape), expected, rtol=1e-4)
    np.testing.assert_allclose(tf.reshape(made.value_batch.returns, shape), expected, rtol=1e-4)
