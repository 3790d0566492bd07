"""Files of a run: durable once a call returns, whole or absent, and never reached through a symbolic link."""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_file(path: Path, data: bytes, before_rename: Callable[[], None] = lambda: None) -> None:
    """Puts a file with this content in the place of what is there, all at once, and waits until the disk has it.

    A symbolic link of this name is replaced, not followed.

    Args:
      before_rename: called when the content is on the disk under a temporary name.

    Raises:
      OSError: the file cannot be written; what was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed
        with open(temporary, "xb") as file:  # x: never through a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the failure that is raised is the first one
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def append_file(path: Path, data: bytes) -> os.stat_result:
    """Appends to a file that is there; its status afterwards. All of the data is in it, or none.

    Raises:
      OSError: the disk is full, or the file is gone or a symbolic link; it is as it was.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | _FLAGS)
    try:
        end, rest = os.fstat(descriptor).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BaseException:
            os.ftruncate(descriptor, end)
            raise
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, most: int) -> bytes:
    """The content of a regular file; nothing is read of one that is larger than `most` bytes.

    Raises:
      OSError: there is no such file, it is a symbolic link or not regular, cannot be read, or is too large.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):  # opening a pipe would wait
        raise OSError(errno.EINVAL, "not a regular file")
    with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {most} expected")
        return file.read(size)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as its standard has it, which knows neither NaN nor infinity: they become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with None in the place of every float that is NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def sync_directory(path: Path) -> None:
    """Waits until the disk has the directory's entries; Windows, which has no such call, does not wait.

    Raises:
      OSError: the directory cannot be opened.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Waits until the disk has every file and directory below a directory, and the directory itself.

    Raises:
      OSError: one of them cannot be opened.
    """
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)
