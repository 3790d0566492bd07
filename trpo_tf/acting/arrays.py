"""Operations that NumPy and TensorFlow spell differently.

xp is the module that computes: numpy, or tensorflow where the caller has it. A formula written with xp serves both.
"""

from typing import Any

import numpy as np


def as_numbers(value: Any) -> np.ndarray | None:
    """The value as an array of numbers; None where it is none."""
    try:
        x = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal lengths; tensors that NumPy cannot see
        return None
    return x if x.dtype.kind in "biuf" else None


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype.name}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")


def join(parts, xp=np):
    """Concatenates [N, ...] arrays on their last axis; a single one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, -1) if xp is np else xp.concat(parts, -1)


def take(x, columns: np.ndarray, xp=np):
    """These columns of x, [N, D] -> [N, len(columns)]."""
    return np.take(x, columns, -1) if xp is np else xp.gather(x, columns, axis=-1)


def cast(x, dtype, xp=np):
    """x with another dtype; NumPy copies only where the dtype differs."""
    return x.astype(dtype, copy=False) if xp is np else xp.cast(x, dtype)


def flatten(x, size: int, xp=np):
    """[N, ...] -> [N, size]."""
    return np.reshape(x, [len(x), size]) if xp is np else xp.reshape(x, [xp.shape(x)[0], size])


def largest(x, xp=np):
    """The maximum over the last axis, which stays: [..., D] -> [..., 1]."""
    return np.max(x, -1, keepdims=True) if xp is np else xp.reduce_max(x, -1, keepdims=True)
