"""An environment in this process that is made anew when it fails, and named when it hangs."""

import contextlib
import copy
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import gymnasium as gym

from trpo_tf.errors import described
from trpo_tf.messages import warn
from trpo_tf.rollout.backends import checks
from trpo_tf.rollout.backends.restarts import TRIES, Household, Lives, failed
from trpo_tf.rollout.env_state import Saver

_REPEATS = 200  # of all calls of an environment; with failures of probability p, n calls get through with (1 - p)^n


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Passes over whatever is raised, but for interrupts."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        pass


class Guard(gym.Wrapper):
    """An environment whose failures end its episode: truncated, with its last observation and reward 0.

    The reset that follows closes it, makes another one, and resets that with a seed of its own.

    Args:
      make: makes the environment, as single_env.Prepared does; called again after failures.
      index: of the environment in its household.
      household: see Household; where that is strict, what is raised is passed on.

    Raises:
      EnvironmentFailure: three times in a row it could not be made.
    """

    env: gym.Env

    def __init__(self, make: Callable[[], gym.Env], index: int, household: Household):
        self._make, self._lives, self.household = make, Lives(index, household), household
        self._repeating = self._closed = False
        super().__init__(self._made())
        self._spaces = self.env.observation_space, self.env.action_space
        self._obs: Any = None
        self._saves: Saver | None = None

    @property
    def index(self) -> int:
        """Of the environment in its household."""
        return self._lives.index

    def fail_next(self) -> None:
        """See Backend."""
        self._lives.pretended += 1

    def repeat(self, on: bool) -> None:
        """See Backend."""
        self.env, self._repeating = repeating(self.env, self._make, on), on

    def step(self, action):
        """As the environment's."""
        lives = self._lives
        if lives.broken or (lives.pretended and lives.pretend(1)):  # broken: when it was saved or put back
            return self._obs, 0.0, False, True, {}
        try:
            result = self.env.step(action)
        except BaseException as error:
            lives.fail(error)
            return self._obs, 0.0, False, True, {}
        self._obs = result[0]
        return result

    def reset(self, *, seed=None, options=None):
        """As the environment's, or as another one's that is made for it.

        Raises:
          EnvironmentFailure: three times in a row one could not be made or reset.
        """
        lives = self._lives
        seed = lives.seed(seed)
        lives.pretend(lives.pretended)
        for _ in range(TRIES):
            try:
                if lives.broken:
                    self._replace()
                    seed = lives.seed()
                obs, info = self.env.reset(seed=seed, options=options)
            except BaseException as error:
                lives.fail(error)
            else:
                self._obs, lives.broken = obs, False
                return obs, info
        raise lives.give_up()

    def save(self) -> tuple[Any, Any, int] | None:
        """Its last observation, its state, and how often it had failed; see Backend."""
        if self._lives.broken:
            return None
        try:
            return copy.deepcopy(self._obs), self._saver().save(), self._lives.count
        except BaseException as error:
            self._lives.fail(error)
            return None

    def restore(self, saved: tuple[Any, Any, int], seed: int | None) -> None:
        """Puts it back to where it was, or another one that is made for it; see Backend."""
        lives = self._lives
        self._obs, state, lives.count = saved
        try:
            if lives.broken:
                self._replace()
            self._saver().restore(state, seed)
        except BaseException as error:
            lives.fail(error)
        else:
            lives.broken = False

    def _saver(self) -> Saver:
        if self._saves is None or self._saves.env is not self.env:
            self._saves = Saver(self.env)
        return self._saves

    def _made(self) -> gym.Env:
        for _ in range(TRIES):
            try:
                return self._make()
            except BaseException as error:
                self._lives.fail(error)
        raise self._lives.give_up()

    def _replace(self) -> None:
        with quiet():  # it failed before, and was said to
            self.env.close()
        self.env = Repeating(self._make) if self._repeating else self._make()
        checks.same_spaces(self.env, self._spaces)

    def close(self) -> None:
        """As the environment's, once; a warning where that fails, since nothing depends on it any more."""
        if self._closed:
            return
        self._closed = True
        try:
            self.env.close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            name, told = self.household.env_name, self.household.told
            if name not in told:
                warn(failed(described(error), name, ", while it was closed"))
            told.add(name)


class Repeating(gym.Wrapper):
    """Repeats what worked once: where a call fails, all of them are made again in another environment.

    Args:
      make: makes the environments.
      env: the first one, neither reset nor stepped; None: made here.
    """

    env: gym.Env

    def __init__(self, make: Callable[[], gym.Env], env: gym.Env | None = None):
        self._make = make
        self._calls: list[tuple[str, tuple, dict]] = []
        super().__init__(env or self._until_it_works(make))

    def step(self, action):
        """As the environment's."""
        return self._call("step", action)

    def reset(self, **settings):
        """As the environment's."""
        return self._call("reset", **settings)

    def _call(self, name: str, *arguments: Any, **settings: Any) -> Any:
        self._calls.append((name, arguments, settings))
        try:
            return getattr(self.env, name)(*arguments, **settings)
        except KeyboardInterrupt:
            raise
        except BaseException:
            return self._until_it_works(self._from_the_start)

    def _from_the_start(self) -> Any:
        with quiet():
            self.env.close()
        self.env, result = self._make(), None
        for name, arguments, settings in self._calls:
            result = getattr(self.env, name)(*arguments, **settings)
        return result

    def _until_it_works(self, function: Callable[[], Any]) -> Any:
        for _ in range(_REPEATS - 1):
            try:
                return function()
            except KeyboardInterrupt:
                raise
            except BaseException:
                pass  # nobody needs to know: it is as if it had not happened
        return function()


def repeating(env: gym.Env, make: Callable[[], gym.Env], on: bool) -> gym.Env:
    """The environment, which has not been reset, repeating its calls; or, not `on`, what repeated them as it is."""
    if on:
        return Repeating(make, env)
    return env.env if isinstance(env, Repeating) else env


_CALLS = {getattr(Guard, name).__code__ for name in ("__init__", "step", "reset", "save", "restore", "close")}


class Watchdog:
    """Names, once, an environment of a household that takes longer than it may; nothing can end a call in here.

    A thread looks now and then at the calls that are under way in the other threads: steps cost nothing.
    """

    def __init__(self, household: Household):
        self._done = threading.Event()
        if household.timeout:
            watch = functools.partial(_watch, self._done, household)
            threading.Thread(target=watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._done.set()

    __del__ = close


def _watch(done: threading.Event, household: Household) -> None:
    began: dict[int, tuple[FrameType, float]] = {}
    while not done.wait(household.timeout / 4):
        now, calls = time.monotonic(), {}
        for thread, frame in sys._current_frames().items():
            call = _guarded(frame, household)
            if call is None:
                continue
            before, since = began.get(thread, (None, now))
            calls[thread] = call, since if call is before else now
            if now - calls[thread][1] >= household.timeout:
                return _name(call, household)
        began = calls


def _guarded(frame: FrameType | None, household: Household) -> FrameType | None:
    """The call of a guard of this household that a thread is in."""
    while frame is not None:
        if frame.f_code in _CALLS and getattr(frame.f_locals.get("self"), "household", None) is household:
            return frame
        frame = frame.f_back
    return None


def _name(call: FrameType, household: Household) -> None:
    what = call.f_code.co_name.replace("__init__", "constructor")
    warn(
        f"environment hangs: its {what} takes longer than --env_timeout={household.timeout:g} s (--env="
        f"{household.env_name}, environment {call.f_locals['self'].index} of {household.num_envs}); waiting for it, "
        "which --env_processes would end"
    )
