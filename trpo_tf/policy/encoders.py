"""From observations to features as tensors; the formulas are those of acting/encoders.py."""

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf.acting import encoders, spaces
from trpo_tf.acting.encoders import MASK, TAKEN


class Encoder:
    """The leaves of an observation space, joined: acting's encoder for tensors, and what serving asks of it.

    Args, attributes and Raises: as acting.encoders.Encoder, which is `arrays`.
    """

    def __init__(self, space: gym.Space, mask_size: int = 0, images: bool = True):
        self.arrays = arrays = encoders.Encoder(space, mask_size, images)
        self.space, self.leaves, self.masks = space, arrays.leaves, arrays.masks
        self.images, self.vectors = arrays.images, arrays.vectors
        self.size, self.normalized = arrays.size, arrays.normalized

    def __call__(self, obs: dict) -> dict[str, tf.Tensor]:
        """Features by name: `vector` [N, size], each image, `action_mask` [N, mask_size]; others as given."""
        return self.arrays(obs, tf)

    def vector(self, obs: dict) -> tf.Tensor:
        """The vector alone, [N, size]."""
        return self.arrays.vector(obs, tf)

    def sample(self, count: int) -> dict[str, np.ndarray]:
        """Observations drawn from the space, the same every time: [count, ...] by leaf."""
        space = copy.deepcopy(self.space)
        space.seed(0)
        drawn = [spaces.named(space.sample(), "observation", TAKEN) for _ in range(count)]
        return {name: np.stack([obs[name] for obs in drawn]).astype(x.dtype) for name, x in self.leaves.items()}

    def valid(self, obs: dict) -> tf.Tensor:
        """Which observations [N] the space could hold, apart from its bounds."""
        return tf.reduce_all(tf.stack([_VALID[type(x)](x, obs[name]) for name, x in self.leaves.items()]), 0)


def _finite(leaf: encoders.Numbers, obs: tf.Tensor) -> tf.Tensor:
    """Which observations [N, ...] are all finite, [N] bool."""
    return tf.reduce_all(tf.math.is_finite(leaf(obs, tf)), -1)


def _in_range(leaf: encoders.OneHot, obs: tf.Tensor) -> tf.Tensor:
    """Which observations [N, ...] are in the space, [N] bool."""
    numbers = leaf.numbers(obs, tf)
    return tf.reduce_all((numbers >= leaf.low) & (numbers < leaf.high), -1)


def _all(leaf: encoders.Image, obs: tf.Tensor) -> tf.Tensor:
    """True for each observation, [N] bool."""
    del leaf
    return tf.ones([tf.shape(obs)[0]], tf.bool)


_VALID: dict[type, Callable[..., tf.Tensor]] = {
    encoders.Numbers: _finite,
    encoders.OneHot: _in_range,
    encoders.Image: _all,
}
__all__ = ["MASK", "TAKEN", "Encoder"]
