"""One gymnasium environment in a process of its own: what the process does, and its handle, which notices its end.

The process does what it is told, one call after the other. It writes observations to memory that the parent sees, too,
and answers the rest. What its environment raises, even SystemExit, it reports; then it ends.
"""

import contextlib
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import write_to_shared_memory

from trpo_tf.rollout.backends import checks
from trpo_tf.rollout.backends.guard import quiet, repeating
from trpo_tf.rollout.env_state import Saver, packed, unpacked

_LONGEST_TRACE = 8000  # characters; what is sent must fit into a pipe that nobody reads yet


class Ended(Exception):
    """A process that will not answer any more.

    Args:
      text: why, in one line.
      trace: where, if it could say.
      misfit: see checks.Misfit, where its environment raised that.
    """

    def __init__(self, text: str, trace: str = "", misfit: checks.Misfit | None = None):
        super().__init__(text)
        self.text, self.trace, self.misfit = text, trace, misfit


class EnvProcess:
    """The handle of a process.

    Args:
      process: started already; it runs `run`.
      pipe: to it.
      timeout: seconds for one call; 0: any time.
    """

    def __init__(self, process: BaseProcess, pipe: Connection, timeout: float):
        self.process, self._pipe, self._timeout = process, pipe, timeout
        self._due = 0  # answers
        self._poller = select.poll()
        for readable in (pipe, process.sentinel):
            self._poller.register(readable, select.POLLIN)
        self._asked("constructor")

    def ask(self, call: str, data: Any = None) -> None:
        """Tells the process what to do, without waiting for it."""
        with contextlib.suppress(OSError):  # it has ended, which `answer` finds out
            self._pipe.send((call, data))
        self._asked(call)

    def _asked(self, call: str) -> None:
        self._call, self._due = call, self._due + 1
        self._until = time.monotonic() + self._timeout

    def answer(self) -> Any:
        """The answer to the last of what it was asked, when it has done all of it.

        Raises:
          Ended: it will not come.
        """
        value = None
        while self._due:
            left = max(0, round(1000 * (self._until - time.monotonic()))) if self._timeout else None
            ready = [descriptor for descriptor, _ in self._poller.poll(left)]
            if not ready:
                raise Ended(f"its {self._call} takes longer than --env_timeout={self._timeout:g} s")
            if self._pipe.fileno() not in ready:  # a process of the environment's may hold the pipe open
                raise Ended(self._how_it_ended())
            try:
                done, value = self._pipe.recv()
            except (EOFError, OSError):
                raise Ended(self._how_it_ended()) from None
            if not done:
                raise Ended(*value)
            self._due -= 1
        return value

    def _how_it_ended(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return "its process does not answer"
        return (
            f"its process was killed by {_signal_name(-code)}" if code < 0 else f"its process exited with code {code}"
        )

    def close(self) -> None:
        """Frees the pipe."""
        self._pipe.close()


def end(processes: list[EnvProcess], seconds: float) -> None:
    """Ends processes: they may close their environments in so many seconds, and are killed then."""
    for one in processes:
        with contextlib.suppress(OSError):  # it has ended already
            one._pipe.send(("close", None))
    _join(processes, seconds)
    for how in ("terminate", "kill"):
        for one in processes:
            if one.process.is_alive():
                getattr(one.process, how)()
        _join(processes, 1.0)
    for one in processes:
        one.close()


def _join(processes: list[EnvProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for one in processes:
        one.process.join(max(0.0, deadline - time.monotonic()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of real time
        return f"signal {number}"


def run(
    pipe: Connection, memory: Any, index: int, seed: int, make: Callable[[], gym.Env], spaces: Callable[[], Any]
) -> None:
    """What a process does.

    Args:
      pipe: to the parent.
      memory: where the observations of all environments are.
      index: of this one's.
      seed: of the global generators, which an environment should not use.
      make: makes the environment.
      spaces: returns those of observations and of actions that it has to have.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, environments may use it
    env = saver = None
    try:
        env = make()
        checks.same_spaces(env, spaces())
        space = env.observation_space
        pipe.send((True, ()))
        while (call := pipe.recv())[0] != "close":
            name, data = call
            answer: Any = ()
            if name == "repeat":
                env, saver = repeating(env, make, data), None
            elif name == "save":
                saver = saver or Saver(env)
                answer = packed(saver.save())
            elif name == "restore":
                saver = saver or Saver(env)
                saver.restore(unpacked(data[0]), data[1])
            else:
                obs, *answer = env.reset(seed=data)[:1] if name == "reset" else env.step(data)[:4]
                with np.errstate(over="ignore"):  # what is beyond the space's dtype is infinite
                    write_to_shared_memory(space, index, obs, memory)
            pipe.send((True, answer))
    except BaseException as error:
        with contextlib.suppress(BaseException):  # EOFError, BrokenPipeError: the parent is no more
            misfit = checks.Misfit(str(error), error.first) if isinstance(error, checks.Misfit) else None
            pipe.send((False, (checks.what_happened(error), traceback.format_exc()[-_LONGEST_TRACE:], misfit)))
        _close(env)
        os._exit(1)
    _close(env)


def _close(env: gym.Env | None) -> None:
    with quiet():  # the descriptor may be closed, or its disk full
        sys.stdout.flush()
    with quiet():  # its failure is of no consequence any more
        if env is not None:
            env.close()


def _end_with_parent() -> None:
    """Ends this process with its parent, whatever its environment does just then."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
