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

from trpo_tf import faults
from trpo_tf.errors import Error, NoCheckpointError, UsageError
from trpo_tf.files import sync_directory, write_file

FORMAT = 3
_ARRAYS, _MANIFEST = "state.safetensors", "manifest.json"


class Checkpoint(NamedTuple):
    """A run's state after `meta["update"]` updates."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class FormatError(UsageError):
    """A checkpoint that another version of trpo_tf wrote; the message names both formats."""


class DamagedError(Error):
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


def save(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes directory/update_<number> all at once; removes older ones beyond `keep`, and all later ones.

    Raises:
      OSError: the disk is full, read-only or gone; earlier checkpoints are as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"update_{checkpoint.meta['update']:09d}"
    for leftover in directory.glob(".update_*"):  # of a save that was killed; the run's lock keeps others away
        _mend(directory / leftover.name[1:].rsplit(".", 1)[0])
    write(path, checkpoint)
    others = found(directory)
    later = others[: others.index(path)]  # from before the run was set back: another future than this one
    for old in [*later, *others[len(later) + keep :]]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one checkpoint as the directory `path`, all at once; one that is there is replaced.

    Raises:
      OSError: the disk is full, read-only or gone; what was there is as it was.
    """
    temporary, replaced = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    _mend(path)
    try:
        temporary.mkdir(parents=True)
        data = safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in checkpoint.arrays.items()})
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "files": {_ARRAYS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
            "meta": checkpoint.meta,
        }
        manifest["sha256"] = _digest(manifest)
        faults.point("save_arrays")
        write_file(temporary / _ARRAYS, data)
        faults.point("save_manifest")
        write_file(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_directory(temporary)
        faults.point("save_rename")
        if path.exists():  # a damaged one, or one of a resumed run that came here again
            path.rename(replaced)
        temporary.rename(path)
        sync_directory(path.parent)
        faults.point("saved")
    finally:
        _mend(path)


def _mend(path: Path) -> None:
    """Removes what a save of `path` left behind that was killed or failed; what was there before is there again."""
    temporary, replaced = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    if replaced.exists() and not path.exists():
        replaced.rename(path)
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def found(directory: Path) -> list[Path]:
    """Checkpoints in a directory by name, newest first; none of them opened.

    A save that was killed while it replaced a checkpoint has left that under a hidden name.
    """
    known = {path.name: path for path in directory.glob("update_*")}
    for path in directory.glob(".update_*.old"):
        known.setdefault(path.name[1:].removesuffix(".old"), path)
    return [known[name] for name in sorted(known, reverse=True)]


def is_one(path: Path) -> bool:
    """Whether a directory holds a checkpoint, whole or not."""
    return (path / _MANIFEST).is_file() or (path / _ARRAYS).is_file()


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
