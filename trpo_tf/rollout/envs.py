"""Vector environments: EnvPool and gymnasium behind one face, with one meaning of every row.

NEXT_STEP autoreset: the step after an episode's end ignores its action and returns the reset observation.
"""

import difflib
import importlib
import os
import re
import warnings
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from trpo_tf.config import UsageError, first_line
from trpo_tf.policy import encoders, spaces
from trpo_tf.rollout import options

try:
    import envpool
except ImportError:  # not Linux, or left out on purpose: gymnasium serves
    envpool = None


# Options that decide how environments are driven, or that flags of their own set.
_OURS = {
    "batch_size", "env_type", "max_num_players", "num_envs", "num_threads", "render_mode", "seed",
    "thread_affinity_offset",
}  # fmt: skip


class Rows(NamedTuple):
    """One time step of B environments."""

    obs: dict[str, np.ndarray]  # [B, ...] each, after the step; by the names of policy/spaces.py
    reward: np.ndarray  # [B] float32, 0 where mask is 0
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool, never together with terminated
    mask: np.ndarray  # [B] float32, 0 on reset rows


class Episodes(NamedTuple):
    """Whole episodes that ended; those cut to spread the phases are not among them."""

    returns: list[float]  # undiscounted
    lengths: list[int]


class _EnvPool:
    """EnvPool in synchronous mode; env i has the seed seed + i."""

    def __init__(self, env_id: str, num_envs: int, seed: int, threads: int, settings: dict):
        cores = usable_cores()
        # Not bound to cores, threads that wake up meet on one while another idles: every other trajectory takes half
        # as long again. With cores that are not all ours, EnvPool's numbering may name one that is another's.
        bound = threads == 0 and len(cores) <= num_envs and cores == set(range(len(cores)))
        self._pool = envpool.make(
            env_id,
            env_type="gymnasium",
            num_envs=num_envs,
            seed=seed,
            num_threads=min(threads or len(cores), num_envs),
            thread_affinity_offset=0 if bound else -1,
            **settings,
        )
        self.observation_space = self._pool.observation_space
        self.action_space = self._pool.action_space
        self.max_episode_steps = self._pool.spec.config.max_episode_steps
        self._dtype = self._pool.spec.action_array_spec["action"].dtype
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._ended = np.zeros(num_envs, bool)
        self._shape = (num_envs, *self.action_space.shape)
        # Where the two calls inside EnvPool's step are, and what the second returns; None: its step is what there is.
        names, wanted = getattr(self._pool, "_state_keys", ()), ("obs", "reward", "done", "trunc", "elapsed_step")
        takes = getattr(getattr(self._pool, "_spec", None), "_action_keys", None)
        plain = takes == ["env_id", "players.env_id", "action"] and set(wanted) <= set(names)
        self._state = [names.index(name) for name in wanted] if plain else None

    def reset(self) -> dict[str, np.ndarray]:
        """Starts every environment; obs [B, ...] each."""
        return _leaves(self._pool.reset()[0])

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Resets the environments `ids`; their obs [len(ids), ...] each."""
        if self._ended is not None:
            self._ended[ids] = False
        return _leaves(self._pool.reset(ids)[0])

    def step(self, action: np.ndarray):
        """obs, reward, terminated, truncated of actions [B, ...]."""
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
        if self._ended is not None and self._ended.any():
            if elapsed[self._ended].any():
                raise RuntimeError("EnvPool did not reset at the step after an episode's end, which rows rely on")
            self._ended = None  # the contract was seen to hold; looking once is enough
        elif self._ended is not None:
            self._ended = terminated | truncated
        return _leaves(obs), reward, terminated, truncated

    def close(self) -> None:
        """Frees the environments."""
        self._pool.close()


class _Gymnasium:
    """gymnasium's synchronous vector environment; env i has the seed seed + i."""

    def __init__(
        self, env_id: str, num_envs: int, seed: int, settings: dict, wrap: list, render_mode: str | None, video_dir: str
    ):
        def make():
            env = gym.make(env_id, **settings, **({"render_mode": render_mode} if render_mode else {}))
            for wrapper in wrap:
                env = wrapper(env)
            *_, info = env.reset(seed=seed)
            if isinstance(info, dict) and encoders.MASK in info:
                env = _MaskFromInfo(env)
            if video_dir:
                env = gym.wrappers.RecordVideo(env, video_dir, episode_trigger=lambda episode: True)
            return env

        self._envs = gym.vector.SyncVectorEnv([make] * num_envs, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
        self._id, self._seed = env_id, seed
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        spec = self._envs.envs[0].spec
        self.max_episode_steps = spec.max_episode_steps if spec else None

    def reset(self) -> dict[str, np.ndarray]:
        """Starts every environment; obs [B, ...] each."""
        return _leaves(self._envs.reset(seed=self._seed)[0])

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Resets the environments `ids`; their obs [len(ids), ...] each."""
        mask = np.zeros(self._envs.num_envs, bool)
        mask[ids] = True
        return {name: x[ids] for name, x in _leaves(self._envs.reset(options={"reset_mask": mask})[0]).items()}

    def step(self, action):
        """obs, reward, terminated, truncated of actions [B, ...], in the structure of the action space."""
        try:
            obs, *rest = self._envs.step(action)[:4]
            return _leaves(obs), *rest
        except ValueError as error:
            if "values to unpack" not in str(error):
                raise
            raise UsageError(
                f"--env={self._id}: its step does not return (obs, reward, terminated, truncated, info); "
                "it was written for an older API"
            ) from error

    def close(self) -> None:
        """Frees the environments."""
        self._envs.close()


class _MaskFromInfo(gym.Wrapper):
    """Adds the action_mask of `info` to the observation, where the policy looks for it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        mask = self._flat(env.reset()[1])
        parts = {"observation": env.observation_space}
        if isinstance(env.observation_space, gym.spaces.Dict):
            parts = dict(env.observation_space.items())
        self.observation_space = gym.spaces.Dict(parts | {encoders.MASK: gym.spaces.Box(0, 1, mask.shape, np.int8)})

    def reset(self, **settings):
        """As the environment's."""
        obs, info = self.env.reset(**settings)
        return self._joined(obs, info), info

    def step(self, action):
        """As the environment's."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._joined(obs, info), reward, terminated, truncated, info

    def _joined(self, obs, info):
        return (obs if isinstance(obs, dict) else {"observation": obs}) | {encoders.MASK: self._flat(info)}

    def _flat(self, info) -> np.ndarray:
        """The mask, all its parts one after the other; ones where an episode's last info has none."""
        if encoders.MASK not in info:
            return np.ones(self.observation_space[encoders.MASK].shape, np.int8)
        parts = spaces.named(info[encoders.MASK], encoders.MASK).values()
        return np.concatenate([np.ravel(part) != 0 for part in parts]).astype(np.int8)


class Envs:
    """B environments that start at once, with masks, episode statistics and spread phases.

    The first episode of environment b is cut (truncated) after (b + 1) / B of the time limit, so that a batch holds
    every phase of episodes of fixed length rather than one slice; `stagger` turns that off.

    Args:
      env_id: of EnvPool or gymnasium.
      num_envs: B.
      seed: environment b gets seed + b.
      backend: "auto", "envpool" or "gymnasium".
      threads: of EnvPool; 0: one per core.
      stagger: see above.
      allow_module: let "module:Id" import that module.
      env_options, wrappers: see config.py.
      render_mode, video_dir: of gymnasium; show the episodes, or record them into a directory.

    Raises:
      UsageError: no such environment, or its backend is not installed.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        backend: str = "auto",
        threads: int = 0,
        stagger: bool = False,
        allow_module: bool = False,
        env_options: str = "",
        wrappers: str = "",
        render_mode: str | None = None,
        video_dir: str = "",
    ):
        settings, wrap = options.keywords("env_options", env_options), options.wrappers("wrappers", wrappers)
        if _OURS & settings.keys():
            raise UsageError(
                f"--env_options={env_options}: {', '.join(sorted(_OURS & settings.keys()))} is not to be set"
            )
        if wrap and backend == "envpool":
            raise UsageError(f"--wrappers={wrappers}: wrappers are gymnasium's; --env_backend=gymnasium takes them")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*precision lowered.*")
                self.backend = resolve_backend(env_id, "gymnasium" if wrap else backend, allow_module)
                if self.backend == "envpool":
                    self._backend = _EnvPool(env_id, num_envs, seed, threads, settings)
                else:
                    self._backend = _Gymnasium(env_id, num_envs, seed, settings, wrap, render_mode, video_dir)
        except (gym.error.Error, ImportError) as error:
            raise UsageError(f"--env={env_id}: {first_line(error)}") from error
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            if not settings or isinstance(error, UsageError):
                raise
            theirs = "; those of EnvPool are not gymnasium's, which --env_backend=gymnasium takes"
            hint = theirs if self.backend == "envpool" else ""
            raise UsageError(f"--env_options={env_options}: {first_line(error)}{hint}") from error
        self.num_envs = num_envs
        self.observation_space = self._backend.observation_space
        self.action_space = self._backend.action_space
        self._length = np.zeros(num_envs, np.int64)
        self._return = np.zeros(num_envs, np.float64)
        self._ended = np.zeros(num_envs, bool)
        self._cut = np.zeros(num_envs, bool)
        self._cut_at = np.full(num_envs, np.iinfo(np.int64).max)
        limit = self._backend.max_episode_steps
        if stagger and limit:
            self._cut_at = -(-limit * np.arange(1, num_envs + 1) // num_envs)
        self._quiet = int(self._cut_at.min())  # below that many steps from now, nothing is to be cut or reset
        self._all_valid = np.ones(num_envs, np.float32)
        self._all_valid.flags.writeable = False
        self._episodes = Episodes([], [])

    def reset(self) -> dict[str, np.ndarray]:
        """Starts every environment; once, before the first step. Returns obs [B, ...] each."""
        return self._backend.reset()

    def step(self, action) -> Rows:
        """Steps all environments with actions [B, ...], in the structure of the action space."""
        obs, reward, terminated, truncated = self._backend.step(action)
        self._quiet -= 1
        if self._quiet > 0 and not (terminated | truncated).any():
            self._length += 1
            self._return += _finite(reward)
            return Rows(obs, reward.astype(np.float32, copy=False), terminated, truncated, self._all_valid)
        valid = ~self._ended
        if self._cut.any():  # their step was one more of the episode cut before; now comes the reset
            ids = np.flatnonzero(self._cut)
            fresh = self._backend.reset_at(ids)
            obs = {name: np.array(x) for name, x in obs.items()}
            for name, x in obs.items():
                x[ids] = fresh[name]
        if self._ended.any():
            reward, terminated, truncated = np.where(valid, reward, 0.0), terminated & valid, truncated & valid
        truncated = truncated & ~terminated
        self._length += valid
        self._return += _finite(reward)
        ended = terminated | truncated
        self._cut = valid & ~ended & (self._length >= self._cut_at)
        self._ended = ended | self._cut
        self._quiet = int((self._cut_at - self._length).min())
        if self._ended.any():
            self._quiet = 0
            self._finish(np.flatnonzero(ended), np.flatnonzero(self._ended))
        return Rows(obs, reward.astype(np.float32), terminated, truncated | self._cut, valid.astype(np.float32))

    def _finish(self, whole: np.ndarray, over: np.ndarray) -> None:
        self._episodes.returns.extend(self._return[whole].tolist())
        self._episodes.lengths.extend(self._length[whole].tolist())
        self._length[over] = 0
        self._return[over] = 0.0
        self._cut_at[over] = np.iinfo(np.int64).max

    def pop_episodes(self) -> Episodes:
        """The whole episodes that ended since the last call."""
        done, self._episodes = self._episodes, Episodes([], [])
        return done

    def close(self) -> None:
        """Frees the environments."""
        self._backend.close()


def _leaves(obs) -> dict[str, np.ndarray]:
    return {"observation": obs} if isinstance(obs, np.ndarray) else spaces.named(obs, "observation", encoders.TAKEN)


def _finite(reward: np.ndarray) -> np.ndarray:
    return reward if np.isfinite(reward.sum()) else np.nan_to_num(reward, posinf=0.0, neginf=0.0)


def usable_cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def derive_seed(seed: int, *path: int) -> int:
    """A well mixed seed for one purpose, derive_seed(seed, purpose, counter).

    Below 2^31 - 2^17, so that counting environments up from it stays in 31 bits.
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) % (2**31 - 2**17)


def resolve_backend(env_id: str, backend: str, allow_module: bool) -> str:
    """ "envpool" or "gymnasium", for an id and what was asked for.

    Raises:
      UsageError: neither has the id, or the backend asked for is not installed or does not have it.
    """
    if ":" in env_id:
        if not allow_module:
            raise UsageError(f"--env={env_id}: imports a module; pass --allow_env_module if you trust it")
        return "gymnasium"
    if env_id.startswith("ALE/"):
        try:
            gym.register_envs(importlib.import_module("ale_py"))
        except ImportError as error:
            raise UsageError(f"--env={env_id}: ale-py is not installed; try: pip install 'trpo_tf[atari]'") from error
    in_envpool = envpool is not None and env_id in envpool.list_all_envs()
    if backend == "envpool":
        if envpool is None:
            raise UsageError("--env_backend=envpool: EnvPool is not installed; try: pip install envpool")
        if not in_envpool:
            raise UsageError(f"--env={env_id}: EnvPool does not have it{_nearest(env_id, envpool.list_all_envs())}")
        return "envpool"
    if in_envpool and backend == "auto":
        return "envpool"
    if env_id not in gym.registry:
        known = [*gym.registry, *(envpool.list_all_envs() if envpool is not None and backend == "auto" else ())]
        raise UsageError(f"--env={env_id}: no such environment{_nearest(env_id, known)}")
    return "gymnasium"


def _nearest(env_id: str, known) -> str:
    """A hint: the newest version of the same name, else the nearest ids."""
    version = re.compile(re.escape(re.sub(r"-v\d+$", "", env_id)) + r"-v(\d+)")
    versions = [(int(match[1]), name) for name in known if (match := version.fullmatch(name))]
    if versions:
        return f"; its newest version is {max(versions)[1]}"
    near = difflib.get_close_matches(env_id, sorted(set(known)), n=3)
    return f"; near it: {', '.join(near)}" if near else ""
