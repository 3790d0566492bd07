"""A SavedModel of a policy as a Python object."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.acting import encoders, spaces
from trpo_tf.policy.tensor_actor import direct
from trpo_tf.serving.saved_model import newest, read_metadata


class LoadedPolicy:
    """A policy that was exported. Answers have a batch axis where observations have one.

    Attributes:
      path: the directory of the version.
      metadata: what policy.json holds; empty where there is no such file.

    Args:
      directory: a version, or the directory of versions, of which the newest is loaded.

    Raises:
      FileNotFoundError: there is no SavedModel.
      UsageError: its policy.json is damaged.
    """

    def __init__(self, directory: str | os.PathLike):
        self.path = newest(Path(directory))
        self._model = tf.saved_model.load(str(self.path))
        self.metadata = read_metadata(self.path)
        self._functions = {name: direct(function) for name, function in self._model.signatures.items()}
        self._states = [name for name in self._inputs("serving_default") if name in ("policy_state", "value_state")]

    def action(self, obs, **states):
        """The mode, as the environment's step takes it. obs: as the environment gives them, [...] or [N, ...]."""
        return self._action(self.predict(obs, **states))

    def sample(self, obs, seed, **states):
        """A drawn action, as the environment's step takes it. obs: [...] or [N, ...]; seed: [2] or [N, 2] int32."""
        return self._action(self.predict(obs, "sample", seed=seed, **states))

    def predict(self, obs, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
        """All outputs of a signature, by name.

        Args:
          obs: as the environment gives them, or a dict of the signature's inputs; [...] or [N, ...] each.
          inputs: the others of the signature: seed, raw_action, the states of a recurrent policy.

        Returns:
          [...] or [N, ...] each. The states of a recurrent policy are those after obs.

        Raises:
          TypeError: these are not the signature's inputs.
          ValueError: one has another shape.
        """
        specs = self._inputs(signature)
        named = isinstance(obs, dict) and obs.keys() == specs.keys() - inputs.keys()  # so are those of initial_state
        leaves = obs if named else spaces.named(obs, "observation", encoders.TAKEN)
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
        """The states at the beginning of an episode, [H] or [rows, H] each; empty where nothing is recurrent."""
        specs = self._inputs("serving_default")
        batch = () if rows is None else (rows,)
        return {name: np.zeros((*batch, specs[name].shape[1]), np.float32) for name in self._states}

    def stateful_act(self, seeds=None):
        """A function act(obs, is_first) -> actions as the environment takes them, that keeps the recurrent states.

        act takes obs [N, ...] and is_first [N] bool: where it is true the state is that of an episode's beginning. N is
        the same in every call.

        Args:
          seeds: seeds(N) gives the seeds [N, 2] int32 of the draws; without it the mode is taken.
        """
        states: dict[str, Any] = {}

        def act(obs, is_first: np.ndarray):
            rows = len(is_first)
            for name, start in self.initial_state(rows).items():
                states[name] = np.where(is_first[:, None], start, states.get(name, start))
            if seeds is None:
                answer = self.predict(obs, **states)
            else:
                answer = self.predict(obs, "sample", seed=seeds(rows), **states)
            states.update({name: answer[name] for name in states})
            return self._action(answer)

        return act

    def _inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        return self._model.signatures[signature].structured_input_signature[1]

    def _action(self, answer: dict[str, np.ndarray]):
        """The outputs that are the action, in the structure of the action space."""
        return spaces.rebuild(self.metadata.get("action", "action"), answer.__getitem__)
