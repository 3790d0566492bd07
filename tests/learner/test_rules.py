"""Natural and plain policy gradients against closed forms, and in a run."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.bandit import ACTIONS, ADVANTAGE, NATURAL, PROBS, REWARD, centred, float64, objective_of
from trpo_tf.config import make_config
from trpo_tf.errors import UsageError
from trpo_tf.learner.line_search import NO_DIRECTION, STALE
from trpo_tf.learner.rules import RULES

NOTHING_STALE = types.SimpleNamespace(stale=None, advantage_std=float64(1.0))
GRADIENT = PROBS * (REWARD - PROBS @ REWARD)  # of the expected reward by the logits


def rule_of(length_factor=1.0, **settings):
    config = make_config(env="CartPole-v1", cg_damping=0.0, cg_tolerance=1e-20, **settings)
    return RULES[config.algorithm.algorithm](config, 3, length_factor, None)


def stepped(rule, prepared=NOTHING_STALE):
    objective, theta = objective_of(PROBS, ACTIONS, ADVANTAGE)
    found, metrics = rule(objective, theta, prepared)
    return found.numpy() - theta.numpy(), {name: x.numpy() for name, x in metrics.items()}


@pytest.mark.parametrize("rate", [0.01, 0.5, 7.0])
def test_the_natural_gradient_goes_a_fixed_length_whatever_the_kl(rate):
    """F^-1 g of a softmax over actions are the advantages, up to a constant that changes no probability."""
    step, metrics = stepped(rule_of(algorithm="npg", npg_step_size=rate, max_kl=1e-6, max_step=1e-6))
    np.testing.assert_allclose(centred(step), rate * centred(NATURAL), rtol=1e-6, atol=1e-12)
    new = np.exp(np.log(PROBS) + rate * NATURAL)
    new /= new.sum()
    np.testing.assert_allclose(metrics["policy/kl"], PROBS @ np.log(PROBS / new), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/improvement"], (new - PROBS) @ REWARD, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.01, 20.0])
def test_gradient_ascent_adds_a_multiple_of_the_gradient(rate):
    step, metrics = stepped(rule_of(algorithm="vpg", vpg_optimizer="sgd", vpg_learning_rate=rate))
    np.testing.assert_allclose(step, rate * GRADIENT, rtol=1e-6)
    fisher = np.diag(PROBS) - np.outer(PROBS, PROBS)
    np.testing.assert_allclose(metrics["policy/max_kl_used"], 0.5 * step @ fisher @ step, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/expected_improvement"], step @ GRADIENT, rtol=1e-6)
    assert not any(name.startswith("cg/") for name in metrics)


def test_adam_is_that_of_the_paper():
    """Three steps by algorithm 1 of Kingma and Ba, in numpy, from the gradients at the policies on the way."""
    rule, theta = rule_of(algorithm="vpg", vpg_learning_rate=0.1), np.log(PROBS)
    objective, tensor = objective_of(PROBS, ACTIONS, ADVANTAGE, tf.float32)
    m = v = np.zeros(3)
    for t in range(1, 4):
        tensor, _ = rule(objective, tensor, NOTHING_STALE)
        p = np.exp(theta) / np.exp(theta).sum()
        gradient = p * (REWARD - p @ REWARD)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta + 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(tensor.numpy(), theta, rtol=1e-5)
    assert len(rule.variables) == 3


@pytest.mark.parametrize("algorithm", ["npg", "vpg"])
def test_stale_transitions_shorten_a_step_or_forbid_it(algorithm):
    settings = {"algorithm": algorithm, "vpg_optimizer": "sgd", "vpg_learning_rate": 0.1, "npg_step_size": 0.1}
    fresh, _ = stepped(rule_of(**settings))
    shorter, _ = stepped(rule_of(0.5, **settings))
    np.testing.assert_allclose(shorter, 0.5 * fresh, rtol=1e-6)
    for size, expected in ((0.4, 1 / np.sqrt(3.0)), (0.1, 0.0)):
        objective, theta = objective_of(PROBS, ACTIONS, ADVANTAGE)
        stale = types.SimpleNamespace(
            lag=float64(2.0),
            metrics={"stale/effective_sample_size": float64(size)},
            behavior_params=objective.params(theta),
        )
        prepared = types.SimpleNamespace(stale=stale, advantage_std=float64(1.0))
        step, metrics = stepped(rule_of(min_effective_sample_size=0.3, **settings), prepared)
        np.testing.assert_allclose(step, expected * fresh, rtol=1e-6)
        assert metrics["policy/step_fraction"] == (expected > 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "npg"},
        pytest.param({"algorithm": "vpg"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "vpg", "reuse": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_to_the_bit_and_has_another_policy_than_trpo(make_session, settings):
    session, again, trpo = make_session(**settings), make_session(**settings), make_session()
    rows = [session.step() for _ in range(2)]
    again.restore(session.checkpoint())
    rows += [session.step(), again.step()]
    for name in ("policy/kl", "policy/improvement", "policy/entropy"):
        assert rows[2][name] == rows[3][name]
    assert rows[1]["policy/kl"] > 0
    assert rows[0]["policy/committed"] == 1
    trpo.step()
    trpo.step()
    assert np.abs(trpo.policy.network.theta() - session.policy.network.theta()).max() > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "npg", "radius": "adaptive"},
        {"algorithm": "vpg", "objective": "penalty"},
    ],
)
def test_settings_of_another_algorithm_are_refused(settings):
    with pytest.raises(UsageError, match=r"is of algorithm="):
        make_config(env="CartPole-v1", **settings)


@pytest.mark.parametrize("kind", ["stale", "no row"])
def test_a_batch_that_takes_no_step_leaves_adam_as_it_was(kind):
    rule = rule_of(algorithm="vpg", vpg_learning_rate=0.1, min_effective_sample_size=0.3)
    objective, theta = objective_of(PROBS, ACTIONS, ADVANTAGE, tf.float32)
    theta, _ = rule(objective, theta, NOTHING_STALE)
    before = [x.numpy() for x in rule.variables]
    assert before[0].any()
    prepared = NOTHING_STALE
    if kind == "stale":
        metrics = {"stale/effective_sample_size": float64(0.1)}
        stale = types.SimpleNamespace(lag=None, metrics=metrics, behavior_params=objective.params(theta))
        prepared = types.SimpleNamespace(stale=stale, advantage_std=float64(1.0))
    else:
        nothing = tf.zeros_like(objective.weights)
        objective = objective._replace(
            weights=nothing, batch=objective.batch._replace(weights=tf.cast(nothing, tf.float32))
        )
    new, metrics = rule(objective, theta, prepared)
    np.testing.assert_array_equal(new, theta)
    assert metrics["policy/reason"] == {"stale": STALE, "no row": NO_DIRECTION}[kind]
    for variable, value in zip(rule.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
