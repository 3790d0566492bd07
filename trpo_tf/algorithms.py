"""The algorithms by the names that --algorithm has for them: what learns, and where its rollouts come from."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from trpo_tf.config import Config
from trpo_tf.learner.learner import Learner
from trpo_tf.learner.rules import RULES
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.sources import RolloutSource
from trpo_tf.search import source as search_source
from trpo_tf.search.ars import ARS
from trpo_tf.search.cma_es import CMA
from trpo_tf.search.learner import MakeSearch, SearchLearner
from trpo_tf.sources import Acting, make_source


class Learns(Protocol):
    """What learns from what a source gives, an update at a time; see learner.learner.Learner.

    Attributes:
      per_update: what an update learns from, in words.
    """

    per_update: str

    def weights(self) -> dict[str, np.ndarray]:
        """What a source is to act with, by name: what its `publish` takes."""
        ...

    def update(self, rollout: Any, update: int, progress: float) -> tuple[dict[str, Any], Future]:
        """Learns from one rollout; metrics, and those that come later."""
        ...

    def wait(self) -> None:
        """Lets what an update left under way end."""

    def reward_scale(self) -> float:
        """What a unit of the value network is in the environment's units of reward."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a learner of the same configuration needs."""
        ...

    def restore(self, saved: dict[str, np.ndarray], replay: bool = True) -> None:
        """Takes back what `state` gave."""


class Algorithm(NamedTuple):
    """What an algorithm is made of."""

    make_learner: Callable[[Policy, Config, int], Learns]  # of the policy, updated in place; the last is a seed
    make_source: Callable[[Acting], RolloutSource]  # of what the learner learns from


_BY_GRADIENT = Algorithm(Learner, make_source)  # which of learner.rules steps, the learner knows


def _searching(make_search: MakeSearch) -> Algorithm:
    def make_learner(policy: Policy, config: Config, seed: int) -> SearchLearner:
        return SearchLearner(policy, config, seed, make_search)

    return Algorithm(make_learner, search_source.make_source)


def _ars(theta: np.ndarray, config: Config, seed: int) -> ARS:
    given = config.algorithm
    top = given.ars_top or -(-given.ars_directions // 2)
    return ARS(theta, given.ars_directions, top, given.ars_noise, given.ars_step_size, seed)


def _cma(theta: np.ndarray, config: Config, seed: int) -> CMA:
    given = config.algorithm
    return CMA(theta, given.cma_population, given.cma_sigma, given.cma_full_up_to, seed)


ALGORITHMS = dict.fromkeys(RULES, _BY_GRADIENT) | {"ars": _searching(_ars), "cma": _searching(_cma)}
