"""Environments that are stepped together, each saved and put back by its backend: books, failures, processes."""

import functools
import os
import signal
import time

import numpy as np
import pytest

from tests.rollout import counting, stateful  # noqa: F401, counting registers its environments
from tests.rollout.acting import Acting
from tests.rollout.helpers import drawn, environments, vector_env
from tests.rollout.stateful import killed, raises
from trpo_tf.errors import EnvironmentFailure

TIMEOUT = 3  # enough to start a process on a busy machine
BOTH = pytest.mark.parametrize("apart", [False, True], ids=["here", "processes"])


pytestmark = pytest.mark.usefixtures("nothing_left")


def follow(envs, steps, seed=1):
    """The bits of all that they return, and the episodes that end."""
    rng, found = np.random.default_rng(seed), []
    envs.pop_episodes()
    for _ in range(steps):
        obs, *rest = envs.step(drawn(envs.action_space, envs.num_envs, rng))
        found.append([x.tobytes() for x in (*obs.values(), *rest)])
    return found, envs.pop_episodes()


def step(envs, action=1):
    return envs.step(np.full(envs.num_envs, action))


def follow_values(envs, steps):
    """Observations [T, B, 1]."""
    return np.array([step(envs).obs["observation"] for _ in range(steps)])


def put_back(envs, saved):
    for env, state in enumerate(saved):
        envs.restore(env, state)


@BOTH
@pytest.mark.parametrize("env", ["Hopper-v5", "CartPole-v1", stateful.Everywhere])
def test_all_go_on_as_they_did(env, apart):
    envs = vector_env(env, 3, 5, "gymnasium", env_processes=apart)
    envs.reset()
    follow(envs, 8, 0)
    saved = [envs.save(env) for env in range(3)]
    first = follow(envs, 60)
    for _ in range(2):
        assert follow(envs, 30, 2) != follow(envs, 30, 1)
        put_back(envs, saved)
        assert follow(envs, 60) == first
    envs.close()


@BOTH
def test_one_is_put_back_while_the_others_go_on(apart):
    envs = vector_env("Counting-v0", 2, 5, "gymnasium", env_processes=apart)  # episodes 500 and 600, of 2 steps
    envs.reset()
    step(envs)
    saved = envs.save(1)
    before = step(envs).obs["observation"]
    assert before.tolist() == [[500, 2], [600, 2]]
    assert step(envs).obs["observation"].tolist() == [[501, 0], [601, 0]]
    envs.restore(1, saved)
    assert before.tolist() == [[500, 2], [600, 2]], "it was handed out"
    given = step(envs)
    assert given.obs["observation"].tolist() == [[501, 1], [600, 2]]
    assert given.terminated.tolist() == [False, True]
    assert envs.pop_episodes().lengths == [2, 2, 2]
    envs.close()


@BOTH
def test_after_the_end_of_an_episode_the_reset_is_what_comes_next(apart):
    envs = vector_env("Counting-v0", 2, 5, "gymnasium", env_processes=apart)
    envs.reset()
    step(envs)
    assert step(envs).terminated.all()
    saved = [envs.save(env) for env in range(2)]
    first = follow(envs, 20)
    step(envs)
    put_back(envs, saved)
    given = step(envs, 2)
    assert (given.mask.tolist(), given.obs["observation"].tolist()) == ([0, 0], [[501, 0], [601, 0]])
    put_back(envs, saved)
    assert follow(envs, 20) == first
    envs.close()


@BOTH
def test_first_episodes_are_cut_where_they_were(apart):
    settings = {"wrappers": "TimeLimit(8)", "stagger": True, "env_processes": apart}
    envs = vector_env(stateful.Walk, 4, 5, **settings)  # cut after 2, 4, 6, 8 steps
    envs.reset()
    early = [envs.save(env) for env in range(4)]
    first = follow(envs, 30)
    put_back(envs, early)
    assert step(envs).truncated.tolist() == [False] * 4
    assert step(envs).truncated.tolist() == [True, False, False, False]
    cut = [envs.save(env) for env in range(4)]
    after = follow(envs, 30)
    put_back(envs, early)
    assert follow(envs, 30) == first
    put_back(envs, cut)
    assert step(envs).mask.tolist() == [0, 1, 1, 1]
    put_back(envs, cut)
    assert follow(envs, 30) == after
    envs.close()


@BOTH
def test_returns_and_lengths_are_of_the_episode_that_goes_on(apart):
    envs = vector_env(lambda: Acting(lambda number, count: 10.0**count), 1, 0, env_processes=apart)
    envs.reset()
    step(envs)
    step(envs)
    saved = envs.save(0)
    for _ in range(9):
        step(envs)
    envs.pop_episodes()
    envs.restore(0, saved)
    step(envs)
    step(envs)
    episodes = envs.pop_episodes()
    assert (episodes.returns, episodes.lengths) == ([11110.0], [4])
    envs.close()


@BOTH
def test_a_state_is_put_into_other_environments_of_the_same_make(apart):
    envs, others = (vector_env("Hopper-v5", 2, seed, "gymnasium", env_processes=apart) for seed in (5, 77))
    envs.reset()
    others.reset()
    follow(envs, 8, 0)
    saved = [envs.save(env) for env in range(2)]
    put_back(others, saved)
    assert follow(others, 40) == follow(envs, 40)
    put_back(others, saved[::-1])
    put_back(envs, saved[::-1])
    assert follow(others, 40) == follow(envs, 40)
    envs.close()
    others.close()


@BOTH
def test_environments_that_repeat_their_calls_are_saved_when_that_is_over(apart):
    envs = vector_env("CartPole-v1", 2, 5, "gymnasium", env_processes=apart)
    envs.repeat(True)
    envs.reset()
    follow(envs, 5, 0)
    envs.repeat(False)
    saved = [envs.save(env) for env in range(2)]
    first = follow(envs, 30)
    put_back(envs, saved)
    assert follow(envs, 30) == first
    envs.close()


@pytest.mark.parametrize(
    ("what", "apart", "said"),
    [
        (raises, False, "OSError: no power"),
        (raises, True, "OSError: no power"),
        (killed, True, "killed by SIGKILL"),
        (functools.partial(time.sleep, 60), True, "its step takes longer than --env_timeout=3 s"),
    ],
)
def test_what_fails_after_it_was_saved_is_made_anew_and_put_back(what, apart, said, tmp_path):
    act = functools.partial(stateful.once, tmp_path / "done", what)
    envs = vector_env(functools.partial(Acting, act), 2, 0, env_processes=apart, env_timeout=TIMEOUT)
    envs.reset()
    step(envs)
    step(envs)
    saved = envs.save(1)
    failed = step(envs)
    assert (failed.mask.tolist(), failed.truncated.tolist()) == ([1, 0], [False, True])
    envs.restore(1, saved)
    given = step(envs)
    assert (given.mask.tolist(), given.reward.tolist()) == ([1, 1], [4, 3])
    assert given.obs["observation"].tolist() == [[0], [1]]
    (failure,) = envs.pop_failures()
    assert said in failure.message
    assert "environment 1 of 2" in failure.message
    assert step(envs).terminated.tolist() == [False, True]
    envs.close()


FAULTS = pytest.mark.parametrize(
    ("what", "apart", "said"),
    [
        (raises, False, "no power"),
        (raises, True, "no power"),
        (killed, True, "killed by SIGKILL"),
        pytest.param(
            functools.partial(time.sleep, 60), True, "takes longer than --env_timeout=3 s", marks=pytest.mark.slow
        ),
    ],
)


def fragile(path, what, apart):
    make = functools.partial(stateful.Fragile, path, what)
    envs = vector_env(make, 2, 0, env_processes=apart, env_timeout=TIMEOUT)
    envs.reset()
    step(envs)
    return envs


def check_made_anew(envs, said):
    """Environment 1 is truncated at the next step, and another one begins an episode."""
    failed = step(envs)
    assert (failed.mask.tolist(), failed.truncated.tolist()) == ([1, 0], [False, True])
    assert failed.obs["observation"].tolist() == [[0], [1]], "the last one"
    (failure,) = envs.pop_failures()
    assert said in failure.message
    assert "environment 1 of 2" in failure.message
    assert failure.message.isprintable()
    given = step(envs)
    assert given.mask.tolist() == [1, 0]
    assert given.obs["observation"][1] != 1, "another seed"
    assert step(envs).mask.tolist() == [1, 1]


@BOTH
def test_the_last_observation_of_one_that_fails_is_that_of_its_state(apart, tmp_path):
    path = tmp_path / "now"
    envs = vector_env(functools.partial(stateful.Stopping, path), 2, 5, env_processes=apart)
    envs.reset()
    obs, saved = step(envs).obs["observation"].copy(), envs.save(1)
    assert (step(envs).obs["observation"] != obs).all()
    envs.restore(1, saved)
    path.touch()
    failed = step(envs)
    assert failed.truncated.tolist() == [True, True]
    assert failed.obs["observation"][1] == obs[1]
    assert failed.obs["observation"][0] != obs[0]
    path.unlink()
    assert np.isfinite(follow_values(envs, 3)).all()
    path.touch()
    step(envs)
    path.unlink()
    broken = None if apart else envs._backend._envs.envs[1].env
    envs.restore(1, saved)
    assert step(envs).mask[1] == 1
    assert apart or envs._backend._envs.envs[1].env is not broken, "another one was made for it"
    envs.close()


@FAULTS
def test_what_fails_while_it_is_saved_ends_its_episode(what, apart, said, tmp_path):
    envs = fragile(tmp_path / "now", what, apart)
    (tmp_path / "now").touch()
    assert envs.save(1) is None
    assert envs.save(1) is None, "it has failed, and is not asked again"
    assert envs.save(0) is not None
    check_made_anew(envs, said)
    saved = envs.save(1)
    given = step(envs)
    envs.restore(1, saved)
    assert step(envs).obs["observation"].tolist() == given.obs["observation"].tolist()
    envs.close()


@FAULTS
def test_what_fails_while_it_is_put_back_ends_its_episode(what, apart, said, tmp_path):
    envs = fragile(tmp_path / "now", what, apart)
    saved = envs.save(1)
    (tmp_path / "now").touch()
    envs.restore(1, saved)
    check_made_anew(envs, said)
    envs.restore(1, saved)
    assert step(envs).mask[1] == 1
    assert not envs.pop_failures()
    envs.close()


def test_where_nothing_is_made_anew_a_failure_is_raised(tmp_path):
    envs = environments(functools.partial(stateful.Fragile, tmp_path / "now", raises)).probe()
    envs.reset()
    (tmp_path / "now").touch()
    with pytest.raises(EnvironmentFailure, match="its attribute part cannot be copied: no power"):
        envs.save(0)
    envs.close()


def test_a_process_that_dies_between_calls_is_put_back():
    envs = vector_env(Acting, 2, 0, env_processes=True)
    envs.reset()
    step(envs)
    saved = envs.save(1)
    children = envs._backend._envs.processes
    os.kill(children[1].pid, signal.SIGKILL)
    children[1].join()
    envs.restore(1, saved)
    given = step(envs)
    assert given.mask.tolist() == [1, 0], "it is found dead, and its episode ends"
    assert len(envs.pop_failures()) == 1
    envs.restore(1, saved)
    assert step(envs).mask.tolist() == [1, 1]
    envs.close()
