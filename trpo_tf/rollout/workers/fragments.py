"""Fragments: whether one is what was asked for, and batches made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.rollout.stepper import aligned
from trpo_tf.rollout.workers.ledger import Identity
from trpo_tf.types import Rollout, Trajectory


class Fragment(NamedTuple):
    """T time steps of one worker: its part of a batch."""

    identity: Identity
    rollout: Rollout  # [T, B]; log-probabilities are 0: whoever joins fragments finds them
    restarts: int  # environments made anew in these time steps
    dropped: int  # transitions masked with them


class Shapes:
    """The shape and dtype of every array of a fragment.

    Args:
      actor: of the policy; see ArrayActor.
      time_steps: T. envs: B.
    """

    def __init__(self, actor: Any, time_steps: int, envs: int):
        rows = time_steps, envs
        number, flag = np.dtype(np.float32), np.dtype(bool)
        self._needed = {
            f"obs/{name}": ((time_steps + 1, envs, *of), dtype) for name, (of, dtype) in actor.specs.items()
        }
        self._needed |= {
            "raw_action": ((*rows, actor.action_size), number),
            "behavior_params": ((*rows, actor.params_size), number),
            "terminated": (rows, flag),
            "truncated": (rows, flag),
            "version": (rows, np.dtype(np.int32)),
        }
        self._needed |= {name: (rows, number) for name in ("behavior_logp", "reward", "mask", "discounted_return")}

    def misfit(self, fragment: Any, identity: Identity) -> str:
        """What is wrong with an answer to the request for `identity`; empty where nothing is."""
        if not isinstance(fragment, Fragment) or fragment.identity != identity:
            return f"a rollout worker answered something else than fragment {identity.fragment}"
        rollout = fragment.rollout
        if not (isinstance(rollout, Rollout) and isinstance(rollout.trajectory, Trajectory)):
            return "a rollout worker gave no rollout"
        arrays = {f"obs/{name}": x for name, x in rollout.trajectory.obs.items()}
        fields = rollout.trajectory._asdict() | rollout._asdict()
        arrays |= {name: fields[name] for name in self._needed if not name.startswith("obs/")}
        if arrays.keys() != self._needed.keys():
            return f"a rollout worker gave {', '.join(sorted(arrays.keys() ^ self._needed.keys()))}, or did not"
        for name, (shape, dtype) in self._needed.items():
            x = arrays[name]
            if not isinstance(x, np.ndarray) or x.shape != shape or x.dtype != dtype:
                given = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
                return f"a rollout worker gave {name} as {given}; {dtype}{list(shape)} is needed"
        return ""


def joined(
    fragments: list[Fragment],
    log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray],
    before: tuple[int, int] = (0, 0),
) -> Rollout:
    """The rollout of fragments side by side, [T, W B]. Transitions whose log-probability is not finite are masked.

    Args:
      fragments: W of them, [T, B] each.
      log_prob: from parameters [N, K] and raw actions [N, A] to log-probabilities [N].
      before: environments made anew so far, and transitions masked with them.
    """
    rollouts = [fragment.rollout for fragment in fragments]
    trajectories = [rollout.trajectory for rollout in rollouts]
    obs = joined_obs([trajectory.obs for trajectory in trajectories], 1)
    arrays = {name: np.concatenate([getattr(x, name) for x in trajectories], 1) for name in Trajectory._fields[1:]}
    names = ("behavior_params", "version", "discounted_return")
    params, version, discounted_return = (np.concatenate([getattr(x, name) for x in rollouts], 1) for name in names)
    flat = (x.reshape(-1, x.shape[-1]) for x in (params, arrays["raw_action"]))
    logp = log_prob(*flat).reshape(version.shape)
    bad = ~np.isfinite(logp) & (arrays["mask"] > 0)
    arrays |= {"behavior_logp": np.where(np.isfinite(logp), logp, 0).astype(np.float32)}
    arrays |= {name: np.where(bad, 0, arrays[name]).astype(np.float32) for name in ("reward", "mask")}
    episodes = merged([(one.episode_returns, one.episode_lengths, one.episode_ends) for one in rollouts])
    invalid = sum(rollout.invalid for rollout in rollouts) + int(bad.sum())
    lost = before[0] + sum(one.restarts for one in fragments), before[1] + sum(one.dropped for one in fragments)
    return Rollout(Trajectory(obs, **arrays), params, version, discounted_return, *episodes, invalid, *lost)


def joined_obs(parts: list[dict[str, np.ndarray]], axis: int) -> dict[str, np.ndarray]:
    """Observations side by side along an axis, in memory that a tensor can share."""
    joined = {}
    for name, x in parts[0].items():
        shape = list(x.shape)
        shape[axis] = sum(part[name].shape[axis] for part in parts)
        joined[name] = np.concatenate([part[name] for part in parts], axis, out=aligned(tuple(shape), x.dtype))
    return joined


def merged(parts: list[tuple[list[float], list[int], list[int]]]) -> tuple[list[float], list[int], list[int]]:
    """Returns, lengths and ends of the episodes of several columns, in the order of (end, column)."""
    whole = sorted((x for part in parts for x in zip(*part, strict=True)), key=lambda episode: episode[2])
    return [x for x, _, _ in whole], [x for _, x, _ in whole], [x for _, _, x in whole]
