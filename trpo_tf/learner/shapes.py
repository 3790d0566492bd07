"""Shapes, checked while a function is traced: a [N, 1] where [N] belongs is an error, not a broadcast."""

import tensorflow as tf


def same_shape(**tensors) -> None:
    """Compares static shapes of named tensors.

    Raises:
      ValueError: one differs from the first; names both.
    """
    (first, expected), *others = ((name, tf.TensorShape(x.shape)) for name, x in tensors.items())
    for name, shape in others:
        if not shape.is_compatible_with(expected):
            raise ValueError(f"{name} has shape {shape}, where {first} has {expected}")


def has_shape(name: str, x, shape: list[int | None]) -> None:
    """Compares a tensor's static shape with what is needed; None is any size.

    Raises:
      ValueError: they differ; names both.
    """
    if not tf.TensorShape(x.shape).is_compatible_with(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}, where {tuple(shape)} is needed")
