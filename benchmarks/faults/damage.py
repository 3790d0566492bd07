"""Damaged and hostile checkpoints: the next older whole one is used, and what is wrong is named in one line.

    python benchmarks/faults/damage.py

Nine kinds of damage to every file of a checkpoint, of the newest, an older one, and `best/`; and seventy checkpoints
that somebody made up, with checksums that are right where they can be. For each:

- resuming finds the newest checkpoint that is whole, names the damaged one, and raises only trpo_tf.errors.Error;
- no more than 64 MiB are allocated;
- no file appears, changes or goes, in the run or beside it.

Prints a table; exits with 1 if anything is wrong. The kind "no permission" is passed over where files are root's.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

from trpo_tf.config import from_dict, make_config, to_dict
from trpo_tf.errors import Error, NoCheckpointError
from trpo_tf.run import checkpoint
from trpo_tf.run.checkpoint import Checkpoint

_SEED = flags.DEFINE_integer("seed", 0, "of the bits that are flipped")
_MOST = 64 << 20  # bytes


def content(update: int) -> Checkpoint:
    """A small checkpoint with a whole configuration."""
    arrays = {"policy/w": np.arange(20.0) + update, "session/episodes": np.array(update)}
    config = to_dict(make_config(env="CartPole-v1"))
    meta = {"update": update, "evaluation": {"update": update, "return_mean": 1.0}, "backend": "envpool"}
    return Checkpoint(arrays, meta | {"own_networks": [False, False], "config": config, "versions": {"numpy": "2"}})


def damage(kind: str, file: Path, other: Path, random: np.random.Generator) -> bool:
    """Damages a file; False where that cannot be done here. other: a checkpoint of another update."""
    data = file.read_bytes()
    if kind == "no permission":
        file.chmod(0)
        return os.geteuid() != 0
    if kind == "huge":
        os.truncate(file, 1 << 40)
        return True
    file.unlink()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "one bit flipped":
        bit = int(random.integers(8 * len(data)))
        file.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :])
    elif kind == "another's file":
        [theirs] = other.glob(f"*{file.suffix}")
        shutil.copy(theirs, file)
    elif kind == "symbolic link":
        kept = file.parents[2] / "elsewhere"
        kept.write_bytes(data)
        file.symlink_to(kept)
    elif kind == "directory":
        file.mkdir()
    return True


KINDS = (
    "absent", "empty", "truncated", "one bit flipped", "another's file", "symbolic link", "directory", "no permission",
    "huge",
)  # fmt: skip


def seal(path: Path, manifest: dict) -> None:
    """Writes a manifest with the checksum that it should have."""
    manifest = {name: value for name, value in manifest.items() if name != "sha256"}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A hostile checkpoint: the manifest changed, and sealed."""

    def make(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        seal(path, manifest)

    return make


def set_at(*names: str, to: object) -> Callable[[Path], None]:
    """A hostile checkpoint: a value somewhere in its manifest is another one."""

    def change(manifest: dict) -> None:
        *way, last = names
        for name in way:
            manifest = manifest[name]
        manifest[last] = to

    return edited(change)


def named(name: str) -> Callable[[Path], None]:
    """A hostile checkpoint: its arrays are said to be in a file of this name."""
    return edited(lambda manifest: manifest.update(files={name: next(iter(manifest["files"].values()))}))


def text(content: bytes | str) -> Callable[[Path], None]:
    """A hostile checkpoint: its manifest is this."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / "manifest.json").write_bytes(data) and None


def with_arrays(data: bytes, size: int = 0) -> Callable[[Path], None]:
    """A hostile checkpoint: its arrays are these bytes, and nothing up to a size; the manifest says the same."""

    def make(path: Path) -> None:
        [file] = path.glob("state*")
        file.write_bytes(data)
        entry = {"bytes": max(size, len(data)), "sha256": hashlib.sha256(data).hexdigest()}
        if size:
            os.truncate(file, size)
        edited(lambda manifest: manifest.update(files={file.name: entry}))(path)

    return make


def header(declared: object, length: int | None = None) -> bytes:
    """What stands before the arrays in a safetensors file."""
    data = declared if isinstance(declared, bytes) else json.dumps(declared).encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data


def array(shape: list, start: int, end: int, dtype: str = "F64") -> dict:
    """One entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def linked(path: Path) -> None:
    """The directory is a link to a whole checkpoint elsewhere."""
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


PICKLE = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x01x\x94\x85\x94R\x94."  # posix.system("x")
PLACES = (
    "/etc/passwd",
    "../state.safetensors",
    "..",
    ".",
    "",
    "state.safetensors/..",
    "state.\0.safetensors",
    "a" * 300,
)
HOSTILE: dict[str, Callable[[Path], None]] = {
    **{f"arrays in {name[:30]!r}": named(name) for name in PLACES},
    **{f"manifest {name}": text(data) for name, data in {
        "a list": "[]", "a number": "3", "a word": '"x"', "null": "null", "NaN": "NaN", "not UTF-8": b"\xff\xfe\0",
        "UTF-16": "{}".encode("utf-16"), "a pickle": PICKLE, "deep lists": "[" * 500_000,
        "deep and closed": "[" * 90_000 + "]" * 90_000, "deep objects": '{"a":' * 90_000 + "1" + "}" * 90_000,
        "long integer": '{"format":' + "9" * 900_000 + "}", "twice": '{"format": 3, "format": 3, "sha256": ""}',
        "control characters": '{"\x01": "\x1b[31m"}', "zip": b"PK\x03\x04" + bytes(100),
        "an unfinished text": '{"format',
    }.items()},
    **{f"{name} is {value!r}": set_at(name, to=value) for name, value in (
        ("format", [3]), ("format", True), ("format", None), ("format", "3"), ("format", 10**6), ("files", []),
        ("files", {}), ("files", {"state.safetensors": 3}), ("meta", []), ("meta", None),
    )},
    **{f"meta {name} is {value!r}": set_at("meta", name, to=value) for name, value in (
        ("update", "3"), ("update", 2.0), ("update", True), ("update", -1), ("update", 10**18), ("update", 1),
        ("config", []), ("config", None), ("evaluation", 7), ("evaluation", {}), ("backend", {}), ("own_networks", 0),
    )},
    **{f"setting {name} is {value!r}"[:50]: set_at("meta", "config", name, to=value) for name, value in (
        ("gamma", "x"), ("gamma", [1]), ("gamma", float("nan")), ("num_envs", 1e400), ("hidden_sizes", 3),
        ("hidden_sizes", [{}]), ("env", "a\n--export_dir=/etc"), ("env", 7), ("wrappers", {}), ("nobody_knows", 1),
    )},
    "arrays, header of 1 TB": with_arrays(header(b"{}", 1 << 40)),
    "arrays, header of 2^63": with_arrays(header(b"{}", (1 << 63) - 1)),
    "arrays, 1 TB declared": with_arrays(header({"a": array([1 << 37], 0, 1 << 40)})),
    "arrays, 1 TB declared and sparse": with_arrays(header({"a": array([1 << 50], 0, 1 << 53)}), 1 << 40),
    "arrays, shape beyond the data": with_arrays(header({"a": array([1 << 40], 0, 16)}) + bytes(16)),
    "arrays, negative": with_arrays(header({"a": array([-2], 0, 16)}) + bytes(16)),
    "arrays, overlapping": with_arrays(header({"a": array([2], 0, 16), "b": array([2], 0, 16)}) + bytes(16)),
    "arrays, unknown type": with_arrays(header({"a": array([2], 0, 16, "OBJECT")}) + bytes(16)),
    "arrays, type without NumPy's": with_arrays(header({"a": array([8], 0, 16, "BF16")}) + bytes(16)),
    "arrays, header a list": with_arrays(header([1])),
    "arrays, header deep": with_arrays(header(b"[" * 500_000)),
    "arrays, a pickle": with_arrays(PICKLE),
    "arrays, nothing": with_arrays(b""),
    "a link to a checkpoint": linked,
}  # fmt: skip


def snapshot(directory: Path) -> dict[str, tuple]:
    """Names, sizes and times of everything below a directory."""
    entries = [(path, os.lstat(path)) for path in directory.rglob("*")]
    return {str(path): (status.st_size, status.st_mtime_ns, status.st_mode) for path, status in entries}


def attempt(directory: Path, place: str, expected: int | None, name: str) -> list[str]:
    """Takes up the newest checkpoint, with its configuration; what is not as it must be."""
    said: list[str] = []
    before, lines, found = snapshot(directory), [], None
    tracemalloc.start()
    try:
        found = checkpoint.newest(directory / "run" / place, said.append)
        from_dict(found.meta["config"])
    except NoCheckpointError as error:
        said.append(error.message)
    except Error as error:  # a setting, or a format of the future: names it, and a resume goes no further
        said.append(error.message)
        found, expected = None, None
    except BaseException as error:
        lines.append(f"{type(error).__name__}: {error}"[:200])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    update = None if found is None else found.meta["update"]
    if update != expected:
        lines.append(f"found update {update}, not {expected}")
    if not said or (name not in " ".join(said) and found is not None):
        lines.append(f"not named: {said}")
    if any("\n" in line for line in said):
        lines.append(f"more than a line: {said}")
    if peak > _MOST:
        lines.append(f"{peak >> 20} MiB allocated")
    return lines + ["a file was changed"] * (snapshot(directory) != before)


def fresh(directory: Path) -> dict[str, Path]:
    """A run with checkpoints 1, 2 and 3, and a best one; those that are damaged, by name."""
    run = directory / "run"
    shutil.rmtree(directory, ignore_errors=True)
    older, newest = [checkpoint.save(run / "checkpoints", content(update), 9) for update in (1, 2, 3)][1:]
    return {"newest": newest, "older": older, "best": checkpoint.save(run / "best", content(2), 1)}


def damages(directory: Path, random: np.random.Generator) -> tuple[int, int, list[str]]:
    """All kinds of damage to all files; how many there were, how many could not be made, and what was wrong."""
    count, left_out, lines = 0, 0, []
    for kind in KINDS:
        for which in ("newest", "older", "best"):
            for pattern in ("state*", "manifest.json"):
                path = fresh(directory)[which]
                if which == "older":  # the newest is damaged as well, so that this one is reached
                    (path.with_name("update_000000003") / "manifest.json").unlink()
                [file] = path.glob(pattern)
                if not damage(kind, file, directory / "run" / "checkpoints" / "update_000000001", random):
                    left_out += 1
                    continue
                count += 1
                expected = {"newest": 2, "older": 1, "best": None}[which]
                place = "best" if which == "best" else "checkpoints"
                lines += [f"{kind}, {which}, {file.name}: {x}" for x in attempt(directory, place, expected, path.name)]
    return count, left_out, lines


def main(_) -> None:
    """Damages, makes up, and counts."""
    random = np.random.default_rng(_SEED.value)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "work"
        count, left_out, lines = damages(directory, random)
        print(f"{count} damages, {left_out} passed over (files are root's), {len(lines)} wrong")
        others = []
        for title, make in HOSTILE.items():
            path = fresh(directory)["newest"]
            make(path)
            others += [f"{title}: {x}" for x in attempt(directory, "checkpoints", 2, path.name)]
        print(f"{len(HOSTILE)} hostile checkpoints, {len(others)} wrong")
    print(*(lines + others)[:20], sep="\n")
    sys.exit(bool(lines + others))


if __name__ == "__main__":
    app.run(main)
