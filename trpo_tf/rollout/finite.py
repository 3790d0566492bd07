"""Numbers of environments that are not finite: found quickly, and 0 instead."""

from typing import Any

import numpy as np


def all_finite(x: np.ndarray) -> bool:
    """A quick look whether all numbers are finite; False: perhaps not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.dtype.kind != "f" or bool(np.isfinite(x.sum()))


def finite_or_0(x: np.ndarray) -> np.ndarray:
    """x with 0 for what is not finite."""
    return x if all_finite(x) else np.where(np.isfinite(x), x, x.dtype.type(0))


def stored(x: Any, dtype: Any) -> np.ndarray:
    """A copy of x with another dtype; what is beyond it is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


def clean(obs: dict[str, np.ndarray], leaves: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observations as they are stored, 0 for what is not finite then, and which environments [B] gave such numbers.

    Args:
      obs: [B, ...] each.
      leaves: by name, with `shape` and `dtype` of one as stored.
    """
    found, bad = {}, np.zeros(len(next(iter(obs.values()))), bool)
    for name, leaf in leaves.items():
        x = stored(obs[name], leaf.dtype).reshape((-1, *leaf.shape))
        if not all_finite(x):
            bad |= ~np.isfinite(x).reshape(len(x), -1).all(1)
        found[name] = finite_or_0(x)
    return found, bad
