"""From observations to features: a vector of numbers, images as they are, and what is passed on untouched.

One class for each kind of leaf of an observation space. Each is called with a batch and returns its features; besides
that it knows
  shape, dtype    of one stored observation
  size            columns of the vector; 0 for an image
  normalized      whether running moments apply to them
Calls take and return arrays, or tensors with xp=tensorflow.
"""

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.arrays import cast, flatten, join, take
from trpo_tf.errors import UsageError

MASK = "action_mask"  # the leaf that says which choices an action may take
# Names that no leaf is given: other inputs and features, and self, which no function of TensorFlow takes by name.
TAKEN = ("seed", "raw_action", "batch", "vector", "is_first", "policy_state", "value_state", "self")
_IMAGE_SIDE = 16  # uint8 arrays with smaller sides are numbers, not pictures


class Numbers:
    """A Box of numbers or a MultiBinary, flattened: [N, ...] -> [N, D] float64 where that was given, else float32.

    Numbers of a dtype that float32 cannot hold are stored as float64: rounded before the mean is taken off, Unix times
    would all be the same.

    Args:
      space: see above.
      exact: store such numbers as float64; False: as float32.
    """

    def __init__(self, space: gym.spaces.Box | gym.spaces.MultiBinary, exact: bool = True):
        bits = isinstance(space, gym.spaces.MultiBinary) or space.dtype.kind == "b"
        narrow = not exact or np.can_cast(space.dtype, np.float32)
        self.shape = space.shape
        self.dtype = np.dtype(np.int8 if bits else np.float32 if narrow else np.float64)
        self.size = int(np.prod(space.shape))
        self.normalized = not bits

    def __call__(self, obs, xp=np):
        dtype = np.float64 if obs.dtype == np.float64 else np.float32
        return flatten(cast(obs, dtype, xp), self.size, xp)


class OneHot:
    """One-hot vectors of a Discrete or MultiDiscrete, `start` taken off: [N, ...] -> [N, D] float32.

    A number outside the space has a vector of zeros.
    """

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        sizes = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec).reshape(-1)
        start = np.broadcast_to(space.start, space.shape).reshape(-1)
        self.shape = space.shape
        self.dtype = np.dtype(np.int64)
        self.size = int(sizes.sum())
        self.normalized = False
        self.low, self.high = start, start + sizes  # [M], high exclusive
        # Column k is 1 where number _of[k] of the observation is _value[k].
        self._of = np.repeat(np.arange(len(sizes)), sizes)
        self._value = np.concatenate([np.arange(size) + first for size, first in zip(sizes, start, strict=True)])

    def numbers(self, obs, xp=np):
        """[N, ...] -> [N, M] int64."""
        return flatten(cast(obs, np.int64, xp), len(self.low), xp)

    def __call__(self, obs, xp=np):
        return cast(take(self.numbers(obs, xp), self._of, xp) == self._value, np.float32, xp)


class Image:
    """A picture of bytes, or a stack of them, left as it is for a convolution: [N, ...] uint8."""

    def __init__(self, space: gym.spaces.Box):
        self.shape = space.shape
        self.dtype = np.dtype(np.uint8)
        self.size = 0
        self.normalized = False

    def __call__(self, obs, xp=np):
        return cast(obs, np.uint8, xp)


class Encoder:
    """The leaves of an observation space, joined.

    `leaves`, `images` (shapes), `vectors` and `masks` are by name; `normalized` [size] says which columns of the vector
    running moments apply to, `dtype` is the vector's of stored observations.

    Args:
      space: of a single environment.
      mask_size: how many choices of the action a leaf at the top called action_mask may take away; it is no feature.
      images: leave pictures for a convolution instead of flattening them.

    Raises:
      UsageError: a part of the space is not supported, or an action_mask has another size.
    """

    def __init__(self, space: gym.Space, mask_size: int = 0, images: bool = True):
        self.space = space
        nested = spaces.nested(space)
        parts = spaces.named(nested, "observation", TAKEN)
        self.masks = _below(nested, MASK) if mask_size else []
        self.leaves = {
            name: Numbers(part, exact=False) if name in self.masks else _leaf(part, space, images)
            for name, part in parts.items()
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
        wide = any(leaf.dtype == np.float64 for leaf in self.vectors.values())
        self.dtype = np.dtype(np.float64 if wide else np.float32)
        flags = [np.full(leaf.size, leaf.normalized) for leaf in self.vectors.values()]
        self.normalized = np.concatenate([*flags, np.zeros(0, bool)])

    def __call__(self, obs: dict, xp=np) -> dict:
        """Features by name: `vector` [N, size], each image, `action_mask` [N, mask_size]; others as given.

        The vector is float64 where a part of it is.
        """
        features = {name: x for name, x in obs.items() if name not in self.leaves}
        features |= {name: self.leaves[name](obs[name], xp) for name in self.images}
        if self.vectors:
            features["vector"] = self.vector(obs, xp)
        if self.masks:
            features[MASK] = join([self.leaves[name](obs[name], xp) for name in self.masks], xp)
        return features

    def vector(self, obs: dict, xp=np):
        """The vector alone, [N, size]."""
        parts = [leaf(obs[name], xp) for name, leaf in self.vectors.items()]
        if xp is not np and any(x.dtype == np.float64 for x in parts):
            parts = [cast(x, np.float64, xp) for x in parts]  # NumPy does that itself
        return join(parts, xp)


def _below(nested, key: str) -> list[str]:
    """Names of the leaves at or below a key at the top; other keys may begin or be folded alike."""
    if not isinstance(nested, dict):
        return []
    keys = {top: spaces.rebuild(part, lambda _, top=top: top) for top, part in nested.items()}
    return [name for name, top in spaces.named(keys, "observation", TAKEN).items() if top == key]


def _leaf(part: gym.Space, whole: gym.Space, images: bool):
    """The class for one part of an observation space.

    Raises:
      UsageError: there is none.
    """
    if part.shape is not None and 0 in part.shape:
        raise UsageError(f"observation space {whole} is not supported: {part} holds nothing to be seen")
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
