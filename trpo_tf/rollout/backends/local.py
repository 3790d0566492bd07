"""gymnasium environments in this process, stepped one after the other."""

from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from trpo_tf.rollout.backends import checks
from trpo_tf.rollout.backends.guard import Guard, quiet


class LocalVectorEnv:
    """Steps guarded environments; NEXT_STEP autoreset.

    Returns what gymnasium's SyncVectorEnv returns, without `info`, which takes that half of its time.

    Args:
      envs: of the same spaces.

    Raises:
      ValueError: their spaces differ.
    """

    def __init__(self, envs: list[Guard]):
        self.envs, self.num_envs = envs, len(envs)
        self.single_observation_space, self.single_action_space = envs[0].observation_space, envs[0].action_space
        for env in envs:
            checks.same_spaces(env, (self.single_observation_space, self.single_action_space), "the first with")
        self._actions = batch_space(self.single_action_space, self.num_envs)
        self._obs: list[Any] = [None] * self.num_envs
        self._ended = [False] * self.num_envs

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As SyncVectorEnv's, with no other options than reset_mask, [B] bool: which to reset."""
        chosen = range(self.num_envs) if options is None else np.flatnonzero(options["reset_mask"]).tolist()
        for index in chosen:
            self._obs[index], _ = self.envs[index].reset(seed=None if seed is None else seed + index)
            self._ended[index] = False
        return self._joined(), {}

    def step(self, action: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """As SyncVectorEnv's."""
        rewards, flags = [0.0] * self.num_envs, np.zeros((2, self.num_envs), bool)
        obs, ended = self._obs, self._ended
        for index, (env, one) in enumerate(zip(self.envs, iterate(self._actions, action), strict=True)):
            if ended[index]:
                obs[index], _ = env.reset()
                ended[index] = False
            else:
                obs[index], rewards[index], terminated, truncated, _ = env.step(one)
                if terminated or truncated:
                    ended[index], flags[0, index], flags[1, index] = True, terminated, truncated
        return self._joined(), np.array(rewards), flags[0], flags[1], {}

    def save(self, index: int) -> tuple[Any, bool] | None:
        """The state of an environment, and whether its episode has ended; see Backend."""
        state = self.envs[index].save()
        return None if state is None else (state, self._ended[index])

    def restore(self, index: int, saved: tuple[Any, bool], seed: int | None) -> None:
        """Puts an environment back to where it was; see Backend."""
        state, self._ended[index] = saved
        self.envs[index].restore(state, seed)

    def _joined(self) -> Any:
        space = self.single_observation_space
        with np.errstate(over="ignore"):  # what is beyond the space's dtype is infinite
            return concatenate(space, self._obs, create_empty_array(space, self.num_envs))

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()

    def __del__(self) -> None:
        with quiet():  # nothing can be raised here, and Python would print it
            self.close()
