"""Policies as SavedModels for strangers, written as numbered versions with requests to warm up; and their loader."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.policy import encoders, spaces
from trpo_tf.policy.actor import direct
from trpo_tf.policy.policy import Policy
from trpo_tf.run.checkpoint import sync_directory, write_file
from trpo_tf.run.signatures import Served, Signatures

WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"
_METADATA = Path("assets.extra") / "policy.json"
_WARM_UP_ROWS = (1, 8, 32)
_ABANDONED = 24 * 3600  # seconds after which an unfinished export is that of a killed process


def save(policy: Policy, reward_scale: float, metadata: dict[str, Any], export_dir: Path) -> Path:
    """Writes the policy as the next numbered version below export_dir.

    The version appears by one rename when everything is on disk; an existing one is never touched. What exports that
    were killed have left is removed a day later.

    Returns:
      The version's directory.

    Raises:
      OSError: export_dir cannot be written; no numbered directory appears.
    """
    export_dir.mkdir(parents=True, exist_ok=True)
    for left in export_dir.glob(".export.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another exporter's, which has just got its number
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    temporary = export_dir / f".export.{uuid.uuid4().hex}.tmp"
    try:
        served = Served(policy)
        functions = Signatures(policy, served, reward_scale).concrete()
        metadata = metadata | {"action": policy.family.structure()}
        write(temporary, served, functions, metadata, _examples(policy, max(_WARM_UP_ROWS)))
        for path in temporary.rglob("*"):
            if path.is_dir():
                sync_directory(path)
            else:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        version = _appear(temporary, export_dir)
        sync_directory(export_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def write(directory: Path, served: tf.Module, functions: dict[str, Any], metadata: dict[str, Any], examples) -> None:
    """Writes a SavedModel, what its signatures are, and warm-up requests for them.

    Args:
      directory: must not exist.
      served: tracks the variables.
      functions: the signatures, concrete.
      metadata: besides the signatures.
      examples: inputs of any signature but raw_action by name, [32, ...] each.
    """
    tf.saved_model.save(served, str(directory), signatures=functions)
    (directory / _METADATA).parent.mkdir()
    described = {"signatures": {name: _describe(function) for name, function in functions.items()}}
    write_file(directory / _METADATA, json.dumps(metadata | described, indent=1).encode())
    _warm_up(directory / WARM_UP, functions, examples)


def _appear(temporary: Path, export_dir: Path) -> Path:
    """Renames a directory to the next version, whatever other exporters do meanwhile."""
    while True:
        version = export_dir / str(max(versions(export_dir), default=0) + 1)
        try:
            return temporary.rename(version)
        except OSError:
            if not version.exists():
                raise


def _examples(policy: Policy, rows: int) -> dict[str, np.ndarray]:
    """Inputs of signatures, [rows, ...] each: observations drawn from their space, states and seeds made up."""
    random, inputs = np.random.default_rng(0), policy.encoder.sample(rows)
    inputs |= {name: random.uniform(-1, 1, (rows, size)).astype(np.float32) for name, size in policy.states.items()}
    numbers = np.arange(rows, dtype=np.int32)
    return inputs | {"seed": np.stack([numbers, 7 * numbers], 1), "batch": numbers}


def _warm_up(path: Path, functions: dict[str, Any], examples: dict[str, np.ndarray]) -> None:
    """Requests for every signature, as TF Serving runs them when it loads a version, and the answers they have now.

    Each is a PredictionLog of tensorflow_serving/apis/prediction_log.proto, whose fields are numbered here.
    """
    examples["raw_action"] = functions["sample"](**_given(functions["sample"], examples))["raw_action"].numpy()
    with tf.io.TFRecordWriter(str(path)) as file:
        for name, function in functions.items():
            for rows in _WARM_UP_ROWS:
                inputs = _given(function, {key: x[:rows] for key, x in examples.items()})
                request = _field(1, _field(3, name.encode())) + _tensors(2, inputs)
                response = _tensors(1, function(**inputs))
                file.write(_field(6, _field(1, request) + _field(2, response)))


def _given(function, inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(inputs[name]) for name in function.structured_input_signature[1]}


def _tensors(number: int, tensors: dict[str, tf.Tensor]) -> bytes:
    """A map<string, TensorProto> of a protocol buffer."""
    entries = {name: tf.make_tensor_proto(x.numpy()).SerializeToString() for name, x in sorted(tensors.items())}
    return b"".join(_field(number, _field(1, name.encode()) + _field(2, entry)) for name, entry in entries.items())


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    *rest, last = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([byte | 0x80 for byte in rest] + [last])


def fingerprint(version: Path) -> str:
    """SHA-256 over names and contents of all files but fingerprint.pb, which has a random number in it."""
    digest = hashlib.sha256()
    for file in sorted(path for path in version.rglob("*") if path.is_file() and path.name != "fingerprint.pb"):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(version)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def versions(export_dir: Path) -> list[int]:
    """The numbers of the versions below a directory."""
    return [int(path.name) for path in export_dir.iterdir() if path.name.isdigit()]


def find(export_dir: Path, metadata: dict[str, Any]) -> Path | None:
    """The newest version, if its metadata holds these values."""
    numbers = versions(export_dir) if export_dir.is_dir() else []
    path = export_dir / str(max(numbers, default=0)) / _METADATA
    if not path.is_file():
        return None
    theirs = json.loads(path.read_text(encoding="utf-8"))
    return path.parents[1] if all(theirs.get(name) == value for name, value in metadata.items()) else None


def _describe(function) -> dict[str, dict[str, Any]]:
    """Names, types and shapes of a signature; -1 is the batch."""

    def tensors(specs):
        return {
            name: {"dtype": spec.dtype.name, "shape": [-1 if d is None else d for d in spec.shape]}
            for name, spec in specs.items()
        }

    inputs = function.structured_input_signature[1]
    return {"inputs": tensors(inputs), "outputs": tensors(function.structured_outputs)}


class LoadedPolicy:
    """A SavedModel as a Python object; observations may be single or batched, answers follow.

    Args:
      directory: a version, or the directory of versions, of which the newest is taken.

    Raises:
      FileNotFoundError: there is no SavedModel.
    """

    def __init__(self, directory: str | os.PathLike):
        self.path = _newest_version(Path(directory))
        self._model = tf.saved_model.load(str(self.path))
        metadata = self.path / _METADATA
        self.metadata = json.loads(metadata.read_text(encoding="utf-8")) if metadata.exists() else {}
        self._functions = {name: direct(function) for name, function in self._model.signatures.items()}
        self._states = [name for name in self._inputs("serving_default") if name in ("policy_state", "value_state")]

    def _inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        return self._model.signatures[signature].structured_input_signature[1]

    def action(self, obs, **states):
        """The deterministic action, as the environment's step takes it. obs: as it gives them, [...] or [N, ...]."""
        return self._action(self.predict(obs, **states))

    def sample(self, obs, seed, **states):
        """A drawn action, as the environment's step takes it. obs: [...] or [N, ...]; seed: [2] or [N, 2] int."""
        return self._action(self.predict(obs, "sample", seed=seed, **states))

    def predict(self, obs, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
        """All outputs of a signature.

        Args:
          obs: as the environment gives them, or one entry for each input; [...] or [N, ...].
          inputs: the others, likewise; of a policy with memory the states, which the answer has as they are afterwards.

        Raises:
          TypeError: these are not the signature's inputs.
          ValueError: one has another shape.
        """
        specs = self._inputs(signature)
        leaves = spaces.named(obs, "observation", encoders.TAKEN)
        given = leaves | inputs
        if given.keys() != specs.keys():
            raise TypeError(f"{signature} takes {', '.join(sorted(specs))}, not {', '.join(sorted(given))}")
        arrays = {name: np.asarray(given[name], specs[name].dtype.as_numpy_dtype) for name in sorted(specs)}
        single = any(arrays[name].ndim < specs[name].shape.rank for name in leaves)
        if single:
            arrays = {name: x[None] for name, x in arrays.items()}
        rows = arrays[next(iter(leaves))].shape[0]
        for name, x in arrays.items():
            shape = (rows, *specs[name].shape[1:])
            if x.shape != shape:
                raise ValueError(f"{name} has shape {x.shape[single:]}, where {shape[single:]} is needed")
        outputs = self._functions[signature](*map(tf.constant, arrays.values()))
        names = sorted(self._model.signatures[signature].structured_outputs)
        return {name: value.numpy()[0 if single else ...] for name, value in zip(names, outputs, strict=True)}

    def initial_state(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """The states that an episode begins with, [S] or [rows, S]; none without memory."""
        specs = self._inputs("serving_default")
        batch = () if rows is None else (rows,)
        return {name: np.zeros((*batch, specs[name].shape[1]), np.float32) for name in self._states}

    def player(self, seeds=None):
        """A function act(obs, is_first) -> actions as the environment takes them, that keeps the states in between.

        Args:
          seeds: called with the number of rows for the seeds [N, 2] of the draws; without it the mode is played.
        """
        states = {}

        def act(obs, is_first: np.ndarray):
            rows = len(is_first)
            for name, start in self.initial_state(rows).items():
                states[name] = np.where(is_first[:, None], start, states.get(name, start))
            drawn = () if seeds is None else ("sample",)
            answer = self.predict(obs, *drawn, **({"seed": seeds(rows)} if drawn else {}), **states)
            states.update({name: answer[name] for name in states})
            return self._action(answer)

        return act

    def _action(self, answer: dict[str, np.ndarray]):
        return spaces.rebuild(self.metadata.get("action", "action"), answer.__getitem__)


def _newest_version(directory: Path) -> Path:
    if (directory / "saved_model.pb").is_file():
        return directory
    numbers = versions(directory) if directory.is_dir() else []
    if not numbers:
        raise FileNotFoundError(f"{directory}: no SavedModel, nor a directory of numbered ones")
    return directory / str(max(numbers))
