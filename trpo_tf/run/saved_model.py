"""Policies as SavedModels for strangers: everything inside, raw variables, four signatures; and their loader."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.policy.actor import direct
from trpo_tf.policy.policy import Policy
from trpo_tf.run.checkpoint import sync_directory, write_file

_METADATA = Path("assets.extra") / "policy.json"


class _Served(tf.Module):
    """The tracked part: plain variables only. A Keras model in here would load everywhere and then fail to answer."""

    def __init__(self, policy: Policy):
        super().__init__(name="served")
        self.normalizer = policy.normalizer
        self.policy_variables = [tf.Variable(v.value, name=v.path) for v in policy.network.model.trainable_variables]
        self.value_variables = [
            tf.Variable(v.value, name=v.path) for v in policy.value_network.model.trainable_variables
        ]


def signatures(policy: Policy, served: _Served, reward_scale: float) -> dict[str, Any]:
    """The four signatures as concrete functions; inputs and outputs are [batch, ...].

    Args:
      policy: the structure; its parameters are not read.
      served: the variables.
      reward_scale: units of reward in one unit of the value network.
    """
    family, encoder = policy.family, policy.encoder

    def outputs(observation):
        features = served.normalizer(encoder(observation))
        params = policy.network.call_with(served.policy_variables, features)
        value = policy.value_network.call_with(served.value_variables, features)[:, 0] * reward_scale
        return params, value, encoder.valid(observation)

    def action(observation):
        params, value, valid = outputs(observation)
        return {"action": family.to_env(family(params).mode()), "value": value, "valid": valid}

    def sample(observation, seed):
        params, value, valid = outputs(observation)
        raw_action = tf.map_fn(
            lambda row: family(row[0][None]).sample(seed=row[1])[0],
            (params, seed),
            fn_output_signature=tf.TensorSpec(family.action_shape, family.action_dtype),
        )
        return {
            "action": family.to_env(raw_action),
            "raw_action": raw_action,
            "log_prob": family(params).log_prob(raw_action),
            "value": value,
            "valid": valid,
        }

    def evaluate(observation, raw_action):
        params, value, valid = outputs(observation)
        distribution = family(params)
        known, usable = family.bound(raw_action)
        return {
            "log_prob": distribution.log_prob(known),
            "entropy": distribution.entropy(),
            "value": value,
            "valid": valid & usable,
        }

    def distribution(observation):
        params, _, valid = outputs(observation)
        return family.describe(params) | {"valid": valid}

    observation = tf.TensorSpec([None, *encoder.shape], encoder.dtype, "observation")
    seed = tf.TensorSpec([None, 2], tf.int32, "seed")
    raw_action = tf.TensorSpec([None, *family.action_shape], family.action_dtype, "raw_action")
    return {
        name: tf.function(function, autograph=False).get_concrete_function(*specs)
        for name, function, specs in (
            ("serving_default", action, [observation]),
            ("sample", sample, [observation, seed]),
            ("evaluate", evaluate, [observation, raw_action]),
            ("distribution", distribution, [observation]),
        )
    }


def save(policy: Policy, reward_scale: float, metadata: dict[str, Any], export_dir: Path) -> Path:
    """Writes the policy as the next numbered version below export_dir.

    The version appears by one rename when everything is on disk; an existing one is never touched.

    Returns:
      The version's directory.

    Raises:
      OSError: export_dir cannot be written; no numbered directory appears.
    """
    export_dir.mkdir(parents=True, exist_ok=True)
    temporary = export_dir / f".export.{os.getpid()}.tmp"
    try:
        served = _Served(policy)
        functions = signatures(policy, served, reward_scale)
        tf.saved_model.save(served, str(temporary), signatures=functions)
        described = {name: _describe(function) for name, function in functions.items()}
        (temporary / _METADATA).parent.mkdir()
        write_file(temporary / _METADATA, json.dumps(metadata | {"signatures": described}, indent=1).encode())
        for path in temporary.rglob("*"):
            if path.is_dir():
                sync_directory(path)
            else:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        version = export_dir / str(max(versions(export_dir), default=0) + 1)
        temporary.rename(version)
        sync_directory(export_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


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

    return {
        "inputs": tensors(function.structured_input_signature[1] or _positional(function)),
        "outputs": tensors(function.structured_outputs),
    }


def _positional(function) -> dict[str, tf.TensorSpec]:
    return {spec.name: spec for spec in function.structured_input_signature[0]}


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
        spec = self._model.signatures["serving_default"].structured_input_signature[1]["observation"]
        self._rank, self._dtype = spec.shape.rank, spec.dtype.as_numpy_dtype

    def action(self, obs) -> np.ndarray:
        """The deterministic action, as the environment's step takes it. obs: [...] or [N, ...]."""
        return self._answer("serving_default", obs)["action"]

    def sample(self, obs, seed) -> np.ndarray:
        """A drawn action, as the environment's step takes it. obs: [...] or [N, ...]; seed: [2] or [N, 2] int."""
        return self._answer("sample", obs, seed=seed)["action"]

    def predict(self, obs, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
        """All outputs of a signature. obs: [...] or [N, ...]; the other inputs likewise."""
        return self._answer(signature, obs, **inputs)

    def _answer(self, signature: str, obs, **inputs) -> dict[str, np.ndarray]:
        obs = np.asarray(obs, self._dtype)
        single = obs.ndim == self._rank - 1
        function = self._model.signatures[signature]
        specs = function.structured_input_signature[1]
        given = {"observation": obs} | inputs
        if given.keys() != specs.keys():
            raise TypeError(f"{signature} takes {', '.join(sorted(specs))}, not {', '.join(sorted(given))}")
        arrays = [np.asarray(given[name], specs[name].dtype.as_numpy_dtype) for name in sorted(specs)]
        outputs = self._functions[signature](*(tf.constant(array[None] if single else array) for array in arrays))
        names = sorted(function.structured_outputs)
        return {name: value.numpy()[0 if single else ...] for name, value in zip(names, outputs, strict=True)}


def _newest_version(directory: Path) -> Path:
    if (directory / "saved_model.pb").is_file():
        return directory
    numbers = versions(directory) if directory.is_dir() else []
    if not numbers:
        raise FileNotFoundError(f"{directory}: no SavedModel, nor a directory of numbered ones")
    return directory / str(max(numbers))
