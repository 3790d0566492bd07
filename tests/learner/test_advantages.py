"""GAE against a slow loop, reward scaling against numpy, limits and masks."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import advantages


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


def gae(rows, gamma, lam):
    tensors = [tf.constant(x) for x in rows]
    return advantages.generalized_advantage(*tensors, gamma, lam).numpy()


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_equals_the_slow_sum(gamma, lam):
    for seed in range(4):
        rows = random_rows(seed)
        np.testing.assert_allclose(gae(rows, gamma, lam), slow_gae(*rows, gamma, lam), atol=1e-10)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(False, False, 1 + 0.9 * 7 - 2), (False, True, 1 + 0.9 * 7 - 2), (True, False, 1 - 2), (True, True, 1 - 2)],
)
def test_truncation_bootstraps_and_termination_does_not(terminated, truncated, expected):
    rows = ([[1.0]], [[2.0], [7.0]], [[terminated]], [[truncated]], [[1.0]])
    rows = [np.array(x) for x in rows]
    np.testing.assert_allclose(gae(rows, 0.9, 0.95), [[expected]])


def test_nothing_leaks_over_a_reset_row():
    rows = random_rows(0, time=6, envs=1)
    reward, values, _, _, _ = rows
    terminated, truncated, mask = np.zeros((6, 1), bool), np.zeros((6, 1), bool), np.ones((6, 1))
    truncated[2], mask[3] = True, 0
    before = gae((reward, values, terminated, truncated, mask), 0.99, 0.95)
    reward, values = reward.copy(), values.copy()
    reward[3:], values[4:] = 1e6, -1e6  # the reset row and the next episode
    after = gae((reward, values, terminated, truncated, mask), 0.99, 0.95)
    np.testing.assert_array_equal(before[:3], after[:3])
    assert after[3] == 0


def test_everything_masked_gives_zeros():
    rows = list(random_rows(1))
    rows[4] = np.zeros_like(rows[4])
    assert not gae(rows, 0.99, 0.95).any()


def test_standardize_uses_valid_rows_only():
    x, mask = np.array([1.0, 2.0, 1e9, 3.0]), np.array([1.0, 1.0, 0.0, 1.0])
    valid = np.array([1.0, 2.0, 3.0])
    expected = (valid - valid.mean()) / valid.std()
    result, std = advantages.standardize(tf.constant(x), tf.constant(mask))
    np.testing.assert_allclose(result, [expected[0], expected[1], 0.0, expected[2]], atol=1e-12)
    np.testing.assert_allclose(std, valid.std())


@pytest.mark.parametrize("x", [[3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [1e30, 1e30, 1e30], [5.0]])
def test_standardize_of_equal_rows_is_zero(x):
    x = tf.constant(x, tf.float32)
    result, _ = advantages.standardize(x, tf.ones_like(x))
    np.testing.assert_array_equal(result, np.zeros(len(x)))


def test_masked_mean_ignores_nan_behind_the_mask_and_nothing_at_all_is_zero():
    x = tf.constant([1.0, np.nan, 3.0])
    assert float(advantages.masked_mean(x, tf.constant([1.0, 0.0, 1.0]))) == 2.0
    assert float(advantages.masked_mean(x, tf.zeros(3))) == 0.0


def test_explained_variance_by_hand():
    returns, mask = tf.constant([1.0, 2.0, 3.0, 99.0]), tf.constant([1.0, 1.0, 1.0, 0.0])

    def ev(values):
        return float(advantages.explained_variance(returns, tf.constant(values), mask))

    assert ev([1.0, 2.0, 3.0, 0.0]) == 1.0
    assert ev([2.0, 2.0, 2.0, 0.0]) == 0.0
    np.testing.assert_allclose(ev([3.0, 2.0, 1.0, 0.0]), 1 - (8 / 3) / (2 / 3))
    constant = advantages.explained_variance(tf.ones(4), tf.zeros(4), mask)
    assert float(constant) == 0.0


def test_reward_scaler_equals_numpy_over_two_batches():
    rng = np.random.default_rng(0)
    gamma, time, envs = 0.9, 11, 3
    scaler = advantages.RewardScaler(envs, gamma, True)
    carried, seen = np.zeros(envs), []
    for _ in range(2):
        reward = rng.normal(size=(time, envs)).astype(np.float32)
        ended = rng.random((time, envs)) < 0.2
        mask = np.ones((time, envs), np.float32)
        mask[1:][ended[:-1]] = 0
        reward *= mask
        for t in range(time):
            carried = carried + reward[t]
            seen.extend(carried[mask[t] > 0])
            carried = gamma * carried * ~ended[t]
        expected = np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -10, 10)
        scaler.merge(tf.constant(reward), tf.constant(ended), tf.constant(mask))
        np.testing.assert_allclose(scaler(tf.constant(reward)), expected, 1e-5)


def test_reward_scaler_switched_off_changes_nothing():
    scaler = advantages.RewardScaler(2, 0.9, False)
    reward = tf.constant([[1.0, 100.0]])
    scaler.merge(reward, reward > 1e9, tf.ones_like(reward))
    np.testing.assert_array_equal(scaler(reward), reward)
    assert float(scaler.scale()) == 1.0
    np.testing.assert_allclose(scaler.std(), np.std([1.0, 100.0]), rtol=1e-6)  # but the unit of returns is known
