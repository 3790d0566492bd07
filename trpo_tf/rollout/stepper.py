"""Environments stepped with an actor: the part of collecting that may be done in other processes.

NumPy only: a worker imports no TensorFlow.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from trpo_tf.rollout.backends.restarts import Failure, count_restarts
from trpo_tf.rollout.finite import all_finite, clean, unwarned
from trpo_tf.rollout.vector_env import Episodes, VectorEnv
from trpo_tf.types import ALIGNMENT, Branches


class Past(NamedTuple):
    """How environments came to where they are."""

    built_at: int  # the update that they were made for
    actions: list[np.ndarray]  # [K, B, A] each, all since then
    failed: list[tuple[int, int]]  # time step since then, and environment, of failures that decide on seeds

    @property
    def time_steps(self) -> int:
        """Since the environments were made."""
        return sum(map(len, self.actions))

    def columns(self, first: int, count: int) -> "Past":
        """That of the environments `first` to `first + count`."""
        failed = [(step, env - first) for step, env in self.failed if first <= env < first + count]
        return Past(self.built_at, [x[:, first : first + count] for x in self.actions], failed)


class Losses(NamedTuple):
    """What failures of environments cost."""

    restarts: int  # environments made anew so far
    dropped: int  # transitions masked with them so far
    failed: list[tuple[int, int]]  # new ones: number of the time step, the first being 1, and environment


class Steps(NamedTuple):
    """T time steps as they come from the environments; arrays as in Trajectory."""

    obs: dict[str, np.ndarray]
    params: np.ndarray  # [T, B, K]
    raw_action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    bad_obs: np.ndarray  # [T+1, B] bool, where an observation was not finite
    branches: Branches | None = None  # of a vine; behavior_logp is not known yet

    @classmethod
    def empty(cls, shape: tuple[int, int], actor: Any) -> "Steps":
        """Arrays to be filled, of shape [T, B]; observations in memory that a tensor can share."""
        obs = {name: aligned((shape[0] + 1, shape[1], *of), dtype) for name, (of, dtype) in actor.specs.items()}
        params = np.empty((*shape, actor.params_size), np.float32)
        action = np.empty((*shape, actor.action_size), np.float32)
        reward, mask = (np.empty(shape, np.float32) for _ in range(2))
        terminated, truncated = (np.empty(shape, bool) for _ in range(2))
        bad_obs = np.zeros((shape[0] + 1, shape[1]), bool)
        return cls(obs, params, action, reward, terminated, truncated, mask, bad_obs)


class Stepper(Protocol):
    """B environments and the policy that acts in them. A Collector keeps the books.

    Where a call raises, the environments are anywhere; `build` or `replay` comes next.

    Attributes:
      num_envs: B.
    """

    num_envs: int

    def build(self, update: int, restarts: int) -> tuple[dict[str, np.ndarray], Losses]:
        """Fresh environments, seeded for this update: their first observations [B, ...].

        restarts: environments made anew so far.

        Raises:
          EnvironmentFailure: an environment failed too often.
        """
        ...

    def replay(self, past: Past) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """Fresh environments that went through `past`: their observations [B, ...], and failures that were not in it.

        Raises:
          EnvironmentFailure: an environment failed.
        """
        ...

    def step(
        self, obs: dict[str, np.ndarray], bad: np.ndarray, noise: np.ndarray, before: tuple[int, int], past: Past
    ) -> tuple[Steps, Losses, Episodes]:
        """T time steps, and the whole episodes that ended in them.

        Args:
          obs: [B, ...], what the policy sees first. bad: [B] bool, where that is not what the environment gave.
          noise: [T, B, noise_size], what the draws need.
          before: environments made anew so far, and transitions that were lost with them.
          past: of the environments.

        Raises:
          EnvironmentFailure: environments failed too often.
        """
        ...

    def metrics(self) -> dict[str, Any]:
        """By name; of workers, where there are any."""
        ...

    def close(self) -> None:
        """Frees the environments."""


class LocalStepper:
    """Steps environments in this process. Interface: see Stepper.

    Args:
      make_envs: from the number of the update to fresh environments with seeds of their own.
      actor: an ArrayActor or TensorActor; draws the actions.
    """

    num_envs = 0

    def __init__(self, make_envs: Callable[[int], VectorEnv], actor: Any):
        self._make_envs, self._actor = make_envs, actor
        self._envs: VectorEnv | None = None

    def build(self, update: int, restarts: int) -> tuple[dict[str, np.ndarray], Losses]:
        """As Stepper says."""
        envs = self._made(update)
        obs, failures = envs.reset(), envs.pop_failures()
        return obs, Losses(count_restarts(failures, restarts, envs.max_restarts), 0, _at(0, failures))

    def _made(self, update: int) -> VectorEnv:
        self.close()
        self._envs = self._make_envs(update)
        self.num_envs = self._envs.num_envs
        return self._envs

    def replay(self, past: Past) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """As Stepper says. Environments fail where they did; one that fails elsewhere begins from its start again."""
        envs = self._made(past.built_at)
        due: dict[int, list[int]] = {}
        for step, env in past.failed:
            due.setdefault(step, []).append(env)
        actions = (action for recorded in past.actions for action in recorded)
        obs, others = {}, []
        envs.repeat(True)
        for step in range(past.time_steps + 1):
            for env in due.get(step, []):
                envs.fail_next(env)
            obs = envs.step(self._actor.to_env(next(actions))).obs if step else envs.reset()
            if envs.failures:
                others += _at(step, envs.pop_failures())
        envs.repeat(False)
        envs.pop_episodes()
        return obs, others

    def step(
        self, obs: dict[str, np.ndarray], bad: np.ndarray, noise: np.ndarray, before: tuple[int, int], past: Past
    ) -> tuple[Steps, Losses, Episodes]:
        """As Stepper says."""
        del past  # the environments are where it led to
        actor, envs = self._actor, self._envs
        assert envs is not None
        losses = _Counted(*before, envs.max_restarts)
        steps = Steps.empty((len(noise), envs.num_envs), actor)
        seen_obs, states = steps.obs, sorted(actor.states)
        for name, x in seen_obs.items():
            x[0] = obs[name]
        steps.bad_obs[0] = bad
        with actor.single_threaded():
            for t in range(len(noise)):
                seen = {name: x[t] for name, x in seen_obs.items()}
                steps.params[t], steps.raw_action[t], after = actor(seen, noise[t])
                self._before(t)
                given = envs.step(actor.to_env(steps.raw_action[t]))
                finite = True
                with unwarned():
                    for name in actor.leaves:
                        following = seen_obs[name][t + 1]
                        following[...] = given.obs[name].reshape(following.shape)
                        finite = finite and all_finite(following)
                if not finite:
                    cleaned, steps.bad_obs[t + 1] = clean(given.obs, actor.leaves)
                    for name, x in cleaned.items():
                        seen_obs[name][t + 1] = x
                steps.reward[t], steps.terminated[t] = given.reward, given.terminated
                steps.truncated[t], steps.mask[t] = given.truncated, given.mask
                if envs.failures:
                    losses.add(steps, t, envs.pop_failures())
                if states:
                    seen_obs["is_first"][t + 1] = given.mask == 0
                    for name, state in zip(states, after, strict=True):
                        seen_obs[name][t + 1] = state
        return steps, Losses(losses.restarts, losses.dropped, losses.failed), envs.pop_episodes()

    def _before(self, t: int) -> None:
        """Called before the environments make time step t of a rollout; nothing, here."""

    def metrics(self) -> dict[str, Any]:
        """None."""
        return {}

    def close(self) -> None:
        """As Stepper says."""
        if self._envs is not None:
            self._envs.close()


class _Counted:
    """What failures of environments cost, counted on from `restarts` and `dropped`."""

    def __init__(self, restarts: int, dropped: int, allowed: int):
        self.restarts, self.dropped, self._allowed = restarts, dropped, allowed
        self.failed: list[tuple[int, int]] = []  # see Losses

    def add(self, steps: Steps, t: int, failures: list[Failure]) -> None:
        """Masks what there is of the episodes that failed at row t, since nobody knows whether it was right."""
        self.restarts = count_restarts(failures, self.restarts, self._allowed)
        self.failed += _at(t + 1, failures)
        for env in {failure.env for failure in failures}:
            if steps.truncated[t, env] and not steps.mask[t, env]:  # it failed in an episode, not at its beginning
                others = np.flatnonzero(steps.mask[:t, env] == 0)
                fragment = slice(others[-1] + 1 if len(others) else 0, t)
                self.dropped += int(steps.mask[fragment, env].sum())
                steps.mask[fragment, env] = steps.reward[fragment, env] = 0


def _at(step: int, failures: list[Failure]) -> list[tuple[int, int]]:
    """Time step and environment of failures that decide with which seed it goes on."""
    return [(step, failure.env) for failure in failures if failure.lived]


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array, not filled, in memory that a tensor can share."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
