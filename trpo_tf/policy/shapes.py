"""Static shapes, checked where a function is traced: what does not fit would broadcast without a word."""

from typing import Any

import numpy as np
import tensorflow as tf


def check(where: str, given: dict[str, tuple[Any, list[int]]]) -> None:
    """Checks that every tensor is [N, *rest], with one N for all of them, as far as shapes are known.

    Args:
      where: the function that is checked, for the message.
      given: by name the tensor, or an array, and its `rest`.

    Raises:
      ValueError: names the tensor, its shape and the one that is needed.
    """
    count = None
    for name, (x, rest) in given.items():
        count = check_one(where, name, x, [count, *rest])[0]


def check_one(where: str, name: str, x: Any, needed: list[int | None]) -> tf.TensorShape:
    """Returns the shape that x and `needed` have in common; None stands for any number, N in the message.

    Raises:
      ValueError: there is none.
    """
    shape = tf.TensorShape(x.shape if hasattr(x, "shape") else np.shape(x))
    if not shape.is_compatible_with(needed):
        got, wanted = (", ".join("N" if size is None else str(size) for size in s) for s in (shape, needed))
        raise ValueError(f"{where}: {name} has shape [{got}]; [{wanted}] is needed")
    return shape.merge_with(needed)
