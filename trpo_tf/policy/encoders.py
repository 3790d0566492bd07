"""From observations to features: a vector of numbers, images as they are, and what is passed on untouched.

One class per kind of leaf of an observation space. Each is called with a batch and returns its features; besides that
it knows
  shape, dtype    of one stored observation
  size            columns of the vector; 0 for an image
  normalized      whether running moments apply to them
  array           the same as the call, of arrays
  valid           which observations [N] the space could hold, apart from its bounds
"""

import copy

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf.config import UsageError
from trpo_tf.policy import spaces

MASK = "action_mask"  # the leaf that says which choices an action may take
TAKEN = (
    "seed",
    "raw_action",
    "vector",
    "is_first",
    "policy_state",
    "value_state",
)  # names of other inputs and features
_IMAGE_SIDE = 16  # uint8 arrays with smaller sides are numbers, not pictures


class Numbers:
    """A Box of numbers or a MultiBinary, flattened: [N, ...] -> [N, D]."""

    def __init__(self, space: gym.spaces.Box | gym.spaces.MultiBinary):
        bits = isinstance(space, gym.spaces.MultiBinary) or space.dtype.kind == "b"
        self.shape = space.shape
        self.dtype = np.dtype(np.int8 if bits else np.float32)
        self.size = int(np.prod(space.shape))
        self.normalized = not bits

    def __call__(self, obs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(obs, tf.float32), [tf.shape(obs)[0], self.size])

    def array(self, obs: np.ndarray) -> np.ndarray:
        """The same of an array."""
        return obs.astype(np.float32, copy=False).reshape(len(obs), self.size)

    def valid(self, obs: tf.Tensor) -> tf.Tensor:
        """Which observations [N, ...] are all finite, [N] bool."""
        return tf.reduce_all(tf.math.is_finite(self(obs)), -1)


class OneHot:
    """One-hot vectors of a Discrete or MultiDiscrete, `start` taken off, one after the other: [N, ...] -> [N, D]."""

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        sizes = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec).reshape(-1)
        start = np.broadcast_to(space.start, space.shape).reshape(-1)
        self.shape = space.shape
        self.dtype = np.dtype(np.int64)
        self.size = int(sizes.sum())
        self.normalized = False
        # Column k is 1 where number _of[k] of the observation is _value[k].
        self._of = np.repeat(np.arange(len(sizes)), sizes)
        self._value = np.concatenate([np.arange(size) + first for size, first in zip(sizes, start, strict=True)])
        self._low, self._high = start, start + sizes

    def __call__(self, obs: tf.Tensor) -> tf.Tensor:
        numbers = tf.reshape(tf.cast(obs, tf.int64), [tf.shape(obs)[0], len(self._low)])
        return tf.cast(tf.gather(numbers, self._of, axis=-1) == self._value, tf.float32)

    def array(self, obs: np.ndarray) -> np.ndarray:
        """The same of an array."""
        return (obs.reshape(len(obs), -1)[:, self._of] == self._value).astype(np.float32)

    def valid(self, obs: tf.Tensor) -> tf.Tensor:
        """Which observations [N, ...] are in the space, [N] bool."""
        numbers = tf.reshape(tf.cast(obs, tf.int64), [tf.shape(obs)[0], len(self._low)])
        return tf.reduce_all((numbers >= self._low) & (numbers < self._high), -1)


class Image:
    """A picture of bytes, or a stack of them, left as it is for a convolution: [N, ...] uint8."""

    def __init__(self, space: gym.spaces.Box):
        self.shape = space.shape
        self.dtype = np.dtype(np.uint8)
        self.size = 0
        self.normalized = False

    def __call__(self, obs: tf.Tensor) -> tf.Tensor:
        return tf.cast(obs, tf.uint8)

    def array(self, obs: np.ndarray) -> np.ndarray:
        """The same of an array."""
        return obs.astype(np.uint8, copy=False)

    def valid(self, obs: tf.Tensor) -> tf.Tensor:
        """All of them, [N] bool."""
        return tf.ones([tf.shape(obs)[0]], tf.bool)


class Encoder:
    """The leaves of an observation space, joined.

    Args:
      space: of a single environment.
      mask_size: how many choices of the action a leaf at the top called action_mask may take away; it is no feature.
      images: leave pictures for a convolution instead of flattening them.

    Raises:
      UsageError: a part of the space is not supported, or an action_mask has another size.
    """

    def __init__(self, space: gym.Space, mask_size: int = 0, images: bool = True):
        self._space = space
        parts = spaces.named(spaces.nested(space), "observation", TAKEN)
        self.masks = [name for name in parts if name == MASK or name.startswith(f"{MASK}_")] if mask_size else []
        self.leaves = {
            name: Numbers(part) if name in self.masks else _leaf(part, space, images) for name, part in parts.items()
        }
        size = sum(self.leaves[name].size for name in self.masks)
        if self.masks and size != mask_size:
            raise UsageError(f"{MASK} has {size} entries in {space}; the actions have {mask_size} choices")
        features = {name: leaf for name, leaf in self.leaves.items() if name not in self.masks}
        self.images = {name: leaf.shape for name, leaf in features.items() if isinstance(leaf, Image)}
        self.vectors = {name: leaf for name, leaf in features.items() if leaf.size}
        if not (self.images or self.vectors):
            raise UsageError(f"observation space {space} holds nothing to be seen")
        self.size = sum(leaf.size for leaf in self.vectors.values())
        flags = [np.full(leaf.size, leaf.normalized) for leaf in self.vectors.values()]
        self.normalized = np.concatenate([*flags, np.zeros(0, bool)])

    def __call__(self, obs: dict) -> dict[str, tf.Tensor]:
        """Features of obs, by name: `vector` [N, size], each image, `action_mask` [N, mask_size]; others as given."""
        return self._features(obs, lambda leaf, x: leaf(x), lambda parts: tf.concat(parts, -1))

    def array(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same of arrays."""
        return self._features(obs, lambda leaf, x: leaf.array(x), lambda parts: np.concatenate(parts, -1))

    def _features(self, obs, encode, join):
        features = {name: x for name, x in obs.items() if name not in self.leaves}
        features |= {name: encode(self.leaves[name], obs[name]) for name in self.images}
        for kind, names in (("vector", self.vectors), (MASK, self.masks)):
            parts = [encode(self.leaves[name], obs[name]) for name in names]
            if parts:
                features[kind] = parts[0] if len(parts) == 1 else join(parts)
        return features

    def vector(self, obs: dict) -> tf.Tensor:
        """The vector alone, [N, size]."""
        return tf.concat([leaf(obs[name]) for name, leaf in self.vectors.items()], -1)

    def sample(self, rows: int) -> dict[str, np.ndarray]:
        """Observations drawn from the space, the same every time: [rows, ...] by leaf."""
        space = copy.deepcopy(self._space)
        space.seed(0)
        drawn = [spaces.named(space.sample(), "observation", TAKEN) for _ in range(rows)]
        return {name: np.stack([obs[name] for obs in drawn]).astype(x.dtype) for name, x in self.leaves.items()}

    def valid(self, obs: dict) -> tf.Tensor:
        """Which observations [N] the space could hold, apart from its bounds."""
        return tf.reduce_all(tf.stack([leaf.valid(obs[name]) for name, leaf in self.leaves.items()]), 0)


def _leaf(part: gym.Space, whole: gym.Space, images: bool):
    """The class for one part of an observation space.

    Raises:
      UsageError: there is none.
    """
    if isinstance(part, gym.spaces.Box) and part.dtype.kind in "fiub":
        return Image(part) if images and is_image(part) else Numbers(part)
    if isinstance(part, gym.spaces.MultiBinary):
        return Numbers(part)
    if isinstance(part, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return OneHot(part)
    raise UsageError(
        f"observation space {whole} is not supported; Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of "
        "them are"
    )


def is_image(space: gym.spaces.Box) -> bool:
    """Bytes in two to four axes, two of them long: a picture, with its channels first or last, or a stack of them."""
    sides = sorted(space.shape)[-2:]
    return space.dtype == np.uint8 and 2 <= len(space.shape) <= 4 and min(sides) >= _IMAGE_SIDE
