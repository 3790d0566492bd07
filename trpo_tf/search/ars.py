"""Augmented random search: finite differences of the return along random directions.

With directions delta_k ~ N(0, I), k = 1..N, returns r_k+ and r_k- of theta + nu delta_k and theta - nu delta_k, the b
directions with the largest max(r_k+, r_k-), and sigma_R, the standard deviation of the 2 b returns of those,
  theta' = theta + alpha / (b sigma_R) sum_k (r_k+ - r_k-) delta_k.

With observations standardised this is ARS V2, and V2-t where b < N; without, V1 and V1-t.

Reference: Mania, Guy, Recht 2018, "Simple random search provides a competitive approach to reinforcement learning",
algorithms 1 and 2.
"""

import numpy as np

from trpo_tf.state import State, StateError


class ARS:
    """Candidates are in pairs: rows k and N + k are theta + nu delta_k and theta - nu delta_k. Interface: see Search.

    Args:
      theta: [D], where the search begins.
      directions, top: N and b. noise: nu. step_size: alpha.
      seed: key of the directions, beside the number of the generation.
    """

    def __init__(self, theta: np.ndarray, directions: int, top: int, noise: float, step_size: float, seed: int):
        self._theta = np.array(theta, np.float64)
        self._count, self._top, self._noise, self._step_size, self._seed = directions, top, noise, step_size, seed
        self._generation = 0

    @property
    def mean(self) -> np.ndarray:
        """As Search says: theta."""
        return self._theta

    @property
    def sigma(self) -> float:
        """As Search says: nu."""
        return self._noise

    def directions(self) -> np.ndarray:
        """delta [N, D] of this generation."""
        generator = np.random.default_rng([self._seed, self._generation])
        return generator.standard_normal((self._count, len(self._theta)))

    def ask(self) -> np.ndarray:
        """As Search says."""
        noise = self._noise * self.directions()
        return np.concatenate([self._theta + noise, self._theta - noise])

    def tell(self, returns: np.ndarray) -> None:
        """As Search says; where all of the best returned the same, theta stays."""
        plus, minus = np.asarray(returns, np.float64).reshape(2, self._count)
        best = np.argsort(-np.maximum(plus, minus), kind="stable")[: self._top]
        plus, minus = plus[best], minus[best]
        spread = np.std([plus, minus])
        if spread > 0:
            step = (plus - minus) @ self.directions()[best]
            self._theta = self._theta + self._step_size / (self._top * spread) * step
        self._generation += 1

    def state(self) -> State:
        """As Search says."""
        return {"theta": self._theta, "generation": np.array(self._generation)}

    def restore(self, saved: State) -> None:
        """As Search says."""
        theta = saved.get("theta", np.zeros(0))
        if theta.shape != self._theta.shape or "generation" not in saved:
            raise StateError(f"checkpoint: theta has shape {self._theta.shape} here, {theta.shape} in the file")
        self._theta, self._generation = theta.astype(np.float64), int(saved["generation"])
