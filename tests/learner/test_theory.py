"""A finite MDP, exact linear algebra: the identities that the surrogate stands on, in the paper's notation."""

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner.trpo import surrogate
from trpo_tf.policy import distributions
from trpo_tf.types import Batch

S, A, GAMMA = 5, 3, 0.9


def mdp(seed):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(S), size=(S, A))  # [S, A, S]
    return transition, rng.normal(size=(S, A)), rng.dirichlet(np.ones(S))


def softmax(theta):
    e = np.exp(theta - theta.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def solve(model, policy):
    """V, Q, A, discounted visitation frequencies rho (unnormalised) and eta, for policy [S, A]."""
    transition, reward, start = model
    p = np.einsum("sa,sat->st", policy, transition)
    v = np.linalg.solve(np.eye(S) - GAMMA * p, (policy * reward).sum(-1))
    q = reward + GAMMA * transition @ v
    rho = np.linalg.solve(np.eye(S) - GAMMA * p.T, start)
    return v, q, q - v[:, None], rho, start @ v


def test_expected_return_is_the_old_one_plus_discounted_advantages():
    for seed in range(5):
        model = mdp(seed)
        old, new = softmax(np.random.default_rng(seed + 10).normal(size=(2, S, A)))
        _, _, advantage, _, eta_old = solve(model, old)
        _, _, _, rho_new, eta_new = solve(model, new)
        # Equation 1, E over trajectories of the new policy of sum_t gamma^t A_old(s_t, a_t), summed over time:
        state, total = model[2].copy(), 0.0
        p = np.einsum("sa,sat->st", new, model[0])
        for t in range(400):
            total += GAMMA**t * state @ (new * advantage).sum(-1)
            state = state @ p
        np.testing.assert_allclose(eta_new, eta_old + total, atol=1e-10)
        # Equation 2, the same over discounted visitation frequencies:
        np.testing.assert_allclose(eta_new, eta_old + rho_new @ (new * advantage).sum(-1), atol=1e-10)


def exact_surrogate(theta, theta_old, model):
    """Our surrogate on rows that hold every (s, a) with the exact weight rho(s) pi_old(a | s)."""
    old = softmax(theta_old)
    _, _, advantage, rho, _ = solve(model, old)
    family = distributions.Family(gym.spaces.Discrete(A), Config(env="x"))
    states, actions = np.repeat(np.arange(S), A), np.tile(np.arange(A), S)
    weight = rho[states] * old[states, actions]
    batch = Batch(
        obs=None,
        action=tf.constant(actions[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(old[states, actions])),
        advantage=tf.constant(advantage[states, actions]),
        returns=None,
        values=None,
        mask=None,
    )
    return surrogate(family, tf.gather(theta, states), batch, tf.constant(weight))


def test_surrogate_gradient_at_theta_old_is_the_policy_gradient():
    for seed in range(3):
        model = mdp(seed)
        theta_old = np.random.default_rng(seed).normal(size=(S, A))
        theta = tf.constant(theta_old)
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = exact_surrogate(theta, theta_old, model)
        gradient = tf.convert_to_tensor(tape.gradient(value, theta)).numpy()
        np.testing.assert_allclose(float(value), 0.0, atol=1e-12)
        numeric, step = np.zeros((S, A)), 1e-6
        for index in np.ndindex(S, A):
            shift = np.zeros((S, A))
            shift[index] = step
            up, down = (solve(model, softmax(theta_old + sign * shift))[4] for sign in (1, -1))
            numeric[index] = (up - down) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
        # and in closed form: d eta / d theta[s, a] = rho(s) pi(a | s) A(s, a)
        _, _, advantage, rho, _ = solve(model, softmax(theta_old))
        np.testing.assert_allclose(gradient, rho[:, None] * softmax(theta_old) * advantage, atol=1e-12)
