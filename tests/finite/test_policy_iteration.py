"""Policy iteration, exact, with errors, conservative: against value iteration, brute force, the papers' algebra."""

import numpy as np
import pytest

from tests.finite.random_mdps import deterministic_policies, optimal_values, random_mdp, random_policy
from trpo_tf.finite.examples import cliff, garnet
from trpo_tf.finite.lower_bound import mixture_bound
from trpo_tf.finite.mdp import evaluate, make_mdp
from trpo_tf.finite.policy_iteration import (
    advantage_error,
    conservative_step,
    greedy,
    policy_iteration,
    policy_iteration_step,
)

ROUNDING = 1e-11


def bandit(reward, gamma=0.5):
    """One state."""
    return make_mdp(np.ones((1, len(reward), 1)), np.array([reward]), gamma, np.ones(1))


@pytest.mark.parametrize("gamma", [0.0, 0.8, 0.99])
def test_it_finds_the_values_of_value_iteration(gamma):
    for seed in range(5):
        mdp = random_mdp(seed, states=6, gamma=gamma)
        policy = policy_iteration(mdp, random_policy(np.random.default_rng(seed), mdp))
        np.testing.assert_allclose(evaluate(mdp, policy).values, optimal_values(mdp), rtol=1e-9, atol=1e-9)


def test_no_deterministic_policy_is_better():
    for seed in range(5):
        mdp = random_mdp(seed, states=4, actions=3)
        found = evaluate(mdp, policy_iteration(mdp, random_policy(np.random.default_rng(seed), mdp))).eta
        np.testing.assert_allclose(found, max(evaluate(mdp, one).eta for one in deterministic_policies(mdp)))


def test_it_sees_the_state_where_the_first_policy_does_not():
    mdp, policy = cliff()
    best = policy_iteration(mdp, policy)
    np.testing.assert_array_equal(best.argmax(1), [1, 1, 1, 0])
    np.testing.assert_allclose(evaluate(mdp.observed(), best).eta, (1 + 0.9 + 0.9**2) / (1 - 0.9**4))


def test_no_state_is_worth_less_after_a_step():
    risen = 0
    for seed in range(30):
        mdp, rng = random_mdp(seed, states=6), np.random.default_rng(seed)
        policy = random_policy(rng, mdp)
        for _ in range(4):
            new = policy_iteration_step(mdp, policy)
            gained = evaluate(mdp, new).values - evaluate(mdp, policy).values
            assert gained.min() > -ROUNDING
            risen += gained.max() > 1e-3
            policy = new
    assert risen > 30


def test_equal_advantages_leave_a_policy_as_it_is():
    policy = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(greedy(np.zeros((2, 3)), policy), policy)
    np.testing.assert_array_equal(greedy(np.array([[1e-13, 0.0, 0.0], [0.0, 0.0, 1e-3]]), policy).argmax(1), [1, 2])


@pytest.mark.parametrize("observation", [None, np.array([0, 1, 2, 2])])
def test_errors_lower_the_return_by_at_most_what_is_stated(observation):
    fell = 0
    for seed in range(50):
        mdp, rng = random_mdp(seed, observation=observation), np.random.default_rng(seed)
        policy, size = random_policy(rng, mdp), [0.1, 1.0][seed % 2]
        for _ in range(4):
            error = rng.uniform(-size, size, policy.shape)
            of, policy = evaluate(mdp, policy), policy_iteration_step(mdp, policy, error)
            largest, eta = advantage_error(mdp, of, error), evaluate(mdp, policy).eta
            assert observation is not None or largest <= size
            assert eta >= of.eta - 2 * largest / (1 - mdp.gamma) - ROUNDING
            fell += eta < of.eta - 1e-3
    assert fell > 10, "else this measures nothing"


def test_errors_can_lower_the_return_by_what_is_stated():
    """Errors of 1 make up for a difference of just below 2."""
    mdp = bandit([0.0, -2.0 + 1e-6])
    first = np.array([[1.0, 0.0]])
    new = policy_iteration_step(mdp, first, np.array([[-1.0, 1.0]]))
    lost = evaluate(mdp, first).eta - evaluate(mdp, new).eta
    np.testing.assert_allclose(
        lost, 2 * advantage_error(mdp, evaluate(mdp, first), np.array([[-1.0, 1.0]])) / 0.5, rtol=1e-5
    )


def test_greedy_steps_fall_on_the_cliff():
    """Always running gives 1, 1, 1, -20 again and again; never running gives nothing."""
    mdp, policy = cliff()
    returns = [evaluate(mdp, policy).eta]
    for _ in range(3):
        policy = policy_iteration_step(mdp, policy)
        returns.append(evaluate(mdp, policy).eta)
    always = (1 + 0.9 + 0.9**2 - 20 * 0.9**3) / (1 - 0.9**4)
    np.testing.assert_allclose(returns[1:], [always, 0.0, always], atol=1e-11)
    assert returns[0] > 0.4


def test_the_mixture_has_the_largest_lower_bound():
    clipped = 0
    for seed in range(40):
        mdp = random_mdp(
            seed, gamma=[0.05, 0.5, 0.9][seed % 3], observation=np.array([0, 1, 2, 2]) if seed % 2 else None
        )
        policy = random_policy(np.random.default_rng(seed), mdp)
        step = conservative_step(mdp, policy)
        np.testing.assert_allclose(step.policy, (1 - step.alpha) * policy + step.alpha * step.other)
        alphas = np.linspace(0, 1, 401)
        bounds = [mixture_bound(mdp, policy, step.other, alpha) for alpha in alphas]
        assert mixture_bound(mdp, policy, step.other, step.alpha) >= max(bounds) - ROUNDING
        assert abs(alphas[np.argmax(bounds)] - step.alpha) <= 1 / 400
        clipped += step.alpha == 1.0
    assert 0 < clipped < 40


def test_the_step_and_the_gain_of_kakade_and_langford():
    """In their units: values times 1 - gamma, rewards in [0, R]. Theorem 4.1 and corollary 4.2."""
    for seed in range(100):
        mdp, rng = random_mdp(seed, gamma=[0.5, 0.9][seed % 2]), np.random.default_rng(seed)
        mdp = mdp._replace(reward=mdp.reward - mdp.reward.min())
        policy, g, scale = random_policy(rng, mdp), mdp.gamma, 1 - mdp.gamma
        of, other = evaluate(mdp, policy), conservative_step(mdp, policy).other
        advantage = scale * (other * of.advantage).sum(1)
        gain, epsilon, most = scale * of.visits @ advantage, np.abs(advantage).max(), mdp.reward.max()
        assert epsilon <= most
        theirs = scale * gain / (4 * most)
        for alpha in (theirs, 0.01, 0.3, 1.0):
            mixed = (1 - alpha) * policy + alpha * other
            risen = scale * (evaluate(mdp, mixed).eta - of.eta)
            assert risen >= alpha / scale * (gain - 2 * alpha * g * epsilon / (1 - g * (1 - alpha))) - ROUNDING
            # Equation 6 has 1 / (1 - gamma) in place of 1 / (1 - gamma (1 - alpha)):
            looser = mixture_bound(mdp, policy, other, alpha) - of.eta
            np.testing.assert_allclose(
                scale * looser, alpha / scale * (gain - 2 * alpha * g * epsilon / scale), atol=1e-12
            )
            if alpha == theirs:
                assert risen >= gain**2 / (8 * most) - ROUNDING
        step = conservative_step(mdp, policy)
        assert step.alpha >= theirs
        np.testing.assert_allclose(step.policy_advantage, gain / scale)
        if step.alpha < 1:
            gained = mixture_bound(mdp, policy, other, step.alpha) - of.eta
            np.testing.assert_allclose(gained, step.policy_advantage**2 / (8 * np.abs(advantage).max() / scale * g))


@pytest.mark.parametrize("example", [garnet, cliff])
def test_conservative_steps_rise_at_every_update(example):
    mdp, policy = example()
    returns = [evaluate(mdp, policy).eta]
    for _ in range(200):
        step = conservative_step(mdp, policy)
        bound, policy = mixture_bound(mdp, policy, step.other, step.alpha), step.policy
        returns.append(evaluate(mdp, policy).eta)
        assert returns[-2] < bound <= returns[-1] + ROUNDING
    assert np.diff(returns).min() > 0
    assert returns[-1] > returns[0] + 1


def test_conservative_steps_end_at_the_best_policy():
    mdp, policy = garnet()
    for _ in range(3000):
        policy = conservative_step(mdp, policy).policy
    best = evaluate(mdp, policy_iteration(mdp, policy)).eta
    np.testing.assert_allclose(evaluate(mdp, policy).eta, best, rtol=1e-4)


def test_there_is_no_step_from_an_optimal_policy():
    for seed in range(50):
        mdp = random_mdp(seed)
        best = policy_iteration(mdp, random_policy(np.random.default_rng(seed), mdp))
        step = conservative_step(mdp, best)
        assert 0 <= step.alpha <= 1
        np.testing.assert_allclose(step.policy, best, atol=1e-15)
    flat = bandit([1.0, 1.0])
    step = conservative_step(flat, np.array([[0.3, 0.7]]))
    assert step.alpha == 0.0
    np.testing.assert_array_equal(step.policy, [[0.3, 0.7]])


def test_without_a_future_the_conservative_step_is_the_greedy_one():
    step = conservative_step(bandit([1.0, 2.0], gamma=0.0), np.array([[0.5, 0.5]]))
    assert step.alpha == 1.0
    np.testing.assert_array_equal(step.policy, [[0.0, 1.0]])


def test_a_factor_lengthens_the_mixture():
    mdp, policy = garnet()
    alpha = conservative_step(mdp, policy).alpha
    np.testing.assert_allclose(conservative_step(mdp, policy, 1.9).alpha, 1.9 * alpha)
    assert conservative_step(mdp, policy, 1e6).alpha == 1.0
