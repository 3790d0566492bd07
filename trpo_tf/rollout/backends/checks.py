"""What environments declare and answer, held against each other: words for what does not fit."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.arrays import as_numbers, kind_of
from trpo_tf.errors import described, one_line

_LEARNING = {"NormalizeObservation": "--normalize_obs", "NormalizeReward": "--scale_reward"}
_SCALARS = (int, np.floating, np.integer)  # the quick way
_NUMBERS = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary


class Misfit(Exception):
    """An environment is, or answers, something else than it declares.

    Args:
      text: what, in words that do not name the environment.
      first: it did so before its first step was over.
    """

    def __init__(self, text: str, first: bool = False):
        super().__init__(text)
        self.first = first


def what_happened(error: BaseException) -> str:
    """What an environment raised, or what of it does not fit, in one printable line."""
    return one_line(str(error)) if isinstance(error, Misfit) else described(error)


def fit(value: Any, space: gym.Space, call: str, first: bool = False) -> None:
    """Raises Misfit where the observation that a call returned differs from its space; see `misfit`."""
    if found := misfit(value, space):
        raise Misfit(f"its {call} does not fit its observation space: {found}", first)


def plainly_fits(space: gym.Space) -> Callable[[Any], bool]:
    """A quick look whether an observation is as its space says; False: perhaps not."""
    if isinstance(space, gym.spaces.Dict):
        parts = {key: plainly_fits(part) for key, part in space.items()}
        return lambda obs: (
            type(obs) is dict and obs.keys() == parts.keys() and all(fits(obs[k]) for k, fits in parts.items())
        )
    if isinstance(space, gym.spaces.Discrete):
        return lambda obs: type(obs) is int or type(obs) is np.int64
    shape, dtype = space.shape, space.dtype
    return lambda obs: type(obs) is np.ndarray and obs.shape == shape and obs.dtype == dtype


def misfit(value: Any, space: gym.Space, where: str = "observation") -> str:
    """How a value differs from its space in structure, shape or kind of number; "" where it fits.

    Bounds are not looked at: many environments leave theirs. Nor are spaces that no policy can take.
    """
    if isinstance(space, _NUMBERS):
        return _leaf_misfit(value, space, where)
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(value, dict):
            return f"{where} is {kind_of(value)}, a dict is declared"
        if value.keys() != space.spaces.keys():
            return f"{where} has the keys {sorted(map(str, value))}, {sorted(map(str, space))} are declared"
        parts = [(value[key], part, f"{where}[{key!r}]") for key, part in space.items()]
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, tuple) or len(value) != len(space):
            return f"{where} is {kind_of(value)}, a tuple of {len(space)} is declared"
        parts = [(x, part, f"{where}[{index}]") for index, (x, part) in enumerate(zip(value, space, strict=True))]
    else:
        return ""
    return next((found for part in parts if (found := misfit(*part))), "")


def _leaf_misfit(value: Any, space: gym.Space, where: str) -> str:
    x = None if isinstance(value, tuple) else as_numbers(value)
    if x is None:
        return f"{where} is {kind_of(value)}, an array of numbers of shape {space.shape} is declared"
    if x.shape != space.shape:
        return f"{where} has the shape {x.shape}, {space.shape} is declared"
    if not np.can_cast(x.dtype, space.dtype, "same_kind"):
        return f"{where} is of {x.dtype}, {space.dtype} is declared"
    if space.dtype.kind != "f" and (x.astype(space.dtype) != x).any():
        return f"{where} has numbers that are no {space.dtype}"
    return ""


def number(value: Any) -> float | None:
    """A number, or an array of a single one; None where it is neither."""
    if isinstance(value, _SCALARS):
        return float(value)
    x = _single(value)
    return None if x is None else float(x)


def flag(value: Any) -> bool | None:
    """True, False, 1 or 0, or an array of a single one of them; None where it is none of these."""
    if isinstance(value, np.bool_):
        return bool(value)
    x = _single(value)
    return None if x is None or x not in (0, 1) else bool(x)


def _single(value: Any) -> Any:
    x = as_numbers(value)
    return x.reshape(())[()] if x is not None and x.size == 1 else None


def same_spaces(env: gym.Env, others: tuple[gym.Space, gym.Space], whose: str = "before") -> None:
    """Raises ValueError where those of observations and actions differ from the others. whose: what those are."""
    if (now := (env.observation_space, env.action_space)) != others:
        raise ValueError(f"made with other spaces: {now}, {whose} {others}")


def learning_wrapper(env: Any) -> str:
    """Words for the first wrapper around an environment or a vector environment that learns statistics; or ""."""
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        if said := learns(type(env)):
            return said if getattr(env, "update_running_mean", True) else ""
        env = env.env
    return learning_wrapper(env.envs[0]) if isinstance(env, gym.vector.SyncVectorEnv) else ""


def learns(kind: type) -> str:
    """Words for a class of wrappers that learn statistics, which no checkpoint holds; "" for others."""
    for base in kind.__mro__:
        if base.__name__ in _LEARNING and base.__module__.startswith("gymnasium.wrappers."):
            return (
                f"{base.__name__} learns statistics that start afresh in every evaluation and at every checkpoint; "
                f"leave it out: {_LEARNING[base.__name__]}, which is on by default, does the same and is saved"
            )
    return ""


def alike(a: gym.Space, b: gym.Space, bounds: bool = False) -> bool:
    """Whether one policy can see, or act in, both spaces. bounds: those of a Box have to agree, too."""
    parts = [spaces.named(spaces.nested(space), "part") for space in (a, b)]
    if parts[0].keys() != parts[1].keys():
        return False
    return all(_leaves_alike(part, parts[1][name], bounds) for name, part in parts[0].items())


def _leaves_alike(a: gym.Space, b: gym.Space, bounds: bool) -> bool:
    if not (isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box)):
        return a == b
    if a.shape != b.shape or (a.dtype == np.uint8) != (b.dtype == np.uint8):  # bytes may be an image
        return False
    return not bounds or (np.allclose(a.low, b.low) and np.allclose(a.high, b.high))
