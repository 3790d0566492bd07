"""Surrogate, KL, gradient and Fisher products of a batch against softmax formulas in numpy, whole and by chunks."""

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.bandit import ACTIONS, ADVANTAGE, PROBS, objective_of
from tests.learner.mdp import categorical, softmax
from trpo_tf.learner.objective import make_objective, mean_kl, surrogate
from trpo_tf.learner.statistics import mean_weights
from trpo_tf.types import Batch

ROWS, FEATURES, CHOICES = 12, 2, 3
RNG = np.random.default_rng(0)
X, TAKEN, ADVANTAGES = RNG.normal(size=(ROWS, FEATURES)), RNG.integers(CHOICES, size=ROWS), RNG.normal(size=ROWS)
THETA, OLD, VECTOR = RNG.normal(size=(3, FEATURES * CHOICES))
WEIGHTS, BEHAVIOR = RNG.uniform(size=ROWS) * (RNG.random(ROWS) < 0.8), RNG.uniform(0.2, 0.8, ROWS)
MEAN = WEIGHTS / WEIGHTS.sum()


def probs(theta):
    return softmax(X @ theta.reshape(FEATURES, CHOICES))


def scores(theta):
    """d log pi(a|s) / d theta of every action, [N, A, P]."""
    of_logits = np.eye(CHOICES) - probs(theta)[:, None, :]
    return np.einsum("nf,nak->nafk", X, of_logits).reshape(ROWS, CHOICES, -1)


def made(chunk_size=0, **changes):
    """An objective of linear softmax logits; features have a row more than the batch."""
    batch = Batch(
        features=tf.constant(np.vstack([X, np.full([1, FEATURES], np.nan)])),
        raw_action=tf.constant(TAKEN[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(BEHAVIOR)),
        advantage=tf.constant(ADVANTAGES),
        weights=tf.constant(WEIGHTS),
    )

    def network(theta, features):
        return features @ tf.reshape(theta, [FEATURES, CHOICES])

    return make_objective(network, categorical(CHOICES), batch, chunk_size=chunk_size, **changes)


@pytest.fixture(params=[0, 5, 12])
def objective(request):
    return made(request.param)


def test_kl_is_old_before_new():
    old, new = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    kl = mean_kl(categorical(2), np.log(old)[None], np.log(new)[None], tf.ones(1))
    forward, backward = old @ np.log(old / new), new @ np.log(new / old)
    assert abs(forward - backward) > 0.1
    np.testing.assert_allclose(float(kl), forward, rtol=1e-12)


def test_surrogate_uses_the_behavior_policy_and_the_mask():
    probs, behavior = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), np.array([0.6, 0.4, 0.5])
    advantage, mask = np.array([2.0, -1.0, 1e6]), np.array([1.0, 1.0, 0.0])
    batch = Batch(None, tf.constant([[0.0], [1.0], [0.0]]), np.log(behavior), tf.constant(advantage), mask)
    expected = (0.9 / 0.6 * 2.0 + 0.8 / 0.4 * -1.0) / 2
    np.testing.assert_allclose(float(surrogate(categorical(2), np.log(probs), batch, mean_weights(mask))), expected)


def test_parameters_are_those_of_the_batch(objective):
    assert objective.transitions == ROWS
    np.testing.assert_allclose(objective.params(tf.constant(THETA)), X @ THETA.reshape(FEATURES, CHOICES))


def test_the_surrogate_and_its_gradient(objective):
    """sum w ratio A, and sum w ratio A times the score."""
    chosen = np.arange(ROWS), TAKEN
    gain = probs(THETA)[chosen] / BEHAVIOR * ADVANTAGES
    for weights, given in ((MEAN, None), (ADVANTAGES**2, tf.constant(ADVANTAGES**2))):
        value, gradient = objective.gradient(tf.constant(THETA), given)
        np.testing.assert_allclose(value, weights @ gain, rtol=1e-6)
        np.testing.assert_allclose(gradient, (weights * gain) @ scores(THETA)[chosen], rtol=1e-6)
        np.testing.assert_allclose(
            objective.surrogate(tf.constant(THETA), tf.constant(weights)), weights @ gain, rtol=1e-6
        )


def test_the_kl_from_other_parameters(objective):
    old, new = probs(OLD), probs(THETA)
    value, kl = objective.surrogate_and_kl(tf.constant(THETA), objective.params(tf.constant(OLD)))
    np.testing.assert_allclose(kl, MEAN @ (old * np.log(old / new)).sum(1), rtol=1e-9)
    np.testing.assert_allclose(value, objective.gradient(tf.constant(THETA))[0], rtol=1e-9)


@pytest.mark.parametrize("rows", [None, [7, 2, 3, 11, 0]])
@pytest.mark.parametrize("fisher_product", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [0, 3])
def test_fisher_products_are_those_of_the_rows_asked_for(rows, fisher_product, chunk_size):
    """F = sum w E[score score^T], the weights a mean over these rows."""
    given = None if rows is None else tf.constant(rows)
    objective = made(chunk_size, fisher_rows=given, fisher_product=fisher_product)
    chosen = slice(None) if rows is None else rows
    weights = WEIGHTS[chosen] / WEIGHTS[chosen].sum()
    of_rows, p = scores(THETA)[chosen], probs(THETA)[chosen]
    dense = np.einsum("n,na,nap,naq->pq", weights, p, of_rows, of_rows)
    np.testing.assert_allclose(
        objective.fisher_product(tf.constant(THETA), tf.constant(VECTOR)), dense @ VECTOR, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["raw_action", "behavior_logp", "advantage", "weights"])
def test_a_column_where_a_vector_belongs_is_refused(name, column):
    objective, _ = objective_of(PROBS, ACTIONS, ADVANTAGE)
    batch = objective.batch._replace(**{name: column(getattr(objective.batch, name))})
    with pytest.raises(ValueError, match="has shape"):
        make_objective(objective.network, objective.distribution, batch)


def test_columns_everywhere_are_refused(column):
    objective, _ = objective_of(PROBS, ACTIONS, ADVANTAGE)
    fields = "behavior_logp", "advantage", "weights"
    batch = objective.batch._replace(**{name: column(getattr(objective.batch, name)) for name in fields})
    with pytest.raises(ValueError, match=r"advantage has shape \(100, 1\)"):
        make_objective(objective.network, objective.distribution, batch)
