"""Natural and plain gradients of softmax policies on finite MDPs; the project's steps on exact batches."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.finite import exact_batch, limited_step, plain_step, tabular_objective
from tests.finite.random_mdps import random_mdp, random_policy, softmax
from trpo_tf.config import TrustRegionConfig
from trpo_tf.finite.examples import cliff, two_states
from trpo_tf.finite.lower_bound import kl_divergence
from trpo_tf.finite.mdp import evaluate, expectation
from trpo_tf.finite.policy_iteration import policy_iteration
from trpo_tf.learner.step_limit import Constraint, Penalty, PlainLength

SHARED = np.array([0, 1, 2, 2])


def gradient_of_return(mdp, theta, step=1e-5):
    """[O, A], by central differences."""
    found = np.zeros_like(theta)
    for index in np.ndindex(*theta.shape):
        shift = np.zeros_like(theta)
        shift[index] = step
        up, down = (evaluate(mdp, softmax(theta + sign * shift)).eta for sign in (1, -1))
        found[index] = (up - down) / (2 * step)
    return found


def scores(mdp, policy):
    """[N, O A], d log policy / d theta of every state and action."""
    rows = expectation(mdp, policy)
    found = np.zeros((len(rows.action), *policy.shape))
    for n, (o, a) in enumerate(zip(rows.observation, rows.action, strict=True)):
        found[n, o] = np.eye(policy.shape[1])[a] - policy[o]
    return found.reshape(len(rows.action), -1), rows


def dense_natural_gradient(mdp, policy):
    """F^+ g of the surrogate [O A], its Fisher matrix [O A, O A] and g [O A], from the scores."""
    score, rows = scores(mdp, policy)
    fisher = score.T @ (rows.weights[:, None] * score)
    gradient = score.T @ (rows.weights * rows.advantage)
    return np.linalg.pinv(fisher, rcond=1e-10) @ gradient, fisher, gradient


@pytest.mark.parametrize("observation", [None, SHARED])
def test_the_natural_gradient_of_the_return_is_the_advantage(observation):
    """F^+ grad eta = A / (1 - gamma) + c(s): Kakade 2001, theorem 1; Agarwal et al. 2021, NPG as soft policy iteration.

    F is the Fisher matrix over the visits that sum to 1. Of least length is the solution whose sum in each state is 0.
    """
    for seed in range(5):
        mdp = random_mdp(seed, observation=observation)
        theta = np.random.default_rng(seed).normal(size=(mdp.observations, mdp.actions))
        policy = softmax(theta)
        _, fisher, surrogate_gradient = dense_natural_gradient(mdp, policy)
        gradient = gradient_of_return(mdp, theta).ravel()
        np.testing.assert_allclose(surrogate_gradient, (1 - mdp.gamma) * gradient, atol=1e-8)
        natural = (np.linalg.pinv(fisher, rcond=1e-10) @ gradient).reshape(theta.shape)
        advantage = evaluate(mdp, policy).observed_advantage
        expected = (advantage - advantage.mean(1, keepdims=True)) / (1 - mdp.gamma)
        np.testing.assert_allclose(natural, expected, atol=1e-6)


@pytest.mark.parametrize("observation", [None, SHARED])
def test_the_natural_gradient_is_the_compatible_approximation_of_the_advantage(observation):
    """Kakade 2001, theorem 1: it is the w with the least mean of (w . grad log policy - A)^2."""
    mdp = random_mdp(1, observation=observation)
    policy = random_policy(np.random.default_rng(1), mdp)
    score, rows = scores(mdp, policy)
    root = np.sqrt(rows.weights)
    w = np.linalg.lstsq(root[:, None] * score, root * rows.advantage, rcond=1e-10)[0]
    np.testing.assert_allclose(w, dense_natural_gradient(mdp, policy)[0], atol=1e-8)


def step_from(mdp, policy, limit):
    """The logits before and after the project's policy step."""
    theta = np.log(policy)
    after = limited_step(tf.constant(theta.ravel()), exact_batch(mdp, policy), limit).numpy()
    return theta, after.reshape(theta.shape)


@pytest.mark.parametrize("observation", [None, SHARED])
def test_the_policy_step_on_the_exact_batch_is_a_dense_solve(observation):
    for seed in range(3):
        mdp = random_mdp(seed, observation=observation)
        policy = random_policy(np.random.default_rng(seed), mdp, 3.0)
        natural, fisher, gradient = dense_natural_gradient(mdp, policy)
        max_kl, coefficient = 1e-3, 20.0
        lengths = {
            PlainLength(0.7): 0.7,
            Penalty(np.float64(coefficient), np.float64(np.inf)): 1 / coefficient,
            Constraint(max_kl, np.float64(np.inf)): np.sqrt(2 * max_kl / (natural @ fisher @ natural)),
            Constraint(max_kl, 1e-3): 1e-3,
        }
        for limit, length in lengths.items():
            before, after = step_from(mdp, policy, limit)
            ratio = ((after - before).ravel() @ natural) / (natural @ natural)
            np.testing.assert_allclose((after - before).ravel(), ratio * natural, atol=1e-6 * length)
            shortened = np.log(ratio / length) / np.log(TrustRegionConfig().backtrack_ratio)
            np.testing.assert_allclose(shortened, round(shortened), atol=1e-5)
            assert shortened < (0.5 if limit.max_kl == np.inf or length == 1e-3 else 2.5)
            of = evaluate(mdp, policy)
            kl = (1 - mdp.gamma) * of.observed_visits @ kl_divergence(policy, softmax(after))
            assert kl <= limit.max_kl
        np.testing.assert_allclose(gradient, natural @ fisher, atol=1e-12)


@pytest.mark.parametrize("observation", [None, SHARED])
def test_the_plain_step_is_along_the_gradient_of_the_return(observation):
    mdp = random_mdp(2, observation=observation)
    theta = np.random.default_rng(2).normal(size=(mdp.observations, mdp.actions))
    after = plain_step(tf.constant(theta.ravel()), exact_batch(mdp, softmax(theta)), 2.0).numpy().reshape(theta.shape)
    np.testing.assert_allclose(after - theta, 2.0 * (1 - mdp.gamma) * gradient_of_return(mdp, theta), atol=1e-8)


def test_surrogate_and_kl_of_the_exact_batch():
    mdp = random_mdp(4, observation=SHARED)
    rng = np.random.default_rng(4)
    old, new = random_policy(rng, mdp), random_policy(rng, mdp)
    theta = tf.constant(np.log(new).ravel())
    objective = tabular_objective(exact_batch(mdp, old), theta)
    surrogate, kl = objective.surrogate_and_kl(theta, objective.params(tf.constant(np.log(old).ravel())))
    of = evaluate(mdp, old)
    expected = (1 - mdp.gamma) * (of.visits[:, None] * mdp.by_state(new) * of.advantage).sum()
    np.testing.assert_allclose(float(surrogate), expected, rtol=1e-10)
    expected = (1 - mdp.gamma) * of.observed_visits @ kl_divergence(old, new)
    np.testing.assert_allclose(float(kl), expected, rtol=1e-10)


@pytest.mark.parametrize("natural", [True, False])
def test_where_the_policy_sees_the_state_no_length_of_a_step_lowers_the_return(natural):
    """sum_a new(a | s) A(s, a) >= 0 in every state. On the cliff, where states look the same, some do lower it."""
    rng, fell = np.random.default_rng(0), 0
    for seed in range(600):
        mdp = cliff()[0] if seed % 2 else random_mdp(seed, gamma=0.9)
        theta = 2.0 * rng.normal(size=(mdp.observations, mdp.actions))
        policy = softmax(theta)
        of, length = evaluate(mdp, policy), 10.0 ** rng.uniform(-2, 3)
        direction = of.observed_advantage * (1.0 if natural else of.observed_visits[:, None] * policy)
        after = evaluate(mdp, softmax(theta + length * direction))
        fell += after.eta < of.eta - 1e-3
        assert seed % 2 or (after.values >= of.values - 1e-10).all()
    assert fell > 5


def test_the_plain_gradient_is_slow_and_the_natural_one_fast_on_the_two_states():
    """With first steps of the same KL, the natural gradient is near the best in less than a fifth of the updates."""
    mdp, first = two_states()
    best = evaluate(mdp, policy_iteration(mdp, first)).eta

    def updates(natural):
        theta, length = np.log(first), None
        for update in range(2000):
            policy = softmax(theta)
            of = evaluate(mdp, policy)
            if of.eta > 0.95 * best:
                return update
            direction = of.advantage * (1.0 if natural else 0.1 * of.visits[:, None] * policy)
            if length is None:
                fisher = (
                    0.1 * of.visits @ (policy * (direction - (policy * direction).sum(1, keepdims=True)) ** 2).sum(1)
                )
                length = np.sqrt(2 * 0.01 / fisher)
            theta = theta + length * direction
        return np.inf

    natural, plain = updates(True), updates(False)
    assert 5 * natural < plain < np.inf
