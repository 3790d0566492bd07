"""Count, mean and M2, the sum of squared deviations, of observations as they come."""

import numpy as np

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]  # count [], mean [D], m2 [D], float64
_CHUNK = 64  # time steps that are put together: a sum costs less than being called


def of_samples(x: np.ndarray) -> Moments:
    """Those of samples [N, D], N >= 1; the mean is taken off in float64."""
    x = x.astype(np.float64)
    mean = x.mean(0)
    return np.array(float(len(x))), mean, ((x - mean) ** 2).sum(0)


def merged(a: Moments, b: Moments) -> Moments:
    """Those of two sets of samples together, by Chan's rule; see policy.normalizer.RunningMoments."""
    count = a[0] + b[0]
    if not count:
        return a
    delta = b[1] - a[1]
    return count, a[1] + delta * b[0] / count, a[2] + b[2] + delta**2 * a[0] * b[0] / count


class StreamMoments:
    """Moments of what is added, of vectors [D]."""

    def __init__(self, size: int):
        self._found: Moments = np.array(0.0), np.zeros(size), np.zeros(size)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, vectors: np.ndarray, mask: np.ndarray) -> None:
        """Adds the vectors [B, D] whose mask [B] is true; both must stay as they are."""
        self._waiting.append((vectors, mask))
        if len(self._waiting) == _CHUNK:
            self._merge()

    def _merge(self) -> None:
        vectors, masks = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        if masks.any():
            self._found = merged(self._found, of_samples(vectors[masks]))

    def get(self) -> Moments:
        """Those of all that was added."""
        if self._waiting:
            self._merge()
        return self._found
