"""Collection of trajectories: their books, and what a resumed run needs to stand where this one stood.

NumPy only: a worker that collects imports no TensorFlow.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.messages import warn
from trpo_tf.rollout.finite import check_invalid, clean
from trpo_tf.rollout.stepper import Past, Stepper, Steps
from trpo_tf.state import part, prefixed
from trpo_tf.types import Branches, Rollout, Trajectory

_COUNTERS = ("act_count", "invalid", "restarts", "dropped", "built_at")  # of a Collector


class Collector:
    """Collects time steps of B environments.

    Environments cannot be asked for their state. They are therefore rebuilt at every checkpoint boundary, in an
    undisturbed run too, and between boundaries the actions are recorded: replaying them from the last boundary puts
    new environments exactly where the old ones were. Which environments failed and were made anew is recorded, too:
    they are made anew at the same time steps again, whether they would fail again or not.

    Args:
      stepper: steps the environments.
      actor: an ArrayActor or TensorActor of the policy that acts; what it takes and gives is asked, not to act.
      gamma: of the discounted returns.
      max_invalid: transitions with NaN or infinity to mask before EnvironmentFailure is raised.
    """

    def __init__(self, stepper: Stepper, actor: Any, gamma: float, max_invalid: int):
        self._stepper, self._actor = stepper, actor
        self._gamma, self._max_invalid = np.float32(gamma), max_invalid
        self.act_count = 0  # time steps so far
        self.invalid = 0  # transitions masked so far
        self.restarts = self.dropped = 0  # environments made anew so far, and transitions that were lost with them
        self.built_at = 0
        self.obs: dict[str, np.ndarray] = {}  # [B, ...] each, what the policy sees next
        self._actions: list[np.ndarray] = []  # [K, B, A] each
        self._failed: list[tuple[int, int]] = []  # time step since the environments were made, and environment
        self._disturbed = False  # the environments are not where `obs` was seen
        self.rebuild(0)

    @property
    def num_envs(self) -> int:
        """B."""
        return len(self._bad)

    def rebuild(self, update: int) -> None:
        """Replaces the environments by fresh ones, seeded for this update; their episodes are cut.

        Raises:
          EnvironmentFailure: an environment failed too often. `state()` is as before.
        """
        self._disturbed = True
        obs, losses = self._stepper.build(update, self.restarts)
        self.restarts, self._failed = losses.restarts, losses.failed
        rows, self.built_at, self._actions = self._stepper.num_envs, update, []
        obs, self._bad = clean(obs, self._actor.leaves)
        self._discounted_return = np.zeros(rows, np.float32)
        fresh = {name: np.zeros((rows, size), np.float32) for name, size in self._actor.states.items()}
        self.obs = obs | (fresh and {"is_first": np.ones(rows, np.float32)}) | fresh
        self._disturbed = False

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a collector with the same settings needs."""
        shape = (0, self.num_envs, self._actor.action_size)
        return {
            "actions": np.concatenate([np.zeros(shape, np.float32), *self._actions]),
            "failed": np.array(self._failed, np.int64).reshape(-1, 2),
            "discounted_return": self._discounted_return,
            **prefixed("obs", self.obs),
            **{name: np.array(getattr(self, name)) for name in _COUNTERS},
        }

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """Rebuilds the environments as they were built and steps them with the recorded actions.

        Returns:
          Whether the environments give the observations that they gave then.

        Raises:
          EnvironmentFailure: an environment failed. `state()` is as before.
        """
        self._disturbed = True
        actions = [state["actions"]] if len(state["actions"]) else []
        failed = [(step, env) for step, env in state["failed"].tolist()]
        obs, others = self._stepper.replay(Past(int(state["built_at"]), actions, failed))
        obs, self._bad = clean(obs, self._actor.leaves)
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self._failed, self.restarts = failed + others, self.restarts + len(others)
        known = part("obs", state)
        equal = all(obs[name].tobytes() == known[name].tobytes() for name in self._actor.leaves)
        self.obs, self._actions = known | obs, actions
        self._discounted_return = state["discounted_return"]
        self._disturbed = False
        return equal

    def collect(
        self, noise: np.ndarray, log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray], version: int = 0
    ) -> Rollout:
        """One rollout [T, B, ...].

        Args:
          noise: [T, B, noise_size], what the draws need.
          log_prob: from parameters [N, K] and raw actions [N, A] to log-probabilities [N].
          version: updates that the policy has behind it, stored with every transition.

        Raises:
          EnvironmentFailure: environments failed too often, or they keep giving NaN or infinity. `state()` is as
            before, and the next call begins there.
        """
        if self._disturbed and not self.restore(self.state()):
            warn("the environments did not repeat themselves: training goes on, but not to the bit")
        self._disturbed = True
        past = Past(self.built_at, self._actions, self._failed)
        before = self.restarts, self.dropped
        steps, losses, episodes = self._stepper.step(self.obs, self._bad, noise, before, past)
        flat = (x.reshape(-1, x.shape[-1]) for x in (steps.params, steps.raw_action))
        logp = log_prob(*flat).reshape(steps.reward.shape)
        trajectory, invalid = self._mask_invalid(steps, logp)
        self._failed += [(past.time_steps + step, env) for step, env in losses.failed]
        self.restarts, self.dropped = losses.restarts, losses.dropped
        self.invalid += invalid
        self.act_count += len(noise)
        self._actions.append(steps.raw_action)
        self.obs, self._bad = {name: x[-1].copy() for name, x in steps.obs.items()}, steps.bad_obs[-1]
        versions = np.full(steps.reward.shape, version, np.int32)
        returns = self._discounted_returns(trajectory)
        self._disturbed = False
        branches = steps.branches and _with_logp(steps.branches, steps.params, log_prob)
        lost = self.restarts, self.dropped
        return Rollout(trajectory, steps.params, versions, returns, *episodes, invalid, *lost, branches)

    def _mask_invalid(self, steps: Steps, logp: np.ndarray) -> tuple[Trajectory, int]:
        """The trajectory, transitions masked whose observation, successor, reward or log-probability is not finite, and
        how many they are."""
        flags = steps.terminated, steps.truncated
        finite = np.isfinite(steps.reward) & np.isfinite(logp)
        bad = (steps.bad_obs[:-1] | steps.bad_obs[1:] | ~finite) & (steps.mask > 0)
        if not bad.any():
            return Trajectory(steps.obs, steps.raw_action, logp, steps.reward, *flags, steps.mask), 0
        count = int(bad.sum())
        check_invalid(self.invalid + count, self._max_invalid)
        reward, mask = (np.where(bad, 0, x).astype(np.float32) for x in (steps.reward, steps.mask))
        logp = np.where(finite, logp, 0).astype(np.float32)
        return Trajectory(steps.obs, steps.raw_action, logp, reward, *flags, mask), count

    def _discounted_returns(self, trajectory: Trajectory) -> np.ndarray:
        """R_t [T, B] of every stream, float32; what was under way goes on in the next rollout."""
        ended = trajectory.terminated | trajectory.truncated
        decay = self._gamma * (np.float32(1) - ended.astype(np.float32))
        totals, carried = np.empty_like(trajectory.reward), self._discounted_return
        with np.errstate(over="ignore", invalid="ignore"):
            for t, reward in enumerate(trajectory.reward):
                totals[t] = carried + reward
                carried = totals[t] * decay[t]
        self._discounted_return = np.where(np.isfinite(carried), carried, np.float32(0))  # or it would never end
        return totals

    def forget(self) -> None:
        """Drops the record of actions: these environments will never be put back to where they were."""
        self._actions, self._failed = [], []

    def metrics(self) -> dict[str, Any]:
        """Metrics of whatever steps the environments."""
        return self._stepper.metrics()

    def close(self) -> None:
        """Frees the environments."""
        self._stepper.close()


def _with_logp(branches: Branches, params: np.ndarray, log_prob: Callable) -> Branches:
    """The branches, with the log-probability of their first actions under params [T, B, K] of the trajectory."""
    states, actions, size = branches.raw_action.shape
    theirs = params.reshape(-1, params.shape[-1])[branches.row].repeat(actions, 0)
    logp = log_prob(theirs, branches.raw_action.reshape(-1, size))
    return branches._replace(behavior_logp=np.asarray(logp).reshape(states, actions))
