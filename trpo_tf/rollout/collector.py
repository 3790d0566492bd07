"""Collection of trajectories by the current policy."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trpo_tf.config import UsageError
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.envs import Envs, Episodes
from trpo_tf.types import ALIGNMENT, Trajectory


class EnvironmentFailure(RuntimeError):
    """The environments raised, or gave more NaN or infinite rows than allowed; the collector is as before the call."""


class Collector:
    """Steps B environments T times per trajectory and keeps what a resumed run needs to stand where this one stood.

    Environments cannot be asked for their state. They are therefore rebuilt at every checkpoint boundary, in an
    undisturbed run too, and between boundaries the actions are recorded: replaying them from the last boundary puts
    new environments exactly where the old ones were.

    Args:
      make_envs: from the number of the update to fresh environments with seeds of their own.
      policy: acts; its normaliser is only read.
      time_steps: T.
      seed: key of the action draws.
      max_invalid_rows: rows with NaN or infinity to mask before EnvironmentFailure is raised.
    """

    def __init__(
        self, make_envs: Callable[[int], Envs], policy: Policy, time_steps: int, seed: int, max_invalid_rows: int
    ):
        self._make_envs = make_envs
        self._policy = policy
        self._actor = Actor(policy)
        self._time = time_steps
        self._seed = seed
        self._max_invalid_rows = max_invalid_rows
        self.act_count = 0
        self.invalid_rows = 0
        self.built_at = 0
        self.obs: dict[str, np.ndarray] = {}  # [B, ...] each, what the policy sees next
        self._actions: list[np.ndarray] = []  # [K, B, A] each
        self._envs = None
        self.rebuild(0)

    def rebuild(self, update: int) -> None:
        """Replaces the environments by fresh ones, seeded for this update; their episodes are cut."""
        self.close()
        self._envs = self._make_envs(update)
        self.built_at = update
        self._actions = []
        obs, self._bad = self._clean(self._envs.reset())
        rows = self._envs.num_envs
        fresh = {name: np.zeros((rows, size), np.float32) for name, size in self._policy.states.items()}
        self.obs = obs | (fresh and {"is_first": np.ones(rows, np.float32)}) | fresh

    def recorded_actions(self) -> np.ndarray:
        """What the environments were stepped with since they were built, as stored: [K, B, A]."""
        shape = (0, self._envs.num_envs, self._policy.family.action_size)
        return np.concatenate([np.zeros(shape, np.float32), *self._actions])

    def replay(self, update: int, actions: np.ndarray, memory: dict[str, np.ndarray]) -> bool:
        """Rebuilds the environments as at `update` and steps them with recorded actions [K, B, A].

        memory: what `obs` was then, of which the states and is_first are taken over. Returns whether the rest is equal.
        """
        self.rebuild(update)
        for action in actions:
            obs, self._bad = self._clean(self._envs.step(self._policy.family.to_env(action, np)).obs)
            self.obs |= obs
        self._envs.pop_episodes()
        equal = all(self.obs[name].tobytes() == memory[name].tobytes() for name in self._policy.encoder.leaves)
        self.obs |= {name: memory[name] for name in self.obs if name not in self._policy.encoder.leaves}
        if len(actions):
            self._actions = [actions]
        return equal

    def collect(self, policy_version: int = 0) -> tuple[Trajectory, Episodes]:
        """One trajectory [T, B, ...] and the whole episodes that ended in it.

        policy_version: the updates that the policy has behind it, stored with every row.

        Raises:
          EnvironmentFailure: an environment raised, or they keep giving NaN or infinity.
        """
        try:
            trajectory, bad_obs = self._step_through(policy_version)
        except (ArithmeticError, AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise EnvironmentFailure(f"environment failed: {type(error).__name__}: {error}") from error
        trajectory = self._mask_invalid(trajectory, bad_obs)
        self.act_count += self._time
        self._actions.append(trajectory.action)
        self.obs, self._bad = {name: x[-1].copy() for name, x in trajectory.obs.items()}, bad_obs[-1]
        return trajectory, self._envs.pop_episodes()

    def _step_through(self, policy_version: int) -> tuple[Trajectory, np.ndarray]:
        """T steps: the trajectory, and which observations [T+1, B] were not finite."""
        policy, family, shape = self._policy, self._policy.family, (self._time, self._envs.num_envs)
        obs = {name: aligned((shape[0] + 1, shape[1], *of), dtype) for name, (of, dtype) in policy.specs.items()}
        params = np.empty((*shape, family.size), np.float32)
        action = np.empty((*shape, family.action_size), np.float32)
        reward, mask = (np.empty(shape, np.float32) for _ in range(2))
        terminated, truncated = (np.empty(shape, bool) for _ in range(2))
        bad_obs = np.zeros((shape[0] + 1, shape[1]), bool)
        for name, x in obs.items():
            x[0] = self.obs[name]
        bad_obs[0] = self._bad
        leaves, states = list(policy.encoder.leaves), sorted(policy.states)
        self._actor.refresh()
        noise = family.noise(shape, tf.constant([self._seed, self.act_count], tf.int32)).numpy()
        with self._actor.alone():
            for t in range(self._time):
                params[t], action[t], after = self._actor({name: x[t] for name, x in obs.items()}, noise[t])
                rows = self._envs.step(family.to_env(action[t], np))
                finite = True
                for name in leaves:
                    following = obs[name][t + 1]
                    following[...] = rows.obs[name].reshape(following.shape)
                    finite = finite and (following.dtype.kind != "f" or np.isfinite(following.sum()))
                if not finite:
                    cleaned, bad_obs[t + 1] = self._clean(rows.obs)
                    for name, x in cleaned.items():
                        obs[name][t + 1] = x
                reward[t], terminated[t], truncated[t], mask[t] = rows[1:]
                if states:
                    obs["is_first"][t + 1] = rows.mask == 0
                    for name, state in zip(states, after, strict=True):
                        obs[name][t + 1] = state
        flat = (x.reshape(-1, x.shape[-1]) for x in (params, action))
        logp = policy.log_prob(*flat).numpy().reshape(shape)
        versions = np.full(shape, policy_version, np.int32)
        return Trajectory(obs, action, logp, reward, terminated, truncated, mask, params, versions), bad_obs

    def _clean(self, obs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observations as stored, non-finite numbers replaced by 0, and which rows [B] had some."""
        stored, bad = {}, np.zeros(self._envs.num_envs, bool)
        for name, leaf in self._policy.encoder.leaves.items():
            x = np.asarray(obs[name]).astype(leaf.dtype).reshape((-1, *leaf.shape))
            if x.dtype.kind == "f":
                finite = np.isfinite(x)
                x, bad = np.where(finite, x, 0), bad | ~finite.reshape(len(x), -1).all(1)
            stored[name] = x
        return stored, bad

    def _mask_invalid(self, trajectory: Trajectory, bad_obs: np.ndarray) -> Trajectory:
        """Masks rows whose observation, successor, reward or log-probability is not finite."""
        finite = np.isfinite(trajectory.reward) & np.isfinite(trajectory.behavior_logp)
        bad = (bad_obs[:-1] | bad_obs[1:] | ~finite) & (trajectory.mask > 0)
        if not bad.any():
            return trajectory
        total = self.invalid_rows + int(bad.sum())
        if total > self._max_invalid_rows:
            raise EnvironmentFailure(
                f"{total} rows with NaN or infinity from the environments, more than --max_invalid_rows="
                f"{self._max_invalid_rows}"
            )
        self.invalid_rows = total
        return trajectory._replace(
            mask=np.where(bad, 0, trajectory.mask).astype(np.float32),
            reward=np.where(bad, 0, trajectory.reward).astype(np.float32),
            behavior_logp=np.where(finite, trajectory.behavior_logp, 0).astype(np.float32),
        )

    def close(self) -> None:
        """Frees the environments."""
        if self._envs is not None:
            self._envs.close()


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array, not filled, in memory that a tensor can share."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
