"""The table of every action space with every observation space and every network, and parts of it that cover pairs."""

import itertools

from tests.spaces_table import ACTIONS, IMAGES, NETWORKS, OBSERVATIONS

ALL = [
    (action, observation, network)
    for action, observation, network in itertools.product(ACTIONS, OBSERVATIONS, NETWORKS)
    if network != "cnn" or observation in IMAGES
]


def covering(cases, columns):
    """Greedily, the fewest cases in which all entries of each tuple of columns occur together that do so at all."""

    def entries(case):
        return {tuple((column, case[column]) for column in together) for together in columns}

    missing, chosen = set().union(*map(entries, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(entries(case) & missing))
        chosen.append(best)
        missing -= entries(best)
    return chosen


PAIRS = covering(ALL, [(0, 1), (0, 2), (1, 2)])  # for continuous integration
EACH = covering(PAIRS, [(0,), (1,), (2,)])  # for every run of the tests, and where PAIRS are too many
