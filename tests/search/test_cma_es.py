"""CMA-ES on functions with a known maximum, and exact resumption of the package's state."""

import sys

import numpy as np
import pytest

from tests.search.functions import goes_on_to_the_bit, maximised, quadratic, rosenbrock
from trpo_tf.errors import UsageError
from trpo_tf.search.cma_es import CMA
from trpo_tf.state import StateError

FULL, DIAGONAL = 100, 0  # weights up to which there are covariances


def cma(theta=None, population=0, sigma=0.5, full_up_to=FULL, seed=0):
    return CMA(np.zeros(4) if theta is None else theta, population, sigma, full_up_to, seed)


def test_candidates_are_spread_around_the_beginning():
    search = cma(np.full(500, 3.0), 40, 0.2, DIAGONAL)
    candidates = search.ask()
    assert candidates.shape == (40, 500)
    assert candidates.mean() == pytest.approx(3, abs=0.01)
    assert candidates.std() == pytest.approx(0.2, rel=0.02)
    assert search.sigma == pytest.approx(0.2)
    np.testing.assert_array_equal(candidates, search.ask())


@pytest.mark.parametrize(("size", "population"), [(4, 8), (100, 17), (6000, 30)])
def test_the_population_grows_with_the_logarithm_of_the_weights(size, population):
    assert population == int(4 + 3 * np.log(size))
    assert len(cma(np.zeros(size), full_up_to=DIAGONAL).ask()) == population


@pytest.mark.parametrize("full_up_to", [FULL, DIAGONAL])
def test_it_finds_the_maximum_of_a_quadratic(full_up_to):
    search = maximised(cma(np.zeros(6), full_up_to=full_up_to), quadratic, 150)
    np.testing.assert_allclose(search.mean, np.ones(6), atol=1e-4)
    assert search.sigma < 1e-3


def test_with_covariances_it_finds_that_of_rosenbrocks_function():
    """Its ridge is bent: variances alone are left far behind in as many generations."""
    whole, diagonal = (maximised(cma(np.zeros(6), full_up_to=size), rosenbrock, 300) for size in (FULL, DIAGONAL))
    np.testing.assert_allclose(whole.mean, np.ones(6), atol=1e-3)
    assert rosenbrock(diagonal.mean[None]) < 100 * rosenbrock(whole.mean[None])


@pytest.mark.parametrize("full_up_to", [FULL, DIAGONAL])
def test_equal_returns_leave_the_mean_and_new_candidates_are_drawn(full_up_to):
    search, other = (maximised(cma(full_up_to=full_up_to), quadratic, 3) for _ in range(2))
    before = search.ask()
    search.tell(np.full(len(before), 5.0))
    np.testing.assert_array_equal(search.mean, other.mean)
    assert search.sigma == other.sigma
    assert not np.isin(search.ask(), before).any()
    other.restore(search.state())
    assert other.ask().tobytes() == search.ask().tobytes()


@pytest.mark.parametrize("full_up_to", [FULL, DIAGONAL])
def test_a_restored_search_goes_on_to_the_bit(full_up_to):
    assert goes_on_to_the_bit(lambda: cma(full_up_to=full_up_to))


def test_nobody_elses_draws_are_taken():
    np.random.seed(1)  # noqa: NPY002
    one = maximised(cma(), quadratic, 5).mean
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(one, maximised(cma(), quadratic, 5).mean)
    assert not np.isin(cma(seed=1).ask(), cma().ask()).any()


@pytest.mark.parametrize("full_up_to", [FULL, DIAGONAL])
def test_another_course_of_the_package_goes_on_from_the_same_mean(full_up_to, capsys):
    """As of another version, or on another processor: what it comes to is not what was saved."""
    search, other, again = (cma(full_up_to=full_up_to) for _ in range(3))
    saved = maximised(search, quadratic, 5).state()
    saved |= {"mean": saved["mean"] + 0.25}
    other.restore(saved)
    assert "cma did not repeat itself" in capsys.readouterr().err
    np.testing.assert_array_equal(other.mean, saved["mean"])
    assert other.sigma == pytest.approx(search.sigma, rel=1e-3)
    directions, first = other.ask() - other.mean, cma().ask()
    assert (np.sign(directions) != np.sign(first)).any(), "they are drawn anew"
    maximised(other, quadratic, 3)
    again.restore(other.state())
    assert capsys.readouterr().err == ""
    assert again.ask().tobytes() == other.ask().tobytes()
    np.testing.assert_allclose(maximised(other, quadratic, 200).mean, 1, atol=1e-3)


def test_what_does_not_fit_is_refused():
    saved = cma(population=6).state()
    with pytest.raises(StateError, match=r"theta has shape \(3,\) here, \(4,\) in the file"):
        cma(np.zeros(3)).restore(saved)
    with pytest.raises(StateError, match=r"returns has shape \(0, 8\) here, \(0, 6\) in the file"):
        cma(population=8).restore(saved)
    with pytest.raises(StateError, match="mean has shape"):
        cma(population=6).restore({name: x for name, x in saved.items() if name != "mean"})


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UsageError, match=r"pip install 'trpo_tf\[cma\]'"):
        cma()
