"""The backtracking line search that keeps a step inside the trust region."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# "kl" and "improvement": too much of the first, none of the second. "stale" is set by staleness.accept.
REASONS = ("accepted", "kl", "improvement", "not_finite", "no_direction", "stale")
ACCEPTED, KL, IMPROVEMENT, NOT_FINITE, NO_DIRECTION, STALE = range(6)


class Step(NamedTuple):
    """What the line search found; step_fraction is 0 and theta is theta_old where nothing was acceptable."""

    theta: tf.Tensor  # [P]
    step_fraction: tf.Tensor  # scalar float64
    improvement: tf.Tensor  # scalar float64, of the objective
    kl: tf.Tensor  # scalar float64, KL(old || new), nats
    backtracks: tf.Tensor  # scalar int32
    reason: tf.Tensor  # scalar int32, an index into REASONS


class _State(NamedTuple):
    step: Step
    fraction: tf.Tensor  # of the next candidate
    k: tf.Tensor  # candidates tried


def line_search(
    evaluate: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    theta_old: tf.Tensor,
    full_step: tf.Tensor,
    max_kl: tf.Tensor,
    backtrack_ratio: float,
    max_backtracks: int,
    least_improvement: float = 0.0,
) -> Step:
    """Takes the first of theta_old + backtrack_ratio^k full_step, k = 0..max_backtracks, that is acceptable.

    Acceptable: improvement > least_improvement, KL(old || new) <= max_kl, and parameters, improvement and KL finite.
    Where no candidate is acceptable, theta is theta_old to the bit, step_fraction, improvement and KL are 0, and reason
    says what the last and smallest candidate failed: not_finite before kl before improvement; no_direction when
    full_step is zero or not finite.

    Reference: Schulman et al. 2015, appendix C.

    Args:
      evaluate: theta [P] -> (objective(theta) - objective(theta_old), KL(old || new)), float64 scalars; the
        objective is surrogate - penalty KL.
      theta_old, full_step: [P].
      max_kl: scalar float64, > 0, nats; infinity where nothing bounds the KL.
      backtrack_ratio: in (0, 1).
      max_backtracks: >= 0.
      least_improvement: -infinity where a step need not improve.

    Returns:
      Step; reason is an index into REASONS.
    """
    zero = tf.constant(0.0, tf.float64)
    usable = tf.reduce_all(tf.math.is_finite(full_step)) & tf.reduce_any(full_step != 0)
    reason = tf.where(usable, IMPROVEMENT, NO_DIRECTION)
    nothing = Step(theta_old, zero, zero, zero, tf.constant(0), reason)

    def go_on(state: _State) -> tf.Tensor:
        return (state.k <= max_backtracks) & (state.step.reason != ACCEPTED) & (state.step.reason != NO_DIRECTION)

    def attempt(state: _State) -> tuple[_State]:
        theta = theta_old + tf.cast(state.fraction, theta_old.dtype) * full_step
        improvement, kl = evaluate(theta)
        finite = tf.reduce_all(tf.math.is_finite(theta)) & tf.math.is_finite(improvement) & tf.math.is_finite(kl)
        inside, better = kl <= max_kl, improvement > least_improvement
        reason = tf.where(finite, tf.where(inside, tf.where(better, ACCEPTED, IMPROVEMENT), KL), NOT_FINITE)
        taken = Step(theta, state.fraction, improvement, kl, state.k, reason)
        rejected = nothing._replace(backtracks=state.k, reason=reason)
        step = tf.nest.map_structure(lambda a, b: tf.where(reason == ACCEPTED, a, b), taken, rejected)
        return (_State(step, state.fraction * backtrack_ratio, state.k + 1),)

    (end,) = tf.while_loop(go_on, attempt, (_State(nothing, tf.constant(1.0, tf.float64), tf.constant(0)),))
    return end.step
