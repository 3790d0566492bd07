"""What is said on stdout and stderr: whatever they are, saying it never ends a run."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from trpo_tf.errors import Error, first_line, one_line, reason

_kept: list[str] | None = None  # see `kept`


def warn(message: str) -> None:
    """One line on stderr, control characters escaped; silent when stderr is gone."""
    if _kept is not None:
        _kept.append(message)
        return
    with contextlib.suppress(OSError):  # a full disk: there is nowhere else to say it
        _write(sys.stderr, f"trpo_tf: {one_line(message)}\n")


@contextlib.contextmanager
def kept() -> Iterator[list[str]]:
    """Meanwhile `warn` adds to this list: where nobody reads stderr, and somebody else can say it."""
    global _kept
    before, _kept = _kept, []
    try:
        yield _kept
    finally:
        _kept = before


@contextlib.contextmanager
def warn_on_failure(what: str, kinds: tuple[type[Exception], ...], named: set[str] | None = None) -> Iterator[None]:
    """Turns an output that fails, on a full disk for example, into a warning.

    Args:
      what: the output's name.
      kinds: the exceptions that are turned.
      named: outputs that were named before and are not named again; None: name it every time.
    """
    try:
        yield
    except kinds as error:
        if named is None or what not in named:
            warn(f"{what} failed, training goes on: {first_line(error)}")
        if named is not None:
            named.add(what)


def tell(text: str) -> None:
    """A result of a command, on stdout; nothing where stdout is closed or its reader has gone.

    Raises:
      Error: it cannot be written, on a full disk for example.
    """
    stream: Any = sys.stdout
    try:
        _write(stream.stream() if isinstance(stream, Outlet) else stream, f"{text}\n")
    except OSError as error:
        raise Error(f"stdout cannot be written: {reason(error)}") from error


class Outlet:
    """A stream that may fail: what it cannot show is escaped, what it cannot take is lost, with one warning.

    Args:
      stream: gives the stream, sys.stdout for example, or None.
    """

    def __init__(self, stream: Callable[[], Any]):
        self.stream, self._warned = stream, False

    def write(self, text: str) -> int:
        """As a stream's."""
        self._attempt(lambda stream: _write(stream, text, flush=False))
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        self._attempt(lambda stream: _write(stream, ""))

    def _attempt(self, action: Callable[[Any], None]) -> None:
        try:
            action(self.stream())
        except OSError as error:
            warned, self._warned = self._warned, True
            if not warned:
                warn(f"what goes to the screen is lost: {first_line(error)}")

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "stream")(), name)


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Meanwhile stdout and stderr are outlets, for whatever prints: an environment that does is not to fail by it.

    Where the process was started without one of the three standard streams, its descriptor is /dev/null's: else the
    next file that is opened would get the number, and what libraries print would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # there is no /dev/null
                os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_outlet, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:  # what is left in them would fail at the interpreter's end, and change its exit code
            try:
                _write(stream, "")
            except OSError:
                _silence(stream)


def _outlet(stream: Any) -> Any:
    return None if stream is None else Outlet(lambda: stream)


def _write(stream: Any, text: str, flush: bool = True) -> None:
    """Writes to a stream; to none that is closed, or whose reader has gone.

    Raises:
      OSError: the stream fails otherwise.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        if stream is not None:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if flush:
                stream.flush()
    except BrokenPipeError:
        _silence(stream)
    except ValueError:  # it was closed
        pass


def _silence(stream: Any) -> None:
    """Lets what the stream holds, and what it is given from now on, go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no /dev/null, or the stream has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
