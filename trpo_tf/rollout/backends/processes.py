"""gymnasium environments in a process each, which say what went wrong in them, and whose end is noticed at once.

The processes are forked from a server (multiprocessing's forkserver) that has one thread and no TensorFlow. They cannot
be forked from this process: before a fork OpenBLAS ends its threads, and it waits for ever for one that falls asleep
just then; with two threads that multiply matrices, every hundredth start hung. Spawn imports gymnasium anew in each.
Environments are made anew at every checkpoint; with TensorFlow loaded, 8 HalfCheetahs took 0.07 s by fork, 0.09 s by
the server, which takes 0.3 s to start once, and 1.0 s by spawn.

Unlike a fork, such a process does not have what its parent has. An environment is therefore sent as its spec or its
function, pickled by value where it stands in the user's script; so ids need not be registered there. The script itself
is not imported, as multiprocessing would do: without a __main__ guard it would train there once more.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, spawn
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.async_vector_env import _async_worker
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, concatenate, create_empty_array, iterate

from trpo_tf.errors import EnvironmentFailure, UsageError, first_line
from trpo_tf.rollout.backends import single_env

CLOSE_SECONDS = 5.0  # that processes have to close their environments before they are killed
_LONGEST_TRACE = 8000  # characters; what is sent must fit into a pipe that nobody reads yet
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
    """gymnasium's AsyncVectorEnv, as far as GymnasiumBackend needs it, with failures that can be read.

    Observations and rewards are cast as SyncVectorEnv casts them, so that both return the same to the bit. `info` stays
    in the process.

    Args:
      prepared: makes one environment; called in this process, too, for its spaces.
      num_envs: B.
      seed: the global generators of process b, which an environment should not use, get seed + b.
      env_name: for messages.

    Raises:
      UsageError: `prepared` cannot be sent to a process.
      EnvironmentFailure: an environment raised, or its process died.
    """

    def __init__(self, prepared: single_env.Prepared, num_envs: int, seed: int, env_name: str):
        self.num_envs = num_envs
        self._name, self._parent = env_name, os.getpid()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trpo_tf.rollout.backends.preload", *single_env.modules(prepared.make_env)])
        sent = _Sent(prepared, env_name)
        self._reports, self._writer = context.Pipe(duplex=False)
        # Held before it is made, so that its processes can be ended where making it fails.
        self._envs = gym.vector.AsyncVectorEnv.__new__(gym.vector.AsyncVectorEnv)
        try:
            with _without_main(), self._read_failures():
                forkserver.ensure_running()
                self._envs.__init__(
                    [sent] * num_envs,
                    context="forkserver",
                    worker=functools.partial(_run, self._writer, context.Lock(), seed),
                    autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
                )
        except BaseException:
            self.close()
            raise
        self.max_episode_steps = sent.max_episode_steps
        self.single_observation_space = self._envs.single_observation_space
        self.single_action_space = self._envs.single_action_space
        self._pollers = [(pipe.fileno(), self._poller(pipe)) for pipe in self._envs.parent_pipes]

    def _poller(self, pipe: Connection) -> "select.poll":
        """What wakes up when one process has answered, or when any of them failed."""
        poller = select.poll()
        for readable in (pipe, self._reports, *(process.sentinel for process in self._envs.processes)):
            poller.register(readable, select.POLLIN)
        return poller

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As AsyncVectorEnv's."""
        with self._read_failures():
            self._envs.reset_async(seed=seed, options=options)
            self._wait()
            return self._envs.reset_wait()

    def step(self, action: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """As AsyncVectorEnv's."""
        with self._read_failures():
            self._envs.step_async(action)
            self._wait()
            return self._envs.step_wait()

    def _wait(self) -> None:
        """Until every process has answered; not in their order, so that none that died waits for one that hangs.

        Raises:
          EOFError: a process failed.
        """
        for pipe, poller in self._pollers:
            if any(readable != pipe for readable, _ in poller.poll()):
                raise EOFError

    @contextlib.contextmanager
    def _read_failures(self) -> Iterator[None]:
        """Raises EnvironmentFailure where a process has ended."""
        try:
            yield
        except (EOFError, ConnectionError):
            if not self._processes():  # raised by the environment that was made in this process
                raise
            raise self._failure() from None

    def _processes(self) -> list[multiprocessing.Process]:
        return [process for process in getattr(self._envs, "processes", []) if process.pid]

    def _failure(self) -> EnvironmentFailure:
        """What is known of the process that failed: what it reported, or else how it ended."""
        if self._reports.poll():
            index, text, trace = self._reports.recv()
        else:
            (index, text), trace = self._ended(), ""
        failure = EnvironmentFailure(
            f"environment failed: {text} (--env={self._name}, environment {index} of {self.num_envs})"
        )
        if trace:
            failure.add_note(trace)
        return failure

    def _ended(self) -> tuple[int, str]:
        """The first process that has ended, and how."""
        processes = self._processes()
        multiprocessing.connection.wait([process.sentinel for process in processes], CLOSE_SECONDS)
        for index, process in enumerate(processes):
            process.join(0.01)
            code = process.exitcode
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                return index, f"its process {how}"
        return 0, "its process does not answer"

    def close(self) -> None:
        """Ends the processes: they may close their environments, and are killed where that takes longer than 5 s."""
        self._end(CLOSE_SECONDS)

    def _end(self, seconds: float) -> None:
        pipes, processes = getattr(self._envs, "parent_pipes", []), self._processes()
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send(("close", None))
        _join(processes, seconds)
        for end in ("terminate", "kill"):
            for process in processes:
                if process.is_alive():
                    getattr(process, end)()
            _join(processes, 1.0)
        for pipe in (*pipes, self._reports, self._writer):
            pipe.close()
        self._envs.closed = True

    def __del__(self) -> None:
        if os.getpid() == self._parent and hasattr(self, "_envs") and not getattr(self._envs, "closed", False):
            self._end(0.0)


def _join(processes: list[multiprocessing.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


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


def _run(reports: Connection, lock, seed: int, index: int, make: Callable[[], gym.Env], *rest: Any) -> None:
    """What a process does. rest: as AsyncVectorEnv gives it to its worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    random.seed(seed + index)
    np.random.seed((seed + index) % 2**32)  # noqa: NPY002, environments may use it
    reporting = functools.partial(_reporting, reports, lock, index)

    def made() -> gym.Env:
        with reporting():
            env = make()
            return _Reporting(env, functools.partial(reporting, env))

    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent closed its end, or is no more
        _async_worker(index, made, *rest)


def _end_with_parent() -> None:
    """Ends this process with its parent, whatever its environment does just then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def _reporting(reports: Connection, lock, index: int, env: gym.Env | None = None) -> Iterator[None]:
    """Writes what is raised, even SystemExit, to the parent, and ends the process."""
    try:
        yield
    except BaseException as error:
        trace = traceback.format_exc()[-_LONGEST_TRACE:]
        with lock:
            reports.send((index, f"{type(error).__name__}: {first_line(error)}", trace))
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            if env is not None:
                env.close()
        os._exit(1)


class _Reporting(gym.Wrapper):
    """Returns what SyncVectorEnv would, without `info`; reports what is raised."""

    def __init__(self, env: gym.Env, reporting: Callable[[], contextlib.AbstractContextManager[None]]):
        super().__init__(env)
        self._reporting = reporting
        self._spaces = env.observation_space, batch_space(env.observation_space, 1)
        self._obs = create_empty_array(env.observation_space, 1, np.zeros)
        self._reward, self._flags = np.zeros(1), np.zeros(2, bool)

    def reset(self, **settings):
        """As the environment's."""
        with self._reporting():
            obs, _ = self.env.reset(**settings)
            return self._cast(obs), {}

    def step(self, action):
        """As the environment's."""
        with self._reporting():
            obs, self._reward[0], self._flags[0], self._flags[1], _ = self.env.step(action)
            return self._cast(obs), float(self._reward[0]), bool(self._flags[0]), bool(self._flags[1]), {}

    def _cast(self, obs):
        single, batched = self._spaces
        self._obs = concatenate(single, [obs], self._obs)
        return next(iter(iterate(batched, self._obs)))

    def close(self):
        """As the environment's, whose failure is of no consequence any more."""
        with contextlib.suppress(Exception):
            self.env.close()
