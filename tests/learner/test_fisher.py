"""Fisher products against four independent references, in float64, for both distributions."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.learner import fisher
from trpo_tf.policy import distributions

SPACES = {"gaussian": gym.spaces.Box(-1, 1, (2,)), "categorical": gym.spaces.Discrete(3, start=5)}


@pytest.fixture(params=list(SPACES))
def case(request, small_network):
    family = distributions.make(SPACES[request.param], rescale=False)
    if request.param == "gaussian":
        head = distributions.GaussianHead(2, -0.3, seed=1, dtype="float64")
    else:
        head = keras.layers.Dense(3, dtype="float64")
    network, theta, x = small_network(3, head)
    weights = np.array([1, 1, 0, 2, 1, 1, 0.5])
    return family, lambda t: network(t, x), theta, tf.constant(weights / weights.sum(), tf.float64)


def product(kind, case, vector):
    family, network, theta, weights = case
    return fisher.PRODUCTS[kind](network, family, theta, weights, tf.constant(vector, tf.float64)).numpy()


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
    family, network, theta, weights = case
    kl = tfp.distributions.kl_divergence(family(network(theta)), family(network(theta_new)))
    return tf.reduce_sum(weights * kl)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_equals_the_expected_outer_product_of_scores(case, kind):
    np.testing.assert_allclose(matrix(kind, case), score_fisher(case), rtol=1e-9, atol=1e-11)


def test_equals_the_hessian_of_kl_old_new(case):
    theta = case[2]
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            family, network, _, weights = case
            old = family(tf.stop_gradient(network(theta)))
            kl = tf.reduce_sum(weights * tfp.distributions.kl_divergence(old, family(network(theta))))
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
    family, network, theta, weights = case
    kept = np.flatnonzero(weights.numpy())
    v = tf.ones_like(theta)
    part = fisher.forward_product(lambda t: tf.gather(network(t), kept), family, theta, tf.gather(weights, kept), v)
    np.testing.assert_allclose(product("forward", case, v.numpy()), part.numpy(), atol=1e-13)
