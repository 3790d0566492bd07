"""What benchmarks/theory_estimates.py computes for the figures of docs/theory, against simulation and closed forms."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.finite.random_mdps import random_mdp, random_policy
from trpo_tf.finite.mdp import evaluate
from trpo_tf.learner.estimate.gae import generalized_advantage

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import theory_estimates as estimates

STATES, ACTIONS, STEPS, ROLLOUTS = 3, 2, 3, 40_000


def inverted(p, u):
    """The draw [N] of distributions [N, K] at random numbers [N]."""
    return (u[:, None] > p.cumsum(1)[:, :-1]).sum(1)


def simulated(mdp, policy, values, first, common):
    """Q-hat of rollouts from (s, a) [N]; `common` gives the random numbers of actions and states [STEPS, 2, N]."""
    state, action = (np.full(ROLLOUTS, x) for x in first)
    total = np.zeros(ROLLOUTS)
    for step in range(STEPS):
        total += mdp.gamma**step * mdp.reward[state, action]
        state = inverted(mdp.transition[state, action], common[step, 0])
        action = inverted(policy[state], common[step, 1])
    return total + mdp.gamma**STEPS * values[state]


def test_moments_are_those_of_simulated_rollouts_with_common_random_numbers():
    mdp, rng = random_mdp(0, STATES, ACTIONS), np.random.default_rng(0)
    policy, values = random_policy(rng, mdp), rng.normal(size=STATES)
    mean, covariance = estimates.moments(mdp, policy, values, STEPS)
    for s in range(STATES):
        common = rng.random((STEPS, 2, ROLLOUTS))
        found = np.array([simulated(mdp, policy, values, (s, a), common) for a in range(ACTIONS)])
        centered = found - mean[s][:, None]
        assert (np.abs(centered.mean(1)) < 4 * found.std(1) / np.sqrt(ROLLOUTS)).all()
        products = centered[:, None] * centered
        assert (np.abs(products.mean(2) - covariance[s]) < 4 * products.std(2) / np.sqrt(ROLLOUTS)).all()
        assert abs(covariance[s, 0, 1]) > 0.03 * np.sqrt(covariance[s, 0, 0] * covariance[s, 1, 1]), "measures"


def test_long_rollouts_have_the_values_of_actions():
    mdp = random_mdp(1, STATES, ACTIONS, gamma=0.5)
    policy = random_policy(np.random.default_rng(1), mdp)
    of = evaluate(mdp, policy)
    for steps, values in ((1, of.values), (60, np.full(STATES, 7.0))):
        found, covariance = estimates.moments(mdp, policy, values, steps)
        np.testing.assert_allclose(found, of.advantage + of.values[:, None], atol=1e-10)
        assert (np.linalg.eigvalsh(covariance) > -1e-12).all()


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_mean_of_generalised_advantages_is_that_of_simulated_paths(lam):
    mdp, rng = random_mdp(2, STATES, ACTIONS, gamma=0.6), np.random.default_rng(2)
    policy, values = random_policy(rng, mdp), rng.normal(size=STATES)
    states, actions = estimates.sampled(mdp, policy, rng, 40, 20_000)
    no = np.zeros(actions.shape, bool)
    rows = mdp.reward[states[:-1], actions], values[states], no, no, 1.0 - no
    found = generalized_advantage(*(tf.constant(x) for x in rows), mdp.gamma, lam).numpy()[0]
    mean = estimates.expected_gae(mdp, policy, values, lam)
    for s, a in np.ndindex(STATES, ACTIONS):
        ones = found[(states[0] == s) & (actions[0] == a)]
        assert len(ones) > 300
        assert abs(ones.mean() - mean[s, a]) < 4 * ones.std() / np.sqrt(len(ones))
    if lam == 1.0:
        of = evaluate(mdp, policy)
        np.testing.assert_allclose(mean, of.advantage + (of.values - values)[:, None], atol=1e-12)


def test_the_effective_size_of_gaussian_ratios_is_exp_of_minus_twice_the_kl():
    """With N(0, 1) and N(d, 1), KL = d^2 / 2. By quadrature: points of the first, weighted with its density."""
    x = np.linspace(-12, 12, 4001)
    for d in (0.1, 0.5, 1.0):
        size = estimates.effective_size(np.exp(d * x - d**2 / 2), np.exp(-(x**2) / 2))
        np.testing.assert_allclose(size, np.exp(-(d**2)), rtol=1e-6)
