"""benchmarks/finite.py: what it says of its runs, and that it can say no."""

import itertools

import numpy as np
import pytest

from benchmarks.finite import ALGORITHMS, APPROXIMATE, EXAMPLES, FACTORS, GRADIENT, Run, claims, follow, record
from trpo_tf.finite.mdp import evaluate


def run_of(example, algorithm, factor, **changes):
    """A run as it should be."""
    falls = factor > 1 and (algorithm == APPROXIMATE or (example == "cliff" and algorithm in GRADIENT))
    falls = falls or (example, algorithm) == ("cliff", "TRPO, constraint")
    run = Run(example, algorithm, factor, [0.0, 1.0, 0.5 if falls else 2.0], [0.01, 0.002], 0.0, 0.0)
    return run._replace(**changes)


def runs(**changes):
    """All runs; changes go to those of one (example, algorithm, factor)."""
    which, changes = changes.pop("which", None), changes
    cases = itertools.product(EXAMPLES, ALGORITHMS, FACTORS)
    return [run_of(*case, **(changes if case == which else {})) for case in cases]


FALLING, RISING = [0.0, 1.0, 0.9], [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("number", "which", "changes"),
    [
        (1, ("cliff", "algorithm 1", 1.0), {"eta": FALLING}),
        (1, ("garnet", "conservative policy iteration", 1.0), {"eta": FALLING}),
        (2, ("two_states", "NPG", 10.0), {"eta": FALLING}),
        (3, ("garnet", APPROXIMATE, 1.0), {"above_error": -1e-6}),
        (3, ("garnet", APPROXIMATE, 10.0), {"eta": RISING}),
        (4, ("cliff", "VPG", 10.0), {"eta": RISING}),
        (5, ("garnet", "VPG", 1.0), {"above_bound": -1e-6}),
        (6, ("garnet", "TRPO, constraint", 1.0), {"kl": [0.0101, 0.01]}),
        (6, ("garnet", "TRPO, constraint and max_step", 10.0), {"kl": [0.9, 1.01]}),
        (7, ("cliff", "TRPO, constraint", 1.0), {"eta": RISING}),
        (7, ("cliff", "TRPO, constraint and max_step", 1.0), {"eta": FALLING}),
    ],
)
def test_a_claim_that_does_not_hold_is_named(number, which, changes):
    assert all(claims(runs()).values())
    assert [claim[0] for claim, holds in claims(runs(which=which, **changes)).items() if not holds] == [str(number)]


def test_rounding_is_no_fall():
    assert run_of("garnet", "NPG", 1.0, eta=[1.0, 1.0 - 1e-11, 1.0 - 1e-3]).falls == pytest.approx([1e-3 - 1e-11])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_has_the_returns_of_its_policies(algorithm):
    run = follow("two_states", algorithm, 1.0, 3)
    example = EXAMPLES["two_states"]()
    policies = itertools.islice(ALGORITHMS[algorithm](example, 1.0), 4)
    expected = [evaluate(example.mdp, policy).eta for policy in policies]
    np.testing.assert_allclose(run.eta, expected)
    assert len(run.kl) == 3
    assert run.eta[1] > run.eta[0]
    assert run.above_bound >= 0


def test_the_file_has_the_first_and_the_last_update():
    run = Run("garnet", "NPG", 1.0, [float(k) for k in range(301)], [*range(299), np.inf], 0.0, 0.0)
    found = record(run)
    assert found["update"][:4] == [0, 1, 2, 3]
    assert found["update"][-1] == found["eta"][-1] == 300
    assert found["kl"][:3] == [None, 0.0, 1.0]
    assert found["kl"][-1] is None
