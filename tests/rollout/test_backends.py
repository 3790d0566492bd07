"""The backends one by one: EnvPool's shortcuts, seeds, which backend has an id."""

import numpy as np
import pytest

from tests.rollout import counting  # noqa: F401, registers its environments
from tests.rollout.helpers import BACKENDS, NEEDS_ENVPOOL, run, vector_env
from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends import envpool as envpool_backend
from trpo_tf.rollout.backends.resolve import resolve_backend


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
    envs = vector_env("Old-v0", 1, 0)
    envs.reset()
    with pytest.raises(UsageError, match=r"Old-v0.*\(obs, reward, terminated, truncated, info\)"):
        envs.step(np.zeros((1, 1), np.float32))
