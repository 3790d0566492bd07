"""gymnasium: environments in Python, stepped one after the other or, by backends/processes.py, at once."""

from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.backends.base import leaves
from trpo_tf.rollout.backends.processes import ProcessVectorEnv
from trpo_tf.rollout.backends.single_env import Prepared, time_limit

_NEXT_STEP = gym.vector.AutoresetMode.NEXT_STEP


def make(prepared: Prepared, env_name: str, num_envs: int, seed: int, processes: bool = False) -> "GymnasiumBackend":
    """Fresh environments.

    Args:
      prepared: called once per environment, and once more with `processes`.
      env_name: for messages.
      num_envs: B.
      seed: environment b is reset with the seed seed + b.
      processes: step each environment in a process of its own.

    Raises:
      UsageError: environments share one object, or cannot be sent to a process.
    """
    if processes:
        in_processes = ProcessVectorEnv(prepared, num_envs, seed, env_name)
        return GymnasiumBackend(in_processes, env_name, seed, in_processes.max_episode_steps)
    envs = gym.vector.SyncVectorEnv([prepared] * num_envs, autoreset_mode=_NEXT_STEP)
    if len({id(env.unwrapped) for env in envs.envs}) < num_envs:
        envs.close()
        raise UsageError(f"--env={env_name}: returns the same environment twice; each call is to make one")
    return GymnasiumBackend(envs, env_name, seed, time_limit(envs.envs[0]))


def given(envs: gym.vector.VectorEnv, name: str, seed: int) -> "GymnasiumBackend":
    """The backend of a user's vector environment, which stays open when the backend is closed.

    Args:
      envs: any; its first episodes can be cut only where it is gymnasium's own, which knows how to reset some of its
        environments.
      name: for messages.
      seed: `reset` resets it with.

    Raises:
      UsageError: its autoreset is another one.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != _NEXT_STEP:
        raise UsageError(
            f"--env={name}: its autoreset_mode is {mode.name if isinstance(mode, gym.vector.AutoresetMode) else mode}; "
            "pass one made with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP"
        )
    limit = None
    if isinstance(envs.unwrapped, gym.vector.SyncVectorEnv):
        limit = time_limit(envs.unwrapped.envs[0])
    elif isinstance(envs.unwrapped, gym.vector.AsyncVectorEnv) and envs.spec:
        limit = envs.spec.max_episode_steps
    return GymnasiumBackend(envs, name, seed, limit, owned=False)


def vector_name(envs: gym.vector.VectorEnv) -> str:
    """The id of a vector environment as far as it, or its first environment, has one; else the name of its class."""
    spec = envs.spec
    if spec is None and isinstance(envs.unwrapped, gym.vector.SyncVectorEnv):
        spec = envs.unwrapped.envs[0].spec
    return spec.id if spec else type(envs.unwrapped).__name__


class GymnasiumBackend:
    """A vector environment of gymnasium's interface with NEXT_STEP autoreset.

    Args:
      envs: see above.
      env_name: for messages.
      seed: `reset` gives environment b the seed seed + b.
      max_episode_steps: see Backend.
      owned: whether `close` closes `envs`.
    """

    name = "gymnasium"

    def __init__(
        self,
        envs: gym.vector.VectorEnv | ProcessVectorEnv,
        env_name: str,
        seed: int,
        max_episode_steps: int | None,
        owned: bool = True,
    ):
        self._envs = envs
        self._seed = seed
        self._owned = owned
        self.env_name = env_name
        self.num_envs = envs.num_envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.max_episode_steps = max_episode_steps

    def reset(self) -> dict[str, np.ndarray]:
        """See Backend."""
        return leaves(self._envs.reset(seed=self._seed)[0])

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """See Backend."""
        chosen = np.zeros(self.num_envs, bool)
        chosen[ids] = True
        obs, _ = self._envs.reset(options={"reset_mask": chosen})
        return {name: x[ids] for name, x in leaves(obs).items()}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """See Backend.

        Raises:
          UsageError: the environment's step returns four values, as before gymnasium.
        """
        try:
            obs, reward, terminated, truncated = self._envs.step(action)[:4]
            return leaves(obs), reward, terminated, truncated
        except (ValueError, EnvironmentFailure) as error:
            if "values to unpack" not in str(error):
                raise
            raise UsageError(
                f"--env={self.env_name}: its step does not return (obs, reward, terminated, truncated, info); "
                "it was written for an older API"
            ) from error

    def close(self) -> None:
        """See Backend."""
        if self._owned:
            self._envs.close()
