"""Augmented random search against the formula of its paper, and on functions with a known maximum."""

import numpy as np
import pytest

from tests.search.functions import goes_on_to_the_bit, maximised, quadratic, rosenbrock
from trpo_tf.search.ars import ARS
from trpo_tf.state import StateError

THETA = np.array([0.5, -1.0, 2.0])
RETURNS = np.array([3.0, 1.0, 7.0, -2.0, 4.0, 9.0, 6.0, -1.0])  # of 4 directions forwards, then backwards


def ars(theta=THETA, directions=4, top=4, noise=0.1, step_size=0.5, seed=0):
    return ARS(theta, directions, top, noise, step_size, seed)


def test_candidates_are_pairs_around_theta():
    search = ars()
    candidates = search.ask()
    plus, minus = candidates[:4], candidates[4:]
    np.testing.assert_allclose((plus + minus) / 2, np.tile(THETA, (4, 1)), rtol=1e-14)
    np.testing.assert_array_equal(candidates, search.ask())
    drawn = ars(np.zeros(1000), directions=50).ask()[:50]
    assert drawn.std() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(("top", "best"), [(4, [0, 1, 2, 3]), (2, [1, 2]), (1, [1])])
def test_a_step_is_that_of_the_paper(top, best):
    """Line 7 of algorithm 2, with the directions read off the candidates; the largest returns are 9, 7, 4 and -1."""
    search = ars(top=top)
    delta = (search.ask()[:4] - THETA) / 0.1
    used = [RETURNS[k] for k in best] + [RETURNS[4 + k] for k in best]
    sigma = np.sqrt(sum((r - sum(used) / len(used)) ** 2 for r in used) / len(used))
    expected = THETA + 0.5 / (top * sigma) * sum((RETURNS[k] - RETURNS[4 + k]) * delta[k] for k in best)
    search.tell(RETURNS)
    np.testing.assert_allclose(search.mean, expected, rtol=1e-10)


def test_the_scale_and_the_origin_of_returns_do_not_matter():
    one, other = ars(), ars()
    one.tell(RETURNS)
    other.tell(1000 * RETURNS + 7)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-10)


def test_equal_returns_leave_theta_and_new_directions_are_drawn():
    search = ars()
    before = search.ask()
    search.tell(np.full(8, 5.0))
    np.testing.assert_array_equal(search.mean, THETA)
    assert not np.isin(search.ask(), before).any()


def test_directions_are_those_of_the_seed():
    np.testing.assert_array_equal(ars().ask(), ars().ask())
    assert not np.isin(ars(seed=1).ask(), ars().ask()).any()


def test_it_finds_the_maximum_of_a_quadratic():
    search = maximised(ars(np.zeros(6), 8, 8, 0.01, 0.02), quadratic, 500)
    np.testing.assert_allclose(search.mean, np.ones(6), atol=0.1)


def test_it_climbs_the_ridge_of_rosenbrocks_function():
    search = maximised(ars(np.array([-1.0, 1.0]), 8, 8, 0.001, 0.002), rosenbrock, 3000)
    np.testing.assert_allclose(search.mean, np.ones(2), atol=0.1)


def test_a_restored_search_goes_on_to_the_bit():
    assert goes_on_to_the_bit(ars)


@pytest.mark.parametrize("saved", [{}, {"theta": np.zeros(4), "generation": np.array(1)}, {"theta": np.zeros(3)}])
def test_what_does_not_fit_is_refused(saved):
    with pytest.raises(StateError, match=r"theta has shape \(3,\) here"):
        ars().restore(saved)
