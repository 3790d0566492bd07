"""The records that cross rooms: what the rollout hands to the learner and what solvers return."""

from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; TensorFlow takes over memory that begins at a multiple of it


class Trajectory(NamedTuple):
    """One update's transitions, time-major. T time, B envs; invalid rows carry mask 0.

    The row after an episode's end is the reset row: its action was ignored, its mask is 0, and the observation
    that follows it starts the next episode. So obs[t + 1] is the true successor of every valid row t.
    """

    obs: Any  # dict of [T+1, B, ...]
    action: Any  # [T, B, A], as sampled: neither clipped nor rescaled
    behavior_logp: Any  # [T, B], of that action, under the parameters that drew it
    reward: Any  # [T, B]
    terminated: Any  # [T, B] bool, never together with truncated
    truncated: Any  # [T, B] bool
    mask: Any  # [T, B] float, 1 where the row is a transition
    behavior_params: Any = ()  # [T, B, K], the distribution that it was drawn from
    policy_version: Any = ()  # [T, B] int32, the updates that its policy had behind it
    advantage: Any = ()  # [T, B], in units of the reward, of rows that were learned from before


def pack(trajectory: Trajectory, prefix: str) -> dict[str, np.ndarray]:
    """Its arrays by name, for a checkpoint; fields that are empty are left out."""
    leaves = {f"obs/{name}": x for name, x in trajectory.obs.items()} | trajectory._asdict()
    return {f"{prefix}/{name}": x for name, x in leaves.items() if name != "obs" and len(x)}


def unpack(arrays: dict[str, np.ndarray], prefix: str) -> Trajectory | None:
    """The trajectory that `pack` gave these names, None where there is none; other entries are left alone."""
    leaves = {name.removeprefix(f"{prefix}/"): x for name, x in arrays.items() if name.startswith(f"{prefix}/")}
    obs = {name.removeprefix("obs/"): leaves.pop(name) for name in list(leaves) if name.startswith("obs/")}
    return Trajectory(obs, **leaves) if leaves else None


class Batch(NamedTuple):
    """A trajectory with its learning signals, flattened to N = T * B rows.

    With sequences of L time steps, the rows of one stand together: row (k B + b) L + l is time k L + l of env b.
    """

    obs: Any  # dict of [N, ...]: features; with fisher_chunk observations, and at L = 1 those of time T after them
    action: Any  # [N, A]
    behavior_logp: Any  # [N]
    advantage: Any  # [N]
    returns: Any  # [N], targets of the value network; 0 in rows that are used again, which it is not fitted to
    values: Any  # [N], its predictions before it was fitted to them
    mask: Any  # [N], 1 or 0; where older data is learned from, the weight of the row
    fresh: Any = ()  # [N], its newest rows, as a mask
    behavior_params: Any = ()  # [N, K]


class Solution(NamedTuple):
    """What conjugate gradient returns."""

    direction: Any  # [P], x
    product: Any  # [P], A x, as far as rounding let the residual follow it
    residual: Any  # scalar float64, |A x - b|
    iterations: Any  # scalar int32
    reason: Any  # scalar int32, an index into conjugate_gradient.REASONS


class Step(NamedTuple):
    """What the line search returns; step_fraction is 0 and theta is theta_old when nothing was accepted."""

    theta: Any  # [P]
    step_fraction: Any  # scalar
    improvement: Any  # scalar float64, of the surrogate
    kl: Any  # scalar float64, KL(old || new)
    backtracks: Any  # scalar int32
    reason: Any  # scalar int32, an index into trust_region.REASONS
