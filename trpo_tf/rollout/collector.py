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
        self.obs: np.ndarray | None = None  # [B, ...], what the policy sees next
        self._actions: list[np.ndarray] = []  # [K, B, ...] each
        self._envs = None
        self.rebuild(0)

    def rebuild(self, update: int) -> None:
        """Replaces the environments by fresh ones, seeded for this update; their episodes are cut."""
        self.close()
        self._envs = self._make_envs(update)
        self.built_at = update
        self._actions = []
        self.obs, self._bad = self._clean(self._envs.reset())

    def recorded_actions(self) -> np.ndarray:
        """What the environments were stepped with since they were built, [K, B, ...]."""
        family = self._policy.family
        action = family.to_env(np.zeros((self._envs.num_envs, *family.action_shape), family.action_dtype), np)
        return np.concatenate([action[None][:0], *self._actions])

    def replay(self, update: int, actions: np.ndarray) -> None:
        """Rebuilds the environments as at `update` and steps them with recorded actions [K, B, ...]."""
        self.rebuild(update)
        for action in actions:
            self.obs, self._bad = self._clean(self._envs.step(action).obs)
        self._envs.pop_episodes()
        if len(actions):
            self._actions = [actions]

    def collect(self) -> tuple[Trajectory, Episodes]:
        """One trajectory [T, B, ...] and the whole episodes that ended in it.

        Raises:
          EnvironmentFailure: an environment raised, or they keep giving NaN or infinity.
        """
        try:
            trajectory, bad_obs, recorded = self._step_through()
        except (ArithmeticError, AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise EnvironmentFailure(f"environment failed: {type(error).__name__}: {error}") from error
        trajectory = self._mask_invalid(trajectory, bad_obs)
        self.act_count += self._time
        self._actions.append(recorded)
        self.obs, self._bad = trajectory.obs[-1].copy(), bad_obs[-1]
        return trajectory, self._envs.pop_episodes()

    def _step_through(self) -> tuple[Trajectory, np.ndarray, np.ndarray]:
        """T steps: the trajectory, which observations [T+1, B] were not finite, and the environments' actions."""
        family, encoder, shape = self._policy.family, self._policy.encoder, (self._time, self._envs.num_envs)
        obs = aligned((shape[0] + 1, shape[1], *encoder.shape), encoder.dtype)
        params = np.empty((*shape, family.size), np.float32)
        action = np.empty((*shape, *family.action_shape), family.action_dtype)
        reward, mask = (np.empty(shape, np.float32) for _ in range(2))
        terminated, truncated = (np.empty(shape, bool) for _ in range(2))
        bad_obs = np.zeros((shape[0] + 1, shape[1]), bool)
        recorded = []
        obs[0], bad_obs[0] = self.obs, self._bad
        self._actor.refresh()
        noise = family.noise(shape, tf.constant([self._seed, self.act_count], tf.int32)).numpy()
        with self._actor.alone():
            for t in range(self._time):
                params[t], action[t], env_action = self._actor(obs[t], noise[t])
                recorded.append(env_action)
                rows = self._envs.step(env_action)
                obs[t + 1] = rows.obs.reshape(obs.shape[1:])
                if not np.isfinite(obs[t + 1].sum()):
                    obs[t + 1], bad_obs[t + 1] = self._clean(rows.obs)
                reward[t], terminated[t], truncated[t], mask[t] = rows[1:]
        flat = (x.reshape(-1, *x.shape[2:]) for x in (params, action))
        logp = self._policy.log_prob(*flat).numpy().reshape(shape)
        return Trajectory(obs, action, logp, reward, terminated, truncated, mask), bad_obs, np.stack(recorded)

    def _clean(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Observations as stored, non-finite numbers replaced by 0, and which rows [B] had some."""
        obs = np.asarray(obs).astype(self._policy.encoder.dtype).reshape((-1, *self._policy.encoder.shape))
        if obs.dtype.kind != "f" or np.isfinite(obs.sum()):
            return obs, np.zeros(len(obs), bool)
        finite = np.isfinite(obs)
        return np.where(finite, obs, 0), ~finite.reshape(len(obs), -1).all(1)

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
