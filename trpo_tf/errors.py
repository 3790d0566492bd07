"""What goes wrong, as users are told: one line that names a setting, its value and what is allowed.

Messages are written with flags, `--gamma=2`. On the command line they are shown so; in Python, where a setting is an
argument, `str(error)` leaves the dashes out.
"""

import re


class Error(Exception):
    """A failure that users are told in one line."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message  # speaks of flags

    def __str__(self) -> str:
        return re.sub(r"(?<![\w./-])--(?=[a-z])", "", self.message)


class UsageError(Error, ValueError):
    """A request that cannot be carried out as stated; the message names the setting, its value and what is allowed."""


class EnvironmentFailure(Error, RuntimeError):
    """An environment raised, or gave more NaN or infinity than allowed; the run can go on from its checkpoint."""


class NoCheckpointError(Error, RuntimeError):
    """No valid checkpoint where one was asked for."""


class ActingDiffersError(Error, RuntimeError):
    """The policy that acts is not the policy that learns: their probabilities of the same actions differ."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
