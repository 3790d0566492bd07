"""One environment of gymnasium: made, wrapped, its action_mask put into the observation.

What is here runs in the processes of environments, too, and must not import TensorFlow: 3 s and 600 MB in each.
"""

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from trpo_tf.acting import spaces
from trpo_tf.acting.encoders import MASK
from trpo_tf.errors import UsageError


def by_id(env_id: str, settings: dict[str, Any], render_mode: str | None) -> Callable[[], gym.Env]:
    """A function that makes the environment of an id, in a process where the id is not registered, too.

    Args:
      env_id: of gymnasium; module:Id imports the module.
      settings: arguments of its constructor.
      render_mode: another one, unless it is None.

    Raises:
      gymnasium.error.Error, ImportError: there is no such environment.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = copy.copy(gym.spec(name))
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        spec.entry_point = load_env_creator(spec.entry_point)
    return _Made(spec, settings | ({"render_mode": render_mode} if render_mode else {}))


class _Made:
    def __init__(self, spec: EnvSpec, settings: dict[str, Any]):
        self.spec, self.settings = spec, settings

    def __call__(self) -> gym.Env:
        return gym.make(self.spec, **self.settings)


def modules(make_env: Callable[[], gym.Env]) -> list[str]:
    """The modules that `make_env` needs, as far as it can be seen."""
    maker = make_env.spec.entry_point if isinstance(make_env, _Made) else getattr(make_env, "func", make_env)
    name = maker.split(":")[0] if isinstance(maker, str) else getattr(maker, "__module__", None)
    return [] if name in (None, "__main__") else [name]


class Prepared:
    """Makes an environment with what belongs around it.

    Args:
      make_env: makes the environment.
      env_name: for messages.
      seed: of the reset at which `info` is looked at.
      wrappers: put around it, innermost first.
      render_mode: what it has to have been made with; None: anything.
      video_dir: where every episode is recorded; empty: none is.

    Raises:
      UsageError: `make_env` returned something else, or made for another render_mode.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        env_name: str,
        seed: int,
        wrappers: Sequence[Callable[[gym.Env], gym.Env]],
        render_mode: str | None,
        video_dir: str,
    ):
        self.make_env = make_env
        self._name = env_name
        self._seed = seed
        self._wrappers = wrappers
        self._render_mode, self._video_dir = render_mode, video_dir

    def __call__(self) -> gym.Env:
        env = self.make_env()
        kind = type(env)
        if not isinstance(env, gym.Env):
            raise UsageError(f"--env={self._name}: returned {kind.__module__}.{kind.__qualname__}, not a gymnasium.Env")
        if self._render_mode and env.render_mode != self._render_mode:
            raise UsageError(
                f"--env={self._name}: made with render_mode={env.render_mode}; {self._render_mode} is needed here"
            )
        for wrap in self._wrappers:
            env = wrap(env)
        *_, info = env.reset(seed=self._seed)
        if isinstance(info, dict) and MASK in info:
            env = MaskFromInfo(env)
        if self._video_dir:
            env = gym.wrappers.RecordVideo(env, self._video_dir, episode_trigger=lambda episode: True)
        return env


def time_limit(env: gym.Env) -> int | None:
    """The steps after which episodes of the environment are truncated, as far as it says so."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return env.spec.max_episode_steps if env.spec else None


class MaskFromInfo(gym.Wrapper):
    """Adds the action_mask of `info` to the observation, where the policy looks for it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        mask = self._flat(env.reset()[1])
        parts = {"observation": env.observation_space}
        if isinstance(env.observation_space, gym.spaces.Dict):
            parts = dict(env.observation_space.items())
        self.observation_space = gym.spaces.Dict(parts | {MASK: gym.spaces.Box(0, 1, mask.shape, np.int8)})

    def reset(self, **settings):
        """As the environment's."""
        obs, info = self.env.reset(**settings)
        return self._joined(obs, info), info

    def step(self, action):
        """As the environment's."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._joined(obs, info), reward, terminated, truncated, info

    def _joined(self, obs, info):
        return (obs if isinstance(obs, dict) else {"observation": obs}) | {MASK: self._flat(info)}

    def _flat(self, info) -> np.ndarray:
        """The mask, all its parts one after the other; ones where an episode's last info has none."""
        if MASK not in info:
            return np.ones(self.observation_space[MASK].shape, np.int8)
        parts = spaces.named(info[MASK], MASK).values()
        return np.concatenate([np.ravel(part) != 0 for part in parts]).astype(np.int8)
