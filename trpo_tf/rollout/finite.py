"""Numbers of environments that are not finite: found quickly, and 0 instead."""

import math
from typing import Any

import numpy as np

from trpo_tf.errors import EnvironmentFailure


def unwarned() -> np.errstate:
    """Within it, NumPy warns neither of what a cast or a sum makes infinite nor of the difference of two infinities.

    What it costs to enter is felt in each step of the environments. So the functions below leave it to their callers.
    """
    return np.errstate(over="ignore", invalid="ignore")


def all_finite(x: np.ndarray) -> bool:
    """A quick look whether all numbers are finite; False: perhaps not."""
    return x.dtype.kind != "f" or math.isfinite(x.sum())


def finite_or_0(x: np.ndarray) -> np.ndarray:
    """x with 0 for what is not finite."""
    return x if all_finite(x) else np.where(np.isfinite(x), x, x.dtype.type(0))


def clean(obs: dict[str, np.ndarray], leaves: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observations as they are stored, 0 for what is not finite then, and which environments [B] gave such numbers.

    Args:
      obs: [B, ...] each.
      leaves: by name, with `shape` and `dtype` of one as stored.
    """
    found, bad = {}, np.zeros(len(next(iter(obs.values()))), bool)
    with unwarned():
        for name, leaf in leaves.items():
            x = np.asarray(obs[name]).astype(leaf.dtype).reshape((-1, *leaf.shape))
            if not all_finite(x):
                bad |= ~np.isfinite(x).reshape(len(x), -1).all(1)
            found[name] = finite_or_0(x)
    return found, bad


def check_invalid(count: int, most: int) -> None:
    """Raises EnvironmentFailure where more transitions were not finite than are allowed."""
    if count > most:
        raise EnvironmentFailure(
            f"{count} transitions with NaN or infinity from the environments, more than --max_invalid_rows={most}"
        )
