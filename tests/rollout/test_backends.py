"""The backends one by one: EnvPool's shortcuts, seeds, which backend has an id."""

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout.counting import Old
from tests.rollout.helpers import BACKENDS, NEEDS_ENVPOOL, environments, run, vector_env
from tests.rollout.odd import Odd
from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends import envpool as envpool_backend
from trpo_tf.rollout.backends.resolve import resolve_backend
from trpo_tf.rollout.backends.single_env import wrapper_unpacks


@NEEDS_ENVPOOL
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_rows_are_those_of_envpools_own_step(env):
    ours, theirs = (vector_env(env, 3, 7, "envpool", stagger=True) for _ in range(2))
    assert ours._backend._state
    theirs._backend._state = None
    for a, b in zip(run(ours, 450), run(theirs, 450), strict=True):  # over cuts and, of Pendulum, the time limit
        np.testing.assert_array_equal(a, b)
    assert ours.pop_episodes() == theirs.pop_episodes()


@NEEDS_ENVPOOL
def test_actions_of_another_shape_do_not_reach_envpool():
    envs = vector_env("HalfCheetah-v5", 2, 0, "envpool")
    envs.reset()
    with pytest.raises(UsageError, match="shape"):
        envs.step(np.zeros((2, 1), np.float32))


@NEEDS_ENVPOOL
@pytest.mark.parametrize(
    ("usable", "threads", "num_envs", "expected"),
    [
        ({0, 1}, 0, 4, (2, 0)),  # bound, from core 0 on
        ({0, 1}, 2, 4, (2, -1)),  # as many as asked for, not bound
        ({0, 1, 2, 3}, 0, 2, (2, -1)),  # more cores than environments
        ({2, 3}, 0, 4, (2, -1)),  # core 0 is another's
    ],
)
def test_threads_are_bound_to_cores_where_that_is_safe(monkeypatch, usable, threads, num_envs, expected):
    given, make = [], envpool_backend.envpool.make

    def watched(*args, **settings):
        given.append((settings["num_threads"], settings["thread_affinity_offset"]))
        return make(*args, **settings | {"thread_affinity_offset": -1})

    monkeypatch.setattr(envpool_backend, "usable_cores", lambda: usable)
    monkeypatch.setattr(envpool_backend.envpool, "make", watched)
    vector_env("CartPole-v1", num_envs, 0, "envpool", env_threads=threads).close()
    assert given == [expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_repeat_differ_between_environments_and_count_up(backend):
    def first(seed, count):
        return np.array(vector_env("CartPole-v1", count, seed, backend).reset()["observation"])

    a, b, c = first(5, 4), first(5, 4), first(6, 3)
    np.testing.assert_array_equal(a, b)
    assert len({row.tobytes() for row in a}) == 4
    np.testing.assert_array_equal(a[1:], c)


@pytest.mark.parametrize(
    ("env_id", "backend", "message"),
    [
        ("Hoper-v5", "auto", "no such environment; near it: .*Hopper-v5"),
        ("Hopper-v9", "auto", "its newest version is Hopper-v5"),
        ("Nothing-at-all", "auto", "no such environment"),
        ("some.module:Thing-v0", "auto", "allow_env_module"),
        pytest.param("Counting-v0", "envpool", "EnvPool does not have it", marks=NEEDS_ENVPOOL),
        ("CartPool-v1", "gymnasium", "CartPole-v1"),
    ],
)
def test_unknown_environments_get_one_helpful_line(env_id, backend, message):
    with pytest.raises(UsageError, match=message) as error:
        vector_env(env_id, 1, 0, backend)
    assert "\n" not in str(error.value)


def test_auto_takes_envpool_where_it_can_and_gymnasium_elsewhere(monkeypatch):
    assert resolve_backend("Counting-v0", "auto", False) == "gymnasium"
    if envpool_backend.envpool:
        assert resolve_backend("Hopper-v5", "auto", False) == "envpool"
    monkeypatch.setattr(envpool_backend, "envpool", None)
    assert resolve_backend("Hopper-v5", "auto", False) == "gymnasium"
    with pytest.raises(UsageError, match="not installed"):
        resolve_backend("Hopper-v5", "envpool", False)


def test_environments_of_the_old_api_are_named():
    envs = environments("Old-v0").probe()
    envs.reset()
    with pytest.raises(UsageError, match=r"Old-v0.*\(obs, reward, terminated, truncated, info\)"):
        envs.step(np.zeros((1, 1), np.float32))


class Whole(gym.Wrapper):
    """Takes five values from whatever it wraps."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, info


def _raise_if_errors():
    raise ValueError("not enough values to unpack (expected 5, got 4)")  # as it comes out of AsyncVectorEnv


def test_an_environment_of_the_old_api_is_named_through_a_wrapper_of_the_users_and_processes_of_gymnasiums():
    envs = environments(lambda: Whole(Old())).probe()
    envs.reset()
    with pytest.raises(UsageError, match="written for an older API"):
        envs.step(np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match="unpack") as raised:
        _raise_if_errors()
    assert wrapper_unpacks(raised.value)


@pytest.fixture
def registered():
    """Registers an id anew, with an observation of 7 numbers, for the time of a test."""
    before = dict(gym.registry)

    def register(env_id):
        gym.registry.pop(env_id, None)
        gym.register(env_id, lambda render_mode=None: Odd(gym.spaces.Box(-1, 1, (7,)), obs=np.zeros(7, np.float32)))

    yield register
    gym.registry.clear()
    gym.registry.update(before)


@NEEDS_ENVPOOL
def test_what_the_user_registered_goes_before_what_envpool_has(registered):
    assert environments("CartPole-v1").backend_reason == "EnvPool; gymnasium has it, too"
    assert environments("CartPole-v1", 1, "gymnasium").backend_reason == "gymnasium; EnvPool has it, too"
    assert environments("Pong-v5").backend_reason == "EnvPool"
    assert environments("Counting-v0").backend_reason == environments(Odd).backend_reason == "gymnasium"
    for env in ("CartPole-v1", "Pong-v5"):
        registered(env)
        made = environments(env)
        assert made.backend == "gymnasium"
        assert made.backend_reason == "gymnasium, as registered in this process; EnvPool has it, too"
        assert made.probe().observation_space.shape == made.evaluation(1, 0).observation_space.shape == (7,)
        assert environments(env, 1, "envpool").training(0).observation_space.shape[-1] in (4, 84)


@NEEDS_ENVPOOL
def test_two_environments_of_one_id_with_different_spaces_are_named(capsys):
    assert environments("Blackjack-v1").probe().backend == "envpool"
    said = capsys.readouterr().err
    assert said.startswith("trpo_tf: --env=Blackjack-v1: its observation space is Box(0, 31, (3,), int32) in EnvPool")
    assert "Tuple(Discrete(32), Discrete(11), Discrete(2)) in gymnasium, which --env_backend=gymnasium takes" in said
    assert said.count("\n") == 1
    for env, backend in (("Blackjack-v1", "envpool"), ("CartPole-v1", "auto"), ("HalfCheetah-v5", "auto")):
        environments(env, 1, backend).probe()
    assert capsys.readouterr().err == ""
