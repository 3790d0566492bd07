"""Families of action distributions: one class each, from network outputs to actions.

A family is called with parameters [N, K] and returns a TFP distribution over stored actions. Besides that it knows
  size            K, the width of the network's output
  action_shape    of one stored action; action_dtype likewise
  head(...)       the Keras layer that ends the policy network
  fisher_product  F(params) @ tangent, row by row, F the Fisher information of the family in its own parameters
  noise           what the draws of many rows need, by seed
  draw            from parameters and their noise to stored actions; the mode where the noise is 0
  bound           from any numbers to stored actions, and which rows were some already
  to_env          from stored actions to what the environment's step takes
  describe        the parameters by name, for the `distribution` signature
draw and to_env take and return arrays with xp=np.
"""

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.config import UsageError

tfd = tfp.distributions

_LAST_GAIN = 0.01  # of the last policy layer: the first policy hardly depends on the state (Andrychowicz et al. 2020)


class GaussianHead(keras.layers.Layer):
    """[mean(x), log_std] with log_std a variable of its own: [N, D] -> [N, 2A]."""

    def __init__(self, size: int, init_log_std: float, seed: int, **kwargs):
        super().__init__(**kwargs)
        init = keras.initializers.Orthogonal(_LAST_GAIN, seed=seed)
        self.mean = keras.layers.Dense(size, kernel_initializer=init, dtype=self.dtype_policy, name="mean")
        self.init_log_std = init_log_std
        self.size = size

    def build(self, input_shape):
        """Creates the mean layer's weights and log_std [A]."""
        self.mean.build(input_shape)
        self.log_std = self.add_weight(
            shape=(self.size,), initializer=keras.initializers.Constant(self.init_log_std), name="log_std"
        )

    def call(self, x):
        """[N, D] -> [N, 2A]."""
        mean = self.mean(x)
        log_std = keras.ops.broadcast_to(keras.ops.convert_to_tensor(self.log_std), keras.ops.shape(mean))
        return keras.ops.concatenate([mean, log_std], axis=-1)


class DiagonalGaussian:
    """Independent normals, params = [mean, log_std] of shape [N, 2A], for a Box of any shape."""

    def __init__(self, space: gym.spaces.Box, rescale: bool):
        self.action_shape = (int(np.prod(space.shape)),)
        self.action_dtype = np.dtype(np.float32)
        self.size = 2 * self.action_shape[0]
        self._env_shape = space.shape
        self._low = space.low.reshape(-1).astype(np.float32)
        self._high = space.high.reshape(-1).astype(np.float32)
        self.noise_shape = self.action_shape
        rescaled = np.isfinite(self._low) & np.isfinite(self._high) & rescale
        low, high = np.where(rescaled, self._low, -1), np.where(rescaled, self._high, 1)
        self._scale, self._shift = high / 2 - low / 2, high / 2 + low / 2  # the identity where not rescaled

    def head(self, init_log_std: float, seed: int) -> keras.layers.Layer:
        """The layer that ends the policy network."""
        return GaussianHead(self.action_shape[0], init_log_std, seed, name="policy_head")

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        mean, log_std = tf.split(params, 2, axis=-1)
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_std))

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(1 / std^2, 2) in (mean, log_std).

        Args:
          params: [N, 2A]. tangent: [N, 2A].

        Returns:
          [N, 2A].
        """
        _, log_std = tf.split(params, 2, axis=-1)
        return tf.concat([tf.exp(-2.0 * log_std), 2.0 * tf.ones_like(log_std)], -1) * tangent

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard normal [..., A] of rows [...]. seed: [2] int32."""
        return tf.random.stateless_normal([*rows, *self.noise_shape], seed)

    def draw(self, params, noise, xp=tf):
        """mean + std * noise: [N, 2A], [N, A] -> [N, A]."""
        size = self.action_shape[0]
        return params[:, :size] + xp.exp(params[:, size:]) * noise

    def to_env(self, action, xp=tf):
        """[N, A] -> [N, ...]: [-1, 1] mapped to the bounds where rescaling is on, then clipped to them."""
        mapped = action * self._scale + self._shift
        return xp.reshape(xp.minimum(xp.maximum(mapped, self._low), self._high), [-1, *self._env_shape])

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, A] made finite, at most 1e6 in size, and which rows [N] were."""
        known = tf.where(tf.math.is_nan(action), tf.zeros_like(action), tf.clip_by_value(action, -1e6, 1e6))
        return known, tf.reduce_all(known == action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and std, [N, A]."""
        mean, log_std = tf.split(params, 2, axis=-1)
        return {"mean": mean, "std": tf.exp(log_std)}


class Categorical:
    """One of K actions, params = logits [N, K], for Discrete with any start."""

    def __init__(self, space: gym.spaces.Discrete):
        self.action_shape = ()
        self.action_dtype = np.dtype(np.int64)
        self.size = int(space.n)
        self.noise_shape = (self.size,)
        self._start = int(space.start)

    def head(self, init_log_std: float, seed: int) -> keras.layers.Layer:
        """The layer that ends the policy network."""
        del init_log_std
        init = keras.initializers.Orthogonal(_LAST_GAIN, seed=seed)
        return keras.layers.Dense(self.size, kernel_initializer=init, name="policy_head")

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        return tfd.Categorical(logits=params, dtype=tf.int64)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(p) - p p^T in the logits: p * (v - p.v).

        Args:
          params: [N, K]. tangent: [N, K].

        Returns:
          [N, K].
        """
        probs = tf.nn.softmax(params)
        return probs * (tangent - tf.reduce_sum(probs * tangent, -1, keepdims=True))

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard Gumbel [..., K] of rows [...]. seed: [2] int32."""
        tiny = np.finfo(np.float32).tiny
        return -tf.math.log(-tf.math.log(tf.random.stateless_uniform([*rows, self.size], seed, tiny, 1.0)))

    def draw(self, params, noise, xp=tf):
        """argmax(logits + noise): [N, K], [N, K] -> [N] int64. Reference: the Gumbel-max trick."""
        return xp.argmax(params + noise, -1)

    def to_env(self, action, xp=tf):
        """[N] -> [N] int64, `start` added."""
        return xp.add(action, np.int64(self._start))

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N] put into 0..K-1, and which rows [N] were there."""
        known = tf.clip_by_value(action, 0, self.size - 1)
        return known, known == action

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """logits and probs, [N, K]."""
        return {"logits": params, "probs": tf.nn.softmax(params)}


def make(space: gym.Space, rescale: bool):
    """The family of distributions over an action space.

    Raises:
      UsageError: the space is not supported.
    """
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f":
        return DiagonalGaussian(space, rescale)
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(space)
    raise UsageError(f"action space {space} is not supported; Box of floats and Discrete are")
