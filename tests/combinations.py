"""The table of every action space with every observation space and every network, and parts of it that cover pairs."""

import itertools

from tests.spaces_table import ACTIONS, IMAGES, NETWORKS, OBSERVATIONS

ALL = [
    (action, observation, network)
    for action, observation, network in itertools.product(ACTIONS, OBSERVATIONS, NETWORKS)
    if network != "cnn" or observation in IMAGES
]


def covering(cases, columns):
    """Greedily, the fewest cases in which all entries of so many columns occur together that do so at all."""

    def entries(case):
        return set(itertools.combinations(enumerate(case), columns))

    missing, chosen = set().union(*map(entries, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(entries(case) & missing))
        chosen.append(best)
        missing -= entries(best)
    return chosen


PAIRS = covering(ALL, 2)  # for continuous integration
EACH = covering(PAIRS, 1)  # for every run of the tests
