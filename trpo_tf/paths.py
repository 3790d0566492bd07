"""Paths that users name: made absolute once, and tried before hours of work depend on them."""

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from trpo_tf.errors import UsageError, reason

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def absolute(name: str, path: Any) -> str:
    """The path from the root, ~ replaced by the home directory; it stays what it was where an environment changes the
    working directory. Links and .. stay in it.

    Args:
      name: of the setting, for messages.
      path: a text or os.PathLike.

    Raises:
      UsageError: it has control characters, or there is no such user, or no working directory.
    """
    check_characters(name, os.fspath(path))
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise UsageError(f"--{name}={path}: no home directory is known; ./{text} is the directory of that name")
    try:
        return os.path.join(os.getcwd(), text) if text else ""
    except OSError as error:
        raise UsageError(f"--{name}={path}: the working directory is gone") from error


def check_characters(name: str, text: str) -> None:
    """Raises UsageError where a setting's text has control characters: flags.txt has a line for each flag."""
    if _CONTROL.search(text):
        raise UsageError(f"--{name}={text!r}: control characters are not allowed")


def check_name(name: str, path: str | os.PathLike) -> None:
    """Raises UsageError unless a path ends in a name that a directory can have, and messages can show."""
    last = os.path.basename(os.fspath(path).rstrip(os.sep))
    if last in ("", ".", "..") or not last.isprintable() or len(os.fsencode(last)) > 255:
        raise UsageError(f"--{name}={str(path)!r}: its last part must be a printable name of at most 255 bytes")


def check_readable(name: str, path: str) -> None:
    """Raises UsageError unless there is a directory to read from."""
    if not os.path.isdir(path):
        raise UsageError(f"--{name}={path}: {'not a directory' if os.path.lexists(path) else 'no such directory'}")


def try_directory(name: str, path: str) -> None:
    """Tries whether a directory can be written, or be made where it is not there yet; makes nothing.

    Raises:
      UsageError: it cannot.
    """
    existing, missing = Path(path), []
    while not os.path.lexists(existing) and existing != existing.parent:
        missing.append(existing.name)
        existing = existing.parent
    try:
        for new in (Path(path), *(existing / part for part in missing)):
            with contextlib.suppress(FileNotFoundError):  # as it should; it fails otherwise where the name is refused
                os.lstat(new)
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(f"--{name}={path}: cannot be written: {reason(error)}") from error


def try_file(name: str, path: str) -> None:
    """Opens a file for writing without changing it; one that was not there is removed again.

    Raises:
      UsageError: it is a directory, there is no directory for it, or it cannot be written.
    """
    try:
        if os.path.exists(path):
            if stat.S_ISREG(os.stat(path).st_mode) or os.path.isdir(path):  # opening a pipe would wait for its reader
                os.close(os.open(path, os.O_WRONLY))
        else:
            target = os.path.realpath(path)  # of a link that leads nowhere yet
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.unlink(target)
    except OSError as error:
        raise UsageError(f"--{name}={path}: cannot be written: {reason(error)}") from error
