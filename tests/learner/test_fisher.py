"""Fisher products against independent references, in float64, for distributions and for every kind of network."""

import contextlib

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import OBSERVATIONS
from trpo_tf.config import PolicyConfig
from trpo_tf.learner import fisher
from trpo_tf.policy import construction, distributions
from trpo_tf.policy.policy import Policy

SPACES = {"gaussian": gym.spaces.Box(-1, 1, (2,)), "categorical": gym.spaces.Discrete(3, start=5)}


@pytest.fixture(params=list(SPACES))
def case(request, small_network):
    distribution = distributions.ActionDistribution(SPACES[request.param], PolicyConfig())
    heads = (
        keras.layers.Dense(distribution.outputs, dtype="float64"),
        distributions.Parameters(distribution, dtype="float64"),
    )
    network, theta, x = small_network(3, heads)
    weights = np.array([1, 1, 0, 2, 1, 1, 0.5])
    return distribution, lambda t: network(t, x), theta, tf.constant(weights / weights.sum(), tf.float64)


def product(kind, case, vector):
    distribution, network, theta, weights = case
    return fisher.PRODUCTS[kind](network, distribution, theta, weights, tf.constant(vector, tf.float64)).numpy()


def matrix(kind, case):
    return np.stack([product(kind, case, row) for row in np.eye(case[2].shape[0])])


def score_fisher(case):
    """The definition: sum_n w_n E_a[score score^T], the expectation exact or by Gauss-Hermite quadrature."""
    _, network, theta, weights = case
    with tf.GradientTape() as tape:
        tape.watch(theta)
        params = network(theta)
    jacobian = tape.jacobian(params, theta).numpy()
    params = params.numpy()
    total = np.zeros((theta.shape[0],) * 2)
    for n, weight in enumerate(weights.numpy()):
        if params.shape[1] == 3:
            probs = np.exp(params[n]) / np.exp(params[n]).sum()
            outcomes = [(probs[a], np.eye(3)[a] - probs) for a in range(3)]
        else:
            std = np.exp(params[n, 2:])
            nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
            node_weights = node_weights / node_weights.sum()
            outcomes = [
                (wi * wj, np.concatenate([np.array([zi, zj]) / std, np.array([zi, zj]) ** 2 - 1]))
                for zi, wi in zip(nodes, node_weights, strict=True)
                for zj, wj in zip(nodes, node_weights, strict=True)
            ]
        for probability, score in outcomes:
            by_theta = jacobian[n].T @ score
            total += weight * probability * np.outer(by_theta, by_theta)
    return total


def mean_kl(case, theta_new):
    distribution, network, theta, weights = case
    return tf.reduce_sum(weights * distribution.kl(network(theta), network(theta_new)))


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_equals_the_expected_outer_product_of_scores(case, kind):
    np.testing.assert_allclose(matrix(kind, case), score_fisher(case), rtol=1e-9, atol=1e-11)


def test_equals_the_hessian_of_kl_old_new(case):
    theta = case[2]
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            distribution, network, _, weights = case
            kl = tf.reduce_sum(weights * distribution.kl(tf.stop_gradient(network(theta)), network(theta)))
        gradient = inner.gradient(kl, theta)
    np.testing.assert_allclose(matrix("forward", case), outer.jacobian(gradient, theta).numpy(), atol=1e-10)


def test_equals_finite_differences_of_kl(case):
    rng = np.random.default_rng(3)
    theta, step = case[2], 1e-4
    for _ in range(5):
        v = rng.normal(size=theta.shape[0])
        second = (mean_kl(case, theta + step * v) + mean_kl(case, theta - step * v)).numpy() / step**2
        np.testing.assert_allclose(v @ product("forward", case, v), second, rtol=1e-5)


def test_forward_equals_double_back_propagation(case):
    v = np.random.default_rng(4).normal(size=case[2].shape[0])
    np.testing.assert_allclose(product("forward", case, v), product("reverse", case, v), rtol=1e-9, atol=1e-12)


def test_is_symmetric_positive_semi_definite_and_linear(case):
    dense = matrix("forward", case)
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    assert np.linalg.eigvalsh(dense).min() > -1e-12
    a, b = np.random.default_rng(5).normal(size=(2, dense.shape[0]))
    combined = product("forward", case, 2 * a - 3 * b)
    np.testing.assert_allclose(combined, 2 * product("forward", case, a) - 3 * product("forward", case, b), atol=1e-11)


def test_rows_of_weight_zero_do_not_count(case, small_network):
    distribution, network, theta, weights = case
    kept = np.flatnonzero(weights.numpy())
    v = tf.ones_like(theta)
    part = fisher.forward_product(
        lambda t: tf.gather(network(t), kept), distribution, theta, tf.gather(weights, kept), v
    )
    np.testing.assert_allclose(product("forward", case, v.numpy()), part.numpy(), atol=1e-13)


NETWORKS = {
    "layer_norm": ("box", {"layer_norm": "both", "hidden_sizes": (4, 3)}),
    "gru": ("box", {"network": "gru", "hidden_sizes": (3, 3)}),
    "lstm": ("box", {"network": "lstm", "hidden_sizes": (3,)}),
    "convolutions": ("image_last", {"hidden_sizes": (3,)}),
}


@pytest.fixture(params=list(NETWORKS))
def policy(request, monkeypatch):
    """A policy in float64 with random weights, and features of 8 rows: two sequences of four."""
    monkeypatch.setattr(construction, "keras_defaults", contextlib.nullcontext)  # they would make it float32
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        name, changes = NETWORKS[request.param]
        made = Policy(OBSERVATIONS[name], SPACES["gaussian"], PolicyConfig(**changes), 0)
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])
    rng = np.random.default_rng(1)
    features = {}
    for name, (shape, dtype) in made.specs.items():
        drawn = rng.integers(0, 255, (8, *shape)) if dtype == np.uint8 else rng.normal(size=(8, *shape))
        features[name] = tf.constant(drawn.astype(np.uint8 if dtype == np.uint8 else np.float64))
    if "is_first" in features:
        features["is_first"] = tf.constant([1.0, 0, 0, 1, 0, 0, 1, 0], tf.float64)
    if not made.encoder.images:
        features["vector"] = features.pop("observation")
    theta = made.network.theta()
    return made, features, theta + 0.2 * tf.constant(rng.normal(size=theta.shape[0]))


def test_networks_give_the_product_of_their_jacobian_by_finite_differences(policy):
    """Through convolutions, layer norm and the recurrence: J by central differences of the parameters, F = J^T M J."""
    made, features, theta = policy
    assert theta.dtype == tf.float64

    def network(theta):
        return made.params(theta, features, 4)

    rng, size = np.random.default_rng(2), theta.shape[0]
    step = 1e-8 if made.encoder.images else 1e-5  # where a relu has its kink, a difference means nothing
    weights = tf.constant(np.array([1, 1, 0, 2, 1, 1, 0.5, 1]) / 7.5)
    params, v, others = network(theta), rng.normal(size=size), rng.normal(size=(5, size))

    def along(direction):
        return (network(theta + step * direction) - network(theta - step * direction)).numpy() / (2 * step)

    product = fisher.forward_product(network, made.distribution, theta, weights, tf.constant(v)).numpy()
    weighted = weights.numpy()[:, None] * made.distribution.fisher_product(params, tf.constant(along(v))).numpy()
    for other in others:
        np.testing.assert_allclose(other @ product, (along(other) * weighted).sum(), rtol=1e-5)
    reverse = fisher.reverse_product(network, made.distribution, theta, weights, tf.constant(v)).numpy()
    np.testing.assert_allclose(product, reverse, rtol=1e-7, atol=1e-9)
