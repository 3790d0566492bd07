"""Keras 3 networks from features to numbers, and their view as pure functions of one flat parameter vector."""

import keras
import numpy as np
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError

LAST_GAIN = 0.01  # of the last policy layer: the first policy hardly depends on the state (Andrychowicz et al. 2020)
_CELLS = {"gru": keras.layers.GRUCell, "lstm": keras.layers.LSTMCell}
_CONVOLUTIONS = {  # filters, kernel size, stride of each layer; then the units of a dense one
    "trpo": (((16, 4, 2), (16, 4, 2)), 20),  # Schulman et al. 2015, figure 3
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015
}


def orthogonal(gain: float, seed: int) -> keras.initializers.Initializer:
    """Orthogonal weights. Reference: initialisation of Andrychowicz et al. 2020, section 3.2."""
    return keras.initializers.Orthogonal(gain, seed=seed)


class Network(keras.Model):
    """Images through convolutions, joined with the vector, through dense layers, perhaps a recurrent core, to outputs.

    The samples of a network with a recurrent core are sequences of `length` time steps each, one sequence after the
    other; the state before a sequence is that of its first sample.

    Args:
      images: shape and dtype of each image by name; uint8 ones become fractions of 255.
      hidden_sizes: units of the dense layers; the last are the recurrent core's where there is one.
      config: activation, network, image_encoder and layer_norm are read.
      head: the layers that end it.
      seed: of the initial weights.
      name: "policy" or "value"; of the layers, and of the state among the features.
    """

    def __init__(self, images: dict, hidden_sizes, config: PolicyConfig, head: list, seed: int, name: str):
        super().__init__(name=name)
        self.towers = {
            image: _convolutions(shape, dtype, config, seed + 1000 * (k + 1), f"{name}_{image}")
            for k, (image, (shape, dtype)) in enumerate(images.items())
        }
        self.body, self.core = [], None
        for index, units in enumerate(hidden_sizes):
            if config.network in _CELLS and index == len(hidden_sizes) - 1:
                self.core = RecurrentCore(config.network, units, seed + index, f"{name}_memory")
                continue
            init, label = orthogonal(np.sqrt(2.0), seed + index), f"{name}_dense_{index}"
            if config.layer_norm in ("both", name):
                self.body.append(keras.layers.Dense(units, kernel_initializer=init, name=label))
                self.body.append(keras.layers.LayerNormalization(name=f"{name}_norm_{index}"))
                self.body.append(keras.layers.Activation(config.activation, name=f"{name}_activation_{index}"))
            else:
                self.body.append(keras.layers.Dense(units, config.activation, kernel_initializer=init, name=label))
        # Keras orders variables as layers are assigned here. Free parameters come before the last weights, as in
        # recorded runs: the order of theta decides how sums over it are rounded.
        self.free_first, self.head = head[1:], head
        self.state_size = self.core.state_size if self.core else 0

    def call(self, features: dict, length: int = 1, return_all: bool = False):
        """Outputs [N, K] of features [N, ...].

        With return_all also the states [N / length, S] after each sequence, or None, and what the head got [N, D].
        """
        parts = [features["vector"]] if "vector" in features else []
        x = [*parts, *(tower(features[image]) for image, tower in self.towers.items())]
        x = x[0] if len(x) == 1 else keras.ops.concatenate(x, axis=-1)
        for layer in self.body:
            x = layer(x)
        state = None
        if self.core:
            x, state = self.core(x, features[f"{self.name}_state"], features["is_first"], length=length)
        hidden = x
        for layer in self.head:
            x = layer(x)
        return (x, state, hidden) if return_all else x

    def named_variables(self) -> dict[str, keras.Variable]:
        """All weights by names that are the same in every process."""
        return {variable.path: variable for variable in self.weights}

    def chain(self) -> list[keras.layers.Layer] | None:
        """The layers one after the other, where that is all there is to it."""
        return None if self.towers or self.core else [*self.body, *self.head]


class UserModel(keras.Model):
    """A Keras model of the user's, then the layers that make parameters of its outputs; as `Network`, not recurrent.

    The model is called with the vector, or with a dict of all features where there are images.
    """

    state_size = 0

    def __init__(self, model: keras.Model, images: dict, head: list, name: str):
        super().__init__(name=name)
        self.model, self.head = model, head
        self._images = list(images)

    def call(self, features: dict, length: int = 1, return_all: bool = False):
        """As Network.call."""
        del length
        x = hidden = self.model(self.inputs_of(features), training=False)
        for layer in self.head:
            x = layer(x)
        return (x, None, hidden) if return_all else x

    def inputs_of(self, features: dict):
        """What of the features the user's model is called with."""
        if not self._images:
            return features["vector"]
        return {name: features[name] for name in ("vector", *self._images) if name in features}

    def named_variables(self) -> dict[str, keras.Variable]:
        """As Network.named_variables; Keras counts layers without a name by process."""
        return {f"{self.name}/{index}/{v.name}": v for index, v in enumerate(self.weights)}

    def chain(self) -> list[keras.layers.Layer] | None:
        """As Network.chain."""
        sequential = type(self.model) is keras.Sequential and not self._images
        return [*self.model.layers, *self.head] if sequential else None


class RecurrentCore(keras.layers.Layer):
    """A recurrent cell over sequences, unrolled, so that forward mode passes; where is_first is 1 it starts from 0."""

    def __init__(self, kind: str, units: int, seed: int, name: str):
        super().__init__(name=name)
        kernel = keras.initializers.GlorotUniform(seed)
        recurrent = orthogonal(1.0, seed + 500)
        self.cell = _CELLS[kind](units, kernel_initializer=kernel, recurrent_initializer=recurrent, name="cell")
        self.state_size = int(np.sum(self.cell.state_size))
        # Of any state that it makes: a GRU's is a mean of hyperbolic tangents, an LSTM's may grow by 1 in every step.
        self.largest_state = 2.0 if kind == "gru" else 1e6

    def build(self, x_shape, state_shape, is_first_shape):
        """Creates the cell's weights."""
        del state_shape, is_first_shape
        self.cell.build(x_shape)

    def call(self, x, state, is_first, length: int):
        """[N, D], [N, S], [N] -> outputs [N, H], states [N / length, S]."""
        ops = keras.ops
        x, first = ops.reshape(x, [-1, length, x.shape[-1]]), ops.reshape(is_first, [-1, length, 1])
        state = ops.reshape(state, [-1, length, self.state_size])[:, 0]
        outputs, count = [], self.state_size // self.cell.units
        for t in range(length):
            parts = ops.split(state * (1 - first[:, t]), count, axis=-1)
            y, parts = self.cell(x[:, t], parts)
            state = parts[0] if count == 1 else ops.concatenate(parts, axis=-1)
            outputs.append(y)
        return ops.reshape(ops.stack(outputs, axis=1), [-1, self.cell.units]), state


def _convolutions(shape: tuple[int, ...], dtype: str, config: PolicyConfig, seed: int, name: str) -> keras.Sequential:
    """The image, channels last, convolved.

    Raises:
      UsageError: the image is too small.
    """
    layers, units = _CONVOLUTIONS[config.image_encoder]
    stack = [keras.layers.Input(shape, dtype=dtype), ChannelsLast(shape)]
    sides = stack[1].shape[:2]
    if dtype == "uint8":
        stack.append(keras.layers.Rescaling(1 / 255))
    for index, (filters, size, stride) in enumerate(layers):
        if min(sides) < size:
            raise UsageError(
                f"images of shape {shape} are too small for --image_encoder={config.image_encoder}; "
                "another, or flat, may do"
            )
        sides = [(side - size) // stride + 1 for side in sides]
        init = orthogonal(np.sqrt(2.0), seed + index)
        stack.append(
            keras.layers.Conv2D(filters, size, stride, activation="relu", kernel_initializer=init, name=f"conv_{index}")
        )
    init = orthogonal(np.sqrt(2.0), seed + len(layers))
    stack += [keras.layers.Flatten(), keras.layers.Dense(units, "relu", kernel_initializer=init, name="dense")]
    return keras.Sequential(stack, name=name)


class ChannelsLast(keras.layers.Layer):
    """Images [N, ...] as [N, height, width, channels]; the sides are two equal axes, or the longest two."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(name="channels_last")
        sides = sorted(np.argsort(shape, kind="stable")[-2:].tolist())
        if len(shape) == 3 and shape[0] == shape[1]:
            sides = [0, 1]
        elif len(shape) == 3 and shape[1] == shape[2]:
            sides = [1, 2]
        rest = [axis for axis in range(len(shape)) if axis not in sides]
        self._order = [0, *(axis + 1 for axis in (*sides, *rest))]
        self.shape = (shape[sides[0]], shape[sides[1]], int(np.prod([shape[axis] for axis in rest])))

    def call(self, x):
        """[N, ...] -> [N, H, W, C]."""
        return keras.ops.reshape(keras.ops.transpose(x, self._order), [-1, *self.shape])


class FlatNetwork(tf.Module):
    """A Keras model as a pure function of a flat vector: net(theta [P], x) -> [N, K].

    The Keras variables are the truth; `theta()` reads them, `assign` writes them, both without loss of a bit.
    Nothing of the model but its structure, and what is not trained of it, enters a call, so a candidate never touches
    the variables.
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

    def fixed(self) -> list[tf.Tensor]:
        """The variables that are not trained, as tensors."""
        return [v.value for v in self.model.non_trainable_variables]

    def __call__(self, theta: tf.Tensor, x, **how) -> tf.Tensor:
        return self.call_with(self.split(theta), self.fixed(), x, **how)

    def call_with(self, trained, fixed, x, **how):
        """The same with one tensor per Keras variable. how: further arguments of the model's call."""
        outputs, _ = self.model.stateless_call(trained, fixed, x, **how)
        return outputs
