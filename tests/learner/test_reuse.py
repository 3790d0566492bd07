"""Transitions used again: weights of batches, factors of a step's length, and where rollouts are kept."""

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.config import OffPolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.learner.learner import Learner
from trpo_tf.learner.reuse import Replay, batch_weights, length_factor, reuse_weights
from trpo_tf.policy.policy import Policy
from trpo_tf.types import Rollout, Trajectory, pack, unpack


def on_simplex(x):
    """The point of the probability simplex nearest to x [K]."""
    ordered = np.sort(x)[::-1]
    over = (ordered.cumsum() - 1) / np.arange(1, len(x) + 1)
    return np.maximum(0, x - over[np.nonzero(ordered > over)[0][-1]])


@pytest.mark.parametrize("reuse", [2, 3, 4, 7, 16])
def test_optimal_weights_are_those_of_the_convex_program(reuse):
    """By Lagrange: for a multiplier p of sum w^2, the best weights are the projection of -ages / 2p; p by bisection."""
    ages = np.arange(1.0, 4 * reuse)
    low, high = 1e-6, 1e6
    for _ in range(200):
        multiplier = np.sqrt(low * high)
        weights = on_simplex(-ages / (2 * multiplier))
        low, high = (multiplier, high) if (weights**2).sum() > 1 / reuse else (low, multiplier)
    found = reuse_weights(reuse, optimal=True)
    np.testing.assert_allclose(found, weights[: len(found)], atol=1e-8)
    assert weights[len(found) :].max() < 1e-8
    np.testing.assert_allclose((found**2).sum(), 1 / reuse)
    uniform = length_factor(np.full(reuse, 1 / reuse))
    np.testing.assert_allclose(uniform, 2 / (reuse + 1))
    assert length_factor(found) > uniform


def test_a_single_batch_has_all_the_weight():
    assert reuse_weights(1, True).tolist() == reuse_weights(1, False).tolist() == [1.0]
    assert length_factor([1.0]) == 1.0


def test_a_lag_shortens_steps_by_its_root():
    """Five steps in independent directions lead as far as one of sqrt(5) times the length."""
    found = length_factor([0.5, 0.5], 4)
    np.testing.assert_allclose(found, length_factor([0.5, 0.5]) / np.sqrt(5))


EVEN = np.full(3, 1 / 3)


def made(value, time=3, envs=2):
    """A rollout whose every number is one value."""
    fields = [np.full((time, envs), value, np.float32) for _ in range(6)]
    obs = {"x": np.full((time + 1, envs, 5), value, np.float32)}
    params, version = np.full((time, envs, 2), value, np.float32), np.full((time, envs), value, np.int32)
    return Rollout(Trajectory(obs, *fields), params, version, fields[0], [float(value)], [value], [0], value)


def test_the_newest_rollouts_stand_side_by_side_and_the_places_of_others_are_masked():
    replay = Replay(EVEN)
    first, second = replay.add(made(1)).trajectory, replay.add(made(2)).trajectory
    assert first.obs["x"].shape == second.obs["x"].shape == (4, 6, 5)
    assert first.mask[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert second.mask[0].tolist() == [2, 2, 1, 1, 0, 0]
    replay.add(made(3))
    found = replay.add(made(4))
    assert found.trajectory.reward[1].tolist() == [4, 4, 3, 3, 2, 2]
    assert found.version[1].tolist() == [4, 4, 3, 3, 2, 2]
    assert found.behavior_params[1, :, 1].tolist() == [4, 4, 3, 3, 2, 2]


def test_a_rollout_of_a_checkpoint_that_does_not_know_when_episodes_ended_is_read():
    arrays = pack(made(4), "kept")
    del arrays["kept/episode_ends"]
    assert unpack(arrays, "kept").episode_ends == [0]


def test_every_column_has_the_weight_of_its_batch_and_their_mean_is_one():
    weights = Replay(np.array([0.5, 0.3, 0.2])).add(made(1)).column_weights
    np.testing.assert_allclose(weights, [1.5, 1.5, 0.9, 0.9, 0.6, 0.6], rtol=1e-6)
    assert weights.dtype == np.float32


def test_a_single_rollout_is_passed_through():
    replay, rollout = Replay(np.ones(1)), made(1)
    found = replay.add(rollout)
    for name in Trajectory._fields[1:]:
        np.testing.assert_array_equal(getattr(found.trajectory, name), getattr(rollout.trajectory, name))
    np.testing.assert_array_equal(found.trajectory.obs["x"], rollout.trajectory.obs["x"])
    np.testing.assert_array_equal(found.behavior_params, rollout.behavior_params)
    np.testing.assert_array_equal(found.version, rollout.version)
    np.testing.assert_array_equal(found.advantage, np.zeros((3, 2)))
    assert not replay.state()


def test_what_is_kept_goes_through_arrays():
    replay, other = Replay(EVEN), Replay(EVEN)
    for value in (1, 2, 3, 4):
        replay.add(made(value))
        replay.settle(np.full((3, 2), 10 * value, np.float32))
    assert {name.split("/")[0] for name in replay.state()} == {"0", "1"}, "the oldest is not needed any more"
    other.add(made(7))  # what was there before is forgotten
    other.restore(replay.state() | {"collector/obs/x": np.zeros(3)})
    found, again = replay.add(made(5)), other.add(made(5))
    assert_equal(found, again)
    assert found.advantage[2].tolist() == [0, 0, 40, 40, 30, 30]


def assert_equal(mixture, other):
    np.testing.assert_array_equal(mixture.trajectory.obs["x"], other.trajectory.obs["x"])
    for name in Trajectory._fields[1:]:
        np.testing.assert_array_equal(getattr(mixture.trajectory, name), getattr(other.trajectory, name))
    for one, theirs in zip(mixture[1:], other[1:], strict=True):
        np.testing.assert_array_equal(one, theirs)


def test_the_first_update_is_that_of_one_batch_with_the_smaller_radius(make_session, stepped):
    """Places that are still empty add nothing; the radius is 4 / (reuse + 1)^2 of max_kl."""
    thetas = []
    for changes in ({"reuse": 3, "max_kl": 0.04}, {"max_kl": 0.01}):
        session = make_session(max_step=1e9, **changes)
        (row,) = stepped(session)
        thetas.append(session.policy.network.theta().numpy())
        np.testing.assert_allclose(row["policy/max_kl_used"], 0.01, rtol=1e-6)
    assert row["policy/kl"] > 0.005
    np.testing.assert_allclose(*thetas, rtol=1e-3, atol=1e-5)


def test_batches_beyond_max_staleness_are_not_kept(tiny):
    def columns(**changes):
        config = tiny(**changes)
        policy = Policy(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), config.policy, 0)
        return Learner(policy, config, 0)._layout.columns

    assert columns(reuse=8, max_staleness=2) == 4 * 3
    assert columns(reuse=8, max_staleness=3, behavior_lag=2) == 4 * 2
    with pytest.raises(UsageError, match=r"max_staleness=0: must be >= 1, .* behavior_lag=0 and pipeline"):
        OffPolicyConfig(pipeline=True, max_staleness=0)
    with pytest.raises(UsageError, match=r"max_staleness=1: leaves reuse=2 .* must be >= 2"):
        OffPolicyConfig(pipeline=True, reuse=2, max_staleness=1)


def test_the_weights_of_batches_that_are_kept_sum_to_one():
    even = batch_weights(OffPolicyConfig(reuse=8, max_staleness=3, behavior_lag=2))
    np.testing.assert_allclose(even, [0.5, 0.5])
    optimal, whole = (
        batch_weights(OffPolicyConfig(reuse=4, reuse_weights="optimal", max_staleness=age)) for age in (2, 64)
    )
    assert len(whole) > 3
    np.testing.assert_allclose(whole.sum(), 1.0)
    np.testing.assert_allclose(optimal, whole[:3] / whole[:3].sum())
