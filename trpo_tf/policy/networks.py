"""Keras 3 networks, and their view as pure functions of one flat parameter vector."""

import keras
import numpy as np
import tensorflow as tf


def mlp(size: int, hidden_sizes, activation: str, head: keras.layers.Layer, seed: int, name: str) -> keras.Model:
    """Dense layers with orthogonal weights of gain sqrt 2, then the head.

    Reference: initialisation of Andrychowicz et al. 2020, section 3.2.
    """
    layers = [keras.layers.Input((size,), name=f"{name}_features")]
    for index, units in enumerate(hidden_sizes):
        init = keras.initializers.Orthogonal(np.sqrt(2.0), seed=seed + index)
        layers.append(keras.layers.Dense(units, activation, kernel_initializer=init, name=f"{name}_dense_{index}"))
    return keras.Sequential([*layers, head], name=name)


class FlatNetwork(tf.Module):
    """A Keras model as a pure function of a flat vector: net(theta [P], x [N, D]) -> [N, K].

    The Keras variables are the truth; `theta()` reads them, `assign` writes them, both without loss of a bit.
    Nothing of the model but its structure enters a call, so a candidate never touches the variables.
    """

    def __init__(self, model: keras.Model):
        super().__init__(name=model.name)
        self.model = model
        self._shapes = [tuple(v.shape) for v in model.trainable_variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self.size = sum(self._sizes)

    def theta(self) -> tf.Tensor:
        """The parameters now, [P]."""
        return tf.concat([tf.reshape(v.value, [-1]) for v in self.model.trainable_variables], 0)

    def assign(self, theta: tf.Tensor) -> None:
        """Makes theta [P] the parameters."""
        for variable, value in zip(self.model.trainable_variables, self.split(theta), strict=True):
            variable.assign(value)

    def split(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """theta [P] as one tensor per Keras variable."""
        return [tf.reshape(p, s) for p, s in zip(tf.split(theta, self._sizes), self._shapes, strict=True)]

    def __call__(self, theta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return self.call_with(self.split(theta), x)

    def call_with(self, variables, x: tf.Tensor) -> tf.Tensor:
        """The same with one tensor per Keras variable."""
        outputs, _ = self.model.stateless_call(variables, [], x)
        return outputs
