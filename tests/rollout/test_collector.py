"""Trajectories: what is stored, NaN from environments, replay."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.rollout import counting
from trpo_tf.config import Config
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.collector import Collector, EnvironmentFailure
from trpo_tf.rollout.envs import Envs


def collector(env="Pendulum-v1", num_envs=3, time_steps=16, backend="auto", limit=100):
    probe = Envs(env, 1, 0, backend)
    policy = Policy(probe.observation_space, probe.action_space, Config(env=env, hidden_sizes=(8,)), 0)
    return policy, Collector(
        lambda update: Envs(env, num_envs, 50 + update, backend, stagger=True), policy, time_steps, 9, limit
    )


def same(a, b):
    a, b = (tf.nest.flatten(x) for x in (a, b))
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_stored_log_probs_are_of_the_stored_unclipped_actions():
    policy, source = collector()
    trajectory, _ = source.collect()
    assert trajectory.obs["observation"].shape == (17, 3, 3)
    features = policy.preprocess({"observation": trajectory.obs["observation"][:-1].reshape(-1, 3)})
    params = policy.params(policy.network.theta(), features)
    logp = policy.family.log_prob(params, trajectory.action.reshape(-1, 1))
    np.testing.assert_allclose(trajectory.behavior_logp.ravel(), logp, atol=1e-5)


def test_trajectories_follow_one_another():
    _, source = collector()
    first, _ = source.collect()
    second, _ = source.collect()
    np.testing.assert_array_equal(first.obs["observation"][-1], second.obs["observation"][0])
    assert not np.array_equal(first.action, second.action)


@pytest.mark.parametrize("backend", ["gymnasium", "auto"])
def test_replay_puts_new_environments_where_the_old_ones_were(backend):
    _, undisturbed = collector(backend=backend)
    undisturbed.rebuild(3)
    for _ in range(4):  # over the first cut, at 67 steps
        undisturbed.collect()
    undisturbed.collect()
    memory = {name: x.copy() for name, x in undisturbed.obs.items()}
    _, resumed = collector(backend=backend)
    resumed.act_count = undisturbed.act_count
    assert resumed.replay(undisturbed.built_at, undisturbed.recorded_actions(), memory)
    for _ in range(3):
        assert same(undisturbed.collect()[0], resumed.collect()[0])
    np.testing.assert_array_equal(undisturbed.recorded_actions(), resumed.recorded_actions())


def test_rebuilding_clears_the_record_and_changes_the_seeds():
    _, source = collector()
    source.collect()
    assert source.recorded_actions().shape == (16, 3, 1)
    source.rebuild(1)
    assert source.recorded_actions().shape == (0, 3, 1)
    _, other = collector()
    assert not np.array_equal(source.collect()[0].obs["observation"][0], other.collect()[0].obs["observation"][0])


FAULTS = {
    "obs": ({3: ("obs", np.nan)}, [2, 3]),
    "reward": ({3: ("reward", np.inf)}, [2]),
    "first": ({1: ("obs", -np.inf)}, [0, 1]),
    "terminal": ({5: ("obs", np.nan)}, [4]),
}


@pytest.mark.parametrize("case", list(FAULTS))
def test_rows_that_are_not_finite_are_masked_and_counted(case, monkeypatch):
    faults, invalid = FAULTS[case]
    monkeypatch.setattr(counting.Faulty.__init__, "__defaults__", (faults, None))
    policy, source = collector("Faulty-v0", 1, 12, "gymnasium")
    trajectory, _ = source.collect()
    reset_rows = [5, 11]
    expected = np.ones(12)
    expected[invalid + reset_rows] = 0
    np.testing.assert_array_equal(trajectory.mask[:, 0], expected)
    assert source.invalid_rows == len(invalid)
    assert all(np.isfinite(x).all() for x in tf.nest.flatten(trajectory))
    obs = trajectory.obs["observation"][:-1, 0]
    policy.normalizer.commit(policy.encoder.vector({"observation": obs}), tf.constant(trajectory.mask[:, 0]))
    clean = obs[expected > 0]
    np.testing.assert_allclose(policy.normalizer.moments.mean, clean.mean(0), rtol=1e-6)
    np.testing.assert_allclose(policy.normalizer.moments.variance(), clean.var(0), rtol=1e-6)


def test_a_fault_at_the_end_of_a_trajectory_is_masked_in_the_next(monkeypatch):
    monkeypatch.setattr(counting.Faulty.__init__, "__defaults__", ({4: ("obs", np.nan)}, None))
    _, source = collector("Faulty-v0", 1, 4, "gymnasium")
    first, _ = source.collect()
    second, _ = source.collect()
    assert first.mask[:, 0].tolist() == [1, 1, 1, 0]
    assert second.mask[:, 0].tolist() == [0, 0, 1, 1]  # the row that starts at the fault, then the reset row


def test_a_reward_that_is_not_finite_does_not_enter_the_statistics(monkeypatch):
    monkeypatch.setattr(counting.Faulty.__init__, "__defaults__", ({3: ("reward", np.nan)}, None))
    _, source = collector("Faulty-v0", 1, 12, "gymnasium")
    assert source.collect()[1].returns == [4.0, 5.0]


def test_an_environment_that_raises_leaves_the_collector_as_before(monkeypatch):
    _, source = collector()
    source.collect()
    before = (source.act_count, source.recorded_actions().tobytes(), source.obs["observation"].tobytes())
    monkeypatch.setattr(Envs, "step", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(EnvironmentFailure, match="broken"):
        source.collect()
    assert (source.act_count, source.recorded_actions().tobytes(), source.obs["observation"].tobytes()) == before


def test_too_many_invalid_rows_end_the_collection(monkeypatch):
    monkeypatch.setattr(counting.Faulty.__init__, "__defaults__", ({k: ("reward", np.nan) for k in range(99)}, None))
    _, source = collector("Faulty-v0", 1, 12, "gymnasium", limit=3)
    with pytest.raises(EnvironmentFailure, match="max_invalid_rows=3"):
        source.collect()


def test_discrete_actions_reach_the_environment_with_their_start():
    _, source = collector("Counting-v0", 2, 10, "gymnasium")  # the environment asserts that actions are in 1..3
    trajectory, _ = source.collect()
    assert set(np.unique(trajectory.action)) <= {0, 1, 2}
    assert isinstance(counting.Counting.action_space, gym.spaces.Discrete)
    valid = trajectory.mask > 0
    np.testing.assert_array_equal(trajectory.reward[valid], trajectory.action[valid][:, 0] + 1)
