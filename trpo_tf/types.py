"""The records that cross rooms.

T time steps, B environments, W columns: B times the rollouts that an update uses; N = T * W transitions. P parameters
of the policy, K parameters of an action distribution, A columns of a raw action, L time steps of a sequence.

A transition has staleness s if the policy that acted was s updates behind the one that learns. New transitions are
those of the newest rollout; with a lag they are stale.
"""

from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; TensorFlow takes over memory that begins at a multiple of it


class Trajectory(NamedTuple):
    """What the environments gave for one update, time-major.

    The row after an episode's end is the reset row: its action was ignored, its mask is 0, and the observation
    that follows it starts the next episode. So obs[t + 1] is the true successor of every transition t whose mask is 1.
    """

    obs: Any  # dict of [T+1, B, ...]
    raw_action: Any  # [T, B, A], as drawn: neither clipped nor rescaled
    behavior_logp: Any  # [T, B], of that action, under the policy that drew it
    reward: Any  # [T, B], in the environment's units
    terminated: Any  # [T, B] bool, never together with truncated
    truncated: Any  # [T, B] bool
    mask: Any  # [T, B] float, 1 where the row is a transition, else 0


class Branches(NamedTuple):
    """What a vine adds to a Trajectory: short rollouts from S of its states, K actions in each, H time steps at most.

    A branch begins with an action of its own and goes on with the policy. It is over before H steps where its episode
    is.

    Reference: Schulman et al. 2015, section 5.2.
    """

    row: Any  # [S] int32: state s is obs[t, b] of the trajectory, row t B + b
    weight: Any  # [S] float, 0 where row t is no transition, or a branch met NaN, infinity or a failure; else 1
    raw_action: Any  # [S, K, A], the first action of each branch
    behavior_logp: Any  # [S, K], of that action, under the policy that acted
    reward: Any  # [S, K, H], in the environment's units, 0 where mask is 0
    mask: Any  # [S, K, H] float, 1 where the branch made a step
    terminated: Any  # [S, K] bool, whether it ended in a terminal state; where it did not, a value follows it
    end_obs: Any  # dict of [S, K, ...], its last observation

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, for a checkpoint."""
        fields = self._asdict()
        return {f"end_obs/{name}": x for name, x in fields.pop("end_obs").items()} | fields


class Rollout(NamedTuple):
    """A Trajectory, and where it comes from. A column is one stream of experience."""

    trajectory: Trajectory
    behavior_params: Any  # [T, B, K], parameters of the distributions that the actions were drawn from
    version: Any  # [T, B] int32, updates that the policy which acted had behind it
    discounted_return: Any  # [T, B], R_t = gamma R_t-1 (1 - ended_t-1) + r_t of each stream since its episode began
    episode_returns: list[float]  # undiscounted, of the whole episodes that ended
    episode_lengths: list[int]
    episode_ends: list[int]  # the time step at which each of them ended, from 0
    invalid: int  # transitions that were masked, because they held NaN or infinity
    restarts: int = 0  # environments made anew so far, because they failed
    dropped: int = 0  # transitions so far that were masked with them
    branches: Branches | None = None  # of a vine

    @property
    def steps(self) -> int:
        """Transitions, which are environment steps, those of branches among them."""
        branched = 0 if self.branches is None else int(self.branches.mask.sum())
        return int(self.trajectory.mask.sum()) + branched

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, for a checkpoint."""
        fields = self._asdict()
        trajectory, branches = fields.pop("trajectory")._asdict(), fields.pop("branches")
        leaves = {f"obs/{name}": x for name, x in trajectory.pop("obs").items()} | trajectory
        numbers = {"episode_returns": np.float64, "episode_lengths": np.int64, "episode_ends": np.int64}
        numbers |= {"invalid": np.int64, "restarts": np.int64, "dropped": np.int64}
        leaves |= {name: np.asarray(x, numbers.get(name)) for name, x in fields.items()}
        return leaves | ({} if branches is None else {f"branches/{name}": x for name, x in branches.arrays().items()})


def pack(rollout: Rollout, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a rollout under prefix/name."""
    return {f"{prefix}/{name}": x for name, x in rollout.arrays().items()}


def unpack(arrays: dict[str, np.ndarray], prefix: str) -> Rollout | None:
    """The rollout that `pack` gave these names, None where there is none; other entries are left alone."""
    leaves = _below(f"{prefix}/", arrays)
    if not leaves:
        return None
    obs = _below("obs/", leaves)
    trajectory = Trajectory(obs, **{name: leaves[name] for name in Trajectory._fields if name != "obs"})
    counts = [int(leaves[name]) for name in ("invalid", "restarts", "dropped")]
    leaves.setdefault("episode_ends", np.zeros(len(leaves["episode_returns"]), np.int64))  # older files lack it
    episodes = (leaves[name].tolist() for name in ("episode_returns", "episode_lengths", "episode_ends"))
    behavior = leaves["behavior_params"], leaves["version"], leaves["discounted_return"]
    branches: Branches | None = None
    if own := _below("branches/", leaves):
        arrays = {name: own[name] for name in Branches._fields if name != "end_obs"}
        branches = Branches(**arrays, end_obs=_below("end_obs/", own))
    return Rollout(trajectory, *behavior, *episodes, *counts)._replace(branches=branches)


def _below(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


class Batch(NamedTuple):
    """What a policy step learns from, N transitions.

    With sequences of L time steps, the transitions of one stand together: row (k W + b) L + l is time k L + l of
    column b.
    """

    features: Any  # dict of [>= N, ...]; with chunk_size observations, of which each chunk's features are made
    raw_action: Any  # [N, A]
    behavior_logp: Any  # [N], denominator of the ratios: log mu(a|s), truncated where transitions are stale
    advantage: Any  # [N], standardised
    weights: Any  # [N], 0 where the row is no transition; 1, or more or less where older transitions are among them


class ValueBatch(NamedTuple):
    """What the value network is fitted to, N rows in the order of a Batch."""

    features: Any  # as a Batch's; with a shared torso what the policy's last hidden layer makes of them
    returns: Any  # [N], targets
    values: Any  # [N], predictions before the fit
    mask: Any  # [N], 1 for new transitions, else 0
