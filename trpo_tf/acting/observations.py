"""What a caller asks a policy about: arrays by name, or one line about what does not fit."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.arrays import as_numbers, kind_of
from trpo_tf.acting.encoders import TAKEN
from trpo_tf.errors import UsageError

_WHOLE = "observation"


def batched(space: gym.Space, leaves: Mapping[str, Any], obs: Any) -> tuple[dict[str, np.ndarray], bool]:
    """An observation, or a batch of them, as arrays [N, ...] by leaf, in the leaves' dtypes.

    Args:
      space: of one observation.
      leaves: by name, with `shape` and `dtype` of one.
      obs: in the structure of the space; [...] or [N, ...] each.

    Returns:
      The arrays, and whether it was a single observation; then N is 1.

    Raises:
      UsageError: names the part that does not fit, what it is and what is needed.
    """
    named = spaces.named(_arrays(spaces.nested(space), obs, _WHOLE), _WHOLE, TAKEN)
    given = {name: _typed(name, named[name], leaf.dtype) for name, leaf in leaves.items()}
    single = any(x.ndim == len(leaves[name].shape) for name, x in given.items())
    if single:
        given = {name: x[None] for name, x in given.items()}
    rows = max(len(x) if x.ndim else 0 for x in given.values())
    for name, x in given.items():
        needed = tuple(leaves[name].shape)
        if not rows or x.shape != (rows, *needed):
            batch = f" or {('N', *needed)}".replace("'", "") if not single else ""
            raise UsageError(
                f"{name} has shape {x.shape[single:]}; {needed}{batch} is needed, N the same for all parts"
            )
    return given, single


def recurrent(states: dict[str, int], rows: int, state: Any, episode_start: Any) -> dict[str, np.ndarray]:
    """What a recurrent policy takes besides N observations.

    Args:
      states: size of each state by name.
      rows: N.
      state: what the policy gave with the observations before; None: there were none.
      episode_start: [N], true where an episode begins; None: everywhere without a state, else nowhere.

    Raises:
      UsageError: state or episode_start do not fit; says what is needed.
    """
    zeros = {name: np.zeros((rows, size), np.float32) for name, size in states.items()}
    before = zeros if state is None else state
    needed = ", ".join(f"{name} {x.shape}" for name, x in zeros.items())
    if not isinstance(before, dict) or {k: np.shape(x) for k, x in before.items()} != {
        k: x.shape for k, x in zeros.items()
    }:
        raise UsageError(f"state is not what predict returned for {rows} observations: a dict of {needed} is needed")
    starts = np.full(rows, state is None) if episode_start is None else as_numbers(episode_start)
    if starts is None or starts.size != rows:
        found = kind_of(episode_start) if starts is None else f"of shape {starts.shape}"
        raise UsageError(f"episode_start is {found}; ({rows},) is needed, true where an episode begins")
    return {"is_first": starts.reshape(rows).astype(np.float32)} | before


def _arrays(structure: Any, obs: Any, where: str) -> Any:
    """The observation in the structure of its space, each leaf an array."""
    if isinstance(structure, dict):
        if not isinstance(obs, Mapping) or obs.keys() != structure.keys():
            found = f"the keys {_listed(obs)}" if isinstance(obs, Mapping) else kind_of(obs)
            raise UsageError(f"{where} is {found}; a dict with the keys {_listed(structure)} is needed")
        return {key: _arrays(part, obs[key], f"{where}[{key!r}]") for key, part in structure.items()}
    if isinstance(structure, tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(structure):
            raise UsageError(f"{where} is {kind_of(obs)}; a tuple of {len(structure)} parts is needed")
        return tuple(_arrays(part, x, f"{where}[{k}]") for k, (part, x) in enumerate(zip(structure, obs, strict=True)))
    if (array := as_numbers(obs)) is None:
        raise UsageError(f"{where} is {kind_of(obs)}; an array of numbers is needed")
    return array


def _typed(name: str, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x in the dtype of its leaf."""
    if x.dtype == dtype or dtype.kind == "f":
        return x.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        typed = x.astype(dtype)
    if (typed != x).any():
        raise UsageError(f"{name} has numbers that are no {dtype.name}")
    return typed


def _listed(keys: Any) -> str:
    return ", ".join(sorted(map(str, keys))) or "none"
