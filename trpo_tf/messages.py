"""Lines for the person in front of the screen, apart from results."""

import contextlib
import io
import sys
from collections.abc import Iterator

from trpo_tf.errors import first_line


def warn(message: str) -> None:
    """One line on stderr, control characters escaped; silent when stderr is gone."""
    try:
        print(f"trpo_tf: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in message)}", file=sys.stderr)
    except (OSError, ValueError):
        sys.stderr = io.StringIO()


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
