"""Environments that fail and are made anew: what is known of a failure, and with which seed the next life begins."""

from typing import NamedTuple

from trpo_tf import seeds
from trpo_tf.errors import EnvironmentFailure, Error, UsageError, described, first_line
from trpo_tf.messages import warn
from trpo_tf.rollout.backends.checks import Misfit, what_happened

TRIES = 3  # to make or reset an environment, without a step between


def failed(what: str, env_name: str, more: str = "") -> str:
    """The line about an environment that failed. more: goes on with what is said of it."""
    return f"environment failed: {what} (--env={env_name}{more})"


class Named:
    """Names the environment in whatever is raised, of any class; an interrupt is the user's.

    A generator of contextlib would not do: with a RuntimeError from a StopIteration it raises the latter.

    Args:
      env_name, more: see `failed`.
      mistakes: kinds that are mistakes of the user's.
    """

    def __init__(self, env_name: str, more: str = "", mistakes: tuple[type[Exception], ...] = ()):
        self._name, self._more, self._mistakes = env_name, more, mistakes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if error is None or isinstance(error, Error | KeyboardInterrupt):
            return
        if isinstance(error, self._mistakes):
            raise UsageError(f"--env={self._name}: {first_line(error)}") from error
        raise EnvironmentFailure(failed(described(error), self._name, self._more)) from error


class Failure(NamedTuple):
    """That an environment raised, or that its process died or hung."""

    env: int  # its index
    message: str  # one line
    cause: BaseException | None = None
    trace: str = ""  # of another process
    lived: bool = True  # False: it could not be made in the first place, and is made with the same seed again

    def error(self, more: str = "") -> EnvironmentFailure:
        """What to raise where nothing is made anew. more: ends the message."""
        error = EnvironmentFailure(self.message + more)
        error.__cause__ = self.cause
        if self.trace:
            error.add_note(self.trace)
        return error


class Household:
    """What the environments of one backend share.

    Args:
      env_name, num_envs: for messages.
      timeout: seconds for one call of an environment; 0: any time.
      strict: nothing is made anew; what is raised is passed on.
      first: none were made before: what does not fit before a step worked is a mistake of the user's.
      told: names of environments that failed while they were closed, which is not told again; None: none yet.

    Attributes:
      failures: of its environments, until somebody clears them.
    """

    def __init__(
        self,
        env_name: str,
        num_envs: int,
        timeout: float = 0.0,
        strict: bool = False,
        first: bool = False,
        told: set[str] | None = None,
    ):
        self.env_name, self.num_envs, self.timeout = env_name, num_envs, timeout
        self.strict, self.first, self.told = strict, first, set() if told is None else told
        self.failures: list[Failure] = []


class Lives:
    """The lives of one environment.

    Attributes:
      count: how often it failed.
      broken: it has to be made anew before anything else.
      pretended: how often it is to fail at the next call without being asked.
    """

    def __init__(self, index: int, household: Household):
        self.index, self._household = index, household
        self.count, self.broken, self.pretended = 0, False, 0
        self._seed: int | None = None  # of the first life, when it was reset

    def fail(self, error: BaseException, text: str = "", trace: str = "") -> None:
        """Another life is over; where nothing is made anew, and for interrupts, raises.

        Args:
          error: what was raised.
          text: what happened, where that is not what the error says.
          trace: see Failure.

        Raises:
          UsageError: something did not fit at the very first.
        """
        house = self._household
        if isinstance(error, KeyboardInterrupt) or (house.strict and not text and not isinstance(error, Misfit)):
            raise error
        text = text or what_happened(error)
        if isinstance(error, Misfit) and error.first and house.first and not self.count:
            raise UsageError(f"--env={house.env_name}: {text}") from error
        lived = self._seed is not None
        line = failed(text, house.env_name, f", environment {self.index} of {house.num_envs}")
        failure = Failure(self.index, line, error, trace, lived)
        if house.strict:
            raise failure.error()
        house.failures.append(failure)
        self.count, self.broken = self.count + lived, lived

    def pretend(self, times: int) -> bool:
        """Fails up to so many times as it was told; whether it was told to."""
        times = min(times, self.pretended)
        self.pretended -= times
        self.count, self.broken = self.count + times, self.broken or times > 0
        return times > 0

    def seed(self, first: int | None = None) -> int | None:
        """What to reset with. first: the seed of the first life, where this is its first reset; None: it goes on."""
        if first is not None:
            self._seed = first
        if not self.broken:
            return first
        assert self._seed is not None
        return seeds.derive_seed(self._seed, seeds.ENV_RESTARTS, self.count)

    def give_up(self) -> EnvironmentFailure:
        """What to raise after TRIES failures."""
        return self._household.failures[-1].error(f"; {TRIES} times in a row")


def count_restarts(failures: list[Failure], before: int, allowed: int) -> int:
    """Environments made anew so far, `before` and these; the first is named on stderr.

    Raises:
      EnvironmentFailure: they are more than allowed.
    """
    for failure in failures:
        if before >= allowed:
            raise failure.error(f"; --max_env_restarts={allowed}")
        if not before:
            warn(f"{failure.message}; made anew, its episode is dropped")
        before += 1
    return before
