"""Environments stepped together, with one meaning of every transition whatever backend steps them."""

from typing import Any, NamedTuple

import numpy as np

from trpo_tf.errors import Error
from trpo_tf.messages import warn
from trpo_tf.rollout.backends.base import Backend
from trpo_tf.rollout.backends.restarts import Failure, Named
from trpo_tf.rollout.finite import finite_or_0, unwarned

_NEVER = np.iinfo(np.int64).max
_BOOKS = ("_length", "_return", "_ended", "_cut", "_cut_at")  # of VectorEnv, [B] each


class EnvStep(NamedTuple):
    """One time step of B environments."""

    obs: dict[str, np.ndarray]  # [B, ...] each, after the step; by the names of acting/spaces.py
    reward: np.ndarray  # [B] float32, 0 where mask is 0
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool, never together with terminated
    mask: np.ndarray  # [B] float32, 0 on reset rows and where an environment failed, which is truncated


class Episodes(NamedTuple):
    """Whole episodes that ended; those cut to spread the phases, or by a failure, are not among them."""

    returns: list[float]  # undiscounted
    lengths: list[int]
    ends: list[int]  # time step at which each ended, the first after the last `pop_episodes` being 0


class VectorEnv:
    """B environments that start at once, with masks, episode statistics and spread phases.

    With `stagger`, the first episode of environment b is cut (truncated) after (b + 1) / B of the time limit, so that a
    batch holds every phase of episodes of fixed length rather than one slice.

    Args:
      backend: fresh environments; closed with this.
      stagger: see above; without effect where the backend knows no time limit.
      longest: steps after which every episode is cut.
      max_restarts: environments that may be made anew because they failed; whoever steps them counts.
      place: the number of the first of these environments among all of the run, and how many those are; None: these
        are all. It decides how they are staggered.

    Attributes:
      backend: name of the backend, "envpool" or "gymnasium".
      num_envs: B.
      longest: see above.
      observation_space, action_space: of one environment.
      max_restarts: see above.
      failures: since `pop_failures` was called, of environments that are made anew.
    """

    def __init__(
        self,
        backend: Backend,
        stagger: bool = False,
        max_restarts: int = 0,
        longest: int = _NEVER,
        place: tuple[int, int] | None = None,
    ):
        self._backend = backend
        self._named = Named(backend.env_name)
        self.backend = backend.name
        self.num_envs = backend.num_envs
        self.observation_space = backend.observation_space
        self.action_space = backend.action_space
        self._length = np.zeros(self.num_envs, np.int64)
        self._return = np.zeros(self.num_envs, np.float64)
        self._ended = np.zeros(self.num_envs, bool)
        self._cut = np.zeros(self.num_envs, bool)
        self.longest = longest
        self._cut_at = np.full(self.num_envs, longest)
        limit = backend.max_episode_steps
        if stagger and limit:
            first, count = place or (0, self.num_envs)
            self._cut_at = -(-limit * (first + np.arange(1, self.num_envs + 1)) // count)
        self._quiet = int(self._cut_at.min())  # below that many steps from now, nothing is to be cut or reset
        self._all_valid = np.ones(self.num_envs, np.float32)
        self._all_valid.flags.writeable = False
        self._episodes, self._time = Episodes([], [], []), 0
        self.max_restarts = max_restarts
        self.failures: list[Failure] = []

    def reset(self) -> dict[str, np.ndarray]:
        """Starts every environment; once, before the first step. Returns obs [B, ...] each.

        Raises:
          EnvironmentFailure: an environment raised, or its process died.
        """
        with self._named:
            obs = self._backend.reset()
        self._failed()
        return obs

    def step(self, action: Any) -> EnvStep:
        """Steps all environments with actions [B, ...], in the structure of the action space.

        Raises:
          EnvironmentFailure: an environment raised, or its process died, and cannot be made anew.
          UsageError: the environment was written for an older API, or the actions have another shape.
        """
        with self._named:
            obs, reward, terminated, truncated = self._backend.step(action)
        with unwarned():
            counted, reward = finite_or_0(reward), reward.astype(np.float32)
        self._quiet -= 1
        self._time += 1
        if self._quiet > 0 and not (terminated | truncated).any():
            self._length += 1
            self._return += counted
            return EnvStep(obs, reward, terminated, truncated, self._all_valid)
        going = ~self._ended
        if self._cut.any():  # their step was one more of the episode cut before; now comes the reset
            obs = self._reset_cut(obs)
        valid = going & ~self._failed()
        if not valid.all():
            counted, reward = np.where(valid, counted, 0.0), np.where(valid, reward, 0.0)
            terminated, truncated = terminated & valid, truncated & going
        truncated = truncated & ~terminated
        self._length += valid
        self._return += counted
        ended = terminated | truncated
        self._cut = valid & ~ended & (self._length >= self._cut_at)
        self._ended = ended | self._cut
        self._quiet = int((self._cut_at - self._length).min())
        if self._ended.any():
            self._quiet = 0
            self._finish(np.flatnonzero(ended & valid), np.flatnonzero(self._ended))
        return EnvStep(obs, reward, terminated, truncated | self._cut, valid.astype(np.float32))

    def _reset_cut(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """obs [B, ...] with first observations where the episode was cut at the step before."""
        ids = np.flatnonzero(self._cut)
        with self._named:
            first = self._backend.reset_at(ids)
        obs = {name: np.array(x) for name, x in obs.items()}
        for name, x in obs.items():
            x[ids] = first[name]
        return obs

    def _failed(self) -> np.ndarray:
        """Which environments [B] failed at this step; takes over what the backend knows of them."""
        failed = np.zeros(self.num_envs, bool)
        if self._backend.failures:
            failed[[failure.env for failure in self._backend.failures]] = True
            self.failures.extend(self._backend.failures)
            self._backend.failures.clear()
        return failed

    def _finish(self, whole: np.ndarray, over: np.ndarray) -> None:
        self._episodes.returns.extend(self._return[whole].tolist())
        self._episodes.lengths.extend(self._length[whole].tolist())
        self._episodes.ends.extend([self._time - 1] * len(whole))
        self._length[over] = 0
        self._return[over] = 0.0
        self._cut_at[over] = self.longest

    def pop_episodes(self) -> Episodes:
        """The whole episodes that ended since the last call."""
        done, self._episodes, self._time = self._episodes, Episodes([], [], []), 0
        return done

    def pop_failures(self) -> list[Failure]:
        """The failures since the last call."""
        found, self.failures = self.failures, []
        return found

    def save(self, env: int) -> Any:
        """The state of environment `env`, with its books: length and return so far, and when its episode is cut.

        None where it has failed, or fails at that; see Backend.

        Raises:
          UsageError: it cannot be put back to where it was.
        """
        with self._named:
            state = self._backend.save(env)
        return None if state is None else (state, [getattr(self, name)[env] for name in _BOOKS])

    def restore(self, env: int, saved: Any, seed: int | None = None) -> None:
        """Puts environment `env` back to where it was when it was saved; or another one of the same make was.

        Episodes that ended meanwhile are still among those of `pop_episodes`.

        env, saved, seed: as of Backend.

        Raises:
          UsageError: as `save`.
        """
        state, books = saved
        with self._named:
            self._backend.restore(env, state, seed)
        for name, value in zip(_BOOKS, books, strict=True):
            getattr(self, name)[env] = value
        self._quiet = 0  # looks at the next step whether anything is to be cut or reset

    def fail_next(self, env: int) -> None:
        """Environment `env` fails at the next call without being asked, as it did before; see Backend."""
        self._backend.fail_next(env)

    def repeat(self, on: bool) -> None:
        """What is called until it is turned off worked before; see Backend."""
        self._backend.repeat(on)

    def close(self) -> None:
        """Frees the environments; warns where that fails, since nothing depends on it any more."""
        try:
            with self._named:
                self._backend.close()
        except Error as error:
            warn(f"closing: {error.message}")
