"""Trajectories: what is stored, NaN from environments, replay."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.rollout import counting
from tests.rollout.flaky import Flaky, chance, drawn
from trpo_tf.config import EnvironmentConfig, PolicyConfig
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.rollout.backends.envpool import EnvPoolBackend
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.stepper import LocalStepper

GAMMA = 0.9


class Source:
    """A collector with draws of its own; its `collect` gives a trajectory and the rollout."""

    def __init__(self, env, num_envs, time_steps, backend, limit, **settings):
        named, given = (env, None) if isinstance(env, str) else ("given", env)
        config = EnvironmentConfig(env=named, num_envs=num_envs, env_backend=backend, **settings)
        environments = Environments(config, given)
        probe = environments.probe()
        self.policy = Policy(probe.observation_space, probe.action_space, PolicyConfig(hidden_sizes=(8,)), 0)
        probe.close()
        actor = make_actor(self.policy)
        stepper = LocalStepper(lambda update: environments.training(50 + update), actor)
        self.collector = Collector(stepper, actor, GAMMA, limit)
        self._shape = time_steps, num_envs

    def collect(self):
        seed = tf.constant([9, self.collector.act_count], tf.int32)
        noise = self.policy.distribution.noise(self._shape, seed).numpy()
        rollout = self.collector.collect(noise, lambda *args: self.policy.log_prob(*args).numpy())
        return rollout.trajectory, rollout


def collector(env="Pendulum-v1", num_envs=3, time_steps=16, backend="auto", limit=100, **settings):
    source = Source(env, num_envs, time_steps, backend, limit, **settings)
    return source.policy, source


def same(a, b):
    a, b = (tf.nest.flatten(x) for x in (a, b))
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_stored_log_probs_are_of_the_stored_unclipped_actions():
    policy, source = collector()
    trajectory, _ = source.collect()
    assert trajectory.obs["observation"].shape == (17, 3, 3)
    features = policy.preprocess({"observation": trajectory.obs["observation"][:-1].reshape(-1, 3)})
    params = policy.params(policy.network.theta(), features)
    logp = policy.distribution.log_prob(params, trajectory.raw_action.reshape(-1, 1))
    np.testing.assert_allclose(trajectory.behavior_logp.ravel(), logp, atol=1e-5)


def test_trajectories_follow_one_another():
    _, source = collector()
    first, _ = source.collect()
    second, _ = source.collect()
    np.testing.assert_array_equal(first.obs["observation"][-1], second.obs["observation"][0])
    assert not np.array_equal(first.raw_action, second.raw_action)


@pytest.mark.parametrize("backend", ["gymnasium", "auto"])
def test_a_restored_collector_stands_where_the_old_one_stood(backend):
    _, undisturbed = collector(backend=backend)
    undisturbed.collector.rebuild(3)
    for _ in range(5):  # over the first cut, at 67 steps
        undisturbed.collect()
    _, resumed = collector(backend=backend)
    assert resumed.collector.restore(undisturbed.collector.state())
    for _ in range(3):
        (_, a), (_, b) = undisturbed.collect(), resumed.collect()
        assert same(a[:4], b[:4])
        assert a[4:] == b[4:]
    assert same(undisturbed.collector.state(), resumed.collector.state())


def test_environments_that_do_not_repeat_themselves_are_found_out():
    _, source = collector()
    source.collect()
    state = source.collector.state()
    state["actions"] = state["actions"] * 0.5
    assert not source.collector.restore(state)


def test_rebuilding_clears_the_record_and_changes_the_seeds():
    _, source = collector()
    source.collect()
    assert source.collector.state()["actions"].shape == (16, 3, 1)
    source.collector.rebuild(1)
    assert source.collector.state()["actions"].shape == (0, 3, 1)
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
    assert source.collector.invalid == len(invalid)
    assert all(np.isfinite(x).all() for x in tf.nest.flatten(trajectory))
    obs = trajectory.obs["observation"][:-1, 0]
    policy.normalizer.commit(policy.encoder({"observation": obs}), tf.constant(trajectory.mask[:, 0]))
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
    assert source.collect()[1].episode_returns == [4.0, 5.0]


def test_an_environment_that_raises_leaves_the_collector_as_before(monkeypatch):
    _, source = collector()
    source.collect()
    before = {name: x.tobytes() for name, x in source.collector.state().items()}
    monkeypatch.setattr(EnvPoolBackend, "step", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(EnvironmentFailure, match="broken"):
        source.collect()
    assert {name: x.tobytes() for name, x in source.collector.state().items()} == before


def test_too_many_invalid_rows_end_the_collection(monkeypatch):
    monkeypatch.setattr(counting.Faulty.__init__, "__defaults__", ({k: ("reward", np.nan) for k in range(99)}, None))
    _, source = collector("Faulty-v0", 1, 12, "gymnasium", limit=3)
    with pytest.raises(EnvironmentFailure, match="max_invalid_rows=3"):
        source.collect()


def test_discrete_actions_reach_the_environment_with_their_start():
    _, source = collector("Counting-v0", 2, 10, "gymnasium")  # the environment asserts that actions are in 1..3
    trajectory, _ = source.collect()
    assert set(np.unique(trajectory.raw_action)) <= {0, 1, 2}
    assert isinstance(counting.Counting.action_space, gym.spaces.Discrete)
    valid = trajectory.mask > 0
    np.testing.assert_array_equal(trajectory.reward[valid], trajectory.raw_action[valid][:, 0] + 1)


def test_discounted_returns_by_hand_and_over_rollouts():
    """R_t = gamma R_t-1 (1 - ended_t-1) + r_t, from where the last rollout stopped."""
    _, source = collector("Counting-v0", 2, 5, "gymnasium")
    expected = np.zeros(2)
    before = np.zeros(2, bool)
    for _ in range(3):
        trajectory, rollout = source.collect()
        for t in range(5):
            expected = GAMMA * expected * ~before + trajectory.reward[t]
            before = trajectory.terminated[t] | trajectory.truncated[t]
            np.testing.assert_allclose(rollout.discounted_return[t], expected, rtol=1e-6)
    assert before.shape == (2,)
    source.collector.rebuild(1)
    trajectory, rollout = source.collect()
    np.testing.assert_array_equal(rollout.discounted_return[0], trajectory.reward[0])


def test_versions_are_those_of_the_policy_that_acted():
    _, source = collector()
    noise = np.zeros((16, 3, 1), np.float32)
    rollout = source.collector.collect(noise, lambda params, action: np.zeros(len(action), np.float32), 7)
    assert (rollout.version == 7).all()
    assert rollout.version.dtype == np.int32


def failing_at(*numbers):
    """Fails at these steps of all environments together, counted from the first of training."""

    def fault(env, call, count):
        if call == "step" and count in numbers:
            raise ValueError(f"step {count} failed")

    return fault


def flaky(fault, *args, **settings):
    _, source = collector(functools.partial(Flaky, fault), *args, "gymnasium", **settings)
    Flaky.counts.clear()
    return source


def test_the_fragment_of_an_episode_that_fails_is_masked_and_counted():
    """Of two environments the second fails at time 9 of the second rollout of 12: its step 22 of 24."""
    source = flaky(failing_at(24 + 20), 2, 12)
    first, rollout = source.collect()
    assert (first.mask.all(), rollout.restarts, rollout.dropped) == (True, 0, 0)
    second, rollout = source.collect()
    assert second.mask[:, 0].all()
    assert second.mask[:, 1].tolist() == [0] * 11 + [1]
    assert second.reward[:, 1].tolist() == [0] * 11 + [1]
    assert second.truncated[:, 1].tolist() == [False] * 9 + [True] + [False] * 2
    assert not second.terminated.any()
    assert (rollout.restarts, rollout.dropped, rollout.invalid) == (1, 9, 0)
    assert second.obs["observation"][11, 1, 1] == 0, "the first observation of the next episode"
    assert rollout.discounted_return[11].tolist()[1] == 1, "its stream begins anew"
    third, rollout = source.collect()
    assert (third.mask.all(), rollout.restarts, rollout.dropped) == (True, 1, 9)


def test_what_ended_before_a_failure_is_kept():
    """An episode ends at time 4, the next one fails at time 8: rows 6 and 7 are lost, the first episode is not."""

    def fault(env, call, count):
        if (call, count) == ("step", 4 + 4):
            raise ValueError
        return (lambda result: (*result[:2], True, *result[3:])) if (call, count) == ("step", 5) else None

    trajectory, rollout = flaky(fault, 1, 12).collect()
    assert trajectory.mask[:, 0].tolist() == [1] * 5 + [0] * 5 + [1] * 2
    assert (rollout.episode_lengths, rollout.dropped) == ([5], 2)


def test_more_restarts_than_allowed_are_a_failure_and_nothing_has_changed(capsys):
    source = flaky(failing_at(5, 30, 36), 2, 12, max_env_restarts=2)
    source.collect()
    before = {name: x.tobytes() for name, x in source.collector.state().items()}
    with pytest.raises(EnvironmentFailure, match=r"ValueError: step 36 failed \(env=.*Flaky, .*; max_env_restarts=2"):
        source.collect()
    assert {name: x.tobytes() for name, x in source.collector.state().items()} == before
    assert capsys.readouterr().err.splitlines() == [
        "trpo_tf: environment failed: ValueError: step 5 failed (--env=tests.rollout.flaky:Flaky, environment 0 of 2);"
        " made anew, its episode is dropped"
    ]


def test_after_a_failure_the_next_rollout_is_that_of_a_restored_collector():
    source, calm = flaky(failing_at(30), 2, 12, max_env_restarts=0), flaky(failing_at(), 2, 12)
    source.collect()
    state = source.collector.state()
    with pytest.raises(EnvironmentFailure, match="step 30 failed"):
        source.collect()
    assert calm.collector.restore(state)
    for _ in range(2):
        (_, a), (_, b) = source.collect(), calm.collect()
        assert same(a[:4], b[:4])
        assert a[4:] == b[4:]


@pytest.mark.parametrize("fault", [drawn, chance])
@pytest.mark.parametrize("processes", [False, True])
def test_a_collector_is_restored_to_the_bit_where_environments_failed(fault, processes):
    """Whether they fail by their seeds, or at other steps when they are asked again."""
    calm = flaky(failing_at(), 3, 16)

    def another():
        config = EnvironmentConfig(env="given", num_envs=3, env_processes=processes, max_env_restarts=1000)
        made = Environments(config, functools.partial(Flaky, fault(0.03)))
        actor = calm.collector._actor
        return Collector(LocalStepper(made.training, actor), actor, GAMMA, 100)

    def collect(one):
        calm.collector = one
        return calm.collect()[1]

    undisturbed, resumed = another(), another()
    undisturbed.rebuild(3)
    for _ in range(100):  # five in the mean; a chance may have it otherwise
        rollout = collect(undisturbed)
        if rollout.restarts > 2 and rollout.dropped > 10:
            break
    else:
        pytest.fail("hardly any environment failed")
    state = undisturbed.state()
    assert resumed.restore({name: x.copy() for name, x in state.items()})
    again = resumed.state()
    assert {name: x.tobytes() for name, x in again.items()} == {name: x.tobytes() for name, x in state.items()}
    a, b = collect(undisturbed), collect(resumed)
    if fault is drawn:
        assert same(a[:4], b[:4])
        assert a[4:] == b[4:]
    undisturbed.close()
    resumed.close()
