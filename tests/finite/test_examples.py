"""The MDPs of the pictures are what their docstrings say."""

import numpy as np
import pytest

from tests.finite.random_mdps import deterministic_policies
from trpo_tf.finite.examples import EXAMPLES, cliff, garnet, two_states
from trpo_tf.finite.mdp import evaluate


def test_a_garnet_has_its_branching_and_its_seed():
    mdp, policy = garnet(3, states=7, actions=2, branching=4, gamma=0.5)
    np.testing.assert_array_equal((mdp.transition > 0).sum(-1), 4)
    np.testing.assert_array_equal(policy, np.full((7, 2), 0.5))
    assert mdp.gamma == 0.5
    np.testing.assert_array_equal(mdp.transition, garnet(3, 7, 2, 4)[0].transition)
    assert (mdp.reward != garnet(4, 7, 2, 4)[0].reward).all()


def test_transitions_of_garnets_are_spacings_of_uniform_numbers():
    """Each of b spacings has mean 1 / b and variance (b - 1) / (b^2 (b + 1))."""
    mdp, _ = garnet(0, states=60, actions=20, branching=3)
    p = mdp.transition[mdp.transition > 0]
    assert abs(p.var() - 2 / 36) < 4 * 0.05 / np.sqrt(len(p))
    assert abs(mdp.reward.mean()) < 4 / np.sqrt(1200)


def test_the_plain_gradient_of_the_two_states_is_mostly_to_stay_in_the_first():
    mdp, policy = two_states()
    of = evaluate(mdp, policy)
    plain = of.visits[:, None] * policy * of.advantage
    assert plain[0, 0] > 3 * plain[1, 0] > 0
    assert of.advantage[1, 0] > 3 * of.advantage[0, 0] > 0
    best = max(deterministic_policies(mdp), key=lambda one: evaluate(mdp, one).eta)
    np.testing.assert_array_equal(best.argmax(1), [1, 0])
    np.testing.assert_allclose(evaluate(mdp, best).eta, 0.8 * 0.9 * 20 + 0.2 * 20)


def test_the_two_states_start_from_their_stationary_distribution():
    mdp, policy = two_states()
    np.testing.assert_allclose(mdp.start @ np.einsum("sa,sat->st", policy, mdp.transition), mdp.start)


def test_the_return_on_the_cliff_rises_and_then_falls():
    """Runs of k steps come from the beginning: eta(p) (1 - g (1 - p) sum_k (g p)^k - (g p)^4) is what a run earns."""
    mdp, policy = cliff()
    run = np.linspace(0, 1, 101)
    found = np.array([evaluate(mdp, np.array([[1 - p, p]])).eta for p in run])
    powers = (0.9 * run[:, None]) ** np.arange(4)
    earned = powers @ np.array([1.0, 1.0, 1.0, -20.0]) * run
    expected = earned / (1 - 0.9 * (1 - run) * powers.sum(1) - (0.9 * run) ** 4)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    top = found.argmax()
    assert 0.1 < run[top] < 0.4
    assert (np.diff(found)[:top] > 0).all()
    assert (np.diff(found)[top:] < 0).all()
    assert run[top] > policy[0, 1]
    assert found[-1] < -30


@pytest.mark.parametrize("name", EXAMPLES)
def test_first_policies_have_every_action(name):
    mdp, policy = EXAMPLES[name]()
    assert policy.shape == (mdp.observations, mdp.actions)
    assert policy.min() > 0
    np.testing.assert_allclose(policy.sum(1), 1.0)
