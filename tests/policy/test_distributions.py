"""Distribution families: log-probabilities by hand, Fisher matrices by Monte Carlo and Hessian, the door to the env."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.config import UsageError
from trpo_tf.policy import distributions

BOX = gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([4.0, np.inf], np.float32))


def families():
    return [
        (distributions.make(BOX, False), tf.constant([[0.3, -1.0, -0.5, 0.2]], tf.float64)),
        (distributions.make(gym.spaces.Discrete(3), False), tf.constant([[0.3, -1.0, 0.5]], tf.float64)),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_fisher_equals_the_hessian_of_the_kl_in_the_parameters(index):
    family, params = families()[index]
    with tf.GradientTape() as outer:
        outer.watch(params)
        with tf.GradientTape() as inner:
            inner.watch(params)
            kl = tfp.distributions.kl_divergence(family(tf.stop_gradient(params)), family(params))
        gradient = inner.gradient(kl, params)
    hessian = outer.jacobian(gradient, params).numpy()[0, :, 0, :]
    size = params.shape[1]
    dense = np.stack([family.fisher_product(params, tf.constant(row[None]))[0] for row in np.eye(size)])
    np.testing.assert_allclose(dense, hessian, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1])
def test_fisher_equals_monte_carlo(index):
    family, params = families()[index]
    rows = tf.repeat(params, 200_000, axis=0)
    actions = family(rows).sample(seed=[1, 2])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        logp = family(rows).log_prob(actions)
    scores = tape.gradient(logp, rows).numpy()
    tangent = np.linspace(1, -1, params.shape[1])
    product = family.fisher_product(params, tf.constant(tangent[None])).numpy()[0]
    samples = scores * (scores @ tangent)[:, None]
    error = samples.std(0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - product) < 5 * error + 1e-12).all()


def test_gaussian_log_prob_by_hand():
    family = distributions.make(BOX, False)
    mean, log_std, action = np.array([0.5, -1.0]), np.array([-0.5, 0.3]), np.array([1.0, 2.0])
    expected = sum(
        -0.5 * ((a - m) / np.exp(s)) ** 2 - s - 0.5 * np.log(2 * np.pi)
        for a, m, s in zip(action, mean, log_std, strict=True)
    )
    params = tf.constant(np.concatenate([mean, log_std])[None])
    np.testing.assert_allclose(family(params).log_prob(action[None]), [expected])
    np.testing.assert_allclose(family(params).mode()[0], mean)
    assert family.describe(params)["std"].numpy()[0].tolist() == pytest.approx(np.exp(log_std).tolist())


def test_categorical_log_prob_by_hand():
    family = distributions.make(gym.spaces.Discrete(3, start=-4), False)
    params = tf.math.log(tf.constant([[0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(family(params).log_prob([1]), [np.log(0.3)], rtol=1e-6)
    assert family.to_env(family(params).mode()).numpy().tolist() == [-2]
    np.testing.assert_allclose(family.describe(params)["probs"], [[0.2, 0.3, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_draws_have_the_distribution_of_the_family(index):
    family, params = families()[index]
    rows = tf.cast(tf.repeat(params, 100_000, axis=0), tf.float32)
    drawn = family.draw(rows, family.noise([100_000], [1, 2])).numpy()
    if index == 0:
        mean, std = np.split(params.numpy()[0], 2)
        std = np.exp(std)
        np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * std.max() / 316)
        np.testing.assert_allclose(drawn.std(0), std, rtol=5 / 447)
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / 316
    else:
        frequency = np.bincount(drawn, minlength=3) / len(drawn)
        np.testing.assert_allclose(frequency, tf.nn.softmax(params)[0], atol=5 * 0.5 / 316)


def test_box_actions_are_clipped_to_their_bounds():
    family = distributions.make(BOX, False)
    actions = tf.constant([[-5.0, -1e6], [9.0, 1e6], [1.0, 0.0]])
    np.testing.assert_array_equal(family.to_env(actions), [[-2.0, -1e6], [4.0, 1e6], [1.0, 0.0]])


def test_rescaling_maps_minus_one_to_one_onto_finite_bounds_only():
    family = distributions.make(BOX, True)
    actions = tf.constant([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(family.to_env(actions), [[-2.0, -1.0], [1.0, 0.5], [4.0, 1.0], [4.0, 3.0]])


def test_boxes_of_any_shape_keep_it():
    family = distributions.make(gym.spaces.Box(-1, 1, (2, 3)), False)
    assert family.action_shape == (6,)
    assert family.to_env(tf.zeros([4, 6])).shape == (4, 2, 3)


@pytest.mark.parametrize("space", [gym.spaces.MultiBinary(3), gym.spaces.Box(0, 9, (2,), np.int64)])
def test_unsupported_spaces_are_named(space):
    with pytest.raises(UsageError, match=r"action space .* is not supported"):
        distributions.make(space, False)
