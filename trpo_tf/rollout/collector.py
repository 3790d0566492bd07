"""Collection of trajectories: environments, an actor, and what a resumed run needs to stand where this one stood.

NumPy only: a worker that collects imports no TensorFlow.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.errors import EnvironmentFailure
from trpo_tf.messages import warn
from trpo_tf.rollout.backends.restarts import Failure, count_restarts
from trpo_tf.rollout.finite import all_finite, clean, unwarned
from trpo_tf.rollout.vector_env import VectorEnv
from trpo_tf.state import part, prefixed
from trpo_tf.types import ALIGNMENT, Rollout, Trajectory

_COUNTERS = ("act_count", "invalid", "restarts", "dropped", "built_at")  # of a Collector


class Collector:
    """Steps B environments T times per rollout.

    Environments cannot be asked for their state. They are therefore rebuilt at every checkpoint boundary, in an
    undisturbed run too, and between boundaries the actions are recorded: replaying them from the last boundary puts
    new environments exactly where the old ones were. Which environments failed and were made anew is recorded, too:
    they are made anew at the same time steps again, whether they would fail again or not.

    Args:
      make_envs: from the number of the update to fresh environments with seeds of their own.
      actor: an ArrayActor or TensorActor; draws the actions.
      time_steps: T.
      gamma: of the discounted returns.
      max_invalid: transitions with NaN or infinity to mask before EnvironmentFailure is raised.
    """

    def __init__(
        self, make_envs: Callable[[int], VectorEnv], actor: Any, time_steps: int, gamma: float, max_invalid: int
    ):
        self._make_envs, self._actor, self._time = make_envs, actor, time_steps
        self._gamma, self._max_invalid = np.float32(gamma), max_invalid
        self.act_count = 0  # time steps so far
        self.invalid = 0  # transitions masked so far
        self.restarts = self.dropped = 0  # environments made anew so far, and transitions that were lost with them
        self.built_at = 0
        self.obs: dict[str, np.ndarray] = {}  # [B, ...] each, what the policy sees next
        self._actions: list[np.ndarray] = []  # [K, B, A] each
        self._failed: list[tuple[int, int]] = []  # time step since the environments were made, and environment
        self._envs: VectorEnv | None = None
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
        envs = self._made(update)
        obs, failures = envs.reset(), envs.pop_failures()
        self.restarts = count_restarts(failures, self.restarts, envs.max_restarts)
        self._failed = _at(0, failures)
        rows, self.built_at, self._actions = envs.num_envs, update, []
        obs, self._bad = clean(obs, self._actor.leaves)
        self._discounted_return = np.zeros(rows, np.float32)
        fresh = {name: np.zeros((rows, size), np.float32) for name, size in self._actor.states.items()}
        self.obs = obs | (fresh and {"is_first": np.ones(rows, np.float32)}) | fresh
        self._disturbed = False

    def _made(self, update: int) -> VectorEnv:
        self._disturbed = True
        self.close()
        self._envs = self._make_envs(update)
        return self._envs

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
        envs, failed = self._made(int(state["built_at"])), [(step, env) for step, env in state["failed"].tolist()]
        obs, others = self._replayed(envs, state["actions"], failed)
        obs, self._bad = clean(obs, self._actor.leaves)
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self._failed, self.restarts = failed + others, self.restarts + len(others)
        known = part("obs", state)
        equal = all(obs[name].tobytes() == known[name].tobytes() for name in self._actor.leaves)
        self.obs = known | obs
        self._discounted_return = state["discounted_return"]
        self._actions = [state["actions"]] if len(state["actions"]) else []
        self._disturbed = False
        return equal

    def _replayed(
        self, envs: VectorEnv, actions: np.ndarray, failed: list[tuple[int, int]]
    ) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """Observations [B, ...] after the actions [K, B, A]; environments fail where they did.

        One that fails elsewhere begins from its start again. Those that could not get through are returned, too.
        """
        due: dict[int, list[int]] = {}
        for step, env in failed:
            due.setdefault(step, []).append(env)
        obs, others = {}, []
        envs.repeat(True)
        for step in range(len(actions) + 1):
            for env in due.get(step, []):
                envs.fail_next(env)
            obs = envs.step(self._actor.to_env(actions[step - 1])).obs if step else envs.reset()
            if envs.failures:
                others += _at(step, envs.pop_failures())
        envs.repeat(False)
        envs.pop_episodes()
        return obs, others

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
        steps, losses = self._step_through(noise)
        flat = (x.reshape(-1, x.shape[-1]) for x in (steps.params, steps.raw_action))
        logp = log_prob(*flat).reshape(steps.reward.shape)
        trajectory, invalid = self._mask_invalid(steps, logp)
        before = sum(map(len, self._actions))
        self._failed += [(before + step, env) for step, env in losses.failed]
        self.restarts, self.dropped = losses.restarts, losses.dropped
        self.invalid += invalid
        self.act_count += self._time
        self._actions.append(steps.raw_action)
        self.obs, self._bad = {name: x[-1].copy() for name, x in steps.obs.items()}, steps.bad_obs[-1]
        assert self._envs is not None
        episodes = self._envs.pop_episodes()
        versions = np.full(steps.reward.shape, version, np.int32)
        returns = self._discounted_returns(trajectory)
        self._disturbed = False
        lost = self.restarts, self.dropped
        return Rollout(trajectory, steps.params, versions, returns, episodes.returns, episodes.lengths, invalid, *lost)

    def _step_through(self, noise: np.ndarray) -> tuple["_Steps", "_Losses"]:
        actor, envs = self._actor, self._envs
        assert envs is not None
        losses = _Losses(self.restarts, self.dropped, envs.max_restarts)
        steps = _Steps.empty((self._time, envs.num_envs), actor)
        obs, states = steps.obs, sorted(actor.states)
        for name, x in obs.items():
            x[0] = self.obs[name]
        steps.bad_obs[0] = self._bad
        with actor.single_threaded():
            for t in range(self._time):
                seen = {name: x[t] for name, x in obs.items()}
                steps.params[t], steps.raw_action[t], after = actor(seen, noise[t])
                given = envs.step(actor.to_env(steps.raw_action[t]))
                finite = True
                with unwarned():
                    for name in actor.leaves:
                        following = obs[name][t + 1]
                        following[...] = given.obs[name].reshape(following.shape)
                        finite = finite and all_finite(following)
                if not finite:
                    cleaned, steps.bad_obs[t + 1] = clean(given.obs, actor.leaves)
                    for name, x in cleaned.items():
                        obs[name][t + 1] = x
                steps.reward[t], steps.terminated[t] = given.reward, given.terminated
                steps.truncated[t], steps.mask[t] = given.truncated, given.mask
                if envs.failures:
                    losses.add(steps, t, envs.pop_failures())
                if states:
                    obs["is_first"][t + 1] = given.mask == 0
                    for name, state in zip(states, after, strict=True):
                        obs[name][t + 1] = state
        return steps, losses

    def _mask_invalid(self, steps: "_Steps", logp: np.ndarray) -> tuple[Trajectory, int]:
        """The trajectory, transitions masked whose observation, successor, reward or log-probability is not finite, and
        how many they are."""
        flags = steps.terminated, steps.truncated
        finite = np.isfinite(steps.reward) & np.isfinite(logp)
        bad = (steps.bad_obs[:-1] | steps.bad_obs[1:] | ~finite) & (steps.mask > 0)
        if not bad.any():
            return Trajectory(steps.obs, steps.raw_action, logp, steps.reward, *flags, steps.mask), 0
        count = int(bad.sum())
        if self.invalid + count > self._max_invalid:
            raise EnvironmentFailure(
                f"{self.invalid + count} transitions with NaN or infinity from the environments, more than "
                f"--max_invalid_rows={self._max_invalid}"
            )
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

    def close(self) -> None:
        """Frees the environments."""
        if self._envs is not None:
            self._envs.close()


class _Steps(NamedTuple):
    """T time steps as they come from the environments; arrays as in Trajectory."""

    obs: dict[str, np.ndarray]
    params: np.ndarray  # [T, B, K]
    raw_action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    bad_obs: np.ndarray  # [T+1, B] bool, where an observation was not finite

    @classmethod
    def empty(cls, shape: tuple[int, int], actor: Any) -> "_Steps":
        """Arrays to be filled, of shape [T, B]; observations in memory that a tensor can share."""
        obs = {name: aligned((shape[0] + 1, shape[1], *of), dtype) for name, (of, dtype) in actor.specs.items()}
        params = np.empty((*shape, actor.params_size), np.float32)
        action = np.empty((*shape, actor.action_size), np.float32)
        reward, mask = (np.empty(shape, np.float32) for _ in range(2))
        terminated, truncated = (np.empty(shape, bool) for _ in range(2))
        bad_obs = np.zeros((shape[0] + 1, shape[1]), bool)
        return cls(obs, params, action, reward, terminated, truncated, mask, bad_obs)


class _Losses:
    """What failures of environments cost, counted on from `restarts` and `dropped`."""

    def __init__(self, restarts: int, dropped: int, allowed: int):
        self.restarts, self.dropped, self._allowed = restarts, dropped, allowed
        self.failed: list[tuple[int, int]] = []  # number of the time step, the first being 1, and environment

    def add(self, steps: _Steps, t: int, failures: list[Failure]) -> None:
        """Masks what there is of the episodes that failed at row t, since nobody knows whether it was right."""
        self.restarts = count_restarts(failures, self.restarts, self._allowed)
        self.failed += _at(t + 1, failures)
        for env in {failure.env for failure in failures}:
            if steps.truncated[t, env] and not steps.mask[t, env]:  # it failed in an episode, not at its beginning
                others = np.flatnonzero(steps.mask[:t, env] == 0)
                fragment = slice(others[-1] + 1 if len(others) else 0, t)
                self.dropped += int(steps.mask[fragment, env].sum())
                steps.mask[fragment, env] = steps.reward[fragment, env] = 0


def _at(step: int, failures: list[Failure]) -> list[tuple[int, int]]:
    """Time step and environment of failures that decide with which seed it goes on."""
    return [(step, failure.env) for failure in failures if failure.lived]


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array, not filled, in memory that a tensor can share."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
