"""Limits of a step, each in closed form, and what makes a step shorter."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.learner.bandit import NATURAL, VARIANCE, centred, float64, take_step
from trpo_tf.config import PolicyConfig, TrustRegionConfig
from trpo_tf.learner.line_search import REASONS
from trpo_tf.learner.objective import make_objective
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.step_limit import Constraint, Penalty, PlainLength, step_limit
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch

FAR = float64(np.inf)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Constraint(float64(0.02), FAR), np.sqrt(2 * 0.02 / 4.0)),
        (Constraint(float64(0.02), float64(0.05)), 0.05),
        (Penalty(float64(5.0), FAR), 1 / 5),
        (Penalty(float64(5.0), float64(0.05)), 0.05),
        (PlainLength(float64(0.3)), 0.3),
        (PlainLength(tf.constant(0.25, tf.float32)), 0.25),
    ],
)
def test_the_length_of_the_full_step(limit, expected):
    size = limit.step_size(float64(4.0))
    assert size.dtype == tf.float64
    np.testing.assert_allclose(size, expected, rtol=1e-12)


@pytest.mark.parametrize("curvature", [0.0, -1.0, np.nan])
@pytest.mark.parametrize(
    "limit", [Constraint(float64(0.02), FAR), Penalty(float64(5.0), FAR), PlainLength(float64(0.3))]
)
def test_without_curvature_there_is_no_step(limit, curvature):
    assert float(limit.step_size(float64(curvature))) == 0.0


def test_what_is_acceptable():
    constraint, penalty, plain = Constraint(float64(0.02), FAR), Penalty(float64(5.0), FAR), PlainLength(float64(0.3))
    assert [float(x.max_kl) for x in (constraint, penalty, plain)] == [0.02, np.inf, np.inf]
    assert [float(x.penalty) for x in (constraint, penalty, plain)] == [0.0, 5.0, 0.0]
    assert [x.least_improvement for x in (constraint, penalty, plain)] == [0.0, 0.0, -np.inf]


@pytest.mark.parametrize("length", [0.3, 40.0])
def test_a_plain_length_is_so_many_natural_gradients(length):
    """However far the policy moves: 40 of them take the KL beyond 10 nats."""
    theta, theta_new, step = take_step(limit=PlainLength(float64(length)))
    np.testing.assert_allclose(centred(theta_new - theta), length * centred(NATURAL), rtol=1e-6, atol=1e-12)
    assert (float(step.step_size), float(step.step_fraction), int(step.backtracks)) == (length, 1.0, 0)
    np.testing.assert_allclose(step.max_kl_used, 0.5 * length**2 * VARIANCE, rtol=1e-9)
    assert (float(step.kl) > 10) == (length == 40.0)


def gaussian_step(limit):
    """A step of N(0, 1) that saw the actions -1, 0 and 2 with advantages 1, 1 and 2: far away, the surrogate is 0."""
    distribution = ActionDistribution(gym.spaces.Box(-np.inf, np.inf, (1,)), PolicyConfig())
    action, theta = np.array([[-1.0], [0.0], [2.0]]), tf.zeros(1, tf.float64)
    logp = -0.5 * action[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    tensors = (tf.constant(x) for x in (action, logp, np.array([1.0, 1.0, 2.0]), np.ones(3)))
    batch = Batch(tf.zeros([3, 1], tf.float64), *tensors)

    def network(theta, features):
        return tf.concat([features + theta, tf.zeros_like(features)], 1)

    config = TrustRegionConfig(cg_damping=0.0)
    return policy_step(make_objective(network, distribution, batch), limit, theta, config)


def test_a_plain_length_is_taken_although_the_surrogate_falls():
    """The mean's natural gradient is (-1 + 0 + 4) / 3 = 1; ten of them leave nothing of a surrogate of 4 / 3."""
    step = gaussian_step(PlainLength(float64(10.0)))
    np.testing.assert_allclose(step.theta, [10.0])
    np.testing.assert_allclose(step.improvement, -4 / 3, rtol=1e-3)
    np.testing.assert_allclose([step.kl, step.max_kl_used], [50.0, 50.0])
    assert REASONS[step.reason] == "accepted"
    for limit in (Constraint(FAR, float64(10.0)), Penalty(float64(1e-9), float64(10.0))):
        other = gaussian_step(limit)
        assert 0 < float(other.step_fraction) < 1
        assert float(other.improvement) > 0


def test_a_step_that_the_penalty_makes_worse_is_shortened():
    """1 / C = 5: the first candidate 5 * 0.8^k whose surrogate gains more than C KL is taken."""
    step = gaussian_step(Penalty(float64(0.2), FAR))

    def gain(mean):
        return np.exp(np.array([-1, 0, 2]) * mean - mean**2 / 2) @ [1, 1, 2] / 3 - 4 / 3

    taken = 5 * 0.8 ** int(step.backtracks)
    assert int(step.backtracks) > 0
    assert gain(taken) > 0.2 * taken**2 / 2 > 0
    assert gain(taken / 0.8) < 0.2 * (taken / 0.8) ** 2 / 2
    np.testing.assert_allclose(step.theta, [taken])
    np.testing.assert_allclose([step.kl, step.improvement], [taken**2 / 2, gain(taken)])


def test_a_plain_length_that_is_not_finite_is_not_taken():
    step = gaussian_step(PlainLength(float64(1e200)))
    assert REASONS[step.reason] == "not_finite"
    np.testing.assert_array_equal(step.theta, [0.0])


def test_everything_that_makes_a_step_shorter_comes_together():
    config = TrustRegionConfig(max_kl=0.04, max_step=0.1)
    constraint = step_limit(config, float64(2.0), 0.9, 0.5, float64(9.0))
    assert isinstance(constraint, Constraint)
    np.testing.assert_allclose(constraint.max_kl, 0.04 * 0.5**2 * 9)
    np.testing.assert_allclose(constraint.max_step, 0.1 * 2.0 / 0.1 * 0.5 * 3)
    penalty = step_limit(config, float64(2.0), 0.9, 0.5, float64(9.0), float64(7.0))
    assert isinstance(penalty, Penalty)
    np.testing.assert_allclose([penalty.penalty, penalty.max_step, penalty.max_kl], [7.0, constraint.max_step, np.inf])


def test_the_staleness_of_a_batch_divides_the_kl_and_leaves_max_step():
    config = TrustRegionConfig(max_kl=0.04, max_step=0.1)
    limit = step_limit(config, float64(2.0), 0.9, 0.5, float64(9.0), lag=float64(1.5))
    np.testing.assert_allclose(limit.max_kl, 0.04 * 0.5**2 * 9 / 2.5)
    np.testing.assert_allclose(limit.max_step, 0.1 * 2.0 / 0.1 * 0.5 * 3)


def test_undiscounted_returns_have_a_limit_too():
    limit = step_limit(TrustRegionConfig(max_step=0.1), float64(2.0), 1.0, 1.0, float64(1.0))
    np.testing.assert_allclose(limit.max_step, 0.2e9)


@pytest.mark.parametrize("length_factor", [1.0, 0.5])
@pytest.mark.parametrize("radius_factor", [1.0, 4.0, 0.1])
@pytest.mark.parametrize("max_step", [1e6, 1e-3])
def test_the_kl_in_force(length_factor, radius_factor, max_step):
    """max_kl length_factor^2 radius_factor; where max_step binds, half of its square times x.F x."""
    config = TrustRegionConfig(max_kl=1e-4, max_step=max_step)
    limit = step_limit(config, float64(2.0), 0.5, length_factor, float64(radius_factor))
    _, _, step = take_step(limit=limit)
    expected = 1e-4 * length_factor**2 * radius_factor
    if max_step < 1:
        expected = 0.5 * (1e-3 * 2.0 / 0.5 * length_factor) ** 2 * radius_factor * VARIANCE
    np.testing.assert_allclose(step.max_kl_used, expected, rtol=1e-9)


def test_the_kl_in_force_is_max_kl_when_nothing_else_binds():
    limit = step_limit(TrustRegionConfig(max_kl=0.01, max_step=1e6), float64(1.0), 0.99, 1.0, float64(1.0))
    assert float(take_step(limit=limit)[2].max_kl_used) == pytest.approx(0.01, rel=1e-12)


def test_the_kl_in_force_with_a_penalty():
    limit = step_limit(TrustRegionConfig(max_step=1e6), float64(1.0), 0.99, 1.0, float64(1.0), float64(5.0))
    np.testing.assert_allclose(take_step(limit=limit)[2].max_kl_used, 0.5 / 5**2 * VARIANCE, rtol=1e-9)
