"""Step rules: what is logged of a step, the KL that was in force in a run, and another rule."""

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.bandit import float64, objective_of, take_step
from trpo_tf import seeds
from trpo_tf.learner.learner import Learner
from trpo_tf.learner.step_rule import TrustRegion, old_policy_metrics, step_metrics

pytestmark = pytest.mark.usefixtures("eagerly")


def test_what_is_logged_of_a_step():
    _, _, step = take_step()
    step = step._replace(improvement=float64(0.6), expected_improvement=float64(0.8))
    found = step_metrics(step)
    np.testing.assert_allclose(found["policy/improvement_ratio"], 0.75)
    same = {
        "policy/kl": step.kl,
        "policy/max_kl_used": step.max_kl_used,
        "policy/improvement": step.improvement,
        "policy/expected_improvement": step.expected_improvement,
        "policy/step_fraction": step.step_fraction,
        "policy/backtracks": step.backtracks,
        "policy/reason": step.reason,
        "policy/step_size": step.step_size,
        "policy/gradient_norm": step.gradient_norm,
        "cg/relative_residual": step.solution.residual,
        "cg/iterations": step.solution.iterations,
        "cg/reason": step.solution.reason,
    }
    assert {name: float(x) for name, x in found.items() if name in same} == {name: float(x) for name, x in same.items()}
    assert found.keys() == same.keys() | {"policy/improvement_ratio"}


@pytest.mark.parametrize("expected", [0.0, -1.0])
def test_the_improvement_ratio_of_no_step_is_zero(expected):
    _, _, step = take_step()
    found = step_metrics(step._replace(improvement=float64(0.0), expected_improvement=float64(expected)))
    assert float(found["policy/improvement_ratio"]) == 0.0


def test_what_the_policy_before_was_like():
    """Entropy, and the ratio farthest from 1, over the valid samples: that of the last one is not."""
    probs, behavior = np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.375, 0.1])
    objective, _ = objective_of(probs, [0, 1, 2], [1.0, 2.0, 3.0])
    batch = objective.batch._replace(behavior_logp=tf.constant(np.log(behavior)), weights=tf.constant([1.0, 1.0, 0.0]))
    _, _, step = take_step(probs, [0, 1, 2], [1.0, 2.0, 3.0])
    found = old_policy_metrics(step, objective._replace(batch=batch))
    np.testing.assert_allclose(found["policy/entropy"], -probs @ np.log(probs), rtol=1e-6)
    np.testing.assert_allclose(found["policy/max_ratio_error"], 1 - 0.3 / 0.375, rtol=1e-6)


def test_a_fixed_radius_keeps_nothing(tiny):
    rule = TrustRegion(tiny(), 5, 1.0, None)
    assert not rule.variables
    assert rule.radius is rule.penalty is None


@pytest.mark.parametrize(("settings", "expected"), [({}, 0.01), ({"behavior_lag": 3}, 0.01 / 4)])
def test_the_kl_in_force_in_a_run(make_session, stepped, settings, expected):
    (row,) = stepped(make_session(max_step=1e6, max_kl=0.01, **settings))
    np.testing.assert_allclose(row["policy/max_kl_used"], expected, rtol=1e-6)
    assert row["policy/kl"] <= expected
    assert row["policy/kl"] > 0.4 * expected, "else the step was cut"


@pytest.mark.parametrize("settings", [{"max_step": 1e-4}, {"objective": "penalty", "max_step": 1e-4}])
def test_the_kl_in_force_where_max_step_binds(make_session, stepped, settings):
    """Steps so short that the true KL is that of the quadratic model."""
    (row,) = stepped(make_session(gamma=0.9, **settings))
    assert row["policy/step_fraction"] == 1.0
    assert 0 < row["policy/max_kl_used"] < 1e-4
    np.testing.assert_allclose(row["policy/max_kl_used"], row["policy/kl"], rtol=0.1)


class Ascent(tf.Module):
    """theta + rate gradient: another rule in a few lines, with a variable that checkpoints hold."""

    def __init__(self, rate):
        super().__init__(name="ascent")
        self.rate, self.steps = rate, tf.Variable(0, trainable=False, name="ascent/steps")

    def __call__(self, objective, theta_old, prepared):
        self.steps.assign_add(1)
        surrogate, gradient = objective.gradient(theta_old)
        metrics = {"policy/max_ratio_error": tf.constant(0.0), "policy/surrogate": surrogate}
        return theta_old + self.rate * gradient, metrics


def test_another_rule_is_a_class_of_a_few_lines(make_session, stepped, prepared):
    session, other = make_session(), make_session()
    for one in (session, other):
        seed = seeds.derive_seed(one.config.run.seed, seeds.LEARNER)
        one.learner = Learner(one.policy, one.config, seed, step_rule=Ascent(0.5))
    calls, policy = prepared(session), session.policy
    rows = stepped(session, 2)
    batch, theta = calls[0].made.batch, calls[0].theta
    with tf.GradientTape() as tape:
        tape.watch(theta)
        logp = policy.distribution.log_prob(policy.params(theta, batch.features), batch.raw_action)
        mean = tf.reduce_sum(batch.weights * tf.exp(logp - batch.behavior_logp) * batch.advantage)
        mean /= tf.reduce_sum(batch.weights)
    expected = theta + 0.5 * tape.gradient(mean, theta)
    np.testing.assert_allclose(calls[1].theta, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(calls[1].theta - theta).max() > 1e-3
    assert rows[0]["policy/surrogate"] == pytest.approx(0.0, abs=1e-6)
    assert "policy/reason" not in rows[0]
    assert rows[1]["value/loss"] > 0
    other.restore(session.checkpoint(), source=False)
    assert int(other.learner.step_rule.steps) == 2
