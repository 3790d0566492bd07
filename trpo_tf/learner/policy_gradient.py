"""The policy gradient: first-order steps, plain or by Adam, taken whatever they do."""

import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import line_search
from trpo_tf.learner.conjugate_gradient import dot
from trpo_tf.learner.objective import Objective
from trpo_tf.learner.policy_step import PolicyStep
from trpo_tf.learner.prepare import Prepared
from trpo_tf.learner.step_rule import Rule
from trpo_tf.learner.value_fit import AdamState, adam


class PolicyGradient(Rule):
    """theta + vpg_learning_rate g, or a step of Adam along g. A batch that is too stale or has no row changes nothing.

    References: Sutton, McAllester, Singh, Mansour 2000, "Policy gradient methods for reinforcement learning with
    function approximation"; Kingma and Ba 2015 for Adam.
    """

    def __init__(self, config: Config, size: int, length_factor: float, halves):
        super().__init__(config, size, length_factor, halves)
        self.adam = AdamState(size, "policy_adam") if config.algorithm.vpg_optimizer == "adam" else None

    def __call__(
        self, objective: Objective, theta_old: tf.Tensor, prepared: Prepared
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """As StepRule says."""
        surrogate_old, gradient = objective.gradient(theta_old)
        rate = tf.cast(self._config.algorithm.vpg_learning_rate * self._length(prepared), theta_old.dtype)
        some = tf.reduce_any(objective.weights > 0)
        theta, moments = self._ascended(theta_old, gradient, rate)
        theta = tf.where(some, theta, theta_old)
        params_old, change = objective.params(theta_old), theta - theta_old
        surrogate, kl = objective.surrogate_and_kl(theta, params_old)
        step = PolicyStep(
            theta=theta,
            params_old=params_old,
            kl=kl,
            max_kl_used=0.5 * dot(change, objective.fisher_product(theta_old, change)),
            improvement=surrogate - surrogate_old,
            expected_improvement=dot(gradient, change),
            step_size=tf.cast(rate, tf.float64),
            step_fraction=tf.constant(1.0, tf.float64),
            backtracks=tf.constant(0),
            reason=tf.where(some, line_search.ACCEPTED, line_search.NO_DIRECTION),
            gradient_norm=tf.sqrt(dot(gradient, gradient)),
            solution=None,
        )
        step = self._accepted(step, theta_old, prepared)
        for variable, value in moments:
            variable.assign(tf.where(step.reason == line_search.ACCEPTED, value, variable))
        return step.theta, self._logged(step, objective, prepared)

    def _ascended(
        self, theta: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor
    ) -> tuple[tf.Tensor, list[tuple[tf.Variable, tf.Tensor]]]:
        """The new parameters, and what Adam's variables are then."""
        if self.adam is None:
            return theta + rate * gradient, []
        state, steps = self.adam, self.adam.steps + 1
        theta, m, v = adam(theta, -gradient, state.m, state.v, steps, rate)
        return theta, [(state.steps, steps), (state.m, m), (state.v, v)]
