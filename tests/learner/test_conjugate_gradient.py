"""Conjugate gradient against numpy, and every reason to stop."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner.conjugate_gradient import REASONS, conjugate_gradient


def solve(matrix, b, iterations=50, tolerance=1e-20):
    matrix = tf.constant(matrix, tf.float64)
    solution = conjugate_gradient(
        lambda v: tf.linalg.matvec(matrix, v), tf.constant(b, tf.float64), iterations, tolerance
    )
    return solution.direction.numpy(), float(solution.residual), int(solution.iterations), REASONS[solution.reason]


def spd(size, condition, seed):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return q @ np.diag(np.geomspace(1, condition, size)) @ q.T, rng.normal(size=size)


@pytest.mark.parametrize("seed", range(5))
def test_solves_random_spd_systems(seed):
    matrix, b = spd(12, 100.0, seed)
    x, residual, iterations, reason = solve(matrix, b)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
    assert reason == "residual"
    assert iterations <= 20
    assert residual <= 1e-10 * 1.01
    np.testing.assert_allclose(np.linalg.norm(matrix @ x - b) / np.linalg.norm(b), residual, atol=1e-13)


def test_k_steps_minimise_over_the_krylov_space():
    matrix, b = spd(10, 50.0, 7)
    k = 4
    krylov = np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], 1)
    best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    x, residual, iterations, reason = solve(matrix, b, iterations=k)
    np.testing.assert_allclose(x, best, rtol=1e-7)
    np.testing.assert_allclose(residual, np.linalg.norm(b - matrix @ best) / np.linalg.norm(b), rtol=1e-7)
    assert (iterations, reason) == (k, "iterations")


@pytest.mark.parametrize("iterations", [1, 4, 50])
def test_product_is_that_of_the_solution(iterations):
    matrix, b = spd(10, 50.0, 3)
    solution = conjugate_gradient(lambda v: tf.linalg.matvec(matrix, v), tf.constant(b), iterations, 1e-20)
    np.testing.assert_allclose(solution.product, matrix @ solution.direction.numpy(), rtol=1e-9)


def test_ill_conditioned_system_reduces_the_error_in_the_matrix_norm():
    matrix, b = spd(30, 1e8, 1)
    exact = np.linalg.solve(matrix, b)
    errors = []
    for k in (5, 10, 20, 40):
        error = solve(matrix, b, iterations=k)[0] - exact
        errors.append(error @ matrix @ error)
    assert errors == sorted(errors, reverse=True)


def test_singular_consistent_system_gives_the_solution_of_least_norm():
    matrix = np.diag([2.0, 1.0, 0.0])
    x, _, _, reason = solve(matrix, [2.0, 3.0, 0.0])
    np.testing.assert_allclose(x, [1.0, 3.0, 0.0], atol=1e-12)
    assert reason == "residual"


def test_negative_curvature_stops_and_keeps_what_was_reached():
    x, _, iterations, reason = solve(np.diag([1.0, -1.0]), [0.0, 1.0])
    np.testing.assert_array_equal(x, [0.0, 0.0])
    assert (iterations, reason) == (1, "curvature")
    x, _, iterations, reason = solve(np.diag([4.0, -1.0]), [2.0, 1.0])
    assert reason == "curvature"
    alpha = 5.0 / (16.0 - 1.0)  # the first direction, b itself, has positive curvature
    np.testing.assert_allclose(x, [2 * alpha, alpha])
    assert iterations == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_and_right_sides_that_are_not_finite_stop(bad):
    x, _, _, reason = solve(np.diag([1.0, bad]), [1.0, 1.0])
    assert reason == "not_finite"
    np.testing.assert_array_equal(x, [0.0, 0.0])
    x, _, iterations, reason = solve(np.eye(2), [1.0, bad])
    assert (iterations, reason) == (0, "not_finite")
    np.testing.assert_array_equal(x, [0.0, 0.0])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_residual_is_relative_to_the_right_side(scale):
    """diag(1, 3) and b = (1, 1) s: one step is alpha = 2 / 4, its residual (1 - 1/2, 1 - 3/2) s, of length |b| / 2."""
    x, residual, _, _ = solve(np.diag([1.0, 3.0]), [scale, scale], iterations=1)
    np.testing.assert_allclose(x, [scale / 2, scale / 2])
    np.testing.assert_allclose(residual, 0.5, rtol=1e-12)


def test_without_an_iteration_the_residual_is_one():
    assert solve(np.eye(2), [3.0, 4.0], iterations=0)[1:] == (1.0, 0, "iterations")


def test_zero_right_side_needs_no_product():
    x, residual, iterations, reason = solve(np.eye(3), [0.0, 0.0, 0.0])
    assert (residual, iterations, reason) == (0.0, 0, "residual")
    np.testing.assert_array_equal(x, np.zeros(3))


def test_float32_vectors_keep_their_type():
    b = tf.constant([1.0, 2.0], tf.float32)
    solution = conjugate_gradient(lambda v: 2 * v, b, 10, 1e-10)
    assert solution.direction.dtype == tf.float32
    assert solution.residual.dtype == tf.float64
