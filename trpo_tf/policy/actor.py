"""Acting at every step of an environment, where what surrounds a TensorFlow call costs more than a small network."""

import keras
import numpy as np
import tensorflow as tf
import threadpoolctl

from trpo_tf.policy.distributions import GaussianHead
from trpo_tf.policy.policy import Policy

_ACTIVATIONS = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
}


class Actor:
    """Draws actions with the policy's parameters as they were at the last `refresh`.

    A network of Dense layers acts in NumPy, to rounding as TensorFlow would, if NumPy has its activation; any other is
    one TensorFlow operation a step.
    """

    def __init__(self, policy: Policy):
        self._policy = policy
        self._layers, self._constants, self._call = None, None, None
        self._blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
        self.refresh()

    def alone(self):
        """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
        return self._blas.limit(limits=1)

    def refresh(self) -> None:
        """Takes over the policy's parameters, its normaliser's too."""
        policy = self._policy
        variables, self._constants = tf.nest.map_structure(lambda x: x.numpy(), policy.acting_state())
        self._layers = [_layer(layer, variables) for layer in policy.network.model.layers]
        if None in self._layers and self._call is None:
            encoder, family = policy.encoder, policy.family
            self._call = direct(
                policy.act.get_concrete_function(
                    tf.TensorSpec([None, *encoder.shape], encoder.dtype),
                    tf.TensorSpec([None, *family.noise_shape], tf.float32),
                )
            )

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Policy.act of arrays."""
        policy = self._policy
        if self._call:
            return tuple(output.numpy() for output in self._call(tf.constant(obs), tf.constant(noise)))
        x = policy.normalizer(policy.encoder.array(obs), self._constants, np)
        for layer in self._layers:
            x = layer(x)
        action = policy.family.draw(x, noise, np)
        return x, action, policy.family.to_env(action, np)

    def greedy(self, obs: np.ndarray) -> np.ndarray:
        """The mode's action for the environment's step, [B, ...], of obs [B, ...]."""
        noise = np.zeros((len(obs), *self._policy.family.noise_shape), np.float32)
        return self(obs.astype(self._policy.encoder.dtype, copy=False), noise)[2]


def direct(function):
    """A concrete function as one operation: its inputs in order, its outputs as a flat list.

    What tf.function does around that operation in Python costs as much as a small network.
    """
    captured, dtypes = function.captured_inputs, [output.dtype for output in function.outputs]
    return lambda *inputs: tf.raw_ops.StatefulPartitionedCall(args=[*inputs, *captured], Tout=dtypes, f=function)


def _layer(layer: keras.layers.Layer, variables: dict[str, np.ndarray]):
    """The layer with these weights as a function of arrays [N, D] -> [N, K]; None where it is not known here."""
    if isinstance(layer, GaussianHead):
        mean, log_std = _layer(layer.mean, variables), variables[layer.log_std.path]
        return lambda x: np.concatenate([mean(x), log_std[None].repeat(len(x), 0)], 1)
    activation = _ACTIVATIONS.get(getattr(getattr(layer, "activation", None), "__name__", ""))
    if type(layer) is not keras.layers.Dense or activation is None:
        return None
    kernel, bias = variables[layer.kernel.path], variables[layer.bias.path]
    return lambda x: activation(x @ kernel + bias)
