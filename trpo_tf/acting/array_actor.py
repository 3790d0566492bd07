"""Acting in NumPy, where what surrounds a TensorFlow call costs more than a small network."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.acting import standardize, threads
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.encoders import MASK, Encoder
from trpo_tf.acting.spec import ActingSpec, LayerSpec

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
}


def apply(layer: LayerSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A layer's outputs [..., K] of its inputs [..., D]."""
    if layer.epsilon is None:
        return ACTIVATIONS[layer.activation](x @ kernel + bias)
    share = np.float32(1 / x.shape[-1])
    x = x - np.add.reduce(x, -1, keepdims=True) * share  # np.mean takes twice as long for a few rows
    x *= kernel / np.sqrt(np.vecdot(x, x)[..., None] * share + np.float32(layer.epsilon))
    x += bias
    return ACTIVATIONS[layer.activation](x)


class ArrayActor:
    """A policy of dense layers, perhaps normalised, to rounding as TensorFlow computes it.

    It acts with the weights of the last `set_weights`. The same face as TensorActor:
      specs           shape and dtype of every input by name
      leaves          the leaves of the observation by name, with their shape and dtype
      states          size of each recurrent state by name; this actor has none
      action_size, params_size, noise_size    A, K and the columns of the noise
      sampler         draws noise and actions in NumPy, where it can

    Args:
      spec: what Policy.acting_spec gives.

    Raises:
      ValueError: the spec has recurrent states, or an activation that NumPy lacks.
    """

    def __init__(self, spec: ActingSpec):
        unknown = {layer.activation for layer in spec.layers} - ACTIVATIONS.keys()
        if unknown or spec.states:
            raise ValueError(f"an ArrayActor has no {', '.join(sorted(unknown)) or 'recurrent states'}")
        config, self._spec = spec.config, spec
        self.sampler = ActionSampler(spec.action_space, config)
        self._encoder = Encoder(spec.observation_space, self.sampler.mask_size, config.image_encoder != "flat")
        self._enabled = self._encoder.normalized & config.normalize_obs
        self.leaves = self._encoder.leaves
        self.specs = {name: (leaf.shape, leaf.dtype) for name, leaf in self.leaves.items()}
        self.states: dict[str, int] = {}
        self.action_size, self.params_size = self.sampler.action_size, self.sampler.size
        self.noise_size = self.sampler.noise_size
        self._layers: list | None = None
        self._free: np.ndarray
        self._constants: tuple

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Acts with these weights from now on; they are copied.

        Args:
          weights: what Policy.get_weights gives.

        Raises:
          ValueError: a weight is missing or has another shape; the weights of before stay.
        """
        names = [name for layer in self._spec.layers for name in layer[:2]] + [self._spec.free] * bool(self._spec.free)
        missing = [name for name in (*names, *standardize.MOMENTS) if name not in weights]
        if missing:
            raise ValueError(f"weights lack {', '.join(missing)}")
        copies = {name: np.array(weights[name], np.float32) for name in names}
        free = copies[self._spec.free] if self._spec.free else np.zeros(0, np.float32)
        count, mean, m2 = (np.asarray(weights[name], np.float64) for name in standardize.MOMENTS)
        self._check_shapes({name: x.shape for name, x in copies.items()} | {"mean": mean.shape, "m2": m2.shape})
        self._layers = [(layer, copies[layer.kernel], copies[layer.bias]) for layer in self._spec.layers]
        constants = standardize.constants(count, mean, m2, self._enabled)
        self._free, self._constants = free, tuple(x.astype(self._encoder.dtype) for x in constants)

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises ValueError where weights do not fit each other and the spaces."""
        width, free, sampler = self._encoder.size, self._spec.free, self.sampler
        needed: dict[str, tuple[int, ...]] = {"mean": (width,), "m2": (width,)}
        if free:
            needed[free] = sampler.free.shape
        for layer, following in zip(self._spec.layers, [*self._spec.layers[1:], None], strict=True):
            dense = layer.epsilon is None
            own = int(np.prod(shapes[layer.bias])) if dense else width
            units = own if following else sampler.outputs
            needed |= {layer.kernel: (width, units) if dense else (units,), layer.bias: (units,)}
            width = units
        for name, shape in needed.items():
            if shapes[name] != shape:
                raise ValueError(f"weight {name} has shape {list(shapes[name])}; {list(shape)} is needed")

    def __call__(self, obs: dict[str, np.ndarray], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
        """Draws actions.

        Args:
          obs: [B, ...] each, as in `specs`. noise: [B, noise_size] float32, of the distribution.

        Returns:
          The distribution's parameters [B, K], the raw action [B, A], and the recurrent states after these
          observations, a list in the order of their names: none.
        """
        params = self._params(obs)
        return params, self.sampler.draw(params, noise), []

    def mode(self, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, list]:
        """The likeliest raw action [B, A], and the recurrent states after these observations: none."""
        return self.sampler.mode(self._params(obs)), []

    def to_env(self, raw_action: np.ndarray) -> Any:
        """Raw actions [B, A] -> what the environments' step takes, [B, ...] in the structure of the action space."""
        return self.sampler.to_env(raw_action)

    def single_threaded(self):
        """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
        return threads.single_threaded()

    def _params(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        if self._layers is None:
            raise RuntimeError("the actor has no weights yet; set_weights comes first")
        features = self._encoder(obs)
        x = standardize.standardize(features["vector"], self._constants)
        for layer in self._layers:
            x = apply(layer[0], x, *layer[1:])
        params = self.sampler.params(x, self._free)
        return self.sampler.masked(params, features[MASK]) if self._encoder.masks else params
