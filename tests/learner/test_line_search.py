"""The line search: which candidate it takes, and that it restores theta to the bit and says why."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner.line_search import REASONS, line_search

THETA = tf.constant([0.1, -0.7, 1e-30], tf.float32)
STEP = tf.constant([1.0, 2.0, 0.0], tf.float32)


def search(evaluate, full_step=STEP, max_backtracks=5):
    """evaluate: from the fraction taken, theta[0] - 0.1, to (improvement, KL)."""

    def by_theta(theta):
        fraction = tf.cast(theta[0], tf.float64) - 0.1
        improvement, kl = evaluate(fraction)
        return tf.cast(improvement, tf.float64), tf.cast(kl, tf.float64)

    step = line_search(by_theta, THETA, full_step, tf.constant(0.01, tf.float64), 0.5, max_backtracks)
    return step, REASONS[step.reason]


def assert_restored(step):
    assert step.theta.numpy().tobytes() == THETA.numpy().tobytes()
    assert (float(step.step_fraction), float(step.improvement), float(step.kl)) == (0.0, 0.0, 0.0)


def test_takes_the_full_step_when_it_is_acceptable():
    step, reason = search(lambda f: (1.0, tf.constant(0.005, tf.float64)))
    assert (reason, float(step.step_fraction), int(step.backtracks)) == ("accepted", 1.0, 0)
    np.testing.assert_array_equal(step.theta, THETA + STEP)
    assert (float(step.improvement), float(step.kl)) == (1.0, 0.005)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_takes_the_first_acceptable_candidate(k):
    step, reason = search(lambda f: (f, tf.where(f > 0.5**k * 1.01, 1.0, 0.005)))
    assert (reason, float(step.step_fraction), int(step.backtracks)) == ("accepted", 0.5**k, k)
    np.testing.assert_allclose(step.theta, THETA + 0.5**k * STEP, rtol=1e-6)


@pytest.mark.parametrize(
    ("improvement", "kl", "expected"),
    [
        (1.0, 0.0101, "kl"),
        (0.0, 0.001, "improvement"),
        (-1.0, 0.001, "improvement"),
        (np.nan, 0.001, "not_finite"),
        (1.0, np.nan, "not_finite"),
        (np.inf, 0.001, "not_finite"),
        (-1.0, 1.0, "kl"),
    ],
)
def test_restores_and_says_why(improvement, kl, expected):
    step, reason = search(lambda f: (improvement, kl))
    assert_restored(step)
    assert reason == expected
    assert int(step.backtracks) == 5


@pytest.mark.parametrize("full_step", [[0.0, 0.0, 0.0], [1.0, np.nan, 0.0], [np.inf, 0.0, 0.0]])
def test_without_a_direction_nothing_is_tried(full_step):
    step, reason = search(lambda f: (1.0, 0.0), tf.constant(full_step, tf.float32))
    assert_restored(step)
    assert reason == "no_direction"


def test_a_candidate_that_overflows_is_not_taken_though_its_numbers_look_good():
    step, reason = search(lambda f: (1.0, 0.001), tf.constant([0.0, -3e38, 3e38]) * 2.0)
    assert_restored(step)
    assert reason == "no_direction"
    theta = tf.constant([3e38], tf.float32)
    constant = (tf.constant(1.0, tf.float64), tf.constant(0.001, tf.float64))
    step = line_search(lambda t: constant, theta, theta, tf.constant(0.01, tf.float64), 0.5, 1)
    assert REASONS[step.reason] == "not_finite"
    assert step.theta.numpy().tobytes() == theta.numpy().tobytes()
