"""One environment of gymnasium: made, wrapped, its answers checked, its action_mask put into the observation.

What is here runs in the processes of environments, too, and must not import TensorFlow: 3 s and 600 MB in each.
"""

import contextlib
import copy
import importlib
import reprlib
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from trpo_tf.acting.encoders import MASK
from trpo_tf.errors import first_line
from trpo_tf.rollout.backends import checks, masks
from trpo_tf.rollout.backends.checks import Misfit

OLD_STEP = "its step does not return (obs, reward, terminated, truncated, info); it was written for an older API"
_LARGEST = float(np.finfo(np.float32).max)


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
    return _Made(portable_spec(name), settings | ({"render_mode": render_mode} if render_mode else {}))


def portable_spec(env_id: str) -> EnvSpec:
    """The spec of a registered id, as another process can use it.

    Raises:
      gymnasium.error.Error: there is none.
    """
    spec = copy.copy(gym.spec(env_id))
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        spec.entry_point = load_env_creator(spec.entry_point)
    return spec


class _Made:
    def __init__(self, spec: EnvSpec, settings: dict[str, Any]):
        self.spec, self.settings = spec, settings

    def __call__(self) -> gym.Env:
        # Checked says what is wrong, of environments that functions make, too; gymnasium's checker is stricter.
        return gym.make(self.spec, disable_env_checker=True, **self.settings)


def modules(make_env: Callable[[], gym.Env]) -> list[str]:
    """The modules that `make_env` needs, as far as it can be seen."""
    maker = make_env.spec.entry_point if isinstance(make_env, _Made) else getattr(make_env, "func", make_env)
    name = maker.split(":")[0] if isinstance(maker, str) else getattr(maker, "__module__", None)
    return [] if name in (None, "__main__") else [name]


class Prepared:
    """Makes an environment with what belongs around it.

    Args:
      make_env: makes the environment.
      seed: of the reset at which its answer is looked at.
      wrappers: put around it, innermost first.
      render_mode: what it has to have been made with; None: anything.
      video_dir: where every episode is recorded; empty: none is.

    Raises:
      Misfit: `make_env` returned something else, made for another render_mode, or that learns statistics of its own,
        or that does not answer what it declares.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        seed: int,
        wrappers: Sequence[Callable[[gym.Env], gym.Env]],
        render_mode: str | None,
        video_dir: str,
    ):
        self.make_env = make_env
        self._seed = seed
        self._wrappers = wrappers
        self._render_mode, self._video_dir = render_mode, video_dir

    def __call__(self) -> gym.Env:
        env = self.make_env()
        kind = type(env)
        if not isinstance(env, gym.Env):
            raise Misfit(f"returned {kind.__module__}.{kind.__qualname__}, not a gymnasium.Env", first=True)
        if self._render_mode and env.render_mode != self._render_mode:
            raise Misfit(f"made with render_mode={env.render_mode}; {self._render_mode} is needed here", first=True)
        try:
            for wrap in self._wrappers:
                env = wrap(env)
            if said := checks.learning_wrapper(env):
                raise Misfit(said, first=True)
            env = Checked(env, self._seed)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                env.close()
            raise
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


def whole(answer: Any) -> bool:
    """Whether a step answered five values."""
    return isinstance(answer, tuple | list) and len(answer) == 5


def wrapper_unpacks(error: BaseException) -> bool:
    """Whether a wrapper or a vector environment could not take what the step of an older API answered it."""
    return "unpack (expected 5" in first_line(error) and _innermost(error).co_name in ("step", "_raise_if_errors")


def _innermost(error: BaseException) -> types.CodeType:
    """The function that raised an error itself."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code


class Checked(gym.Wrapper):
    """An environment that answers what it declares and what vector environments can join.

    The reward is a float, the flags are bools, and there is no `info`: nobody reads it but for the action_mask, which
    becomes a part of the observation. Observations are held against the observation space.

    Args:
      env: fresh.
      seed: of the first reset.

    Raises:
      Misfit: it answers something else.
    """

    def __init__(self, env: gym.Env, seed: int):
        super().__init__(env)
        self._first = True  # the first step is not over
        self._fits = checks.plainly_fits(env.observation_space)
        self._mask: masks.Mask | None = None
        obs, info = self._reset(seed=seed, options=None)
        try:
            mask = masks.find(env, info)
        except masks.MaskError as error:
            raise self._error(str(error)) from error
        if mask is not None:
            self._mask = mask
            self._joined(obs, info, False)
            self.observation_space = mask.joined_space(env.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As the environment's, without `info`."""
        obs, info = self._reset(seed=seed, options=options)
        return (obs if self._mask is None else self._joined(obs, info, False)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """As the environment's, without `info`."""
        try:
            answer = self.env.step(action)
        except (TypeError, ValueError) as error:
            if self._first and wrapper_unpacks(error):
                raise self._error(OLD_STEP) from error
            raise
        if not whole(answer):
            raise self._error(OLD_STEP)
        obs, reward, terminated, truncated, info = answer
        if not isinstance(reward, float):
            reward = self._only(checks.number(reward), reward, "reward", "a number")
        if not -_LARGEST <= reward <= _LARGEST:
            reward *= np.inf  # of no use as float32: counted with the infinities
        if type(terminated) is not bool:
            terminated = self._only(checks.flag(terminated), terminated, "terminated", "a bool")
        if type(truncated) is not bool:
            truncated = self._only(checks.flag(truncated), truncated, "truncated", "a bool")
        if not self._fits(obs):
            checks.fit(obs, self.env.observation_space, "step", self._first)
        if self._mask is not None:
            obs = self._joined(obs, info, terminated or truncated)
        elif info and isinstance(info, dict) and MASK in info:
            raise self._error(f"its step returns an {MASK} in info, its reset did not; return it from both")
        self._first = False
        return obs, reward, terminated, truncated, {}

    def _reset(self, **settings: Any) -> tuple[Any, dict]:
        try:
            answer = self.env.reset(**settings)
        except TypeError as error:
            if "unexpected keyword argument" in first_line(error) and _innermost(error).co_name in ("reset", "_reset"):
                raise self._error(f"its reset has to take seed and options ({first_line(error)})") from error
            raise
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict | None):
            if not self._fits(answer[0]):
                checks.fit(answer[0], self.env.observation_space, "reset", self._first)
            return answer[0], answer[1] or {}
        raise self._error("its reset does not return (obs, info); it was written for an older API")

    def _only(self, found: Any, value: Any, what: str, needed: str) -> Any:
        if found is None:
            raise self._error(f"its step returned {reprlib.repr(value)} as {what}; {needed} is needed")
        return found

    def _joined(self, obs: Any, info: Any, over: bool) -> Any:
        assert self._mask is not None
        try:
            return self._mask.join(obs, info, over)
        except masks.MaskError as error:
            raise self._error(str(error)) from error

    def _error(self, text: str) -> Misfit:
        return Misfit(text, self._first)
