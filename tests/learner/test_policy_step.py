"""The policy step: the natural gradient in closed form, its length, and when nothing is moved."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.learner.bandit import NATURAL, PROBS, REWARD, VARIANCE, centred, float64, take_step
from tests.learner.mdp import softmax
from trpo_tf.config import PolicyConfig, TrustRegionConfig
from trpo_tf.learner.line_search import REASONS
from trpo_tf.learner.objective import make_objective
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.step_limit import Constraint, Penalty
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch


def test_softmax_step_is_the_natural_gradient_in_closed_form():
    """F = diag(p) - p p^T, g = p (r - p.r): F^-1 g is r - p.r, and its length under F the standard deviation of r."""
    max_kl = 1e-6
    theta, theta_new, step = take_step(max_kl=max_kl)
    fraction = float(step.step_fraction)
    expected = np.sqrt(2 * max_kl / VARIANCE) * NATURAL
    np.testing.assert_allclose(centred(theta_new - theta), fraction * centred(expected), rtol=1e-6, atol=1e-15)
    assert fraction in (1.0, 0.8)


def test_small_advantages_make_a_small_step():
    """max_step natural gradients, not sqrt(2 max_kl / x.Fx) of them: the closed form above, not normalised."""
    theta, theta_new, step = take_step(max_kl=10.0, max_step=0.01)
    np.testing.assert_allclose(centred(theta_new - theta), 0.01 * centred(NATURAL), rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(float(step.kl), 0.5 * 0.01**2 * VARIANCE, rtol=0.02)
    assert float(step.step_fraction) == 1.0


def test_what_is_said_of_a_step_by_hand():
    theta, theta_new, step = take_step(max_kl=1e-3)
    gradient, new = PROBS * NATURAL, softmax(theta_new)
    np.testing.assert_allclose(step.gradient_norm, np.linalg.norm(gradient), rtol=1e-9)
    np.testing.assert_allclose(step.expected_improvement, gradient @ (theta_new - theta), rtol=1e-9)
    np.testing.assert_allclose(step.improvement, (new - PROBS) @ REWARD, rtol=1e-9)
    np.testing.assert_allclose(step.kl, PROBS @ np.log(PROBS / new), rtol=1e-9)
    np.testing.assert_allclose(step.step_size, np.sqrt(2e-3 / VARIANCE), rtol=1e-9)
    np.testing.assert_array_equal(step.params_old, np.tile(theta, (100, 1)))
    assert REASONS[step.reason] == "accepted"


def test_with_a_penalty_the_improvement_is_that_of_the_surrogate_alone():
    """The full step is natural gradient / C, and what must be better is the surrogate - C KL."""
    theta, theta_new, step = take_step(limit=Penalty(float64(5.0), float64(np.inf)))
    assert float(step.step_fraction) == 1.0
    new = softmax(theta_new)
    np.testing.assert_allclose(centred(theta_new - theta), centred(NATURAL) / 5, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(step.improvement, (new - PROBS) @ REWARD, rtol=1e-9)
    assert float(step.improvement) > 5 * float(step.kl) > 0


def test_accepted_steps_respect_the_trust_region_over_many_batches():
    rng = np.random.default_rng(0)
    for max_kl in (0.001, 0.05, 0.5):
        probs = rng.dirichlet(np.ones(4))
        actions = rng.integers(0, 4, 50)
        _, theta_new, step = take_step(probs, actions, rng.normal(size=50), max_kl=max_kl, cg_damping=0.01)
        kl = probs @ np.log(probs / softmax(theta_new))
        assert 0 < kl <= max_kl
        np.testing.assert_allclose(float(step.kl), kl, rtol=1e-9)
        assert float(step.improvement) > 0


@pytest.mark.parametrize(
    ("advantage", "reason"),
    [([0.0] * 4, "no_direction"), ([np.nan, 1.0, 0.0, 0.0], "no_direction"), ([1e30, 1e30, 1e30, -1e30], None)],
)
def test_theta_is_untouched_where_there_is_nothing_to_learn(advantage, reason):
    theta, theta_new, step = take_step([0.4, 0.6], [0, 1, 1, 0], advantage)
    assert np.isfinite(theta_new).all()
    if reason is not None:
        assert theta.tobytes() == theta_new.tobytes()
        assert REASONS[step.reason] == reason
        assert float(step.max_kl_used) == 0.0


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0, 1e6])
def test_the_step_has_its_length_whatever_the_damping(damping):
    """x.F x is a difference of large numbers where the damping is; the KL still comes out as asked for."""
    settings = {"max_kl": 1e-4, "max_step": 1e30, "backtrack_ratio": 0.999, "dtype": tf.float32}
    _, _, step = take_step(cg_damping=damping, **settings)
    np.testing.assert_allclose(float(step.kl), 1e-4, rtol=0.02)
    np.testing.assert_allclose(float(step.max_kl_used), 1e-4, rtol=1e-6)


@pytest.mark.parametrize("log_std", [-104.0, 90.0])
def test_extreme_log_std_never_breaks_the_parameters(log_std):
    distribution = ActionDistribution(gym.spaces.Box(-1, 1, (1,)), PolicyConfig())
    theta, advantage = tf.constant([0.3, log_std], tf.float32), tf.constant([1.0, -1.0, 2.0, 0.5])
    raw_action = tf.constant([[0.3], [0.4], [0.2], [0.3]])
    batch = Batch(tf.zeros([4, 1]), raw_action, tf.zeros(4), advantage, tf.ones(4))
    objective = make_objective(lambda theta, features: tf.zeros([4, 2]) + theta, distribution, batch)
    step = policy_step(objective, Constraint(float64(0.01), float64(3.0)), theta, TrustRegionConfig())
    assert np.isfinite(step.theta.numpy()).all()


def test_reverse_product_gives_the_same_step():
    probs, actions = [0.5, 0.3, 0.2], [0, 1, 2, 0, 0]
    advantage = [1.0, -1.0, 0.5, 0.2, 0.9]
    forward = take_step(probs, actions, advantage, cg_damping=0.01)[1]
    reverse = take_step(probs, actions, advantage, cg_damping=0.01, fisher_product="reverse")[1]
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_another_limit_is_a_class_of_a_few_lines():
    """Half of the quadratic model's KL, where the surrogate has to gain 0.01: no line of trpo_tf knows it."""

    class Half:
        max_kl, penalty, least_improvement = float64(0.02), 0.0, 0.01

        def step_size(self, curvature):
            return tf.sqrt(self.max_kl / curvature)

    theta, theta_new, step = take_step(limit=Half())
    expected = np.sqrt(0.02 / VARIANCE) * centred(NATURAL)
    np.testing.assert_allclose(centred(theta_new - theta), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(step.max_kl_used, 0.01, rtol=1e-9)
    refused = Half()
    refused.least_improvement = 1.0
    assert REASONS[take_step(limit=refused)[2].reason] == "improvement"
