"""Checkpoints that are whole or absent: arrays in safetensors, a manifest with checksums, one rename."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from trpo_tf.config import UsageError

FORMAT = 2
_ARRAYS, _MANIFEST = "state.safetensors", "manifest.json"


class Checkpoint(NamedTuple):
    """A run's state after `meta["update"]` updates."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class FormatError(UsageError):
    """A checkpoint that another version of trpo_tf wrote; the message names both formats."""


class DamagedError(Exception):
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


class NoCheckpointError(RuntimeError):
    """No valid checkpoint where one was asked for."""


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Waits until the disk has the directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes directory/update_<number> all at once; removes older ones beyond `keep`, and all later ones.

    Raises:
      OSError: the disk is full, read-only or gone; earlier checkpoints are as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"update_{checkpoint.meta['update']:09d}"
    temporary, replaced = directory / f".{path.name}.tmp", directory / f".{path.name}.old"
    for leftover in directory.glob(".update_*"):  # of a save that was killed; the run's lock keeps others away
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir()
        data = safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in checkpoint.arrays.items()})
        manifest = {
            "format": FORMAT,
            "files": {_ARRAYS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
            "meta": checkpoint.meta,
        }
        manifest["sha256"] = _digest(manifest)
        write_file(temporary / _ARRAYS, data)
        write_file(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_directory(temporary)
        if path.exists():  # a damaged one, or one of a resumed run that came here again
            path.rename(replaced)
        temporary.rename(path)
        sync_directory(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    others = found(directory)
    later = others[: others.index(path)]  # from before the run was set back: another future than this one
    for old in [*later, *others[len(later) + keep :]]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def found(directory: Path) -> list[Path]:
    """Checkpoints in a directory by name, newest first; none of them opened."""
    return sorted(directory.glob("update_*"), reverse=True)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint and verifies every byte.

    Raises:
      DamagedError: a file is missing, not a regular file, unreadable, of another size or content.
    """
    try:
        manifest = json.loads(_read(path / _MANIFEST))
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
            raise DamagedError(f"{path / _MANIFEST}: checksum does not match")
        if manifest["format"] != FORMAT:
            raise FormatError(f"{path / _MANIFEST}: format {manifest['format']}, this version reads {FORMAT}")
        entry = manifest["files"][_ARRAYS]
        data = _read(path / _ARRAYS, entry["bytes"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise DamagedError(f"{path / _ARRAYS}: checksum does not match")
        return Checkpoint(safetensors.numpy.load(data), manifest["meta"])
    except FormatError:
        raise
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise DamagedError(f"{path}: {type(error).__name__}: {error}") from error


def newest(directory: Path, warn=lambda message: None) -> Checkpoint:
    """The newest valid checkpoint; damaged ones are passed over and named through `warn`.

    Raises:
      NoCheckpointError: there is none.
      FormatError: the newest intact one is of another format.
    """
    for path in found(directory):
        try:
            return load(path)
        except DamagedError as error:
            warn(f"damaged checkpoint passed over: {error}")
    raise NoCheckpointError(f"{directory}: no valid checkpoint")


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read(path: Path, size: int | None = None) -> bytes:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path}: not a regular file")
    if size is not None and status.st_size != size:
        raise DamagedError(f"{path}: {status.st_size} bytes, {size} expected")
    return path.read_bytes()
