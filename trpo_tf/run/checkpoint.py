"""Checkpoints that are whole or absent: arrays in safetensors, and a manifest with checksums that names their file.

A checkpoint is a directory. Its manifest appears, and is replaced, by one rename when everything that it names is on
the disk, so that the directory holds the old checkpoint or the new one, whole, at every instant of a save.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from trpo_tf import faults
from trpo_tf.errors import Error, NoCheckpointError, UsageError, described, first_line, reason
from trpo_tf.files import finite, read_file, sync_directory, to_json, write_file
from trpo_tf.state import StateError

FORMAT = 4
_MANIFEST = "manifest.json"
_ARRAYS = re.compile(r"state(\.[0-9a-f]{16})?\.safetensors")
_OURS = re.compile(rf"\.?({re.escape(_MANIFEST)}|{_ARRAYS.pattern})(\.tmp)?")
_VISIBLE = re.compile(r"update_([0-9]{9,18})")
# What older versions left where they were killed between two renames: the new checkpoint and the one it replaced.
_HIDDEN = re.compile(r"\.update_([0-9]{9,18})\.(tmp|old)")
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}  # say nothing of a file
_MOST_MANIFEST = 1 << 20  # bytes; a run's has some 5,000
_MOST_HEADER = 1 << 24  # bytes of names, types and shapes before the arrays
_META: dict[str, type | tuple[type, ...]] = {
    "update": int, "evaluation": (dict, type(None)), "backend": str, "own_networks": list, "config": dict,
    "versions": dict,
}  # fmt: skip


class Checkpoint(NamedTuple):
    """A run's state after `meta["update"]` updates."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    path: Path | None = None  # where it was read from


class FormatError(UsageError):
    """A checkpoint that another version of trpo_tf wrote; the message names both formats."""


class DamagedError(NoCheckpointError):
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


def save(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes directory/update_<number> all at once; removes older ones beyond `keep`, and all later ones.

    Raises:
      OSError: the disk is full, read-only or gone; earlier checkpoints are as they were.
    """
    path = directory / f"update_{checkpoint.meta['update']:09d}"
    if path.is_symlink() or path.is_file():
        path.unlink()
    write(path, checkpoint)
    others = found(directory)
    visible = [other for other in others if _VISIBLE.fullmatch(other.name)]
    kept = visible[visible.index(path) :][:keep]
    # Later ones are of another future than this run's. The newest goes last: until then it is what a resume finds.
    for old in reversed([other for other in others if other not in kept]):
        _remove(old)
    return path


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one checkpoint as the directory `path`, all at once, in the place of one that is there.

    Raises:
      OSError: the disk is full, read-only or gone; what was there is as it was.
    """
    data = safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in checkpoint.arrays.items()})
    digest = hashlib.sha256(data).hexdigest()
    arrays = f"state.{digest[:16]}.safetensors"  # of its own, so that the old manifest's file stays meanwhile
    files = {arrays: {"bytes": len(data), "sha256": digest}}
    manifest = {"format": FORMAT, "files": files, "meta": finite(checkpoint.meta)}
    manifest["sha256"] = _digest(manifest)
    path.mkdir(parents=True, exist_ok=True)
    with os.scandir(path) as entries:
        kept = {one.name for one in entries if one.is_file(follow_symlinks=False) and not one.name.endswith(".tmp")}
    if _MANIFEST not in kept:  # of a save that did not come to its end, or damaged
        kept = set()
    _clear(path, kept)

    def about_to_rename() -> None:
        kept.add(arrays)  # from now on the manifest may name it
        faults.point("save_rename")

    try:
        faults.point("save_arrays")
        write_file(path / arrays, data)
        faults.point("save_manifest")
        write_file(path / _MANIFEST, to_json(manifest, indent=1).encode(), about_to_rename)
        sync_directory(path.parent)
        faults.point("saved")
    except BaseException:
        _clear(path, kept)
        if not kept:
            with contextlib.suppress(OSError):  # somebody else's files are in it; what stopped the save is raised
                path.rmdir()
        raise
    _clear(path, {arrays, _MANIFEST})


def _clear(path: Path, kept: set[str]) -> None:
    """Removes what `write` may have put into a directory, all but `kept`."""
    for name in os.listdir(path):
        if _OURS.fullmatch(name) and name not in kept:
            _remove(path / name)


def _remove(path: Path) -> None:
    """Removes whatever has this name, as well as it can be; what a symbolic link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # what cannot be removed is passed over, as rmtree does
            path.unlink()


def found(directory: Path) -> list[Path]:
    """Checkpoints in a directory by name, newest first; none of them opened."""
    known = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no run has been there
        for name in os.listdir(directory):
            if match := _VISIBLE.fullmatch(name) or _HIDDEN.fullmatch(name):
                known[int(match[1]), name[0] != ".", name] = directory / name
    return [known[key] for key in sorted(known, reverse=True)]


def number(path: Path) -> int:
    """The update of what `found` gave."""
    match = _VISIBLE.fullmatch(path.name) or _HIDDEN.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def unfinished_first(directory: Path) -> bool:
    """Whether there is nothing but a first save that was killed before its end: no work is in it."""
    first = directory / "update_000000000"
    names = os.listdir(first) if first.is_dir() and not first.is_symlink() else [_MANIFEST]
    return os.listdir(directory) == [first.name] and _MANIFEST not in names and all(map(_OURS.fullmatch, names))


def is_one(path: Path) -> bool:
    """Whether a directory holds a checkpoint of `write`, whole or not, and be it a save that was killed."""
    return path.is_dir() and any(_OURS.fullmatch(name) for name in os.listdir(path))


def newest(directory: Path, warn: Callable[[str], None] = lambda message: None) -> Checkpoint:
    """The newest valid checkpoint; damaged ones are passed over and named through `warn`.

    Raises:
      NoCheckpointError: there is none; names the damaged ones.
      FormatError: the newest intact one is of another format.
    """
    tried: list[Path] | None = None
    damaged: list[str] = []
    while (paths := found(directory)) != tried:  # a run that saves meanwhile removes older ones
        tried, damaged = paths, []
        for path in paths:
            try:
                return _load_update(path)
            except DamagedError as error:
                damaged.append(error.message)
                if _VISIBLE.fullmatch(path.name):
                    warn(f"damaged checkpoint passed over: {error.message}")
    if len(damaged) > 3:
        damaged[3:] = [f"and {len(damaged) - 3} more"]
    raise NoCheckpointError(f"{directory}: no valid checkpoint{': ' * bool(damaged)}{'; '.join(damaged)}")


def _load_update(path: Path) -> Checkpoint:
    """The checkpoint directory/update_<number>, which must be of this number."""
    with _damage_of(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise ValueError("not a directory")
    checkpoint = load(path)
    if checkpoint.meta["update"] != number(path):
        raise DamagedError(f"{path / _MANIFEST}: of update {checkpoint.meta['update']}, not of this one")
    return checkpoint


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint and verifies every byte.

    Raises:
      DamagedError: a file is missing, not a regular file, unreadable, too large, of another form, size or content.
      FormatError: it is intact, and of another format.
    """
    while True:
        manifest = _read_manifest(path / _MANIFEST)
        try:
            return Checkpoint(_read_arrays(path, manifest["files"]), manifest["meta"], path)
        except DamagedError:
            if _read_manifest(path / _MANIFEST) == manifest:  # else it was replaced meanwhile, and the arrays with it
                raise


def load_saved(path: Path) -> Checkpoint:
    """As `load`; where it is not whole, what an older version left that was killed while it replaced `path`.

    Raises:
      UsageError: nobody has saved there.
    """
    others = [path.with_name(f".{path.name}.{end}") for end in ("tmp", "old")]
    there = [other for other in (path, *others) if is_one(other)]
    if not there:
        raise UsageError(f"{path}: no agent that `save` wrote; TRPO.resume takes the directory of a run")
    for other in there[:-1]:
        with contextlib.suppress(DamagedError):  # the next one is older, or the last, of which the damage is told
            return load(other)
    return load(there[-1])


def _read_manifest(path: Path) -> dict[str, Any]:
    with _damage_of(path):
        manifest = _parse(read_file(path, _MOST_MANIFEST))
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
            raise ValueError("checksum does not match")
        if type(manifest["format"]) is not int:
            raise ValueError("no format")
        if manifest["format"] != FORMAT:
            raise FormatError(f"{path}: format {manifest['format']}, this version reads {FORMAT}")
        meta = manifest["meta"]
        for name, kind in _META.items():
            if not isinstance(meta[name], kind) or isinstance(meta[name], bool):
                raise ValueError(f"{name} is of another form")
        if meta["evaluation"] is not None and type(meta["evaluation"]["update"]) is not int:
            raise ValueError("evaluation is of another form")
        return manifest


def _read_arrays(path: Path, files: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    with _damage_of(path / _MANIFEST):
        [(name, entry)] = files.items()
        if not _ARRAYS.fullmatch(name):
            raise ValueError(f"{name!r} is no file of a checkpoint")
        size, digest = entry["bytes"], entry["sha256"]
    with _damage_of(path / name):
        actual = os.lstat(path / name).st_size
        if actual != size:
            raise ValueError(f"{actual} bytes, {size} expected")
        _check_size(path / name, size)
        data = read_file(path / name, size)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("checksum does not match")
        return safetensors.numpy.load(data)


def _check_size(path: Path, size: int) -> None:
    """Before much is read: the arrays that the header names fill the file, and this machine could hold them."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _MOST_HEADER):
            raise ValueError(f"a header of {length} bytes")
        header = _parse(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError("Safetensor header does not fit the file")
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(f"{size} bytes, more than this machine's memory")


def _parse(data: bytes) -> Any:
    """JSON, without what no checkpoint has: names that come twice, integers of more than 64 bits."""

    def integer(text: str) -> int:
        if len(text) > 20:
            raise ValueError(f"an integer of {len(text)} digits")
        return int(text)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("a name comes twice")
        return dict(items)

    return json.loads(data.decode(), parse_int=integer, object_pairs_hook=pairs)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file of unknown origin is read is damage of this file."""
    try:
        yield
    except Error:
        raise
    except OSError as error:
        if error.errno in _PASSING:
            raise Error(f"{path}: cannot be read now: {reason(error)}") from error
        raise DamagedError(f"{path}: {reason(error)}") from error
    except Exception as error:  # RecursionError and MemoryError among them
        what = first_line(error) if type(error) is ValueError else described(error)
        raise DamagedError(f"{path}: {what}") from error


@contextlib.contextmanager
def taken_over(path: Path | None) -> Iterator[None]:
    """Names the checkpoint where its state does not fit what takes it over, whatever way that shows."""
    try:
        yield
    except StateError as error:
        raise StateError(f"{path}: {error.message}") from error
    except Error:
        raise
    except Exception as error:
        raise DamagedError(f"{path}: does not fit: {described(error)}") from error
