"""The natural policy gradient: steps of a fixed length, taken whatever they do."""

import tensorflow as tf

from trpo_tf.learner.objective import Objective
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.prepare import Prepared
from trpo_tf.learner.step_limit import PlainLength
from trpo_tf.learner.step_rule import Rule


class NaturalGradient(Rule):
    """theta + npg_step_size F^-1 g. TRPO without its trust region, and without its line search.

    Reference: Kakade 2001, "A natural policy gradient".
    """

    def __call__(
        self, objective: Objective, theta_old: tf.Tensor, prepared: Prepared
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """As StepRule says."""
        limit = PlainLength(self._config.algorithm.npg_step_size * self._length(prepared))
        step = policy_step(objective, limit, theta_old, self._config.trust_region)
        step = self._accepted(step, theta_old, prepared)
        return step.theta, self._logged(step, objective, prepared)
