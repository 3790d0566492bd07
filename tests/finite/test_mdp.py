"""Exact policy evaluation: by sums over time, by simulation, by hand."""

import numpy as np
import pytest

from tests.finite.random_mdps import random_mdp, random_policy, summed
from trpo_tf.errors import UsageError
from trpo_tf.finite.examples import two_states
from trpo_tf.finite.mdp import evaluate, expectation, make_mdp


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
def test_return_and_visits_are_the_sums_over_time(gamma):
    for seed in range(5):
        mdp = random_mdp(seed, gamma=gamma)
        policy = random_policy(np.random.default_rng(seed), mdp)
        of, (eta, visits) = evaluate(mdp, policy), summed(mdp, policy)
        np.testing.assert_allclose(of.eta, eta, atol=1e-11)
        np.testing.assert_allclose(of.visits, visits, atol=1e-11)
        np.testing.assert_allclose(of.visits.sum(), 1 / (1 - gamma))
        np.testing.assert_allclose((policy * of.advantage).sum(1), 0.0, atol=1e-11)


def test_two_states_by_hand():
    """Both lead to the first state with probability 0.8, so V(0) - V(1) = 0.8 - 0.4, V(0) = 0.8 + 0.9 (V(0) - 0.08)."""
    of = evaluate(*two_states())
    np.testing.assert_allclose(of.values, [7.28, 6.88])
    np.testing.assert_allclose(of.eta, 7.2)
    np.testing.assert_allclose(of.visits, [8.0, 2.0])
    np.testing.assert_allclose(of.advantage, [[0.272, -1.088], [1.312, -0.328]])


def test_return_and_visits_are_within_three_standard_errors_of_simulated_ones():
    """Episodes end with probability 1 - gamma after each step, so that undiscounted sums have the discounted mean."""
    rng, episodes = np.random.default_rng(0), 40_000
    mdp = random_mdp(1, observation=np.array([0, 1, 1, 0]))
    policy = random_policy(rng, mdp)
    returns, visits = np.zeros(episodes), np.zeros((episodes, 4))
    alive = np.arange(episodes)
    state = rng.choice(4, episodes, p=mdp.start)
    while len(alive):
        visits[alive, state] += 1
        action = (rng.random(len(alive))[:, None] > policy[mdp.observation[state]].cumsum(1)).sum(1)
        returns[alive] += mdp.reward[state, action]
        state = (rng.random(len(alive))[:, None] > mdp.transition[state, action].cumsum(1)).sum(1)
        lives = rng.random(len(alive)) < mdp.gamma
        alive, state = alive[lives], state[lives]
    of, error = evaluate(mdp, policy), np.sqrt(episodes)
    assert abs(returns.mean() - of.eta) < 3 * returns.std() / error
    assert (np.abs(visits.mean(0) - of.visits) < 3 * visits.std(0) / error).all()
    assert returns.std() / error < 0.02, "else this measures nothing"


def test_the_return_is_the_old_one_plus_the_advantages_over_the_visits_of_the_new_policy():
    """Equations 1 and 2 of the TRPO paper."""
    for seed in range(20):
        mdp, rng = random_mdp(seed), np.random.default_rng(seed)
        old, new = random_policy(rng, mdp), random_policy(rng, mdp)
        before, after = evaluate(mdp, old), evaluate(mdp, new)
        gained = (summed(mdp, new)[1][:, None] * new * before.advantage).sum()
        np.testing.assert_allclose(after.eta - before.eta, gained, atol=1e-11)
        assert abs(gained - (before.visits[:, None] * new * before.advantage).sum()) > 1e-6


def test_advantages_of_an_observation_are_those_of_its_states_weighted_by_visits():
    mdp = random_mdp(3, observation=np.array([0, 1, 0, 1]))
    of = evaluate(mdp, random_policy(np.random.default_rng(0), mdp))
    even, odd = (
        (of.visits[i, None] * of.advantage[i]).sum(0) / of.visits[i].sum() for i in (np.array([0, 2]), np.array([1, 3]))
    )
    np.testing.assert_allclose(of.observed_advantage, [even, odd])
    np.testing.assert_allclose(of.observed_visits, [of.visits[[0, 2]].sum(), of.visits[[1, 3]].sum()])


def test_a_state_that_is_never_visited_has_its_own_advantages():
    mdp = make_mdp(
        np.tile(np.eye(2)[:, None], (1, 2, 1)), np.array([[0.0, 0.0], [0.0, 4.0]]), 0.5, np.array([1.0, 0.0])
    )
    of = evaluate(mdp, np.full((2, 2), 0.5))
    np.testing.assert_allclose(of.visits, [2.0, 0.0])
    np.testing.assert_allclose(of.observed_advantage[1], [-2.0, 2.0])


def test_weighted_means_of_the_batch_are_expectations():
    mdp = random_mdp(2, observation=np.array([0, 1, 2, 1]))
    policy = random_policy(np.random.default_rng(1), mdp)
    policy[0] = [0.0, 0.01, 0.99]
    rows, (eta, visits) = expectation(mdp, policy), summed(mdp, policy)
    states, actions = np.divmod(np.arange(12), 3)
    np.testing.assert_allclose(rows.weights.sum(), 1.0)
    np.testing.assert_allclose(rows.weights @ mdp.reward[states, actions], (1 - mdp.gamma) * eta)
    np.testing.assert_allclose(
        rows.weights, (1 - mdp.gamma) * visits[states] * policy[mdp.observation[states], actions]
    )
    np.testing.assert_array_equal(rows.observation, mdp.observation[states])
    np.testing.assert_array_equal(rows.action, actions)
    np.testing.assert_allclose(rows.weights @ rows.advantage, 0.0, atol=1e-12)
    assert rows.logp[0] == 0.0
    np.testing.assert_allclose(rows.logp[1:], np.log(policy[mdp.observation[states], actions][1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": np.full((2, 2, 2), 0.4)}, "transition has to hold probabilities"),
        ({"transition": np.tile([1.5, -0.5], (2, 2, 1))}, "transition has to hold probabilities"),
        ({"transition": np.ones((2, 2, 1))}, "transition has shape"),
        ({"start": np.array([1.0, 1.0])}, "start has to hold probabilities"),
        ({"start": np.ones(3) / 3}, "start has shape"),
        ({"gamma": 1.0}, "gamma=1.0"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"observation": np.array([0, 2])}, "observation has to use every number"),
    ],
)
def test_what_is_no_mdp_is_refused(change, message):
    fields = random_mdp(0, states=2, actions=2)._asdict()
    make_mdp(**fields)
    with pytest.raises(UsageError, match=message):
        make_mdp(**(fields | change))
