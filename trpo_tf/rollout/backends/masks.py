"""The action_mask of an environment: where it is found, what it may be, how it comes into the observation."""

import functools
import reprlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.arrays import as_numbers
from trpo_tf.acting.encoders import MASK

_METHOD = "action_masks"  # as sb3-contrib calls it


class MaskError(Exception):
    """A mask is missing, or does not go with the actions."""


def find(env: gym.Env, info: dict[str, Any]) -> "Mask | None":
    """The mask of an environment whose reset returned this `info`; None where it has none.

    It is looked for in `info`, then in the observation, which may have it as the entry action_mask, then as the method
    action_masks.

    Raises:
      MaskError: no part of an action is a choice.
    """
    space, choices = env.observation_space, _choices(env.action_space)
    in_obs = MASK not in info and isinstance(space, gym.spaces.Dict) and MASK in space.spaces
    method = env.get_wrapper_attr(_METHOD) if env.has_wrapper_attr(_METHOD) else None
    if MASK in info:
        source: Callable[[Any, Any, bool], Any] = _from_info
    elif in_obs:
        if not choices:
            return None  # an observation of this name
        source = _from_obs
    elif callable(method):
        source = functools.partial(_from_method, method)
    else:
        return None
    if not choices:
        raise MaskError(f"it gives an {MASK}, but its actions, {env.action_space}, have no choices to be taken away")
    return Mask(choices, source, in_obs)


def _from_info(obs: Any, info: Any, over: bool) -> Any:
    return info.get(MASK) if isinstance(info, dict) else None


def _from_obs(obs: Any, info: Any, over: bool) -> Any:
    return obs[MASK]


def _from_method(method: Callable[[], Any], obs: Any, info: Any, over: bool) -> Any:
    return None if over else method()


def _choices(space: gym.Space) -> list[int]:
    """How many values each choice of an action has, in the order of masks."""
    sizes: list[int] = []
    for part in spaces.named(spaces.nested(space), "action").values():
        if isinstance(part, gym.spaces.Discrete):
            sizes.append(int(part.n))
        elif isinstance(part, gym.spaces.MultiDiscrete):
            sizes += part.nvec.reshape(-1).tolist()
    return sizes


class Mask:
    """Puts the mask, [K] int8, all its parts one after the other, into observations.

    Args:
      choices: how many values each choice of an action has; K in all.
      source: from obs and info, as reset or step returned them, and whether the episode is over, to the mask; None
        where there is none.
      in_obs: the observation has the mask already.
    """

    def __init__(self, choices: list[int], source: Callable[[Any, Any, bool], Any], in_obs: bool):
        self._size, self._starts = sum(choices), np.cumsum([0, *choices[:-1]])
        self._source, self._in_obs = source, in_obs

    def joined_space(self, space: gym.Space) -> gym.Space:
        """The observation space with the mask."""
        if self._in_obs:
            return space
        parts = dict(space.items()) if isinstance(space, gym.spaces.Dict) else {"observation": space}
        return gym.spaces.Dict(parts | {MASK: gym.spaces.Box(0, 1, (self._size,), np.int8)})

    def join(self, obs: Any, info: Any, over: bool) -> Any:
        """The observation with the mask; ones where an episode is over and there is none.

        Raises:
          MaskError: there is none, it has another size, or it allows nothing although the episode goes on.
        """
        mask = self._source(obs, info, over)
        if mask is None and not over:
            raise MaskError(f"its {MASK} is missing; reset and step have to return it each time")
        allowed = np.ones(self._size, bool) if mask is None else self._allowed(mask)
        if not over and not (allowed.any() if len(self._starts) == 1 else self._each(allowed)):
            raise MaskError(f"its {MASK} allows no action; allow one until the episode is over")
        if self._in_obs:
            return obs
        return (obs if isinstance(obs, dict) else {"observation": obs}) | {MASK: allowed.astype(np.int8)}

    def _each(self, allowed: np.ndarray) -> bool:
        return bool(np.logical_or.reduceat(allowed, self._starts).all())

    def _allowed(self, mask: Any) -> np.ndarray:
        if isinstance(mask, np.ndarray):
            parts: Any = [mask]  # the quick way
        else:
            parts = mask if isinstance(mask, list) else spaces.named(mask, MASK).values()
        arrays = [as_numbers(part) for part in parts]
        if any(x is None or (x.dtype.kind == "f" and np.isnan(x).any()) for x in arrays):
            raise MaskError(f"its {MASK} holds something else than 0 and 1: {reprlib.repr(mask)}")
        x = np.concatenate([x.ravel() for x in arrays if x is not None] or [np.zeros(0)])
        if x.size != self._size:
            raise MaskError(f"its {MASK} has {x.size} entries; the actions have {self._size} choices")
        return x != 0
