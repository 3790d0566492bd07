"""Vine estimates beside equations 15 and 16 in numpy, and on finite MDPs beside exact objectives and gradients."""

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.branching import Sampling, plan, windy
from tests.learner.mdp import Mdp, categorical, softmax
from trpo_tf.learner.estimate.vine import action_values, vine
from trpo_tf.learner.objective import make_objective
from trpo_tf.types import Batch

GAMMA = 0.8
ROLLOUTS = 80


def test_an_action_value_is_the_discounted_sum_of_what_was_paid_and_of_what_follows():
    rng = np.random.default_rng(0)
    reward, made = rng.normal(size=(5, 3, 4)), rng.integers(1, 5, (5, 3))
    terminated, values = rng.random((5, 3)) < 0.4, rng.normal(size=(5, 3))
    mask = np.arange(4) < made[..., None]
    reward[~mask] = np.nan  # is not looked at
    found = action_values(*map(tf.constant, (reward, mask.astype(float), terminated, values)), GAMMA).numpy()
    for s, k in np.ndindex(5, 3):
        steps = made[s, k]
        expected = sum(GAMMA**i * reward[s, k, i] for i in range(steps))
        expected += 0 if terminated[s, k] else GAMMA**steps * values[s, k]
        assert found[s, k] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["reward", "mask", "terminated", "end_values"])
def test_shapes_that_do_not_fit_are_named(name):
    shapes = {"reward": (2, 3, 4), "mask": (2, 3, 4), "terminated": (2, 3), "end_values": (2, 3)} | {name: (2, 2)}
    with pytest.raises(ValueError, match=name):
        action_values(**{key: tf.zeros(shape) for key, shape in shapes.items()}, gamma=GAMMA)


def objective_of(estimate, states, actions, policy, group):
    """The objective of an Estimate of a policy [S, A], whose theta are its logits; in units of the action values."""
    flat = [tf.reshape(x, [-1]) for x in (estimate.behavior_logp, estimate.advantage, estimate.weights)]
    flat[1] = flat[1] * tf.cast(estimate.advantage_std, flat[1].dtype)
    rows, taken = tf.repeat(states, actions.shape[1]), tf.reshape(tf.cast(actions, tf.float64), [-1, 1])
    batch = Batch(rows, taken, *flat)

    def network(theta, rows):
        return tf.gather(tf.reshape(theta, policy.shape), rows)

    return make_objective(network, categorical(policy.shape[1]), batch, group=group)


@pytest.mark.parametrize("all_actions", [True, False])
def test_the_surrogate_and_its_gradient_are_those_of_equations_15_and_16(all_actions):
    rng = np.random.default_rng(1)
    size, count = 4, 5  # actions, states
    old, new = (softmax(rng.normal(size=(count, size))) for _ in range(2))
    actions = np.tile(np.arange(size), (count, 1)) if all_actions else rng.integers(size, size=(count, 3))
    q, here = rng.normal(size=actions.shape), np.arange(count)[:, None]
    estimate = vine(tf.constant(q), tf.constant(np.log(old[here, actions])), tf.ones(count, tf.float64), all_actions)
    group = 1 if all_actions else 3
    objective = objective_of(estimate, np.arange(count), actions, old, group)

    def expected(logits):
        probabilities = softmax(logits.reshape(old.shape))
        if all_actions:  # equation 15
            return ((probabilities * q).sum(1) - (old * q).sum(1)).mean()
        ratio = probabilities[here, actions] / old[here, actions]
        return ((ratio * q).sum(1) / ratio.sum(1) - q.mean(1)).mean()  # equation 16

    theta = np.log(new).reshape(-1)
    value, gradient = objective.gradient(tf.constant(theta))
    assert float(value) == pytest.approx(expected(theta))
    moved = [theta + 1e-6 * e for e in np.eye(theta.size)], [theta - 1e-6 * e for e in np.eye(theta.size)]
    slopes = [(expected(up) - expected(down)) / 2e-6 for up, down in zip(*moved, strict=True)]
    np.testing.assert_allclose(gradient, slopes, atol=1e-7)
    assert float(objective.gradient(tf.constant(np.log(old).reshape(-1)))[0]) == pytest.approx(0, abs=1e-12)


def test_a_state_of_weight_0_counts_for_nothing():
    rng = np.random.default_rng(2)
    old = softmax(rng.normal(size=(3, 4)))
    q = rng.normal(size=(3, 4))

    def gradient(rows):
        weight = tf.constant([1.0, 0.0, 1.0], tf.float64)
        estimate = vine(*map(tf.constant, (q[rows], np.log(old[rows]))), tf.gather(weight, rows), True)
        actions = np.tile(np.arange(4), (len(rows), 1))
        return objective_of(estimate, np.array(rows), actions, old, 1).gradient(tf.constant(np.log(old).reshape(-1)))[1]

    np.testing.assert_allclose(gradient([0, 1, 2]), gradient([0, 2]), atol=1e-12)


def estimated(sampling, plan, steps, count=ROLLOUTS):
    """Surrogate elsewhere and gradient here, of `count` vines of so many steps each; and the exact ones."""
    policy, other = sampling.policy, softmax(np.random.default_rng(9).normal(size=sampling.policy.shape))
    found, made = [], 0

    @tf.function(autograph=False)
    def compiled(reward, mask, terminated, ends, logp, weight, states, actions):
        q = action_values(reward, mask, terminated, ends, sampling.mdp.gamma)
        estimate = vine(q, logp, weight, plan.all_actions)
        objective = objective_of(estimate, states, actions, policy, 1 if plan.all_actions else plan.actions)
        value, _ = objective.gradient(tf.constant(np.log(other).reshape(-1)))
        return tf.concat([[value], objective.gradient(tf.constant(np.log(policy).reshape(-1)))[1]], 0)

    def measure(*arrays):
        return compiled(*map(tf.constant, arrays)).numpy()

    for rollout in sampling.rollouts(count, plan):
        branches = rollout.branches
        states = rollout.obs["observation"].argmax(-1).reshape(-1)[branches.row]
        actions = branches.raw_action[..., 0].astype(int)
        ends = sampling.value[branches.end_obs["observation"].argmax(-1)]
        given = (branches.reward.astype(float), branches.mask.astype(float), branches.terminated, ends)
        logp = np.log(policy[states[:, None], actions])
        found.append(measure(*given, logp, branches.weight.astype(float), states, actions))
        made = rollout.mask.sum() + branches.mask.sum()
    assert made == steps
    visited = sampling.visited()[:, None]
    exact = [(visited * other * sampling.advantage).sum(), *(visited * policy * sampling.advantage).reshape(-1)]
    return np.array(found), np.array(exact)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_vine_of_all_actions_estimates_objective_and_gradient_without_bias(steps):
    sampling = Sampling(Mdp(0), softmax(np.random.default_rng(5).normal(size=(4, 3))), 10, 4)
    found, exact = estimated(sampling, plan(10, steps=steps), 40 + 10 * 3 * steps)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) < 3 * error).all()
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(exact)  # an estimate of 0 would not pass


def test_drawn_actions_have_the_bias_of_a_self_normalised_mean_and_with_more_of_them_less():
    """At pi_old the ratios are 1, and K (K - 1)^-1 corrects the mean of K draws that is taken away."""
    sampling = Sampling(Mdp(0), softmax(np.random.default_rng(5).normal(size=(4, 3))), 10, 4)
    for actions in (2, 6):
        found, exact = estimated(sampling, plan(20, actions, all_actions=False), 40 + 20 * actions)
        gradient = found[:, 1:] * actions / (actions - 1)
        error = gradient.std(0, ddof=1) / np.sqrt(len(found))
        assert (np.abs(gradient.mean(0) - exact[1:]) < 3 * error).all()


def single_path(sampling, count, steps):
    """The gradient of `count` rollouts, from actions drawn once and what was paid in `steps` steps after each."""
    policy, value, gamma = sampling.policy, sampling.value, sampling.mdp.gamma
    found = []
    for rollout in sampling.rollouts(count):
        states, actions = rollout.obs["observation"].argmax(-1), rollout.raw_action[..., 0].astype(int)
        last = len(actions) - steps + 1
        q = sum(gamma**i * rollout.reward[i : last + i] for i in range(steps)) + gamma**steps * value[states[steps:]]
        here, taken = states[:last].reshape(-1), actions[:last].reshape(-1)
        advantage, gradient = (q - value[states[:last]]).reshape(-1), np.zeros(policy.shape)
        np.add.at(gradient, (here, taken), advantage)
        np.add.at(gradient, here, -advantage[:, None] * policy[here])
        found.append(gradient.reshape(-1) / len(here))
    return np.array(found)


def variance(gradients):
    return gradients.var(0, ddof=1).sum()


def test_where_noise_is_not_of_the_actions_a_vine_varies_less_than_single_path_at_equal_steps():
    mdp, policy = windy(0, gust=3), softmax(np.random.default_rng(5).normal(size=(12, 3)))
    sampling = Sampling(mdp, policy, 10, 8)
    found, _ = estimated(sampling, plan(80), 80 + 80 * 3, 30)
    path = single_path(Sampling(mdp, policy, 40, 8), 30, 1)  # as many steps
    error = path.std(0, ddof=1) / np.sqrt(len(path))
    assert (np.abs(path.mean(0) - found[:, 1:].mean(0)) < 5 * error).all()  # of the same gradient, but for the states
    assert variance(found[:, 1:]) < 0.5 * variance(path)


def test_common_noise_lowers_the_variance():
    sampling = Sampling(windy(0, gust=3), softmax(np.random.default_rng(5).normal(size=(12, 3))), 10, 8)
    common, apart = (estimated(sampling, plan(80, common_noise=on), 80 + 80 * 3, 30)[0][:, 1:] for on in (True, False))
    assert variance(common) < 0.4 * variance(apart)
