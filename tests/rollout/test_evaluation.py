"""Whole episodes of a policy that does not learn: which are counted, what the policy is given, that all is closed."""

import json

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout import counting
from tests.rollout.helpers import environments
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.rollout.evaluation import Evaluation, env_count, evaluate, longest_episode


def watched(env, num_envs, seed, **settings):
    """Fresh environments, and how often they were closed."""
    envs, closed = environments(env).evaluation(num_envs, seed, **settings), []
    close = envs.close
    envs.close = lambda: (closed.append(True), close())
    return envs, closed


def test_every_environment_runs_its_part_of_the_episodes_from_the_first_on():
    """Counting: episode k lasts 2 + k % 4 steps and pays its action each step; env b begins at k = 100 (seed + b)."""
    envs, closed = watched("Counting-v0", 3, 4)
    progress = []
    result = evaluate(lambda obs, is_first: np.full(3, 2), envs, 7, progress.append)
    assert result.lengths.tolist() == [2, 3, 4, 2, 3, 2, 3]  # three of environment 0, two of the others
    assert result.returns.tolist() == [4, 6, 8, 4, 6, 4, 6]
    assert progress == list(range(1, 8))
    assert closed == [True]


def test_the_policy_is_told_where_episodes_begin():
    envs, _ = watched("Counting-v0", 2, 4)
    seen = []

    def act(obs, is_first):
        seen.append((obs["observation"][:, 1].copy(), is_first.copy()))
        return np.ones(2, np.int64)

    evaluate(act, envs, 4)
    for step, is_first in seen:
        np.testing.assert_array_equal(is_first, step == 0)


def test_episodes_without_end_are_counted_as_they_stand_and_begin_anew():
    """Counting's episodes last 2, 3, 4, 5, 2 ... steps."""
    envs, _ = watched("Counting-v0", 1, 4, longest=3)
    seen = []

    def act(obs, is_first):
        seen.append(obs["observation"][0].tolist())
        return np.ones(1, np.int64)

    result = evaluate(act, envs, 5)
    assert result.lengths.tolist() == [2, 3, 3, 3, 2]
    assert result.returns.tolist() == [2, 3, 3, 3, 2]
    assert [count for episode, count in seen if episode == 402] == [0, 1, 2, 3], "the third one was cut"
    assert (result.cut, result.longest) == (3, 3)
    assert result.warnings() == [
        "3 of 5 evaluation episodes were cut after 3 steps; they count with their return so far"
    ]
    assert Evaluation(np.ones(1), np.ones(1)).warnings() == []


def test_a_known_time_limit_is_the_limit():
    def make():
        return gym.wrappers.TimeLimit(counting.Faulty({}), 4)

    assert environments(make).evaluation(1, 0, longest=2).longest == 30_000
    assert environments(counting.Faulty).evaluation(1, 0, longest=2).longest == 2


def test_an_episode_is_left_as_many_steps_as_the_training_had_for_each():
    counts = ((0, 20), (1500, 20), (60_000, 20), (10**7, 20))
    assert [longest_episode(steps, episodes) for steps, episodes in counts] == [1000, 1000, 3000, 30_000]


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan, 1e300])
def test_what_is_not_finite_counts_as_zero_and_is_told(value):
    """Faulty pays 1 a step, 5 an episode; the last step's reward and the second one's observation are replaced."""
    seen = []

    def act(obs, is_first):
        seen.append(obs["observation"].copy())
        return np.zeros((1, 1), np.float32)

    result = evaluate(act, environments(lambda: counting.Faulty({5: ("reward", value)})).evaluation(1, 0), 1)
    assert (result.returns.tolist(), result.invalid) == ([4.0], 1)
    assert "1 transitions of the evaluation had NaN" in result.warnings()[0]
    result = evaluate(act, environments(lambda: counting.Faulty({2: ("obs", value)})).evaluation(1, 0), 1)
    assert (result.returns.tolist(), result.invalid) == ([5.0], 1)
    assert np.isfinite(seen).all()


@pytest.mark.parametrize("who", ["policy", "environment", "progress"])
def test_environments_are_closed_whatever_fails(who):
    class Broken(counting.Counting):
        def step(self, action):
            raise RuntimeError("it broke") if who == "environment" else ValueError

    def fail(*args):
        raise LookupError("it broke")

    envs, closed = watched(Broken if who == "environment" else "Counting-v0", 1, 0)
    act = fail if who == "policy" else lambda obs, is_first: np.ones(1, np.int64)
    with pytest.raises(EnvironmentFailure if who == "environment" else LookupError, match="it broke"):
        evaluate(act, envs, 1, fail if who == "progress" else lambda done: None)
    assert closed == [True]


def test_a_summary_has_statistics_that_json_can_carry():
    summary = Evaluation(np.array([1.0, 3.0]), np.array([10, 20])).summary()
    assert summary["episodes"] == 2
    assert (summary["return_mean"], summary["return_std"], summary["return_min"], summary["return_max"]) == (2, 1, 1, 3)
    assert (summary["length_mean"], summary["length_std"]) == (15, 5)
    assert all(isinstance(value, int | float) for value in summary.values())
    odd = Evaluation(np.array([1.0, -np.inf]), np.array([10, 20])).summary()
    assert json.loads(json.dumps(odd, allow_nan=False))["return_mean"] is None


def test_no_more_environments_than_episodes():
    assert [env_count(episodes, 64) for episodes in (1, 63, 64, 65, 1000)] == [1, 63, 64, 64, 64]


def test_episodes_can_be_recorded(tmp_path):
    pytest.importorskip("moviepy")
    envs = environments("CartPole-v1").evaluation(1, 0, "rgb_array", str(tmp_path))
    assert envs.backend == "gymnasium"
    assert isinstance(envs._backend._envs.envs[0].env, gym.wrappers.RecordVideo)
    evaluate(lambda obs, is_first: np.zeros(1, np.int64), envs, 1)
    assert list(tmp_path.glob("*.mp4"))
