"""Durable writes: after a call returns, the data survives a power failure."""

import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has its content.

    Raises:
      OSError: the file cannot be written.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Waits until the disk has the directory's entries.

    Raises:
      OSError: the directory cannot be opened.
    """
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
