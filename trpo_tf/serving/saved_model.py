"""Policies on disk: numbered versions below a directory, as TF Serving lays them out, each a SavedModel.

A version is never overwritten. It appears by one rename when all of its files are on the disk.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.errors import UsageError, reason
from trpo_tf.files import read_file, sync_directory, sync_tree, to_json, write_file
from trpo_tf.policy.policy import Policy
from trpo_tf.serving import warm_up
from trpo_tf.serving.signatures import ServedVariables, Signatures

METADATA = Path("assets.extra") / "policy.json"  # below a version
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")  # 008 is another name than 8
_PATTERN = re.compile(r"\[[^/]*\]|\\")
_MOST_METADATA = 1 << 24  # bytes of a policy.json
_KINDS: dict[str, type] = {"env": str, "flags": dict}  # entries of it that are used
_ABANDONED = 24 * 3600  # seconds after which an unfinished export is taken for that of a killed process


def save(policy: Policy, reward_scale: float, metadata: dict[str, Any], export_dir: Path) -> Path:
    """Writes the policy as the next version below export_dir.

    Unfinished exports of killed processes are removed when they are a day old.

    Args:
      reward_scale: units of reward in one unit of the value network's output.
      metadata: entries of policy.json, besides the signatures and the structure of the action.
      export_dir: made if it is missing.

    Returns:
      The directory of the version.

    Raises:
      UsageError: export_dir is a path that TensorFlow does not load from.
      OSError: export_dir cannot be written; no version appears.
    """
    check_directory(export_dir)
    export_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(export_dir)
    temporary = export_dir / f".export.{uuid.uuid4().hex}.tmp"
    try:
        served = ServedVariables(policy)
        functions = Signatures(policy, served, reward_scale).concrete()
        metadata = metadata | {"action": policy.distribution.structure()}
        write(temporary, served, functions, metadata, _examples(policy, max(warm_up.BATCH_SIZES)))
        sync_tree(temporary)
        version = _rename_to_next_version(temporary, export_dir)
        sync_directory(export_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def check_directory(export_dir: Path) -> None:
    """Refuses a path below which a SavedModel can be written but not loaded.

    TensorFlow looks for the variables by a pattern, their path: [...] there means one character, and \\ the next one.

    Raises:
      UsageError: names what is in the path.
    """
    path = str(export_dir.absolute())
    found = _PATTERN.search(path)
    what = f"TensorFlow takes {ascii(found[0])[1:-1]} in a path for a pattern" if found else ""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in path):  # bytes that are no UTF-8
        what = "TensorFlow takes UTF-8 in a path only"
    if what:
        raise UsageError(f"--export_dir={ascii(str(export_dir))[1:-1]}: {what}, and loads no SavedModel from there")


def write(
    directory: Path,
    served: tf.Module,
    functions: dict[str, Any],
    metadata: dict[str, Any],
    examples: dict[str, np.ndarray],
) -> None:
    """Writes a SavedModel with policy.json and warm-up requests.

    Args:
      directory: must not exist.
      served: tracks the variables.
      functions: the signatures, concrete; `sample` is among them.
      metadata: entries of policy.json, besides the signatures.
      examples: inputs of the signatures by name, [32, ...] each; raw_action is not among them.

    Raises:
      OSError: a file cannot be written.
    """
    tf.saved_model.save(served, str(directory), signatures=functions)
    (directory / METADATA).parent.mkdir()
    described = {"signatures": {name: _describe(function) for name, function in functions.items()}}
    write_file(directory / METADATA, to_json(metadata | described, indent=1).encode())
    warm_up.write(directory / warm_up.FILE, functions, examples)


def _describe(function) -> dict[str, dict[str, Any]]:
    """Names, types and shapes of a signature's inputs and outputs; -1 stands for the batch."""

    def tensors(specs):
        return {
            name: {"dtype": spec.dtype.name, "shape": [-1 if d is None else d for d in spec.shape]}
            for name, spec in specs.items()
        }

    inputs = function.structured_input_signature[1]
    return {"inputs": tensors(inputs), "outputs": tensors(function.structured_outputs)}


def _examples(policy: Policy, rows: int) -> dict[str, np.ndarray]:
    """Inputs of the signatures, [rows, ...] each: observations drawn from their space, made-up states and seeds."""
    random, inputs = np.random.default_rng(0), policy.encoder.sample(rows)
    inputs |= {name: random.uniform(-1, 1, (rows, size)).astype(np.float32) for name, size in policy.states.items()}
    numbers = np.arange(rows, dtype=np.int32)
    return inputs | {"seed": np.stack([numbers, 7 * numbers], 1), "batch": numbers}


def _remove_abandoned(export_dir: Path) -> None:
    for directory in export_dir.glob(".export.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may have renamed it by now
            if time.time() - directory.stat().st_mtime > _ABANDONED:
                shutil.rmtree(directory, ignore_errors=True)


def _rename_to_next_version(temporary: Path, export_dir: Path) -> Path:
    """Renames a directory to the next free number; tries again where another process has taken the number.

    Raises:
      OSError: export_dir cannot be written.
    """
    while True:
        version = export_dir / str(max(versions(export_dir), default=0) + 1)
        try:
            return temporary.rename(version)
        except OSError:
            if not version.exists():
                raise


def versions(export_dir: Path) -> list[int]:
    """The numbers of the versions below a directory, in any order.

    Raises:
      OSError: there is no such directory.
    """
    numbers = [version_number(path.name) for path in export_dir.iterdir()]
    return [number for number in numbers if number is not None]


def version_number(name: str) -> int | None:
    """The number of the version of this name; None where no version can have it: TF Serving has 64 bits for one."""
    return int(name) if _NUMBER.fullmatch(name) and int(name) < 2**63 else None


def newest(directory: Path) -> Path:
    """The directory itself where it is a version, otherwise the newest version below it.

    Raises:
      FileNotFoundError: there is no SavedModel.
    """
    if (directory / "saved_model.pb").is_file():
        return directory
    numbers = versions(directory) if directory.is_dir() else []
    if not numbers:
        raise FileNotFoundError(f"{directory}: no SavedModel, nor a directory of numbered ones")
    return directory / str(max(numbers))


def find(export_dir: Path, metadata: dict[str, Any]) -> Path | None:
    """The newest of the versions whose policy.json has these entries, None where there is none."""
    for number in sorted(versions(export_dir) if export_dir.is_dir() else [], reverse=True):
        with contextlib.suppress(UsageError):  # somebody else's, or damaged
            theirs = read_metadata(export_dir / str(number))
            if all(theirs.get(name) == value for name, value in metadata.items()):
                return export_dir / str(number)
    return None


def read_metadata(version: Path) -> dict[str, Any]:
    """What policy.json of a version holds; nothing where there is no such file.

    Raises:
      UsageError: it is damaged; names it.
    """
    path = version / METADATA
    try:
        found = json.loads(read_file(Path(os.path.realpath(path)), _MOST_METADATA))  # caches of models have links
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}") from error
    if not (isinstance(found, dict) and all(isinstance(found.get(k, kind()), kind) for k, kind in _KINDS.items())):
        raise UsageError(f"{path}: is of another form")
    return found


def fingerprint(version: Path) -> str:
    """SHA-256 over the names and contents of all files but fingerprint.pb, which holds a random number."""
    digest = hashlib.sha256()
    for file in sorted(path for path in version.rglob("*") if path.is_file() and path.name != "fingerprint.pb"):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(version)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
