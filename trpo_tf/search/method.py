"""What a search method is: candidates are asked for, and what they returned is told."""

from typing import NamedTuple, Protocol

import numpy as np


class Search(Protocol):
    """Maximises the return over D weights, a generation of P candidates at a time.

    Every draw is keyed by the seed and the number of the generation, so that a restored search goes on to the bit.
    """

    @property
    def mean(self) -> np.ndarray:
        """What the candidates are spread around [D] float64: the weights that have been learned."""
        ...

    @property
    def sigma(self) -> float:
        """Root mean square, over the weights, of the candidates' standard deviation."""
        ...

    def ask(self) -> np.ndarray:
        """The candidates [P, D] float64; the same ones until `tell`."""
        ...

    def tell(self, returns: np.ndarray) -> None:
        """Learns what each candidate returned, [P] float64, finite. The next generation begins."""

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a search of the same settings needs."""
        ...

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Takes back what `state` gave.

        Raises:
          StateError: an array is missing or has another shape.
        """


class Generation(NamedTuple):
    """What the environments gave for one update: one whole episode of each of P candidates."""

    returns: np.ndarray  # [P] float64, undiscounted
    lengths: np.ndarray  # [P] int64
    moments: tuple[np.ndarray, np.ndarray, np.ndarray]  # count [], mean [D], m2 [D] of the observations acted on
    invalid: int  # transitions with NaN or infinity, which counts as 0
    restarts: int = 0  # environments made anew so far, because they failed
    dropped: int = 0  # transitions so far of episodes that were begun again, because their environment failed

    @property
    def steps(self) -> int:
        """Transitions of the candidates, which are environment steps."""
        return int(self.lengths.sum())

    @property
    def episode_returns(self) -> list[float]:
        """Of the P episodes."""
        return self.returns.tolist()

    @property
    def episode_lengths(self) -> list[int]:
        """Of the P episodes."""
        return self.lengths.tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing: the same generation can be collected again, to the bit."""
        return {}
