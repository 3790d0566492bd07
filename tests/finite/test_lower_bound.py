"""The bounds of theorem 1, and algorithm 1: on random policies, by finite differences, by brute force."""

import numpy as np
import pytest

from tests.finite.random_mdps import random_mdp, random_policy, softmax
from trpo_tf.finite.examples import EXAMPLES, cliff, garnet, two_states
from trpo_tf.finite.lower_bound import kl_divergence, lower_bound, lower_bound_step, mixture_bound, total_variation
from trpo_tf.finite.mdp import evaluate, make_mdp

ROUNDING = 1e-11


def test_distances_by_hand():
    old, new = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(total_variation(old, new), [0.25, 0.5])
    np.testing.assert_allclose(kl_divergence(old, new), [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2)])
    np.testing.assert_allclose(kl_divergence(new, old)[0], 0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert kl_divergence(new, old)[1] == np.inf
    np.testing.assert_array_equal(kl_divergence(old, old), 0.0)


def pairs(count):
    """MDPs, and pairs of policies from near to far; every third policy sees less than the state."""
    rng = np.random.default_rng(0)
    for seed in range(count):
        observation = np.array([0, 1, 1, 2]) if seed % 3 == 0 else None
        mdp = random_mdp(seed, gamma=rng.choice([0.1, 0.5, 0.9]), observation=observation)
        old, far = random_policy(rng, mdp), random_policy(rng, mdp, 0.3)
        yield mdp, old, far, 10.0 ** rng.uniform(-4, 0)


def test_the_return_is_above_the_bounds():
    """Equations 8 and 9, and equation 6 of mixtures. With a hundredth of the penalty some are below."""
    below, slack = np.zeros(3), []
    for mdp, old, far, alpha in pairs(1000):
        new = (1 - alpha) * old + alpha * far
        eta, bound, mixture = evaluate(mdp, new).eta, lower_bound(mdp, old, new), mixture_bound(mdp, old, far, alpha)
        assert bound.by_kl <= bound.by_total_variation + ROUNDING
        np.testing.assert_allclose(bound.total_variation, np.abs(old - new).sum(1).max() / 2)
        assert mixture <= eta + ROUNDING
        slack.append(eta - bound.by_kl)
        for i, known in enumerate((mixture, bound.by_total_variation, bound.by_kl)):
            below[i] += eta < bound.surrogate - 0.01 * (bound.surrogate - known) - ROUNDING
    assert (below > 0).all(), "else this measures nothing"
    assert min(slack) < 1e-5


def test_the_bound_of_other_policies_than_mixtures():
    """Equations 8 and 9 are of any pair."""
    for mdp, old, far, _ in pairs(300):
        bound = lower_bound(mdp, old, far)
        assert bound.by_kl <= bound.by_total_variation + ROUNDING
        assert bound.by_total_variation <= evaluate(mdp, far).eta + ROUNDING


def test_the_coefficient_by_hand():
    """One state, rewards 1 and 0, gamma 1/2: advantages 1/2 and -1/2, so C = 4 / 2 / 2 / (1/4) = 4."""
    mdp = make_mdp(np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), 0.5, np.ones(1))
    bound = lower_bound(mdp, np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]]))
    kl = 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
    np.testing.assert_allclose(bound, [1.5, 0.25, kl, 4.0, 1.5 - 4 / 16, 1.5 - 4 * kl])


def test_without_a_future_the_surrogate_is_the_return():
    mdp = random_mdp(0, gamma=0.0)
    old, new = np.full((4, 3), 1 / 3), np.eye(3)[[0, 1, 2, 0]]
    bound = lower_bound(mdp, old, new)
    np.testing.assert_allclose([bound.by_total_variation, bound.by_kl], evaluate(mdp, new).eta)
    assert bound.kl == np.inf


def test_surrogate_and_return_have_the_same_gradient_at_the_old_policy():
    """So have the bounds: their penalties are of second order. Central differences along every logit."""
    mdp, step = random_mdp(5, observation=np.array([0, 1, 1, 2])), 1e-5
    theta = np.random.default_rng(0).normal(size=(3, 3))
    old, of = softmax(theta), evaluate(mdp, softmax(theta))
    for index in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[index] = step
        up, down = softmax(theta + shift), softmax(theta - shift)
        slope = (evaluate(mdp, up).eta - evaluate(mdp, down).eta) / (2 * step)
        bounds = [np.array(lower_bound(mdp, old, new)) for new in (up, down)]
        slopes = ((bounds[0] - bounds[1]) / (2 * step))[[0, 4, 5]]
        np.testing.assert_allclose(slopes, slope, atol=1e-7)
        o, a = index
        exact = of.observed_visits[o] * old[o, a] * of.observed_advantage[o, a]
        np.testing.assert_allclose(slope, exact, atol=1e-8)
        assert abs(exact) > 1e-3


def objective(mdp, old, new, factor=1.0):
    """What algorithm 1 maximises."""
    bound = lower_bound(mdp, old, new)
    return bound.surrogate - factor * bound.coefficient * bound.kl


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_algorithm_1_finds_what_a_grid_over_both_states_finds(factor):
    mdp, old = two_states(gamma=0.5)
    new = lower_bound_step(mdp, old, factor)

    of, penalty = evaluate(mdp, old), factor * lower_bound(mdp, old, new).coefficient
    gain = of.visits * (of.advantage[:, 0] - of.advantage[:, 1])  # of a higher probability to stay
    best, width = np.zeros(2), 15.0  # logits
    while width > 1e-6:
        logits = [x + np.linspace(-width, width, 401) for x in best]
        stay = [1 / (1 + np.exp(-x)) for x in logits]
        kl = [q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)) for q, p in zip(old[:, 0], stay, strict=True)]
        first, second = (g * (p - q) for g, p, q in zip(gain, stay, old[:, 0], strict=True))
        value = first[:, None] + second - penalty * np.maximum(kl[0][:, None], kl[1])
        i, j = np.unravel_index(value.argmax(), value.shape)
        best, width = np.array([logits[0][i], logits[1][j]]), width / 5
    np.testing.assert_allclose(new[:, 0], 1 / (1 + np.exp(-best)), atol=1e-5)
    np.testing.assert_allclose(objective(mdp, old, new, factor) - of.eta, value.max(), rtol=1e-6)
    assert np.abs(new - old).min() > 1e-3


@pytest.mark.parametrize("factor", [1.0, 0.03, 1e-3])
def test_nothing_near_the_policy_of_algorithm_1_is_better(factor):
    """The objective is concave: what is best nearby is best."""
    rng, moved = np.random.default_rng(0), 0
    for seed in range(6):
        mdp = random_mdp(seed, observation=np.array([0, 1, 2, 2]) if seed % 2 else None)
        old = random_policy(rng, mdp, 3.0)
        new = lower_bound_step(mdp, old, factor)
        best = objective(mdp, old, new, factor)
        np.testing.assert_allclose(new.sum(1), 1.0)
        for size in (1.0, 0.1, 1e-2, 1e-3, 1e-4):
            for _ in range(100):
                towards = random_policy(rng, mdp)
                assert objective(mdp, old, new + size * (towards - new), factor) <= best + ROUNDING
                away = new - size * (towards - new)
                assert (away < 0).any() or objective(mdp, old, away, factor) <= best + ROUNDING
        moved += np.abs(new - old).max() > 1e-3
        kls = kl_divergence(old, new)
        np.testing.assert_allclose(kls, kls.max(), rtol=1e-6)  # every observation uses up the largest KL
    assert moved == 6


@pytest.mark.parametrize("name", EXAMPLES)
def test_algorithm_1_never_lowers_the_return(name):
    mdp, policy = EXAMPLES[name]()
    returns = [evaluate(mdp, policy).eta]
    for _ in range(60):
        new = lower_bound_step(mdp, policy)
        assert returns[-1] < objective(mdp, policy, new)
        policy = new
        returns.append(evaluate(mdp, policy).eta)
    assert np.diff(returns).min() > 0


def test_algorithm_1_gives_no_action_up():
    """A probability that underflowed to 0 would stay 0; the one that bad actions get is below all that matters."""
    mdp, policy = two_states()
    for _ in range(150):
        policy = lower_bound_step(mdp, policy, 0.1)
    assert policy.min() == 1e-200


def test_the_unit_of_rewards_does_not_matter_to_algorithm_1():
    mdp, policy = garnet()
    new = lower_bound_step(mdp, policy)
    assert np.abs(new - policy).max() > 1e-3
    other = lower_bound_step(mdp._replace(reward=1e-6 * mdp.reward + 1e3), policy)
    np.testing.assert_allclose(other, new, atol=1e-6)


def test_with_a_small_part_of_the_coefficient_algorithm_1_falls():
    mdp, policy = cliff()
    assert evaluate(mdp, lower_bound_step(mdp, policy, 1e-6)).eta < evaluate(mdp, policy).eta - 1


def test_without_a_future_algorithm_1_is_greedy():
    """C is 0 at gamma 0: nothing bounds the KL but the bracket of the bisection."""
    mdp = random_mdp(0, gamma=0.0)
    new = lower_bound_step(mdp, np.full((4, 3), 1 / 3))
    np.testing.assert_allclose(new, np.eye(3)[mdp.reward.argmax(1)], atol=1e-9)


def test_algorithm_1_leaves_a_policy_that_nothing_can_improve():
    mdp = make_mdp(np.ones((1, 2, 1)), np.ones((1, 2)), 0.9, np.ones(1))
    policy = np.array([[0.3, 0.7]])
    np.testing.assert_array_equal(lower_bound_step(mdp, policy), policy)


def test_an_action_that_was_nearly_given_up_comes_back():
    """KL(old || new) hardly counts an action of small old probability: it can rise in a single update."""
    mdp, policy = two_states()
    policy = np.array([[1 - 1e-150, 1e-150], [0.99, 0.01]])
    of = evaluate(mdp, policy)
    assert of.advantage[0, 1] > 0
    new = lower_bound_step(mdp, policy)
    assert new[0, 1] > 1e-12
    assert evaluate(mdp, new).eta > of.eta


def test_bisection_has_the_multipliers_of_the_optimum():
    """The derivative of the best surrogate with respect to the largest KL, summed over observations, is C."""
    mdp, policy = garnet()
    new = lower_bound_step(mdp, policy)
    of, bound = evaluate(mdp, policy), lower_bound(mdp, policy, new)
    gain = of.visits[:, None] * of.advantage
    # Stationarity: gain = v - m q / p, so m is the ratio of differences.
    difference = gain[:, 0] - gain[:, 1]
    multiplier = difference / (policy[:, 1] / new[:, 1] - policy[:, 0] / new[:, 0])
    np.testing.assert_allclose(multiplier.sum(), bound.coefficient, rtol=1e-5)
