"""From an observation space to flat feature vectors."""

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf.config import UsageError


class BoxEncoder:
    """Flattens a Box of numbers: [N, ...] -> [N, D]."""

    def __init__(self, space: gym.spaces.Box):
        self.shape = space.shape
        self.dtype = np.dtype(np.float32)
        self.size = int(np.prod(space.shape))
        self.normalized = True

    def __call__(self, obs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(obs, tf.float32), [tf.shape(obs)[0], self.size])

    def array(self, obs: np.ndarray) -> np.ndarray:
        """The same of an array."""
        return obs.astype(np.float32, copy=False).reshape(len(obs), self.size)

    def valid(self, obs: tf.Tensor) -> tf.Tensor:
        """Which observations [N, ...] are all finite, [N] bool."""
        return tf.reduce_all(tf.math.is_finite(self(obs)), -1)


class DiscreteEncoder:
    """One-hot vectors of a Discrete space, its `start` taken off: [N] -> [N, K]."""

    def __init__(self, space: gym.spaces.Discrete):
        self.shape = ()
        self.dtype = np.dtype(np.int64)
        self.size = int(space.n)
        self.normalized = False
        self._start = int(space.start)

    def __call__(self, obs: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(tf.cast(obs, tf.int64) - self._start, self.size, dtype=tf.float32)

    def array(self, obs: np.ndarray) -> np.ndarray:
        """The same of an array."""
        return np.equal.outer(obs - self._start, np.arange(self.size)).astype(np.float32)

    def valid(self, obs: tf.Tensor) -> tf.Tensor:
        """Which observations [N] are in the space, [N] bool."""
        index = tf.cast(obs, tf.int64) - self._start
        return (index >= 0) & (index < self.size)


def make(space: gym.Space):
    """The encoder of an observation space.

    An encoder is called with a batch of observations and returns float32 features [N, size]; `array` does the same in
    NumPy; `shape` and `dtype` are those of one stored observation, `normalized` says whether running moments apply to
    the features.

    Raises:
      UsageError: the space is not supported.
    """
    if isinstance(space, gym.spaces.Box) and space.dtype.kind in "fiub":
        return BoxEncoder(space)
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteEncoder(space)
    raise UsageError(f"observation space {space} is not supported; Box and Discrete are")
