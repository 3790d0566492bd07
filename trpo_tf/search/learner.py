"""The learner of a search: the policy becomes the mean of the search, and the normaliser learns what was seen."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from trpo_tf import state
from trpo_tf.acting.standardize import MOMENTS
from trpo_tf.config import Config
from trpo_tf.errors import UsageError
from trpo_tf.policy.policy import Policy
from trpo_tf.search.method import Generation, Search
from trpo_tf.search.moments import merged

MakeSearch = Callable[[np.ndarray, Config, int], Search]  # of the first weights [D], and a seed


class SearchLearner:
    """What learns from generations. Interface: see algorithms.Learns.

    What is searched are the kernels and biases of the policy's layers. Parameters that no observation changes, such as
    a free log_std, move no mode and stay as they are; so does what a Keras model of the user's does not train.

    Args:
      policy: updated in place.
      config: of the run.
      seed: key of every draw, beside the number of the generation.
      make_search: see MakeSearch.

    Raises:
      UsageError: NumPy cannot act for this policy.
    """

    def __init__(self, policy: Policy, config: Config, seed: int, make_search: MakeSearch):
        spec = policy.acting_spec()
        if spec is None:
            raise UsageError(
                f"--algorithm={config.algorithm.algorithm}: searches policies of dense layers that NumPy computes: no "
                "images, no memory, neither gelu nor beta"
            )
        self._policy, self._variables = policy, policy.variables_by_name()
        layers = dict.fromkeys(name for layer in spec.layers for name in layer[:2])
        self._names = [name for name in layers if self._variables[name].trainable]
        self._fixed = [name for name in layers if not self._variables[name].trainable]
        if not self._names:
            raise UsageError(f"--algorithm={config.algorithm.algorithm}: nothing of policy_network is to be trained")
        theta = np.concatenate([self._variables[name].numpy().reshape(-1) for name in self._names])
        self._search = make_search(theta.astype(np.float64), config, seed)
        self.per_update = f"{len(self._search.ask())} episodes"

    def weights(self) -> dict[str, np.ndarray]:
        """As Learns says: those of the policy, but kernels and biases are [P, ...], one for each candidate."""
        weights, candidates = self._policy.get_weights(), self._search.ask().astype(np.float32)
        fixed = {name: np.broadcast_to(weights[name], (len(candidates), *weights[name].shape)) for name in self._fixed}
        return weights | self._by_name(candidates) | fixed

    def _by_name(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """[..., D] as one array [..., *shape] for each variable."""
        shapes = [tuple(self._variables[name].shape) for name in self._names]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = zip(self._names, np.split(theta, ends[:-1], -1), shapes, strict=True)
        return {name: part.reshape((*theta.shape[:-1], *shape)) for name, part, shape in parts}

    def update(self, rollout: Generation, update: int, progress: float) -> tuple[dict[str, Any], Future]:
        """As Learns says. The two arguments besides the generation change nothing."""
        del update, progress
        returns, before = rollout.returns, self._search.mean
        self._search.tell(returns)
        for name, value in self._by_name(self._search.mean).items():
            self._variables[name].assign(value)
        ours = [self._variables[name] for name in MOMENTS]
        for variable, value in zip(ours, merged(tuple(x.numpy() for x in ours), rollout.moments), strict=True):
            variable.assign(value)
        nothing: Future = Future()
        nothing.set_result({})
        return {
            "search/return_mean": float(returns.mean()),
            "search/return_best": float(returns.max()),
            "search/return_std": float(returns.std()),
            "search/step_norm": float(np.linalg.norm(self._search.mean - before)),
            "search/sigma": self._search.sigma,
        }, nothing

    def wait(self) -> None:
        """As Learns says: nothing is ever under way."""

    def reward_scale(self) -> float:
        """As Learns says: nothing is fitted to rewards."""
        return 1.0

    def state(self) -> dict[str, np.ndarray]:
        """As Learns says."""
        return state.prefixed("search", self._search.state())

    def restore(self, saved: dict[str, np.ndarray], replay: bool = True) -> None:
        """As Learns says."""
        del replay
        self._search.restore(state.part("search", saved))
