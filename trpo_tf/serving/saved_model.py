"""Policies on disk: numbered versions below a directory, as TF Serving lays them out, each a SavedModel.

A version is never overwritten. It appears by one rename when all of its files are on the disk.
"""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.files import sync_directory, sync_tree, write_file
from trpo_tf.policy.policy import Policy
from trpo_tf.serving import warm_up
from trpo_tf.serving.signatures import ServedVariables, Signatures

METADATA = Path("assets.extra") / "policy.json"  # below a version
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
      OSError: export_dir cannot be written; no version appears.
    """
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
    write_file(directory / METADATA, json.dumps(metadata | described, indent=1).encode())
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
    return [int(path.name) for path in export_dir.iterdir() if path.name.isascii() and path.name.isdigit()]


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
    """The newest version, if its policy.json has these entries; otherwise None."""
    numbers = versions(export_dir) if export_dir.is_dir() else []
    path = export_dir / str(max(numbers, default=0)) / METADATA
    if not path.is_file():
        return None
    theirs = json.loads(path.read_text(encoding="utf-8"))
    return path.parents[1] if all(theirs.get(name) == value for name, value in metadata.items()) else None


def fingerprint(version: Path) -> str:
    """SHA-256 over the names and contents of all files but fingerprint.pb, which holds a random number."""
    digest = hashlib.sha256()
    for file in sorted(path for path in version.rglob("*") if path.is_file() and path.name != "fingerprint.pb"):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(version)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
