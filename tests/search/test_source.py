"""One whole episode of each candidate, in environments whose returns are known in closed form."""

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout.helpers import environments
from trpo_tf.acting import ActingSpec, LayerSpec
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import EnvironmentFailure, Interrupted
from trpo_tf.rollout import environments as environments_module
from trpo_tf.search import source as source_module
from trpo_tf.search.source import GenerationSource


class Lengths(gym.Env):
    """The reward is the action; obs = [step]; episodes last 3 to 7 steps, by the environment's own generator."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1000, 1000, (1,), np.float32)
    ends = True

    def __init__(self, fault=lambda env: None):
        self.fault, self.episodes = fault, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.count, self.length = self.episodes + 1, 0, int(self.np_random.integers(3, 8))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        reward = self.fault(self)
        over = self.ends and self.count == self.length
        obs = np.full(1, self.count, np.float32)
        return obs, float(action[0]) if reward is None else reward, over, False, {}


class Endless(Lengths):
    """Episodes that never end."""

    ends = False


SPEC = ActingSpec(
    Lengths.observation_space,
    Lengths.action_space,
    PolicyConfig(action_distribution="gaussian"),
    (LayerSpec("kernel", "bias", "linear"),),
    "log_std",
)


def weights(actions):
    """Of candidates each of which always acts alike."""
    moments = {"normalizer/count": np.array(0.0), "normalizer/mean": np.zeros(1), "normalizer/m2": np.zeros(1)}
    count = len(actions)
    biases = np.asarray(actions, np.float32).reshape(count, 1)
    return {"kernel": np.zeros((count, 1, 1)), "bias": biases, "log_std": np.zeros(1)} | moments


def source(make=Lengths, num_envs=4, max_invalid=0, stopping=lambda: False, **settings):
    made = environments(make, num_envs, stagger=True, **settings)
    made.probe().close()
    return GenerationSource(SPEC, lambda update: made.training(10 * update, whole_episodes=True), max_invalid, stopping)


def generation(source, actions, version=0):
    source.publish(version, weights(actions))
    return source.next()


@pytest.mark.parametrize("count", [1, 4, 11])
def test_every_candidate_has_one_whole_episode(count):
    actions = np.arange(1, count + 1)
    found = generation(source(), actions)
    assert found.returns.shape == (count,)
    np.testing.assert_allclose(found.returns, actions * found.lengths)
    assert set(found.lengths.tolist()) <= {3, 4, 5, 6, 7}
    assert found.steps == found.lengths.sum()
    assert found.episode_returns == found.returns.tolist()
    assert (found.invalid, found.restarts, found.dropped) == (0, 0, 0)


def test_moments_are_those_of_the_observations_that_candidates_acted_on():
    found = generation(source(), np.ones(11))
    seen = np.concatenate([np.arange(length) for length in found.lengths])
    count, mean, m2 = found.moments
    assert count == len(seen)
    assert mean[0] == pytest.approx(seen.mean())
    assert m2[0] / count == pytest.approx(seen.var())


def test_first_episodes_are_not_cut_where_the_environment_knows_its_limit():
    class Limited(Endless):
        spec = gym.envs.registration.EnvSpec("Limited-v0", max_episode_steps=20)

    found = generation(source(lambda: gym.wrappers.TimeLimit(Limited(), 20)), np.ones(6))
    assert found.lengths.tolist() == [20] * 6


def test_episodes_without_a_limit_are_cut(monkeypatch):
    monkeypatch.setattr(environments_module, "LONGEST", 13)
    found = generation(source(Endless), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert found.lengths.tolist() == [13] * 6
    np.testing.assert_allclose(found.returns, 13 * np.arange(1, 7))


def test_a_generation_depends_on_its_version_and_its_candidates_only():
    one, other = source(), source()
    first = generation(one, np.arange(9))
    second = generation(one, np.arange(9), 1)
    assert second.lengths.tolist() != first.lengths.tolist()
    assert generation(other, np.arange(9), 1).lengths.tolist() == second.lengths.tolist()
    assert generation(one, np.arange(9)).lengths.tolist() == first.lengths.tolist()


def test_an_episode_whose_environment_failed_is_run_again(capsys):
    failing = [True]

    def fault(env):
        if env.count == 3 and env.episodes == 2 and failing:
            failing.clear()
            raise ValueError("once")

    mine = source(lambda: Lengths(fault))
    found = generation(mine, np.arange(1, 12))
    np.testing.assert_allclose(found.returns, np.arange(1, 12) * found.lengths)
    assert (found.restarts, found.dropped) == (1, 2)
    assert "made anew" in capsys.readouterr().err
    assert generation(mine, [1.0], 1).restarts == 1, "they are counted on"
    again = source()
    assert again.restore(mine.state())
    assert generation(again, [1.0], 1).dropped == 2
    failing.append(True)
    with pytest.raises(EnvironmentFailure, match="max_env_restarts=0"):
        generation(source(lambda: Lengths(fault), max_env_restarts=0), np.arange(1, 12))


def test_rewards_that_are_not_finite_count_as_0_up_to_a_limit():
    def make():
        return Lengths(lambda env: np.nan if env.count == 2 else None)

    mine = source(make, max_invalid=8)
    found = generation(mine, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(found.returns, [1, 2, 3, 4] * (found.lengths - 1))
    assert found.invalid == 4
    generation(mine, np.ones(4), 1)
    before = mine.state()
    with pytest.raises(EnvironmentFailure, match="12 transitions with NaN or infinity"):
        generation(mine, np.ones(4), 2)
    assert mine.state() == before


def test_a_run_that_ends_does_not_wait_for_long_episodes(monkeypatch):
    monkeypatch.setattr(source_module, "_PATIENCE", 0.05)
    with pytest.raises(Interrupted, match="6 episodes were left"):
        generation(source(Endless, stopping=lambda: True), np.ones(6))
    assert generation(source(stopping=lambda: True), np.ones(3)).returns.shape == (3,)
