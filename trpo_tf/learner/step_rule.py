"""Step rules: from an objective to the policy's new parameters. Another algorithm is another rule."""

from typing import Any, Protocol

import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import staleness
from trpo_tf.learner.conjugate_gradient import Solution
from trpo_tf.learner.objective import Objective, mean_kl
from trpo_tf.learner.policy_step import PolicyStep, policy_step
from trpo_tf.learner.prepare import Prepared
from trpo_tf.learner.radius import AdaptiveRadius, PenaltyCoefficient, predicted_gain
from trpo_tf.learner.statistics import masked_mean, mean_weights
from trpo_tf.learner.step_limit import kl_radius, step_limit


class StepRule(Protocol):
    """What the learner needs of a rule. Called while a function is traced; its variables are in checkpoints."""

    @property
    def variables(self) -> Any: ...

    def __call__(
        self, objective: Objective, theta_old: tf.Tensor, prepared: Prepared
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The new parameters [P], and scalar metrics by name, among them policy/max_ratio_error."""
        ...


class Rule(tf.Module):
    """What the rules of this package share: how stale transitions shorten a step, or forbid it, and what is logged.

    Args:
      config: of the run.
      size: P.
      length_factor: of step lengths, for transitions that are used again, and for a lag that settings fix. For any
        other lag the batch's own mean staleness s divides the KL by 1 + s; see step_limit and `_length`.
      halves: [N], 0 or 1, which half of the environments each transition is of.
    """

    def __init__(self, config: Config, size: int, length_factor: float, halves):
        super().__init__(name="step_rule")
        self._config, self._length_factor, self._halves = config, length_factor, halves

    def _length(self, prepared: Prepared) -> float | tf.Tensor:
        """The factor of a step of a fixed length; the KL is quadratic in it."""
        stale = prepared.stale
        return self._length_factor if not stale or stale.lag is None else self._length_factor / tf.sqrt(1.0 + stale.lag)

    def _accepted(self, step: PolicyStep, theta_old: tf.Tensor, prepared: Prepared) -> PolicyStep:
        """The step, not taken where the batch is too stale."""
        config = self._config.off_policy
        if not (prepared.stale and config.correct_stale):
            return step
        size = prepared.stale.metrics["stale/effective_sample_size"]
        return staleness.accept(step, theta_old, size >= config.min_effective_sample_size)

    def _logged(self, step: PolicyStep, objective: Objective, prepared: Prepared) -> dict[str, tf.Tensor]:
        """What every rule logs."""
        metrics = old_policy_metrics(step, objective) | step_metrics(step)
        if stale := prepared.stale:
            new_params = objective.params(step.theta)
            kl = mean_kl(objective.distribution, stale.behavior_params, new_params, objective.weights)
            metrics |= stale.metrics | {"stale/kl": kl}
        return metrics | {"policy/advantage_std": prepared.advantage_std}


class TrustRegion(Rule):
    """The policy step of appendix C, its limit, and what follows the steps: an adaptive radius, a penalty coefficient.

    Arguments are those of Rule.
    """

    def __init__(self, config: Config, size: int, length_factor: float, halves):
        super().__init__(config, size, length_factor, halves)
        self.radius = self.penalty = None
        if config.radius.radius == "adaptive":
            self.radius = AdaptiveRadius(config.radius, config.trust_region.max_kl, size)
        if config.trust_region.objective == "penalty":
            self.penalty = PenaltyCoefficient()

    def __call__(
        self, objective: Objective, theta_old: tf.Tensor, prepared: Prepared
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """As StepRule says."""
        config, std = self._config, prepared.advantage_std
        factor = tf.constant(1.0, tf.float64)
        metrics: dict[str, tf.Tensor] = {}
        if self.radius:
            new = mean_weights(prepared.value_batch.mask)
            metrics |= self.radius.measure(theta_old, lambda theta: objective.surrogate(theta, new), std)
            factor = self.radius.factor()
        penalty = self.penalty.penalty.value() if self.penalty else None
        length, lag = self._length_factor, prepared.stale.lag if prepared.stale else None
        limit = step_limit(config.trust_region, std, config.advantage.gamma, length, factor, penalty, lag)
        step = policy_step(objective, limit, theta_old, config.trust_region)
        step = self._accepted(step, theta_old, prepared)
        max_kl = kl_radius(config.trust_region, length, factor, lag)
        metrics |= self._follow(objective, theta_old, step, max_kl, std)
        return step.theta, metrics | self._logged(step, objective, prepared)

    def _follow(
        self, objective: Objective, theta_old: tf.Tensor, step: PolicyStep, max_kl: tf.Tensor, std: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Tells radius and penalty coefficient of a step; returns metrics."""
        config, metrics = self._config.trust_region, {}
        if self.radius:
            half = tf.constant(self._halves, objective.batch.weights.dtype)
            predicted = predicted_gain(objective, theta_old, step, half, config)
            self.radius.follow(theta_old, step, predicted, max_kl, std)
            metrics["policy/unbiased_improvement"] = predicted
        if self.penalty:
            metrics |= self.penalty.follow(step, max_kl)
        return metrics


def step_metrics(step: PolicyStep) -> dict[str, tf.Tensor]:
    """What is logged of a step."""
    expected = step.expected_improvement
    ratio = tf.where(expected > 0, step.improvement / tf.where(expected > 0, expected, 1.0), 0.0)
    return {
        "policy/kl": step.kl,
        "policy/max_kl_used": step.max_kl_used,
        "policy/improvement": step.improvement,
        "policy/expected_improvement": expected,
        "policy/improvement_ratio": ratio,
        "policy/step_fraction": step.step_fraction,
        "policy/backtracks": step.backtracks,
        "policy/reason": step.reason,
        "policy/step_size": step.step_size,
        "policy/gradient_norm": step.gradient_norm,
        **({} if step.solution is None else solution_metrics(step.solution)),
    }


def solution_metrics(solution: Solution) -> dict[str, tf.Tensor]:
    """What is logged of a conjugate gradient."""
    return {
        "cg/relative_residual": solution.residual,
        "cg/iterations": solution.iterations,
        "cg/reason": solution.reason,
    }


def old_policy_metrics(step: PolicyStep, objective: Objective) -> dict[str, tf.Tensor]:
    """What the policy before the step was like on the batch; with fresh transitions every ratio was 1."""
    batch, distribution = objective.batch, objective.distribution
    ratio = tf.exp(distribution.log_prob(step.params_old, batch.raw_action) - batch.behavior_logp)
    return {
        "policy/entropy": masked_mean(distribution.entropy(step.params_old), batch.weights),
        "policy/max_ratio_error": tf.reduce_max(tf.where(batch.weights > 0, tf.abs(ratio - 1.0), 0.0)),
    }
