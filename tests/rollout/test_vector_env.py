"""What every transition means, over both backends: masks, cuts, episodes, statistics, failures."""

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout import counting
from tests.rollout.helpers import BACKENDS, run, vector_env
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.vector_env import VectorEnv


@pytest.mark.parametrize("backend", BACKENDS)
def test_reset_rows_follow_ends_and_carry_nothing(backend):
    envs = vector_env("CartPole-v1", 5, 3, backend)
    obs, _, reward, terminated, truncated, mask = run(envs, 200)
    ended = terminated | truncated
    np.testing.assert_array_equal(mask[1:] == 0, ended[:-1])
    assert (mask[0] == 1).all()
    reset = mask == 0
    assert reset.sum() > 20
    assert not reward[reset].any()
    assert not ended[reset].any()
    assert (np.abs(obs[1:][reset]) <= 0.05).all(), "what follows a reset row is a first observation"
    assert (np.abs(obs[1:][terminated])[:, [0, 2]] > [2.4, 0.2095]).any(-1).all(), "the true final observation"
    assert not (terminated & truncated).any()
    episodes = envs.pop_episodes()
    assert len(episodes.returns) == ended.sum()
    assert sum(episodes.returns) <= reward.sum()
    assert episodes.lengths == [int(x) for x in episodes.returns], "CartPole pays 1 a step"


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_steps_at_which_nothing_ends_are_kept_like_any_other(env):
    short, long = (vector_env(env, 3, 7, stagger=True) for _ in range(2))
    step = long.step

    def at_length(action):
        long._quiet = 0
        return step(action)

    long.step = at_length
    for a, b in zip(run(short, 450), run(long, 450), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert short.pop_episodes() == long.pop_episodes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cartpole_rows_obey_the_same_dynamics(backend):
    """Every valid row of either backend is a transition of gymnasium's CartPole from the same state."""
    reference = gym.make("CartPole-v1").unwrapped
    reference.reset()
    obs, action, reward, terminated, _, mask = run(vector_env("CartPole-v1", 4, 0, backend), 120)
    for t, b in zip(*np.nonzero(mask), strict=True):
        reference.state, reference.steps_beyond_terminated = tuple(obs[t, b].astype(np.float64)), None
        expected, paid, over, _, _ = reference.step(int(action[t, b]))
        np.testing.assert_allclose(obs[t + 1, b], expected, atol=1e-5)
        assert (paid, over) == (reward[t, b], terminated[t, b])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_cheetah_rows_obey_the_same_dynamics(backend):
    reference = gym.make("HalfCheetah-v5").unwrapped
    reference.reset()
    obs, action, reward, _, _, mask = run(vector_env("HalfCheetah-v5", 3, 0, backend), 40)
    errors = []
    for t, b in zip(*np.nonzero(mask), strict=True):
        reference.set_state(np.r_[0.0, obs[t, b, :8]], obs[t, b, 8:])
        expected, paid, _, _, _ = reference.step(action[t, b])
        errors.append(np.r_[obs[t + 1, b] - expected, reward[t, b] - paid])
    # The solver is warm-started from the step before, which a state set by hand does not have.
    assert np.abs(errors).max() < 0.05
    assert np.abs(errors).mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_limits_truncate(backend):
    _, _, _, terminated, truncated, _ = run(vector_env("Pendulum-v1", 2, 0, backend), 402)
    assert not terminated.any()
    assert np.argwhere(truncated).tolist() == [[199, 0], [199, 1], [400, 0], [400, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_episodes_are_cut_so_that_phases_spread(backend):
    envs = vector_env("Pendulum-v1", 4, 0, backend, stagger=True)
    obs, _, _, terminated, truncated, mask = run(envs, 460)
    assert not terminated.any()
    ends = [np.flatnonzero(truncated[:, b]).tolist() for b in range(4)]
    assert ends == [[49, 250, 451], [99, 300], [149, 350], [199, 400]]
    np.testing.assert_array_equal(mask[1:] == 0, truncated[:-1])
    speed = np.abs(obs[1:][mask == 0][:, 2])
    assert (speed <= 1).all(), "first observations have an angular velocity of at most 1"
    assert len(envs.pop_episodes().returns) == 6, "cut episodes are not counted; those of full length are"
    assert truncated[199, 3], "the last environment's first episode is whole"


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_environments_with_ends_beside_cuts_keep_the_contract(backend):
    _, _, _, _, truncated, mask = run(vector_env("Pendulum-v1", 128, 0, backend, stagger=True), 420)
    np.testing.assert_array_equal(mask[1:] == 0, truncated[:-1])
    assert (truncated.sum(0) >= 2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_episode_is_reconstructed_from_the_rows_with_its_length_and_return(backend):
    envs = vector_env("CartPole-v1", 6, 2, backend)
    obs, _, reward, terminated, truncated, mask = run(envs, 150)
    found = []
    for b in range(6):
        start = 0
        for t in range(150):
            if not mask[t, b]:
                assert start == t, "a reset row stands between two episodes"
                start = t + 1
                continue
            assert not (terminated[t, b] and np.abs(obs[t, b, 0]) > 2.4), "no row starts beyond the end"
            if terminated[t, b] or truncated[t, b]:
                assert (np.abs(obs[start, b]) <= 0.05).all()
                found.append((reward[start : t + 1, b].sum(), t + 1 - start))
                start = t + 1
    episodes = envs.pop_episodes()
    assert sorted(zip(episodes.returns, episodes.lengths, strict=True)) == sorted(found)
    assert len(found) > 20


def test_every_episode_of_a_counting_environment_is_reconstructed():
    envs = vector_env("Counting-v0", 3, 7, "gymnasium")
    obs, action, reward, terminated, truncated, mask = run(envs, 60)
    found = []
    for b in range(3):
        episode = []
        for t in range(60):
            if not mask[t, b]:
                assert not episode
                continue
            episode.append((obs[t, b], reward[t, b], obs[t + 1, b]))
            if terminated[t, b] or truncated[t, b]:
                number = int(episode[0][0][0])
                assert len(episode) == 2 + number % 4
                assert truncated[t, b] == (number % 2 == 1)
                for k, (before, _, after) in enumerate(episode):
                    assert before.tolist() == [number, k]
                    assert after.tolist() == [number, k + 1]
                found.append((b, number, sum(r for _, r, _ in episode), len(episode)))
                episode = []
    for b in range(3):
        numbers = [number for env, number, _, _ in found if env == b]
        assert numbers == list(range(100 * (7 + b), 100 * (7 + b) + len(numbers)))
    episodes = envs.pop_episodes()
    assert sorted(zip(episodes.returns, episodes.lengths, strict=True)) == sorted((r, n) for _, _, r, n in found)
    np.testing.assert_array_equal(reward[mask > 0], action[mask > 0])


class Failing:
    """A backend of two environments whose calls raise."""

    name, env_name, num_envs, max_episode_steps = "gymnasium", "Failing-v0", 2, None
    observation_space, action_space = counting.Counting.observation_space, counting.Counting.action_space
    failures = ()

    def __init__(self, error):
        self.error = error

    def fail(self, *args):
        raise self.error

    reset = reset_at = step = close = fail


@pytest.mark.parametrize("call", ["reset", "step"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), "environment failed: KeyError: 'x' (env=Failing-v0)"),
        (SystemExit(0), "environment failed: SystemExit: 0 (env=Failing-v0)"),
        (type("Own", (Exception,), {})("two\nlines"), "environment failed: Own: two (env=Failing-v0)"),
        (MemoryError(), "environment failed: MemoryError: MemoryError (env=Failing-v0)"),
    ],
)
def test_whatever_an_environment_raises_is_its_failure_in_one_line(call, error, message):
    envs = VectorEnv(Failing(error))
    with pytest.raises(EnvironmentFailure) as raised:
        envs.reset() if call == "reset" else envs.step(np.zeros(2))
    assert str(raised.value) == message
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [UsageError("--env=x: no"), EnvironmentFailure("it broke"), KeyboardInterrupt()])
def test_what_is_said_well_already_and_interrupts_are_passed_on(error):
    with pytest.raises(type(error)) as raised:
        VectorEnv(Failing(error)).step(np.zeros(2))
    assert raised.value is error


def test_a_failure_to_close_is_a_line(capsys):
    VectorEnv(Failing(OSError("gone"))).close()
    assert capsys.readouterr().err == "trpo_tf: closing: environment failed: OSError: gone (--env=Failing-v0)\n"


def test_a_vector_env_says_what_its_backend_is():
    envs = vector_env("Counting-v0", 3, 0)
    assert (envs.backend, envs.num_envs) == ("gymnasium", 3)
    assert envs.observation_space == counting.Counting.observation_space
    assert envs.action_space == counting.Counting.action_space


class Both:
    """A backend of one environment that ends at once in both ways, and pays infinity."""

    name, env_name, num_envs, max_episode_steps = "gymnasium", "Both-v0", 1, None
    observation_space, action_space = counting.Counting.observation_space, counting.Counting.action_space
    failures = ()

    def reset(self):
        return {"observation": np.zeros((1, 2))}

    def step(self, action):
        return {"observation": np.zeros((1, 2))}, np.array([np.inf]), np.array([True]), np.array([True])


def test_ends_in_both_ways_are_terminations_and_infinite_rewards_are_not_summed():
    envs = VectorEnv(Both())
    envs.reset()
    step = envs.step(np.zeros(1))
    assert (step.terminated[0], step.truncated[0], step.mask[0]) == (True, False, 1)
    assert step.reward.dtype == np.float32
    step = envs.step(np.zeros(1))
    assert (step.terminated[0], step.truncated[0], step.mask[0], step.reward[0]) == (False, False, 0, 0)
    assert envs.pop_episodes() == ([0.0], [1], [0])
    assert envs.pop_episodes() == ([], [], [])
