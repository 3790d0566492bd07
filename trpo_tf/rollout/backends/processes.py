"""gymnasium environments in a process each; those that fail, die or hang are made anew in another process.

The processes are forked from a server (multiprocessing's forkserver) that has one thread and no TensorFlow. They cannot
be forked from this process: before a fork OpenBLAS ends its threads, and it waits for ever for one that falls asleep
just then. Spawn imports gymnasium anew in each (docs/performance.md).

Unlike a fork, such a process does not have what its parent has. An environment is therefore sent as its spec or its
function, pickled by value where it stands in the user's script; so ids need not be registered there. The script itself
is not imported, as multiprocessing would do: without a __main__ guard it would train there once more.
"""

import contextlib
import copy
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, spawn
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
)  # fmt: skip

from trpo_tf import seeds
from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.backends import process, single_env
from trpo_tf.rollout.backends.base import leaves
from trpo_tf.rollout.backends.guard import Guard, Watchdog
from trpo_tf.rollout.backends.process import EnvProcess
from trpo_tf.rollout.backends.restarts import TRIES, Household, Lives

CLOSE_SECONDS = 5.0  # that processes have to close their environments before they are killed
_starting = threading.Lock()


def available() -> bool:
    """Whether this system has what processes are started with."""
    return "forkserver" in multiprocessing.get_all_start_methods()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start here do not import the user's script. One thread at a time."""
    with _starting:
        original = spawn.get_preparation_data

        def without(name: str) -> dict[str, Any]:
            return {key: value for key, value in original(name).items() if not key.startswith("init_main")}

        spawn.get_preparation_data = without
        try:
            yield
        finally:
            spawn.get_preparation_data = original


class ProcessVectorEnv:
    """Steps environments in a process each, at once; NEXT_STEP autoreset, as gymnasium's vector environments.

    Each process writes its observations, cast to the space's dtype, to memory that all share. `info` stays there.

    Args:
      prepared: makes one environment; called in this process, too, for its spaces.
      household: says how many, how they are called, how long a call may take, and whether they are made anew.
      seed: the global generators of process b, which an environment should not use, get seed + b.

    Attributes:
      envs: the environments.

    Raises:
      UsageError: `prepared` cannot be sent to a process.
      EnvironmentFailure: an environment could not be made.
    """

    def __init__(self, prepared: single_env.Prepared, household: Household, seed: int):
        self.num_envs, self._parent = household.num_envs, os.getpid()
        sent = _Sent(prepared, household.env_name)
        self.single_observation_space, self.single_action_space = spaces = _look(sent, household)
        self.max_episode_steps = sent.max_episode_steps
        self._actions = batch_space(self.single_action_space, self.num_envs)
        starter = _Starter(sent, single_env.modules(prepared.make_env), spaces, household, seed)
        self._shared = read_from_shared_memory(self.single_observation_space, starter.memory, self.num_envs)
        self._last = copy.deepcopy(self._shared)
        self.envs: list[_Slot] = []
        try:
            for index in range(self.num_envs):
                self.envs.append(_Slot(starter, index, household))
            for env in self.envs:
                env.made()
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[BaseProcess]:
        """Those that run the environments now."""
        return [env.process.process for env in self.envs]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As AsyncVectorEnv's, with no other options than reset_mask, [B] bool: which to reset.

        Raises:
          EnvironmentFailure: three times in a row an environment could not be made or reset.
        """
        chosen = self.envs
        if options is not None:
            chosen = [env for env, wanted in zip(self.envs, options["reset_mask"], strict=True) if wanted]
        for index, env in enumerate(chosen):
            env.ask_reset(None if seed is None else seed + index)
        for env in chosen:
            env.answer()
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """As AsyncVectorEnv's; an environment that fails is truncated.

        Raises:
          EnvironmentFailure: as reset.
        """
        for env, one in zip(self.envs, iterate(self._actions, action), strict=True):
            env.ask_step(one)
        reward, flags = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool)
        for index, env in enumerate(self.envs):
            answer = env.answer()
            if answer is None:
                for name, x in leaves(self._shared).items():  # what it left there may be half an observation
                    x[index] = leaves(self._last)[name][index]
                answer = 0.0, False, True
            reward[index], flags[0, index], flags[1, index] = answer
        return self._observed(), reward, *flags, {}

    def save(self, index: int) -> tuple[tuple[bytes, bool, int], list[np.ndarray]] | None:
        """The state of an environment, as of its slot, and its last observation; see Backend."""
        saved = self.envs[index].save()
        return None if saved is None else (saved, [x[index].copy() for x in leaves(self._shared).values()])

    def restore(self, index: int, saved: tuple[tuple[bytes, bool, int], list[np.ndarray]], seed: int | None) -> None:
        """Puts an environment back to where it was; see Backend."""
        state, obs = saved
        self.envs[index].restore(*state, seed)
        for x, part in zip(leaves(self._shared).values(), obs, strict=True):
            x[index] = part
        self._observed()

    def _observed(self) -> Any:
        self._last = copy.deepcopy(self._shared)
        return self._last

    def close(self) -> None:
        """Ends the processes: they may close their environments, and are killed where that takes longer than 5 s."""
        self._end(CLOSE_SECONDS)

    def _end(self, seconds: float) -> None:
        running, self.envs = self.envs, []
        process.end([env.process for env in running], seconds)

    def __del__(self) -> None:
        if os.getpid() == self._parent and getattr(self, "envs", None):
            self._end(0.0)


def _look(sent: "_Sent", household: Household) -> tuple[gym.Space, gym.Space]:
    """The spaces of an environment that is made here, and fails like any other."""
    alone = Household(household.env_name, 1, household.timeout, household.strict, household.first, household.told)
    watchdog = Watchdog(alone)
    try:
        env = Guard(sent, 0, alone)
        env.close()
    finally:
        watchdog.close()
    household.failures += alone.failures
    return env.observation_space, env.action_space


class _Starter:
    """Starts processes.

    Attributes:
      memory: where the observations of all environments are.
    """

    def __init__(self, sent: "_Sent", modules: list[str], spaces: tuple, household: Household, seed: int):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["trpo_tf.rollout.backends.preload", *modules])
        self._sent, self._spaces = sent, CloudpickleWrapper(lambda: spaces)
        self._household, self._seed = household, seed
        self.memory = create_shared_memory(spaces[0], household.num_envs, ctx=self._context)

    def __call__(self, index: int, life: int) -> EnvProcess:
        """Starts a process for the so manieth life of an environment, the first being 0."""
        seed = self._seed + index
        seed = seeds.derive_seed(seed, seeds.ENV_RESTARTS, life) if life else seed
        ours, theirs = self._context.Pipe()
        arguments = theirs, self.memory, index, seed, self._sent, self._spaces
        started: Any = self._context.Process(target=process.run, name=f"environment {index}", args=arguments)
        started.daemon = True
        with _without_main():
            forkserver.ensure_running()
            started.start()
        theirs.close()
        return EnvProcess(started, ours, self._household.timeout)


class _Slot:
    """The place of one environment: its process, and the next one's where that fails."""

    def __init__(self, start: _Starter, index: int, household: Household):
        self.household, self._lives = household, Lives(index, household)
        self._start, self._resetting, self._repeating = start, False, False
        self._ended = False  # the episode, at the step before
        self.process = start(index, 0)

    def made(self) -> None:
        """Waits until the environment is made.

        Raises:
          EnvironmentFailure: it could not be.
        """
        for _ in range(TRIES):
            if self._answered() is not None:
                return
        raise self._lives.give_up()

    def fail_next(self) -> None:
        """See Backend."""
        self._lives.pretended += 1

    def repeat(self, on: bool) -> None:
        """See Backend."""
        self._repeating = on
        self.process.ask("repeat", on)

    def ask_reset(self, seed: int | None = None) -> None:
        """Asks for a reset; `answer` waits for it. seed: of the first one."""
        seed = self._lives.seed(seed)
        if self._lives.pretend(self._lives.pretended):
            self._replace()
            seed = self._lives.seed()
        self._resetting = True
        self.process.ask("reset", seed)

    def ask_step(self, action: Any) -> None:
        """Asks for a step, or for the reset that is due."""
        if self._ended:
            self.ask_reset()
        elif not (self._lives.pretended or self._lives.broken):  # broken: when it was saved or put back
            self.process.ask("step", action)

    def save(self) -> tuple[bytes, bool, int] | None:
        """Its state, whether its episode has ended, and how often it had failed; see Backend."""
        if self._lives.broken:
            return None
        self.process.ask("save")
        state = self._answered()
        return None if state is None else (state, self._ended, self._lives.count)

    def restore(self, state: bytes, ended: bool, failed: int, seed: int | None) -> None:
        """Puts it back to where it, or another one, was; see Backend."""
        self._ended, self._lives.count = ended, failed
        self.process.ask("restore", (state, seed))
        self._lives.broken = self._answered() is None

    def answer(self) -> tuple[float, bool, bool] | None:
        """Reward, terminated, truncated; None where the environment failed.

        Raises:
          EnvironmentFailure: three times in a row it could not be made or reset.
        """
        if self._resetting:
            self._finish_reset()
            return 0.0, False, False
        broken = self._lives.broken
        if self._lives.pretend(1):
            self._replace()
            answer = None
        else:
            answer = None if broken else self._answered()
        self._ended = answer is None or answer[1] or answer[2]
        return answer

    def _finish_reset(self) -> None:
        for _ in range(TRIES):
            if self._answered() is not None:
                self._resetting = self._ended = self._lives.broken = False
                return
            self.process.ask("reset", self._lives.seed())
        raise self._lives.give_up()

    def _answered(self) -> Any:
        """The answer of the process, or None and another process."""
        try:
            return self.process.answer()
        except process.Ended as ended:
            self._lives.fail(ended.misfit or ended, ended.text, ended.trace)
        self._replace()
        return None

    def _replace(self) -> None:
        process.end([self.process], 0.0)
        self.process = self._start(self._lives.index, self._lives.count)
        if self._repeating:
            self.process.ask("repeat", True)


class _Sent:
    """Makes an environment here or, pickled by value, in another process; here it looks at the time limit, too.

    Raises:
      UsageError: it cannot be pickled.
    """

    def __init__(self, prepared: single_env.Prepared, env_name: str):
        self.max_episode_steps: int | None = None
        self._prepared = prepared
        try:
            self._pickled = bytes(ForkingPickler.dumps(CloudpickleWrapper(prepared)))
        except Exception as error:
            raise UsageError(
                f"--env_processes: {env_name} cannot be sent to another process: {first_line(error)}"
            ) from error

    def __call__(self) -> gym.Env:
        if self._prepared is None:
            return ForkingPickler.loads(self._pickled)()
        env = self._prepared()
        self.max_episode_steps = single_env.time_limit(env)
        return env

    def __getstate__(self) -> dict[str, Any]:
        return {"_prepared": None, "_pickled": self._pickled}
