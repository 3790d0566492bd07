"""Functions with a known maximum, 0, at all ones."""

import numpy as np


def quadratic(x):
    """-sum_i (i + 1) (x_i - 1)^2 of rows [P, D]."""
    return -((x - 1) ** 2 @ np.arange(1, x.shape[1] + 1))


def rosenbrock(x):
    """-sum_i 100 (x_i+1 - x_i^2)^2 + (1 - x_i)^2 of rows [P, D]."""
    return -(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def maximised(search, function, generations):
    """The search after so many generations."""
    for _ in range(generations):
        search.tell(function(search.ask()))
    return search


def goes_on_to_the_bit(make):
    """Whether a restored search does what the one does that its state was taken of; make() makes one."""
    whole, other = maximised(make(), quadratic, 5), make()
    saved = {name: x.copy() for name, x in whole.state().items()}
    other.restore(saved)
    for search in (whole, other):
        maximised(search, quadratic, 5)
    assert whole.ask().tobytes() == other.ask().tobytes()
    return whole.mean.tobytes() == other.mean.tobytes()
