"""Environments that fail: what is made anew, with which seeds, what it costs, and when it is the end."""

import functools
import time

import numpy as np
import pytest

from tests.rollout.faulty import ODD, Fault
from tests.rollout.flaky import Flaky, chance, drawn
from tests.rollout.helpers import environments
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.backends.processes import _look
from trpo_tf.rollout.backends.restarts import Household
from trpo_tf.rollout.evaluation import evaluate

HERE = [name for name, odd in ODD.items() if not odd.alone]
RETURNED = [name for name in HERE if ODD[name].change]


@pytest.fixture(autouse=True)
def counted_from_one():
    Flaky.counts.clear()


def made(fault, num_envs=2, worked=True, seed=5, **settings):
    """Environments for training; `worked`: such ones were made before."""
    envs = environments(functools.partial(Flaky, fault), num_envs, **settings)
    if worked:
        Flaky.counts |= {"constructor": -100, "reset": -100}  # too early to fail
        envs.training(0).close()
        Flaky.counts.clear()
    return envs.training(seed)


def step(envs, action=0):
    return envs.step(np.full(envs.num_envs, action))


@pytest.mark.parametrize("odd", HERE)
def test_whatever_a_step_does_ends_the_episode_and_the_environment_is_made_anew(odd):
    envs = made(Fault(odd, "step", 4, 4))  # the second step of environment 1
    envs.reset()
    before = step(envs)
    given = step(envs)
    assert (given.mask.tolist(), given.truncated.tolist()) == ([1, 0], [False, True])
    assert not given.terminated.any()
    assert given.reward.tolist() == [1, 0]
    assert given.obs["observation"][1].tolist() == before.obs["observation"][1].tolist(), "the last one"
    (failure,) = envs.pop_failures()
    assert failure.env == 1
    assert ODD[odd].said in failure.message
    assert failure.message.isprintable()
    assert len(failure.message) < 500
    assert "environment 1 of 2" in failure.message
    given = step(envs)
    assert given.mask.tolist() == [1, 0]
    assert given.obs["observation"][1, 1] == 0, "the first observation of another episode"
    assert step(envs).mask.tolist() == [1, 1]
    assert not envs.pop_failures()
    assert envs.pop_episodes() == ([], [], [])
    envs.close()


@pytest.mark.parametrize("odd", HERE)
def test_whatever_a_reset_does_another_environment_is_reset_instead(odd):
    envs = made(Fault(odd, "reset", 4, 4))  # each was reset once when it was made; this is the first of environment 1
    obs = envs.reset()
    (failure,) = envs.pop_failures()
    assert ODD[odd].said in failure.message
    reference = made(lambda *_: None)
    assert obs["observation"][0].tolist() == reference.reset()["observation"][0].tolist()
    assert step(envs).mask.tolist() == [1, 1]


@pytest.mark.parametrize("odd", sorted(set(HERE) - set(RETURNED)))
def test_whatever_a_constructor_does_it_is_called_again_if_it_worked_before(odd):
    envs = made(Fault(odd, "constructor", 2, 3))
    reference = made(lambda *_: None)
    assert envs.reset()["observation"].tolist() == reference.reset()["observation"].tolist(), "with the same seed"
    assert [ODD[odd].said in failure.message for failure in envs.pop_failures()] == [True, True]


def test_what_cannot_be_made_at_first_is_the_users_mistake():
    with pytest.raises(EnvironmentFailure, match=r"AttributeError: no such attribute .*while it was made"):
        made(Fault("attribute", "constructor", 1, 1), worked=False)
    Flaky.counts.clear()
    with pytest.raises(EnvironmentFailure, match=r"StopIteration: 3 .*while it was made"):
        made(Fault("stop iteration with value", "constructor", 1, 1), worked=False)
    Flaky.counts.clear()
    with pytest.raises(UsageError, match="of gymnasium"):
        made(Fault("gymnasium", "constructor", 1, 1), worked=False)
    probe = environments(functools.partial(Flaky, Fault("own base", "step", 1, 1))).probe()
    probe.reset()
    with pytest.raises(EnvironmentFailure, match="OwnBase: of my own"):
        step(probe)


@pytest.mark.parametrize("call", ["constructor", "reset"])
def test_three_times_in_a_row_is_the_end(call):
    with pytest.raises(EnvironmentFailure, match=r"Own: of my own .*environment \d of 2\); 3 times in a row"):
        made(Fault("own", call, {"constructor": 2, "reset": 3}[call])).reset()


def test_interrupts_are_the_users():
    def interrupt(env, call, count):
        if call == "step":
            raise KeyboardInterrupt

    envs = made(interrupt)
    envs.reset()
    with pytest.raises(KeyboardInterrupt):
        step(envs)


@pytest.mark.parametrize("processes", [False, True])
def test_a_new_environment_has_a_seed_of_its_own_and_the_same_one_in_another_run(processes):
    def act(env, call, count):
        if call == "step" and env.steps == 2:
            raise ValueError

    def observations():
        envs = made(act, env_processes=processes)
        found = [envs.reset()["observation"]] + [step(envs).obs["observation"] for _ in range(9)]
        envs.close()
        return np.stack(found)

    first, again = observations(), observations()
    assert first.tobytes() == again.tobytes()
    starts = first[first[..., 1] == 0][:, 0]
    assert len(set(starts)) == len(starts) == 6


def test_failures_that_came_before_come_again_without_being_asked_for():
    def act(env, call, count):
        if call == "step" and count in (6, 7):
            raise ValueError

    first, calm = made(act, 2), made(lambda *_: None, 2)
    found, failed = [first.reset()], []
    for number in range(1, 8):
        found.append(step(first).obs)
        failed += [(number, failure.env) for failure in first.pop_failures()]
    assert failed == [(3, 1), (4, 0)]
    calm.reset()
    for number in range(1, 8):
        for at, env in failed:
            if at == number:
                calm.fail_next(env)
        assert step(calm).obs["observation"].tobytes() == found[number]["observation"].tobytes()
    assert not calm.pop_failures()


@pytest.mark.parametrize("processes", [False, True])
def test_what_worked_before_is_repeated_until_it_works_again(processes):
    """One call in thirty fails, every time others; forty steps get through all the same, as if nothing had been."""
    envs, calm = (made(fault, 2, env_processes=processes) for fault in (chance(1 / 30), lambda *_: None))
    envs.repeat(True)
    assert envs.reset()["observation"].tobytes() == calm.reset()["observation"].tobytes()
    for _ in range(40):
        assert step(envs).obs["observation"].tobytes() == step(calm).obs["observation"].tobytes()
    assert not envs.failures
    envs.repeat(False)
    for _ in range(200):
        step(envs)
    assert envs.failures
    envs.close()
    calm.close()


def test_an_episode_that_fails_in_an_evaluation_is_run_again(capsys):
    envs = environments(functools.partial(Flaky, drawn(0.02)), max_env_restarts=100).evaluation(3, 0)
    result = evaluate(lambda obs, is_first: (obs["observation"][:, 0] < 0).astype(int), envs, 9)
    assert len(result.lengths) == 9
    assert (result.lengths == 50).sum() >= 4, "whole ones"
    line = r"trpo_tf: environment failed: LookupError: step failed by its seed"
    assert capsys.readouterr().err.count(line) == 1
    envs = environments(functools.partial(Flaky, drawn(0.02)), max_env_restarts=2).evaluation(3, 0)
    with pytest.raises(EnvironmentFailure, match=r"step failed by its seed \(env=.*Flaky, .*; max_env_restarts=2"):
        evaluate(lambda obs, is_first: (obs["observation"][:, 0] < 0).astype(int), envs, 9)


@pytest.mark.parametrize("call", ["constructor", "reset", "step", "close"])
def test_an_environment_that_hangs_in_this_process_is_named_once_and_waited_for(call, capsys):
    slow = {"constructor": 1, "reset": 3, "step": 1, "close": 1}[call]

    def act(env, name, count):
        if (name, count) == (call, slow):
            time.sleep(0.5)

    envs = made(act, 2, worked=False, env_timeout=0.15)
    envs.reset()
    step(envs)
    envs.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"environment hangs: its {call} takes longer than --env_timeout=0.15 s" in lines[0]
    assert "environment 0 of 2" in lines[0]


def test_steps_that_are_quick_and_a_timeout_of_zero_are_not_remarked_on(capsys):
    envs = made(lambda *_: time.sleep(0.01), 2, env_timeout=0.1)
    envs.reset()
    for _ in range(6):
        step(envs)
    envs.close()
    envs = made(lambda *_: time.sleep(0.05), 2, env_timeout=0)
    envs.reset()
    envs.close()
    assert capsys.readouterr().err == ""


def test_what_fails_while_it_is_closed_is_one_line_and_the_others_are_closed(capsys):
    closed = []

    def act(env, call, count):
        if call == "close":
            closed.append(count)
            raise SystemExit("stuck, number one")

    envs = made(act, 3, worked=False)
    envs.reset()
    envs.close()
    envs.close()
    assert closed == [1, 2, 3]
    assert capsys.readouterr().err.count("stuck, number one") == 1


def test_what_fails_while_it_is_closed_is_told_once_of_all_environments_that_are_made_to_look_at(capsys):
    def act(env, call, count):
        if call == "close":
            raise OSError("stuck")

    told = set()
    for _ in range(3):
        _look(lambda: Flaky(act), Household("mine", 2, told=told))
    assert capsys.readouterr().err.count("stuck") == 1
    assert told == {"mine"}


def test_an_environment_that_comes_back_with_other_spaces_failed():
    import gymnasium as gym

    class Changing(Flaky):
        made = 0

        def __init__(self):
            super().__init__(Fault("own", "step", 1, 1))
            Changing.made += 1
            if Changing.made > 1:
                self.observation_space = gym.spaces.Box(-1, 1, (3,))

        def _obs(self):
            return np.zeros(self.observation_space.shape, np.float32)

    envs = environments(lambda: Changing()).training(0)
    envs.reset()
    step(envs)
    with pytest.raises(EnvironmentFailure, match=r"ValueError: made with other spaces.*3 times in a row"):
        step(envs)
