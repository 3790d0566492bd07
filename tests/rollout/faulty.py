"""Forty odd ways to fail: what an environment may do in a call, and whether it does it to its process.

Nothing here imports TensorFlow: the environments are sent to processes of their own.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np


class Own(Exception):
    """A class of the environment's."""


class OwnBase(BaseException):
    """One that `except Exception` does not catch."""


class Mute(Exception):
    """Its text cannot be had."""

    def __str__(self):
        raise ValueError("no text")


class MuteBase(Exception):
    """Its text ends the program."""

    def __str__(self):
        raise SystemExit(0)


class Stubborn(Exception):
    """Cannot be pickled, nor made from its arguments."""

    def __init__(self, one, two):
        super().__init__("stubborn")
        self.lock = threading.Lock()


class Falsy(Exception):
    """Is not true."""

    def __bool__(self):
        return False


class Odd(NamedTuple):
    """What a call does: raises `error()`, or returns `change(what it would return)`, or calls `act()`."""

    error: Callable[[], BaseException] | None = None
    change: Callable[[tuple], object] | None = None
    act: Callable[[], None] | None = None
    alone: bool = False  # it ends or blocks its process: only in processes
    said: str = ""  # what the line has to say


def _raises(kind, *arguments, said=None):
    return Odd(error=lambda: kind(*arguments), said=kind.__name__ if said is None else said)


def _hangs(seconds=3600):
    return Odd(act=lambda: time.sleep(seconds), alone=True, said="takes longer than --env_timeout")


def _without_mercy():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def _recursion():
    return _recursion()


def _recurse():
    _recursion()


def _obs(value):
    return lambda result: (value, *result[1:])


ODD = {
    "attribute": _raises(AttributeError, "no such attribute"),
    "stop iteration": _raises(StopIteration),
    "stop iteration with value": _raises(StopIteration, 3),
    "stop async iteration": _raises(StopAsyncIteration),
    "generator exit": _raises(GeneratorExit),
    "cancelled": _raises(asyncio.CancelledError),
    "memory": _raises(MemoryError),
    "recursion": Odd(act=_recurse, said="RecursionError"),
    "key": _raises(KeyError, "goal"),
    "os": _raises(OSError, 5, "input/output error", said="input/output error"),
    "end of file": _raises(EOFError, "the simulator is gone"),
    "broken pipe": _raises(BrokenPipeError, 32, "broken pipe", said="BrokenPipeError"),
    "timeout": _raises(TimeoutError, "no answer"),
    "import": _raises(ImportError, "no such library"),
    "not implemented": _raises(NotImplementedError),
    "assertion": _raises(AssertionError),
    "warning": _raises(RuntimeWarning, "overflow"),
    "gymnasium": _raises(gym.error.Error, "of gymnasium"),
    "gymnasium reset": _raises(gym.error.ResetNeeded, "reset first"),
    "gymnasium action": _raises(gym.error.InvalidAction, "invalid"),
    "group": _raises(ExceptionGroup, "several", [ValueError("one"), KeyError("two")]),
    "base group": _raises(BaseExceptionGroup, "several", [GeneratorExit()]),
    "own": _raises(Own, "of my own"),
    "own base": _raises(OwnBase, "of my own"),
    "stubborn": Odd(error=lambda: Stubborn(1, 2), said="Stubborn: stubborn"),
    "falsy": _raises(Falsy, "false"),
    "mute": _raises(Mute, said="Mute: Mute"),
    "mute base": _raises(MuteBase, said="MuteBase: MuteBase"),
    "lines": _raises(Own, "first\nsecond\r\nthird", said="Own: first"),
    "control characters": _raises(Own, "a\x1b[31mb\x00c", said="Own: a\\x1b[31mb\\x00c"),
    "long": _raises(Own, "x" * 10_000_000, said="Own: xxx"),
    "surrogates": _raises(Own, "a\udcffb", said="Own: a\\udcffb"),
    "exit 0": _raises(SystemExit, 0, said="SystemExit: 0"),
    "exit 1": _raises(SystemExit, 1, said="SystemExit: 1"),
    "exit": _raises(SystemExit, said="SystemExit"),
    "exit with text": _raises(SystemExit, "goodbye", said="SystemExit: goodbye"),
    "sys.exit": Odd(act=lambda: sys.exit(0), said="SystemExit: 0"),
    "nothing": Odd(change=lambda result: None, said="does not return (obs, "),
    "too few": Odd(change=lambda result: result[:-1], said="does not return (obs, "),
    "too many": Odd(change=lambda result: (*result, 0), said="does not return (obs, "),
    "no observation": Odd(change=_obs(None), said="does not fit its observation space: observation is None"),
    "a word": Odd(change=_obs("word"), said="does not fit its observation space: observation is a str"),
    "another shape": Odd(
        change=_obs(np.zeros((3, 2), np.float32)),
        said="does not fit its observation space: observation has the shape (3, 2), (2,) is declared",
    ),
    "_exit": Odd(act=lambda: os._exit(0), alone=True, said="its process exited with code 0"),
    "abort": Odd(act=os.abort, alone=True, said="its process was killed by SIGABRT"),
    "kill": Odd(act=lambda: os.kill(os.getpid(), signal.SIGKILL), alone=True, said="its process was killed by SIGKILL"),
    "stop": Odd(act=lambda: os.kill(os.getpid(), signal.SIGSTOP), alone=True, said="takes longer than --env_timeout"),
    "segmentation fault": Odd(
        act=lambda: os.kill(os.getpid(), signal.SIGSEGV), alone=True, said="its process was killed by SIGSEGV"
    ),
    "hang": _hangs(),
    "hang without mercy": Odd(act=_without_mercy, alone=True, said="takes longer than --env_timeout"),
}


class Fault:
    """Makes a Flaky environment odd at one of its calls.

    Args:
      odd: the name of an entry of ODD.
      call: of the environment.
      first: the number of the first call in the process that fails.
      last: of the last one that does.
    """

    def __init__(self, odd: str, call: str, first: int, last: float = float("inf")):
        self.odd, self.call, self.first, self.last = odd, call, first, last

    def __call__(self, env, call, count):
        odd = ODD[self.odd]
        if call != self.call or not self.first <= count <= self.last:
            return None
        if odd.error is not None:
            raise odd.error()
        if odd.act is not None:
            odd.act()
        return odd.change
