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


class Interrupted(Error):
    """An evaluation that was given up, because the run is to end."""


class NoCheckpointError(Error, RuntimeError):
    """No valid checkpoint where one was asked for."""


class ActingDiffersError(Error, RuntimeError):
    """The policy that acts is not the policy that learns: their probabilities of the same actions differ."""


_LONGEST = 300  # characters of what somebody else's exception says
_LONGEST_LINE = 1000


def first_line(error: BaseException) -> str:
    """What an exception says, in one printable line; the name of its class where it says nothing, or cannot.

    All of it where its first line announces the rest, as TensorFlow's "Graph execution error:" does.
    """
    try:
        text = str(error).strip()
    except KeyboardInterrupt:
        raise
    except BaseException:  # somebody else's code, too
        text = ""
    first = text[:_LONGEST_LINE].splitlines()[0] if text else type(error).__name__
    return one_line(text) if first.endswith(":") else one_line(first, _LONGEST)


def reason(error: BaseException) -> str:
    """As `first_line`; of an OSError without its number and its file, which the message around it names."""
    return getattr(error, "strerror", None) or first_line(error)


def described(error: BaseException) -> str:
    """The class of an exception, and what it says, in one printable line."""
    return f"{one_line(type(error).__name__, _LONGEST)}: {first_line(error)}"


def one_line(text: str, longest: int = _LONGEST_LINE) -> str:
    """A text as a line that a terminal can show: line ends are blanks, control characters escaped, the middle of a very
    long one left out."""
    if len(text) > 20 * longest:  # not worth going through
        text = text[: 10 * longest] + text[-10 * longest :]
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 3 :]}"
