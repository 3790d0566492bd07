"""Policies as SavedModels for strangers: everything inside, raw variables, four signatures; and their loader."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.policy import encoders, spaces
from trpo_tf.policy.actor import direct
from trpo_tf.policy.policy import Policy
from trpo_tf.run.checkpoint import sync_directory, write_file

_BOUND = 1e6  # of states that a request brings
_METADATA = Path("assets.extra") / "policy.json"


class _Served(tf.Module):
    """The tracked part: plain variables only. A Keras model in here would load everywhere and then fail to answer."""

    def __init__(self, policy: Policy):
        super().__init__(name="served")
        self.normalizer = policy.normalizer
        self.policy_variables, self.policy_fixed = _copies(policy.network.model)
        self.value_variables, self.value_fixed = _copies(policy.value_network.model)


def _copies(model) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """Variables that are trained, and those that are not, with the model's values."""
    kinds = model.trainable_variables, model.non_trainable_variables
    return tuple([tf.Variable(v.value, name=v.path) for v in variables] for variables in kinds)


def signatures(policy: Policy, served: _Served, reward_scale: float) -> dict[str, Any]:
    """The signatures as concrete functions; inputs and outputs are [batch, ...].

    Observations are one input per leaf. Where networks have a memory, its states are inputs and outputs of the same
    names, and `initial_state` gives those that an episode begins with.

    Args:
      policy: the structure; its parameters are not read.
      served: the variables.
      reward_scale: units of reward in one unit of the value network.
    """
    family, encoder = policy.family, policy.encoder

    def outputs(obs):
        """The family's parameters, and what every answer holds."""
        valid = encoder.valid(obs)
        for name in policy.states:
            known = tf.where(tf.math.is_nan(obs[name]), 0.0, tf.clip_by_value(obs[name], -_BOUND, _BOUND))
            valid &= tf.reduce_all(known == obs[name], -1)
            obs = obs | {name: known}
        features = encoder(obs)
        if "vector" in features:
            features["vector"] = served.normalizer(features["vector"])
        rows = tf.shape(next(iter(obs.values())))[0]
        features["is_first"] = tf.zeros([rows])
        params, state, hidden = policy.network.call_with(
            served.policy_variables, served.policy_fixed, features, return_all=True
        )
        after = {"policy_state": state}
        value, after["value_state"], _ = policy.value_network.call_with(
            served.value_variables,
            served.value_fixed,
            {"vector": hidden} if policy.shared else features,
            return_all=True,
        )
        answer = {"value": value[:, 0] * reward_scale, "valid": valid}
        return policy.masked(params, features), answer | {name: after[name] for name in policy.states}

    def action(**obs):
        params, answer = outputs(obs)
        return family.named(family.mode(params)) | answer

    def sample(*, seed, **obs):
        params, answer = outputs(obs)
        noise = tf.map_fn(
            lambda key: family.noise([], key), seed, fn_output_signature=tf.TensorSpec([family.noise_size], tf.float32)
        )
        raw_action = family.draw(params, noise)
        log_prob = family.log_prob(params, raw_action)
        return family.named(raw_action) | {"raw_action": raw_action, "log_prob": log_prob} | answer

    def evaluate(*, raw_action, **obs):
        params, answer = outputs(obs)
        known, usable = family.bound(raw_action)
        answer["valid"] &= usable
        return {"log_prob": family.log_prob(params, known), "entropy": family.entropy(params)} | answer

    def distribution(**obs):
        params, answer = outputs(obs)
        del answer["value"]
        return family.describe(params) | answer

    def initial_state(*, batch):
        rows = tf.shape(batch)[0]
        states = {name: tf.zeros([rows, size]) for name, size in policy.states.items()}
        return states | {"valid": tf.ones([rows], tf.bool)}  # REST drops the name of an output that stands alone

    obs = {name: tf.TensorSpec([None, *leaf.shape], leaf.dtype, name) for name, leaf in encoder.leaves.items()}
    obs |= {name: tf.TensorSpec([None, size], tf.float32, name) for name, size in policy.states.items()}
    seed = tf.TensorSpec([None, 2], tf.int32, "seed")
    raw_action = tf.TensorSpec([None, family.action_size], tf.float32, "raw_action")
    wanted = {
        "serving_default": (action, obs),
        "sample": (sample, obs | {"seed": seed}),
        "evaluate": (evaluate, obs | {"raw_action": raw_action}),
        "distribution": (distribution, obs),
    }
    if policy.states:
        wanted["initial_state"] = initial_state, {"batch": tf.TensorSpec([None], tf.int32, "batch")}
    return {
        name: tf.function(function, autograph=False).get_concrete_function(**specs)
        for name, (function, specs) in wanted.items()
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
        described = {"signatures": described, "action": policy.family.structure()}
        write_file(temporary / _METADATA, json.dumps(metadata | described, indent=1).encode())
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
