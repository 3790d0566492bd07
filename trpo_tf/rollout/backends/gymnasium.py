"""gymnasium: environments in Python, stepped one after the other or, by backends/processes.py, at once."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from trpo_tf.acting.encoders import MASK
from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends import checks
from trpo_tf.rollout.backends.base import leaves
from trpo_tf.rollout.backends.guard import Guard, Watchdog
from trpo_tf.rollout.backends.local import LocalVectorEnv
from trpo_tf.rollout.backends.processes import ProcessVectorEnv
from trpo_tf.rollout.backends.restarts import Failure, Household
from trpo_tf.rollout.backends.single_env import OLD_STEP, Prepared, time_limit, whole, wrapper_unpacks
from trpo_tf.rollout.env_state import refusal

GIVEN = "it is a vector environment; pass an id or a function instead"
_NEXT_STEP = gym.vector.AutoresetMode.NEXT_STEP


def make(prepared: Prepared, household: Household, seed: int, processes: bool = False) -> "GymnasiumBackend":
    """Fresh environments.

    Args:
      prepared: called once per environment, again where one failed, and once more with `processes`.
      household: says how many, how they are called, and whether they are made anew.
      seed: environment b is reset with the seed seed + b.
      processes: step each environment in a process of its own.

    Raises:
      UsageError: environments share one object, or cannot be sent to a process.
    """
    if processes:
        in_processes = ProcessVectorEnv(prepared, household, seed)
        return GymnasiumBackend(in_processes, household.env_name, seed, in_processes.max_episode_steps)
    guards: list[Guard] = []
    watchdog = Watchdog(household)
    try:
        for index in range(household.num_envs):
            guards.append(Guard(prepared, index, household))
        envs = LocalVectorEnv(guards)
        if len({id(env.unwrapped) for env in guards}) < household.num_envs:
            raise UsageError(
                f"--env={household.env_name}: returns the same environment twice; each call is to make one"
            )
    except BaseException:
        for guard in guards:
            guard.close()
        watchdog.close()
        raise
    return GymnasiumBackend(envs, household.env_name, seed, time_limit(guards[0]), watchdog=watchdog)


def given(envs: gym.vector.VectorEnv, name: str, seed: int) -> "GymnasiumBackend":
    """The backend of a user's vector environment, which stays open when the backend is closed.

    Args:
      envs: any; its first episodes can be cut only where it is gymnasium's own, which knows how to reset some of its
        environments.
      name: for messages.
      seed: `reset` resets it with.

    Raises:
      UsageError: its autoreset is another one, or a wrapper learns statistics.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != _NEXT_STEP:
        raise UsageError(
            f"--env={name}: its autoreset_mode is {mode.name if isinstance(mode, gym.vector.AutoresetMode) else mode}; "
            "pass one made with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP"
        )
    if said := checks.learning_wrapper(envs):
        raise UsageError(f"--env={name}: {said}")
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
      owned: whether `close` closes `envs`, which are guards or processes then.
      watchdog: of the guards.
    """

    name = "gymnasium"

    def __init__(
        self,
        envs: gym.vector.VectorEnv | LocalVectorEnv | ProcessVectorEnv,
        env_name: str,
        seed: int,
        max_episode_steps: int | None,
        owned: bool = True,
        watchdog: Watchdog | None = None,
    ):
        self._envs: Any = envs
        self._watchdog = watchdog
        self._seed = seed
        self._owned = owned
        self._unchecked = {"reset", "step"} if not owned else set()
        self.env_name = env_name
        self.num_envs = envs.num_envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.max_episode_steps = max_episode_steps
        self._guards: list[Any] = list(self._envs.envs) if owned else []
        self.failures: list[Failure] = self._guards[0].household.failures if owned else []

    def reset(self) -> dict[str, np.ndarray]:
        """See Backend."""
        obs, info = self._envs.reset(seed=self._seed)
        self._check("reset", obs, info)
        return leaves(obs)

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """See Backend."""
        chosen = np.zeros(self.num_envs, bool)
        chosen[ids] = True
        obs, _ = self._envs.reset(options={"reset_mask": chosen})
        return {name: x[ids] for name, x in leaves(obs).items()}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """See Backend.

        Raises:
          UsageError: the first step of a user's vector environment does not answer what it declares.
        """
        obs, reward, terminated, truncated, _ = self._first_step(action) if self._unchecked else self._envs.step(action)
        return leaves(obs), reward, terminated, truncated

    def _first_step(self, action: Any) -> Any:
        try:
            answer = self._envs.step(action)
        except (TypeError, ValueError) as error:
            if wrapper_unpacks(error):
                raise UsageError(f"--env={self.env_name}: {OLD_STEP}") from error
            raise
        if not whole(answer):
            raise UsageError(f"--env={self.env_name}: {OLD_STEP}")
        obs, *numbers, info = answer
        self._check("step", obs, info, *numbers)
        return answer

    def _check(self, call: str, obs: Any, info: Any, *numbers: Any) -> None:
        """Looks at what the first reset and the first step of a user's vector environment return.

        Raises:
          UsageError: it is not what the environment declares.
        """
        if call not in self._unchecked:
            return
        self._unchecked.remove(call)
        said = checks.misfit(obs, batch_space(self.observation_space, self.num_envs))
        shapes = [np.shape(x) for x in numbers]
        if not said and any(shape != (self.num_envs,) for shape in shapes):
            said = f"reward and flags have the shapes {shapes}, ({self.num_envs},) is needed"
        if not said and isinstance(info, dict) and MASK in info:
            said = f"{MASK} in info reaches no policy; pass a function that makes one environment instead"
        if said:
            raise UsageError(f"--env={self.env_name}: its {call} does not fit: {said}")

    def save(self, env: int) -> Any:
        """See Backend."""
        self._check_owned()
        return self._envs.save(env)

    def restore(self, env: int, saved: Any, seed: int | None = None) -> None:
        """See Backend."""
        self._check_owned()
        self._envs.restore(env, saved, seed)

    def _check_owned(self) -> None:
        if not self._owned:
            raise refusal(self.env_name, GIVEN)

    def fail_next(self, env: int) -> None:
        """See Backend."""
        self._guards[env].fail_next()

    def repeat(self, on: bool) -> None:
        """See Backend."""
        for guard in self._guards:
            guard.repeat(on)

    def close(self) -> None:
        """See Backend."""
        if self._owned:
            self._envs.close()
        if self._watchdog is not None:
            self._watchdog.close()
