"""EnvPool: environments in C++, stepped by its own threads."""

from typing import Any

import numpy as np

from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends.base import leaves, usable_cores
from trpo_tf.rollout.backends.restarts import Failure
from trpo_tf.rollout.env_state import refusal

try:
    import envpool
    from envpool.python.envpool import EnvPoolMixin
    from envpool.python.gymnasium_envpool import GymnasiumEnvPoolMixin
except ImportError:  # not Linux, or left out on purpose: gymnasium serves
    envpool = None


NO_STATE = "EnvPool gives out no state of its environments; --env_backend=gymnasium does"


def installed() -> bool:
    """Whether EnvPool is there."""
    return envpool is not None


def ids() -> list[str]:
    """The ids that EnvPool has; none where it is not installed."""
    return envpool.list_all_envs() if installed() else []


def make(env_id: str, num_envs: int, seed: int, threads: int, settings: dict[str, Any]) -> "EnvPoolBackend":
    """EnvPool's environments of an id; environment b has the seed seed + b.

    Args:
      env_id: one of `ids()`.
      num_envs: B.
      seed: see above.
      threads: 0: one per core.
      settings: further arguments of envpool.make.
    """
    cores = usable_cores()
    # Not bound to cores, threads that wake up meet on one while another idles: every other trajectory takes half
    # as long again. With cores that are not all ours, EnvPool's numbering may name one that is another's.
    bound = threads == 0 and len(cores) <= num_envs and cores == set(range(len(cores)))
    pool = envpool.make(
        env_id,
        env_type="gymnasium",
        num_envs=num_envs,
        seed=seed,
        num_threads=min(threads or len(cores), num_envs),
        thread_affinity_offset=0 if bound else -1,
        **settings,
    )
    return EnvPoolBackend(pool, env_id)


def is_pool(env: Any) -> bool:
    """Whether a user's object was made by EnvPool."""
    return installed() and isinstance(env, EnvPoolMixin)


def pool_name(pool: Any) -> str:
    """What to call a pool: its task, without the version, which a pool does not know."""
    return type(pool).__name__.removesuffix("EnvPool").removesuffix("Gymnasium")


def given(pool: Any, name: str) -> "EnvPoolBackend":
    """The backend of a user's pool, which stays open when the backend is closed.

    Raises:
      UsageError: the pool was made for another interface, or returns a part of its environments at a time.
    """
    if not isinstance(pool, GymnasiumEnvPoolMixin):
        raise UsageError(f"--env={name}: made for another interface; pass envpool.make(..., env_type='gymnasium')")
    if pool.is_async:
        raise UsageError(
            f"--env={name}: batch_size={pool.config['batch_size']} of num_envs={pool.num_envs}; leave batch_size out"
        )
    return EnvPoolBackend(pool, name, owned=False)


class EnvPoolBackend:
    """A synchronous pool made with env_type="gymnasium".

    Args:
      pool: see above.
      env_name: for messages.
      owned: whether `close` closes the pool.
    """

    name = "envpool"

    def __init__(self, pool: Any, env_name: str, owned: bool = True):
        self._pool = pool
        self._owned = owned
        self.failures: list[Failure] = []  # none: an environment in C++ does not raise
        self.env_name = env_name
        self.num_envs = pool.num_envs
        self.observation_space = pool.observation_space
        self.action_space = pool.action_space
        self.max_episode_steps = pool.spec.config.max_episode_steps
        self._dtype = pool.spec.action_array_spec["action"].dtype
        self._ids = np.arange(self.num_envs, dtype=np.int32)
        self._ended: np.ndarray | None = np.zeros(self.num_envs, bool)
        self._shape = (self.num_envs, *self.action_space.shape)
        # Where the two calls inside EnvPool's step are, and what the second returns; None: its step is what there is.
        names, wanted = getattr(pool, "_state_keys", ()), ("obs", "reward", "done", "trunc", "elapsed_step")
        takes = getattr(getattr(pool, "_spec", None), "_action_keys", None)
        plain = takes == ["env_id", "players.env_id", "action"] and set(wanted) <= set(names)
        self._state = [names.index(name) for name in wanted] if plain else None

    def reset(self) -> dict[str, np.ndarray]:
        """See Backend. EnvPool's seeds are those it was made with: a pool that ran before goes on in its streams."""
        return leaves(self._pool.reset()[0])

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """See Backend."""
        if self._ended is not None:
            self._ended[ids] = False
        return leaves(self._pool.reset(ids)[0])

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """See Backend.

        Raises:
          UsageError: the actions have another shape than [B, ...].
          RuntimeError: the pool does not reset at the step after an episode's end.
        """
        action = np.ascontiguousarray(action, self._dtype)
        if action.shape != self._shape:  # EnvPool would read what is not there
            raise UsageError(f"actions of shape {action.shape}, where the environment takes {self._shape}")
        if self._state:  # what EnvPool's own step does around these two calls takes longer than 16 steps of CartPole
            self._pool._send([self._ids, self._ids, action])
            state = self._pool._recv()
            obs, reward, done, truncated, elapsed = [state[index] for index in self._state]
            terminated = done & ~truncated
        else:
            obs, reward, terminated, truncated, info = self._pool.step(action)
            elapsed = info["elapsed_step"]
        if self._ended is not None:
            self._check_autoreset(self._ended, elapsed, terminated | truncated)
        return leaves(obs), reward, terminated, truncated

    def _check_autoreset(self, before: np.ndarray, elapsed: np.ndarray, ended: np.ndarray) -> None:
        """Looks at the first step after an end, once: its elapsed steps [B] are 0 where an episode ended before."""
        if not before.any():
            self._ended = ended
        elif elapsed[before].any():
            raise RuntimeError("EnvPool did not reset at the step after an episode's end, which transitions rely on")
        else:
            self._ended = None

    def save(self, env: int) -> Any:
        """See Backend."""
        raise refusal(self.env_name, NO_STATE)

    def restore(self, env: int, saved: Any, seed: int | None = None) -> None:
        """See Backend."""
        raise refusal(self.env_name, NO_STATE)

    def fail_next(self, env: int) -> None:
        """See Backend; never called, since none failed."""

    def repeat(self, on: bool) -> None:
        """See Backend."""

    def close(self) -> None:
        """See Backend."""
        if self._owned:
            self._pool.close()
