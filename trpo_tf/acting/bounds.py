"""The door from a raw action of real numbers to a Box."""

import gymnasium as gym
import numpy as np

from trpo_tf.errors import UsageError


class Bounds:
    """From raw actions [N, A] to a Box: squashed, then mapped to its bounds where it has some, then clipped to them.

    Args:
      space: any shape.
      squash: "none", "tanh" (onto -1..1) or "unit" (0..1 onto -1..1).
      rescale: map -1..1 to the bounds; without it, only clip.

    Raises:
      UsageError: a squashed action needs bounds, and the space lacks some.
    """

    def __init__(self, space: gym.spaces.Box, squash: str, rescale: bool):
        self.shape = space.shape
        self.low, self.high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        if squash != "none" and not bounded.all():
            raise UsageError(f"action space {space} is unbounded; --action_distribution=gaussian can act there")
        low, high = np.where(bounded & rescale, self.low, -1), np.where(bounded & rescale, self.high, 1)
        self._scale, self._shift = high / 2 - low / 2, high / 2 + low / 2  # the identity where not rescaled
        self._squash = squash

    def __call__(self, raw_action, xp=np):
        """[N, A] float32 -> [N, ...] float32, in the shape of the space."""
        if self._squash == "tanh":
            raw_action = xp.tanh(raw_action)
        elif self._squash == "unit":
            raw_action = 2 * raw_action - 1
        mapped = raw_action * self._scale + self._shift
        return xp.reshape(xp.minimum(xp.maximum(mapped, self.low), self.high), [-1, *self.shape])
