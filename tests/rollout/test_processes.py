"""Environments in processes: the same as in one process, and failures that are found, named and survived."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests import spaces_table
from tests.rollout import counting  # noqa: F401, registers its environments
from tests.rollout.acting import Acting, Drawn, Loose, fail
from tests.rollout.helpers import NEEDS_ENVPOOL, drawn, environments, vector_env
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.vector_env import EnvStep

pytestmark = pytest.mark.usefixtures("nothing_left")


def started(act=lambda number, count: None, count=3, **settings):
    envs = vector_env(lambda: Acting(act), count, 0, env_processes=True, **settings)
    envs.reset()
    return envs


def step(envs):
    return envs.step(np.zeros(envs.num_envs, np.int64))


STEP_FIELDS = EnvStep._fields[1:]


def leaves(envs, steps):
    """Everything that the environments return, by name of its part, over resets and steps."""
    rng = np.random.default_rng(1)
    found = [envs.reset()]
    for _ in range(steps):
        obs, *rest = envs.step(drawn(envs.action_space, envs.num_envs, rng))
        found.append(obs | dict(zip(STEP_FIELDS, rest, strict=True)))
    episodes = envs.pop_episodes()
    envs.close()
    return found, episodes


def table(observation, action):
    return functools.partial(Drawn, spaces_table.OBSERVATIONS[observation], spaces_table.ACTIONS[action][0])


SAME = {
    "ends": ("Counting-v0", {}, 40),
    "cuts": ("Counting-v0", {"wrappers": "TimeLimit(4)", "stagger": True}, 40),
    "time limit": ("Pendulum-v1", {"stagger": True}, 210),
    "mask in info": (functools.partial(table("box", "discrete"), masked=True), {}, 20),
    "image": (table("image_first", "discrete"), {}, 12),
    "dict": (table("dict", "dict"), {}, 12),
    "tuple": (table("tuple", "tuple"), {}, 12),
    "numbers": (table("multi_discrete", "multi_binary"), {}, 12),
    "bits": (table("multi_binary", "box"), {}, 12),
    "doubles": (table("matrix_of_doubles", "unbounded_matrix"), {}, 12),
}


@pytest.mark.parametrize("case", list(SAME))
def test_transitions_are_those_of_one_process_to_the_bit(case):
    env, settings, steps = SAME[case]
    ours, theirs = (vector_env(env, 3, 7, "gymnasium", env_processes=on, **settings) for on in (True, False))
    assert str(ours.observation_space) == str(theirs.observation_space)
    assert ours._backend.max_episode_steps == theirs._backend.max_episode_steps
    (a, a_episodes), (b, b_episodes) = leaves(ours, steps), leaves(theirs, steps)
    for t, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype, (t, name)
            assert x[name].tobytes() == y[name].tobytes(), (t, name)
    assert a_episodes == b_episodes
    ended = sum((s["terminated"] | s["truncated"]).sum() for s in a[1:])
    assert ended >= 3


def test_loose_types_are_cast_as_in_one_process():
    def make():
        return Loose()

    a, b = (leaves(vector_env(make, 2, 0, env_processes=on), 9)[0] for on in (True, False))
    for x, y in zip(a, b, strict=True):
        for name in x:
            assert (x[name].dtype, x[name].tolist()) == (y[name].dtype, y[name].tolist())


@pytest.mark.parametrize("space", [gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(0, 255, (1,), np.uint8)])
def test_observations_that_do_not_fit_the_space_are_refused_as_in_one_process(space):
    class Unfit(Acting):
        observation_space = space

    messages = []
    for on in (True, False):
        with pytest.raises(UsageError, match="its reset does not fit its observation space") as error:
            vector_env(lambda: Unfit(), 2, 0, env_processes=on)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_environments_really_are_in_processes_of_their_own():
    envs = started(lambda number, count: float(os.getpid()))
    numbers = set(step(envs).reward)
    assert len(numbers) == 3
    assert float(np.float32(os.getpid())) not in numbers
    envs.close()


def test_processes_that_are_killed_or_hang_are_replaced_while_the_others_go_on():
    def act(number, count):
        if count == 2 and number == 0:
            time.sleep(60)
        if count == 2 and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(os.getpid())

    envs = started(act, env_timeout=2)  # enough to start a process on a busy machine
    before = step(envs)
    began = time.monotonic()
    given = step(envs)
    assert time.monotonic() - began < 20
    assert given.mask.tolist() == [0, 1, 0]
    assert given.truncated.tolist() == [True, False, True]
    assert given.obs["observation"].tolist() == before.obs["observation"].tolist(), "the last one"
    hung, killed = sorted(envs.pop_failures(), key=lambda failure: failure.env)
    assert "its step takes longer than --env_timeout=2 s" in hung.message
    assert "environment 0 of 3" in hung.message
    assert "its process was killed by SIGKILL" in killed.message
    assert step(envs).mask.tolist() == [0, 1, 0]
    after = step(envs)
    assert after.mask.tolist() == [1, 1, 1]
    assert (after.reward == before.reward).tolist() == [False, True, False], "those two are in other processes"
    envs.close()


def test_a_process_that_is_killed_between_steps_is_found():
    envs = started(lambda number, count: float(os.getpid()))
    step(envs)
    children = envs._backend._envs.processes
    os.kill(children[1].pid, signal.SIGKILL)
    children[1].join()
    assert step(envs).mask.tolist() == [1, 0, 1]
    (failure,) = envs.pop_failures()
    assert "killed by SIGKILL" in failure.message
    assert "environment 1 of 3" in failure.message
    assert step(envs).mask.tolist() == [1, 0, 1]
    assert step(envs).mask.tolist() == [1, 1, 1]
    envs.close()


@pytest.mark.slow
def test_what_cannot_be_reset_three_times_in_a_row_ends_the_run():
    here = os.getpid()

    class Stuck(Acting):
        def reset(self, seed=None, options=None):
            if os.getpid() != here and hasattr(self, "count"):  # not while it is made
                time.sleep(60)
            return super().reset(seed=seed)

    envs = vector_env(lambda: Stuck(), 2, 0, env_processes=True, env_timeout=2)
    began = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"its reset takes longer than env_timeout=2 s .*; 3 times in a row"):
        envs.reset()
    assert time.monotonic() - began < 30
    envs.close()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (fail, "environment failed: Broke: number 1 broke: 100% (--env="),
        (lambda number, count: os._exit(7) if number == 1 else None, "its process exited with code 7"),
        (lambda number, count: sys.exit(0) if number == 1 else None, "environment failed: SystemExit: 0"),
        (lambda number, count: {}["key"] if number == 1 else None, "environment failed: KeyError: 'key'"),
        (
            lambda number, count: "much" if (number, count) == (1, 2) else None,
            "its step returned 'much' as reward; a number is needed",
        ),
    ],
)
def test_what_ended_a_process_comes_back_in_one_line(act, message):
    envs = started(act)
    [step(envs) for _ in range(2)]
    failure = envs.pop_failures()[0]
    assert message in failure.message
    assert "environment 1 of 3" in failure.message
    assert failure.message.isprintable()
    envs.close()


def test_the_traceback_of_the_process_comes_along():
    envs = started(fail)
    step(envs)
    step(envs)
    error = envs.pop_failures()[0].error("; too often")
    assert 'raise Broke(number, "broke")' in error.__notes__[0]
    assert str(error).endswith("of 3); too often")
    envs.close()


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_what_fails_while_it_is_made_is_named_and_leaves_no_process(how):
    here = os.getpid()

    def make():
        if os.getpid() != here:
            if how == "raise":
                raise LookupError("is not made")
            os.kill(os.getpid(), signal.SIGKILL)
        return Acting()

    with pytest.raises(EnvironmentFailure, match="LookupError: is not made" if how == "raise" else "SIGKILL"):
        vector_env(make, 3, 0, env_processes=True)


def test_what_fails_here_already_is_as_without_processes():
    with pytest.raises(UsageError, match="env_options=no_such=1: "):
        vector_env("Pendulum-v1", 2, 0, env_options="no_such=1", env_processes=True)
    with pytest.raises(EnvironmentFailure, match="ConnectionRefusedError: no server"):
        vector_env(lambda: (_ for _ in ()).throw(ConnectionRefusedError("no server")), 2, 0, env_processes=True)


def test_closing_does_not_wait_for_what_hangs(monkeypatch):
    here = os.getpid()

    class Hanging(Acting):
        def close(self):
            time.sleep(60 * (os.getpid() != here))

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as a training process has, which its children must not
    try:
        envs = vector_env(lambda: Hanging(lambda number, count: time.sleep(60)), 2, 0, env_processes=True)
        envs.reset()
        [env.ask_step(0) for env in envs._backend._envs.envs]  # an interrupted step leaves them so
        children = envs._backend._envs.processes
        began = time.monotonic()
        envs.close()
        assert time.monotonic() - began < 2
        assert [process.exitcode for process in children] == [-signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_processes_end_with_the_object_that_nobody_closed_even_against_their_will():
    def act(number, count):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(30)

    envs = started(act, 2)
    children = envs._backend._envs.processes
    [env.ask_step(0) for env in envs._backend._envs.envs]
    time.sleep(0.2)
    began = time.monotonic()
    del envs
    assert [process.exitcode for process in children] == [-signal.SIGKILL] * 2
    assert time.monotonic() - began < 3


def test_environments_are_closed_in_their_processes_and_twice_is_no_harm(tmp_path):
    class Closing(Acting):
        def close(self):
            (tmp_path / str(self.number)).touch()

    envs = vector_env(lambda: Closing(), 2, 5, env_processes=True)
    envs.reset()
    step(envs)
    envs.close()
    envs.close()
    assert {"5", "6"} <= {path.name for path in tmp_path.iterdir()}


def test_interrupts_are_the_parents():
    envs = started(lambda number, count: os.kill(os.getpid(), signal.SIGINT))
    assert step(envs).reward.tolist() == [0, 0, 0]
    assert step(envs).reward.tolist() == [0, 0, 0]
    envs.close()


def test_processes_have_no_tensorflow_and_blas_no_threads():
    def look(number, count):
        from threadpoolctl import threadpool_info

        threads = max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return float("tensorflow" in sys.modules) + threads

    envs = started(look)
    assert step(envs).reward.tolist() == [1, 1, 1]
    envs.close()


def test_what_cannot_be_sent_to_a_process_is_said_in_one_line():
    lock = threading.Lock()
    with pytest.raises(
        UsageError, match=r"^env_processes: .*<lambda> cannot be sent to another process: .*lock"
    ) as error:
        vector_env(lambda: (lock, Acting())[1], 2, 0, env_processes=True)
    assert "\n" not in str(error.value)


def test_processes_start_while_other_threads_multiply_matrices():
    """A fork of this process would wait for ever for a thread of BLAS, once in a while."""
    done, x = threading.Event(), np.ones((200, 200))

    def multiply():
        while not done.is_set():
            x @ x

    threads = [threading.Thread(target=multiply) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        envs = started()
        assert np.isfinite(step(envs).reward).all()
        envs.close()
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_global_generators_differ_between_processes_and_repeat():
    def draws():
        envs = started(lambda number, count: np.random.random())  # noqa: NPY002
        found = step(envs).reward
        envs.close()
        return found

    first, again = draws(), draws()
    assert len(set(first)) == 3
    np.testing.assert_array_equal(first, again)


def test_environments_of_the_old_api_are_named_in_processes_too():
    envs = environments("Old-v0", env_processes=True).probe()
    envs.reset()
    with pytest.raises(UsageError, match=r"Old-v0.*\(obs, reward, terminated, truncated, info\)"):
        envs.step(np.zeros((1, 1), np.float32))
    envs.close()


SCRIPT = """
import os, signal, time
import gymnasium as gym, numpy as np
from trpo_tf.config import EnvironmentConfig
from trpo_tf.rollout.environments import Environments

print("runs", flush=True)

class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        time.sleep(60 * int(action))
        return np.zeros(1, np.float32), float(os.getpid()), False, False, {}

gym.register("Own-v0", Own)
envs = Environments(EnvironmentConfig(env="Own-v0", num_envs=2, env_processes=True)).training(0)
envs.reset()
print(*envs._backend.step(np.zeros(2, np.int64))[1].astype(int), flush=True)
[env.ask_step(1) for env in envs._backend._envs.envs]
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ids_of_a_script_without_a_guard_work_and_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "output").open("w+") as output:  # not a pipe, which the children would hold open
        assert subprocess.run([sys.executable, script], stdout=output, env=environment).returncode == -signal.SIGKILL
        output.seek(0)
        lines = output.read().split()
    assert lines.count("runs") == 1
    assert len(lines) == 3
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in lines[1:]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in lines[1:])


def test_gymnasium_serves_where_processes_are_asked_for_and_it_has_the_id():
    assert environments("Pendulum-v1", env_processes=True).backend == "gymnasium"
    with pytest.raises(UsageError, match=r"env_processes: EnvPool has threads.*env_backend=gymnasium") as error:
        environments("Pendulum-v1", 1, "envpool", env_processes=True)
    assert "\n" not in str(error.value)


@NEEDS_ENVPOOL
def test_ids_that_only_envpool_has_cannot_be_in_processes():
    with pytest.raises(UsageError, match="EnvPool has it and gymnasium does not, whose env_processes"):
        environments("Pong-v5", env_processes=True)


def test_evaluation_is_in_processes_and_a_look_at_the_spaces_is_not():
    made = environments(lambda: Acting(lambda number, count: float(os.getpid())), 2, env_processes=True)
    for envs, apart in ((made.evaluation(2, 0), True), (made.probe(), False)):
        envs.reset()
        assert (envs._backend.step(np.zeros(envs.num_envs, np.int64))[1][0] != os.getpid()) == apart
        envs.close()
