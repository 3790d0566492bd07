"""The door from a raw action of real numbers to a Box."""

import gymnasium as gym
import numpy as np

from trpo_tf.acting.arrays import cast
from trpo_tf.errors import UsageError

_SERVED = [np.dtype(name) for name in ("int8", "uint8", "int16", "int32", "int64")]


def is_bounded(space: gym.spaces.Box) -> bool:
    """Whether each of its numbers has bounds that float32 can hold."""
    with np.errstate(over="ignore"):
        return bool(
            np.isfinite(space.low.astype(np.float32)).all() and np.isfinite(space.high.astype(np.float32)).all()
        )


class Bounds:
    """From raw actions [N, A] to a Box: squashed, then mapped to its bounds where it has some, then clipped to them.

    Arrays are of the space's own dtype, so that the space contains them to the last bit. Tensors, which are what a
    SavedModel answers, are of a dtype that JSON can carry: float32, within the bounds, for any kind of floats. Integers
    are the nearest ones.

    Args:
      space: any shape, of floats or integers.
      squash: "none", "tanh" (onto -1..1) or "unit" (0..1 onto -1..1).
      rescale: map -1..1 to the bounds; without it, only clip.

    Raises:
      UsageError: a squashed action needs bounds, and the space lacks some.
    """

    def __init__(self, space: gym.spaces.Box, squash: str, rescale: bool):
        self.shape, self._dtype = space.shape, np.dtype(space.dtype)
        self._own = space.low.reshape(-1), space.high.reshape(-1)
        with np.errstate(over="ignore"):
            low, high = (bound.astype(np.float32) for bound in self._own)
        self.low, self.high = _inside(low, self._own[0], np.inf), _inside(high, self._own[1], -np.inf)
        self._served = self._dtype if self._dtype in _SERVED else np.dtype(np.int64)
        bounded = np.isfinite(low) & np.isfinite(high)
        if squash != "none" and not is_bounded(space):
            raise UsageError(f"action space {space} is unbounded; --action_distribution=gaussian can act there")
        low, high = np.where(bounded & rescale, low, -1), np.where(bounded & rescale, high, 1)
        self._scale, self._shift = high / 2 - low / 2, high / 2 + low / 2  # the identity where not rescaled
        self._squash = squash

    def __call__(self, raw_action, xp=np):
        """[N, A] float32 -> [N, ...] in the shape of the space."""
        if self._squash == "tanh":
            raw_action = xp.tanh(raw_action)
        elif self._squash == "unit":
            raw_action = 2 * raw_action - 1
        mapped, low, high = raw_action * self._scale + self._shift, self.low, self.high
        floats = self._dtype.kind == "f"
        if floats and xp is np:
            mapped, (low, high) = mapped.astype(self._dtype, copy=False), self._own
        within = xp.reshape(xp.minimum(xp.maximum(mapped, low), high), [-1, *self.shape])
        return within if floats else cast(xp.round(within), self._dtype if xp is np else self._served, xp)


def _inside(rounded: np.ndarray, exact: np.ndarray, inwards: float) -> np.ndarray:
    """The float32 nearest to each bound [A] that is not outside it."""
    pairs = zip(rounded.tolist(), exact.tolist(), strict=True)  # numbers of Python are compared exactly
    outside = np.array([a < b if inwards > 0 else a > b for a, b in pairs], bool)
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)
