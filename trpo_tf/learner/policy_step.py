"""One policy step of Trust Region Policy Optimization.

Reference: Schulman, Levine, Moritz, Jordan, Abbeel 2015, "Trust Region Policy Optimization", section 6 and appendix C.
"""

from typing import NamedTuple

import tensorflow as tf

from trpo_tf.config import TrustRegionConfig
from trpo_tf.learner import line_search
from trpo_tf.learner.conjugate_gradient import Solution, conjugate_gradient, dot
from trpo_tf.learner.objective import Objective
from trpo_tf.learner.step_limit import StepLimit


class PolicyStep(NamedTuple):
    """What `policy_step` did. Scalars are float64 where not said otherwise."""

    theta: tf.Tensor  # [P]; theta_old to the bit where no candidate was acceptable
    params_old: tf.Tensor  # [N, K], the action distributions' parameters under theta_old
    kl: tf.Tensor  # KL(old || new), nats
    max_kl_used: tf.Tensor  # KL of the full step in the quadratic model, nats
    improvement: tf.Tensor  # surrogate(theta) - surrogate(theta_old), without the penalty
    expected_improvement: tf.Tensor  # gradient . (theta - theta_old)
    step_size: tf.Tensor  # of the full step, in multiples of the direction
    step_fraction: tf.Tensor  # of the full step that was taken
    backtracks: tf.Tensor  # int32
    reason: tf.Tensor  # int32, an index into line_search.REASONS
    gradient_norm: tf.Tensor  # |g|
    solution: Solution | None  # of conjugate gradient, where there was one


def policy_step(objective: Objective, limit: StepLimit, theta_old: tf.Tensor, config: TrustRegionConfig) -> PolicyStep:
    """Computes the new policy parameters (appendix C). A pure function: no variable is read or written.

    1. g is the gradient of the surrogate at theta_old.
    2. The direction x solves (F + damping I) x = g by conjugate gradient.
    3. The full step is limit.step_size(x.F x) x. With a constraint that is sqrt(2 max_kl / x.F x) x: the KL of the
       quadratic model, x.F x step_size^2 / 2, is then max_kl.
    4. A backtracking line search on the true surrogate and KL finds how much of the full step to take.

    Args:
      objective: of N transitions.
      limit: of the step's length, and of acceptable candidates.
      theta_old: [P].
      config: cg_iterations, cg_tolerance, cg_damping, backtrack_ratio and max_backtracks are read.
    """
    params_old = objective.params(theta_old)
    surrogate_old, gradient = objective.gradient(theta_old)

    solution = damped_natural_gradient(objective, theta_old, gradient, config)
    direction = solution.direction
    damped, damping = dot(direction, solution.product), config.cg_damping * dot(direction, direction)
    # x.F x = x.(F + damping I) x - damping x.x; where the difference is mostly rounding, one more product.
    curvature = tf.cond(
        damped > 1.001 * damping,
        lambda: damped - damping,
        lambda: dot(direction, objective.fisher_product(theta_old, direction)),
    )
    step_size = limit.step_size(curvature)
    full_step = tf.cast(step_size, theta_old.dtype) * direction

    def improvement_and_kl(theta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        value, kl = objective.surrogate_and_kl(theta, params_old)
        return value - surrogate_old - limit.penalty * kl, kl

    found = line_search.line_search(
        improvement_and_kl,
        theta_old,
        full_step,
        limit.max_kl,
        config.backtrack_ratio,
        config.max_backtracks,
        limit.least_improvement,
    )
    return PolicyStep(
        theta=found.theta,
        params_old=params_old,
        kl=found.kl,
        max_kl_used=0.5 * step_size**2 * curvature,
        improvement=found.improvement + limit.penalty * found.kl,
        expected_improvement=found.step_fraction * dot(gradient, full_step),
        step_size=step_size,
        step_fraction=found.step_fraction,
        backtracks=found.backtracks,
        reason=found.reason,
        gradient_norm=tf.sqrt(dot(gradient, gradient)),
        solution=solution,
    )


def damped_natural_gradient(
    objective: Objective, theta: tf.Tensor, gradient: tf.Tensor, config: TrustRegionConfig
) -> Solution:
    """Solves (F + damping I) x = gradient [P] by conjugate gradient."""

    def damped_fisher_product(vector: tf.Tensor) -> tf.Tensor:
        return objective.fisher_product(theta, vector) + config.cg_damping * vector

    return conjugate_gradient(damped_fisher_product, gradient, config.cg_iterations, config.cg_tolerance)
