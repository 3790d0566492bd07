"""A policy over episodes: recurrent states are kept from one step to the next."""

from collections.abc import Callable
from typing import Any

import numpy as np


def stateful_act(actor, noise: Callable[[int], np.ndarray] | None = None) -> Callable[[dict, np.ndarray], Any]:
    """A function act(obs, is_first) -> actions as the environments take them.

    Args:
      actor: an ArrayActor or a TensorActor.
      noise: from the number of environments B to what their draws need, [B, noise_size]; None: the mode is taken.

    Returns:
      The function. obs: [B, ...] each, by leaf. is_first: [B], true where an episode begins with this observation.
    """
    states: dict[str, np.ndarray] = {}

    def act(obs: dict[str, np.ndarray], is_first: np.ndarray) -> Any:
        count = len(is_first)
        given = {name: np.asarray(obs[name], leaf.dtype) for name, leaf in actor.leaves.items()}
        if actor.states:
            given["is_first"] = is_first.astype(np.float32)
            for name, size in actor.states.items():
                given[name] = states.get(name, np.zeros((count, size), np.float32))
        if noise is None:
            raw_action, after = actor.mode(given)
        else:
            _, raw_action, after = actor(given, noise(count))
        states.update(zip(sorted(actor.states), after, strict=True))
        return actor.to_env(raw_action)

    return act
