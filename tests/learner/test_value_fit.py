"""The value fit against a numpy Adam and a least-squares solution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import value_fit
from trpo_tf.policy.networks import FlatNetwork


def linear(inputs=2):
    network = FlatNetwork(keras.Sequential([keras.layers.Input((inputs,)), keras.layers.Dense(1)]))
    network.assign(tf.zeros([inputs + 1]))
    return network


def test_adam_equals_keras():
    rng = np.random.default_rng(0)
    theta, m, v = tf.constant(rng.normal(size=4), tf.float32), tf.zeros(4), tf.zeros(4)
    variable, keras_adam = keras.Variable(theta), keras.optimizers.Adam(0.01, epsilon=1e-8)
    for step in range(1, 6):
        grad = tf.constant(rng.normal(size=4), tf.float32)
        theta, m, v = value_fit.adam(theta, grad, m, v, tf.constant(step), 0.01)
        keras_adam.apply([grad], [variable])
    # Keras adds epsilon before the bias correction of v; with gradients of order 1 that is below 1e-6.
    np.testing.assert_allclose(theta, variable.numpy(), rtol=1e-5)


def fit(network, state, x, order, y, mask, learning_rate):
    def values(phi, rows):
        return network(phi, tf.gather(x, rows))[:, 0]

    numbers = map(tf.constant, (y, mask, np.float32(learning_rate)))
    tf.function(value_fit.fit, autograph=False)(network, state, values, order, *numbers)


def test_fit_equals_a_numpy_loop_over_the_same_minibatches():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 2)).astype(np.float32)
    y = (x @ [1.0, -2.0] + 0.5).astype(np.float32)
    mask = np.ones(12, np.float32)
    mask[[3, 7]] = 0
    order = value_fit.minibatch_order(3, 12, 4, tf.constant([1, 2]))
    network = linear()
    state = value_fit.AdamState(network.size)
    fit(network, state, x, order, y, mask, 0.05)
    theta, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    for step, rows in enumerate(order.numpy(), start=1):
        design, weights = np.column_stack([x[rows], np.ones(4)]), mask[rows]
        grad = design.T @ (weights * (design @ theta - y[rows])) / weights.sum()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
        theta -= 0.05 * m_hat / (np.sqrt(v_hat) + 1e-8)
    np.testing.assert_allclose(network.theta(), theta, rtol=1e-4)
    assert int(state.steps) == 9


def test_many_steps_reach_least_squares():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(64, 2)).astype(np.float32)
    y = (x @ [1.0, -2.0] + 0.5).astype(np.float32)
    network = linear()
    order = value_fit.minibatch_order(400, 64, 32, tf.constant([0, 0]))
    fit(network, value_fit.AdamState(3), x, order, y, np.ones(64, np.float32), 0.02)
    np.testing.assert_allclose(network.theta(), [1.0, -2.0, 0.5], atol=1e-3)


def test_masked_minibatches_change_nothing_and_do_not_count():
    network, state = linear(), value_fit.AdamState(3)
    order = value_fit.minibatch_order(2, 8, 4, tf.constant([0, 0]))
    fit(network, state, np.ones([8, 2], np.float32), order, np.ones(8, np.float32), np.zeros(8, np.float32), 0.1)
    np.testing.assert_array_equal(network.theta(), np.zeros(3))
    assert int(state.steps) == 0


def test_orders_are_permutations_that_differ_by_epoch_and_seed():
    order = value_fit.minibatch_order(2, 10, 4, tf.constant([5, 6])).numpy()
    assert order.shape == (4, 4)
    first, second = order[:2].ravel(), order[2:].ravel()
    assert len(set(first)) == len(set(second)) == 8
    assert first.tolist() != second.tolist()
    assert order.tolist() != value_fit.minibatch_order(2, 10, 4, tf.constant([5, 7])).numpy().tolist()
    assert value_fit.minibatch_order(3, 5, 128, tf.constant([0, 0])).shape == (3, 5)
    assert value_fit.minibatch_order(0, 5, 128, tf.constant([0, 0])).shape[0] == 0


def test_squared_error_by_hand():
    values, returns, mask = tf.constant([1.0, 5.0, np.nan]), tf.constant([3.0, 2.0, 0.0]), tf.constant([1.0, 1.0, 0.0])
    assert float(value_fit.squared_error(values, returns, mask)) == 0.5 * (4 + 9) / 2


@pytest.mark.parametrize("name", ["returns", "mask", "values", "all"])
def test_a_column_where_a_vector_belongs_is_refused(name, column):
    """[N, 1] - [N] would be [N, N], and its mean the fit of every value to every return."""
    network, state, x = linear(), value_fit.AdamState(3), np.ones([8, 2], np.float32)
    given = {"returns": np.ones(8, np.float32), "mask": np.ones(8, np.float32)}
    given |= {key: column(given[key]) for key in given if name in (key, "all")}

    def values(phi, rows):
        predicted = network(phi, tf.gather(x, rows))
        return predicted if name in ("values", "all") else predicted[:, 0]

    order = value_fit.minibatch_order(1, 8, 4, tf.constant([0, 0]))
    with pytest.raises(ValueError, match="has shape"):
        value_fit.fit(network, state, values, order, *map(tf.constant, given.values()), tf.constant(0.1))
    np.testing.assert_array_equal(network.theta(), np.zeros(3))
