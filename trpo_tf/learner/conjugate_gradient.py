"""Conjugate gradient for a symmetric positive definite operator."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

REASONS = ("iterations", "residual", "curvature", "not_finite")
_ITERATIONS, _RESIDUAL, _CURVATURE, _NOT_FINITE = range(4)


class Solution(NamedTuple):
    """What conjugate gradient returns."""

    direction: tf.Tensor  # [P], x
    product: tf.Tensor  # [P], A x = b - r, up to the rounding that the recurrence of r accumulates
    residual: tf.Tensor  # scalar float64, |r| / |b|, r = b - A x by its recurrence; 0 where b is 0
    iterations: tf.Tensor  # scalar int32
    reason: tf.Tensor  # scalar int32, an index into REASONS


class _State(NamedTuple):
    x: tf.Tensor  # [P] solution so far
    r: tf.Tensor  # [P] residual b - A x
    p: tf.Tensor  # [P] search direction
    rr: tf.Tensor  # scalar float64, r.r
    k: tf.Tensor  # scalar int32
    reason: tf.Tensor  # scalar int32; _ITERATIONS while it runs


def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The inner product of two vectors [P], accumulated in float64."""
    return tf.reduce_sum(tf.cast(a, tf.float64) * tf.cast(b, tf.float64))


def conjugate_gradient(
    operator: Callable[[tf.Tensor], tf.Tensor], b: tf.Tensor, iterations: int, tolerance: float
) -> Solution:
    """Solves A x = b approximately, from x = 0.

    alpha = r.r / p.A p;  x += alpha p;  r -= alpha A p;  p = r + (r.r new / r.r) p.

    It stops after `iterations`, when |r|^2 <= tolerance |b|^2, when p.A p <= 0 (A is not positive definite along p),
    or when anything is not finite; x is then what was reached before. Vectors keep b's type, scalars are float64.

    Reference: Nocedal and Wright 2006, algorithm 5.2; Schulman et al. 2015, appendix C.

    Args:
      operator: v [P] -> A v [P].
      b: [P].
      iterations: at most this many products.
      tolerance: relative, on the squared norm.

    Returns:
      Solution; reason is an index into REASONS.
    """
    bb = dot(b, b)
    finite = tf.math.is_finite(bb)
    start = _State(
        x=tf.zeros_like(b),
        r=b,
        p=b,
        rr=bb,
        k=tf.constant(0),
        reason=tf.where(finite, tf.where(bb > 0, _ITERATIONS, _RESIDUAL), _NOT_FINITE),
    )

    def go_on(state: _State) -> tf.Tensor:
        return (state.k < iterations) & (state.reason == _ITERATIONS)

    def step(state: _State) -> tuple[_State]:
        product = operator(state.p)
        curvature = dot(state.p, product)
        usable = curvature > 0  # false for NaN, too
        alpha = tf.where(usable, state.rr / tf.where(usable, curvature, 1.0), 0.0)
        x = state.x + tf.cast(alpha, b.dtype) * state.p
        r = state.r - tf.cast(alpha, b.dtype) * product
        rr = dot(r, r)
        finite = tf.math.is_finite(curvature) & tf.math.is_finite(rr) & tf.math.is_finite(dot(x, x))
        good = usable & finite
        reason = tf.where(
            finite,
            tf.where(usable, tf.where(rr <= tolerance * bb, _RESIDUAL, _ITERATIONS), _CURVATURE),
            _NOT_FINITE,
        )
        moved = _State(x, r, r + tf.cast(rr / state.rr, b.dtype) * state.p, rr, state.k + 1, reason)
        kept = state._replace(k=state.k + 1, reason=reason)
        return (tf.nest.map_structure(lambda new, old: tf.where(good, new, old), moved, kept),)

    (end,) = tf.while_loop(go_on, step, (start,))
    residual = tf.where(bb > 0, tf.sqrt(end.rr) / tf.sqrt(tf.where(bb > 0, bb, 1.0)), 0.0)
    return Solution(end.x, b - end.r, residual, end.k, end.reason)
