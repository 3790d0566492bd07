"""Acting at every step of an environment, where what surrounds a TensorFlow call costs more than a small network."""

import keras
import numpy as np
import tensorflow as tf
import threadpoolctl

from trpo_tf.policy import encoders
from trpo_tf.policy.distributions import Parameters
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

    A network of Dense layers acts in NumPy, to rounding as TensorFlow would, if NumPy has its activation and its
    distribution; any other is one TensorFlow operation a step.
    """

    def __init__(self, policy: Policy):
        self._policy = policy
        self._layers, self._constants, self._calls = None, None, None
        self._blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
        self.refresh()

    def alone(self):
        """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
        return self._blas.limit(limits=1)

    def refresh(self) -> None:
        """Takes over the policy's parameters, its normaliser's too."""
        policy = self._policy
        chain = policy.network.model.chain() if policy.family.in_numpy else None
        if chain is not None and self._calls is None:
            variables, self._constants = tf.nest.map_structure(lambda x: x.numpy(), policy.acting_state())
            self._layers = [_layer(layer, variables) for layer in chain]
        if self._calls is None and (chain is None or None in self._layers):
            obs = {name: tf.TensorSpec([None, *shape], dtype) for name, (shape, dtype) in policy.specs.items()}
            noise = tf.TensorSpec([None, policy.family.noise_size], tf.float32)
            self._calls = (
                direct(policy.act.get_concrete_function(obs, noise)),
                direct(policy.likeliest.get_concrete_function(obs)),
            )

    def __call__(self, obs: dict[str, np.ndarray], noise: np.ndarray):
        """Draws actions; Policy.act of arrays.

        Returns:
          The family's parameters [B, K], the action as sampled [B, A], and the states [B, S] after these rows, a list
          in the order of their names.
        """
        if self._calls:
            params, action, *states = (x.numpy() for x in self._calls[0](*self._tensors(obs), tf.constant(noise)))
            return params, action, states
        params = self._params(obs)
        return params, self._policy.family.draw(params, noise, np), []

    def mode(self, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The likeliest action [B, A] as it is stored, and the states after these rows."""
        if self._calls:
            action, *states = (x.numpy() for x in self._calls[1](*self._tensors(obs)))
            return action, states
        family = self._policy.family
        return family.draw(self._params(obs), np.zeros((1, family.noise_size), np.float32), np), []

    def _tensors(self, obs):
        return [tf.constant(obs[name]) for name in sorted(obs)]

    def _params(self, obs) -> np.ndarray:
        policy = self._policy
        features = policy.encoder.array(obs)
        x = policy.normalizer(features["vector"], self._constants, np)
        for layer in self._layers:
            x = layer(x)
        return policy.family.masked(x, features[encoders.MASK], np) if policy.encoder.masks else x

    def player(self, noise=None):
        """A function act(obs, is_first) -> actions as the environment takes them, that keeps the states in between.

        Args:
          noise: called with the number of rows for what each draw needs; without it the mode is played.
        """
        policy, states = self._policy, {}

        def act(obs: dict[str, np.ndarray], is_first: np.ndarray):
            rows = len(is_first)
            given = {name: np.asarray(obs[name], leaf.dtype) for name, leaf in policy.encoder.leaves.items()}
            if policy.states:
                given["is_first"] = is_first.astype(np.float32)
                for name, size in policy.states.items():
                    given[name] = states.get(name, np.zeros((rows, size), np.float32))
            if noise is None:
                action, after = self.mode(given)
            else:
                _, action, after = self(given, noise(rows))
            states.update(zip(sorted(policy.states), after, strict=True))
            return policy.family.to_env(action, np)

        return act


def direct(function):
    """A concrete function as one operation: its inputs in order, its outputs as a flat list.

    What tf.function does around that operation in Python costs as much as a small network.
    """
    captured, dtypes = function.captured_inputs, [output.dtype for output in function.outputs]
    return lambda *inputs: tf.raw_ops.StatefulPartitionedCall(args=[*inputs, *captured], Tout=dtypes, f=function)


def _layer(layer: keras.layers.Layer, variables: dict[str, np.ndarray]):
    """The layer with these weights as a function of arrays [N, D] -> [N, K]; None where it is not known here."""
    if isinstance(layer, Parameters):
        free = variables[layer.free.path] if layer.has_free else None
        return lambda x: np.concatenate(layer.interleave(x, free[None].repeat(len(x), 0)), 1) if layer.has_free else x
    activation = _ACTIVATIONS.get(getattr(getattr(layer, "activation", None), "__name__", ""))
    if type(layer) is not keras.layers.Dense or activation is None or not layer.use_bias:
        return None
    kernel, bias = variables[layer.kernel.path], variables[layer.bias.path]
    return lambda x: activation(x @ kernel + bias)
