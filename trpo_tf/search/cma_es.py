"""CMA-ES, the evolution strategy that adapts the covariance of its candidates, as the package cma has it.

Reference: Hansen 2016, "The CMA evolution strategy: a tutorial" (arXiv:1604.00772); with a diagonal covariance, Ros and
Hansen 2008, "A simple modification in CMA-ES achieving linear time and space complexity".
"""

from typing import Any

import numpy as np

from trpo_tf.acting.threads import single_threaded
from trpo_tf.errors import UsageError
from trpo_tf.messages import warn
from trpo_tf.state import State, StateError

_QUIET = {"verbose": -9, "verb_disp": 0, "verb_log": 0, "seed": float("nan")}  # no seed: ours are the only draws


def check() -> None:
    """Raises UsageError where the package is not installed."""
    try:
        import cma  # noqa: F401
    except ImportError as error:
        raise UsageError("--algorithm=cma: needs the package cma; pip install 'trpo_tf[cma]' has it") from error


class CMA:
    """A covariance matrix of all weights where there are few of them, else a diagonal one. Interface: see Search.

    A search is the same wherever its candidates return the same. So its state is where it began and what candidates
    have returned since, and `restore` goes through that again.

    Args:
      theta: [D], where the search begins.
      population: P; 0: 4 + 3 ln D, rounded down.
      sigma: standard deviation of each weight at the beginning.
      full_up_to: the largest D with a whole covariance matrix; its cost grows as D^3.
      seed: key of the draws, beside the number of the generation.

    Raises:
      UsageError: the package cma is not installed.
    """

    def __init__(self, theta: np.ndarray, population: int, sigma: float, full_up_to: int, seed: int):
        check()
        self._population, self._full_up_to, self._seed = population, full_up_to, seed
        self._begin(np.array(theta, np.float64), np.full(len(theta), sigma, np.float64), 0)

    def _begin(self, theta: np.ndarray, stds: np.ndarray, generation: int) -> None:
        """Makes the strategy anew: mean and standard deviations [D], and the number of its first generation."""
        import cma

        self._origin = theta, stds, generation
        self._returns: list[np.ndarray] = []  # [P] each, since then
        self._candidates: list[np.ndarray] | None = None
        scale = float(stds.max())
        options: dict[str, Any] = {"randn": self._draw, "CMA_diagonal": len(theta) > self._full_up_to}
        options |= {"CMA_stds": stds / scale} if (stds < scale).any() else {}
        options |= {"popsize": self._population} if self._population else {}
        with single_threaded():
            self._strategy = cma.CMAEvolutionStrategy(theta, scale, _QUIET | options)

    def _draw(self, *shape: int) -> np.ndarray:
        """Standard normal, of this generation."""
        generation = self._origin[2] + len(self._returns)
        return np.random.default_rng([self._seed, generation]).standard_normal(shape)

    @property
    def mean(self) -> np.ndarray:
        """As Search says."""
        return self._strategy.mean

    @property
    def sigma(self) -> float:
        """As Search says."""
        return float(np.sqrt(np.mean(self._strategy.stds**2)))

    def ask(self) -> np.ndarray:
        """As Search says."""
        if self._candidates is None:
            with single_threaded():
                self._candidates = self._strategy.ask()
        return np.stack(self._candidates)

    def tell(self, returns: np.ndarray) -> None:
        """As Search says; where all candidates returned the same, the package would go anywhere: it is not told."""
        self.ask()
        returns = np.array(returns, np.float64)
        if returns.min() < returns.max():
            with single_threaded():
                self._strategy.tell(self._candidates, (-returns).tolist())
        self._returns.append(returns)
        self._candidates = None

    def state(self) -> State:
        """As Search says."""
        theta, stds, generation = self._origin
        returns = np.array(self._returns).reshape(-1, self._strategy.popsize)
        began = {"theta": theta, "stds": stds, "generation": np.array(generation)}
        return began | {"returns": returns, "mean": self.mean, "now": np.array(self._strategy.stds, np.float64)}

    def restore(self, saved: State) -> None:
        """As Search says. Where another version of the package, or another processor, does not lead to the same mean,
        a new search begins there, with the standard deviations of each weight that the old one had."""
        for name, ours in self.state().items():
            theirs = saved.get(name, np.zeros(0))
            if theirs.shape[name == "returns" :] != ours.shape[name == "returns" :]:
                raise StateError(f"checkpoint: {name} has shape {ours.shape} here, {theirs.shape} in the file")
        self._begin(saved["theta"], saved["stds"], int(saved["generation"]))
        for returns in saved["returns"]:
            self.tell(returns)
        if not np.array_equal(self.mean, saved["mean"]):
            warn("cma did not repeat itself: the search goes on from the same mean, but its covariances begin anew")
            self._begin(saved["mean"], saved["now"], int(saved["generation"]) + len(saved["returns"]))
