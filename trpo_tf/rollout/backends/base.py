"""What VectorEnv asks of whatever steps the environments, and what those share."""

import os
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from trpo_tf.acting import encoders, spaces
from trpo_tf.rollout.backends.restarts import Failure


class Backend(Protocol):
    """B environments that are stepped together.

    NEXT_STEP autoreset: `step` returns the last observation of an episode together with terminated or truncated. The
    step after it ignores that environment's action and returns the first observation of the next episode, with
    terminated and truncated False; its reward means nothing.

    Attributes:
      name: of the backend, "envpool" or "gymnasium".
      env_name: of the environment, for messages.
      num_envs: B.
      observation_space, action_space: of one environment.
      max_episode_steps: steps after which an episode is truncated; None where that is not known, or where `reset_at`
        cannot be relied on.
      failures: of environments that have been made anew, or will be when they are reset; whoever reads them clears the
        list. A backend that makes none anew has none: it raises.

    An environment that fails in `step` ends its episode there: truncated, with its last observation and reward 0.
    """

    name: str
    env_name: str
    num_envs: int
    observation_space: gym.Space
    action_space: gym.Space
    max_episode_steps: int | None
    failures: list[Failure]

    def reset(self) -> dict[str, np.ndarray]:
        """Starts every environment; obs [B, ...] each, by the names of acting/spaces.py."""

    def reset_at(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Starts a new episode in the environments `ids`, [K] int; their obs [K, ...] each."""

    def step(self, action) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """obs, reward, terminated, truncated of actions [B, ...], in the structure of the action space.

        Both flags [B] bool may be True at once; the reward [B] may be of any float type.
        """

    def save(self, env: int) -> Any:
        """The state of environment `env`, for `restore`; after `reset`.

        None where the environment has failed, or fails at that: its episode has ended, or ends at the next step.

        Raises:
          UsageError: the backend cannot put environments back to where they were.
        """

    def restore(self, env: int, saved: Any, seed: int | None = None) -> None:
        """Puts environment `env` back to where it was, or another one of the same make, when it was saved.

        Where it failed since, it is made anew first; where it fails at that, its episode ends at the next step.

        Args:
          env: its index.
          saved: not None.
          seed: of its random generator from there on; None: that goes on as it would have.

        Raises:
          UsageError: as `save`.
        """

    def fail_next(self, env: int) -> None:
        """The environment fails at the next call instead of doing it, without a word in `failures`: it did before.

        Called as often as it failed in that call.
        """

    def repeat(self, on: bool) -> None:
        """What is called until it is turned off worked before: an environment that fails begins from its start again.

        Turned on before `reset`.
        """

    def close(self) -> None:
        """Frees what the backend made."""


def leaves(obs) -> dict[str, np.ndarray]:
    """The parts of a batched observation by name."""
    return {"observation": obs} if isinstance(obs, np.ndarray) else spaces.named(obs, "observation", encoders.TAKEN)


def usable_cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
