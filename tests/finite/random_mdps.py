"""Random finite MDPs and policies, and slow references that share nothing with trpo_tf/finite."""

import itertools

import numpy as np

from trpo_tf.finite.mdp import make_mdp


def random_mdp(seed, states=4, actions=3, gamma=0.8, observation=None):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(states), (states, actions))
    return make_mdp(transition, rng.normal(size=(states, actions)), gamma, rng.dirichlet(np.ones(states)), observation)


def random_policy(rng, mdp, concentration=1.0):
    return rng.dirichlet(np.full(mdp.actions, concentration), mdp.observations)


def softmax(theta):
    e = np.exp(theta - theta.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def summed(mdp, policy, time_steps=2000):
    """eta and visits [S], summed over time steps."""
    policy, state, eta, visits = policy[mdp.observation], mdp.start.copy(), 0.0, np.zeros(len(mdp.start))
    for t in range(time_steps):
        visits += mdp.gamma**t * state
        eta += mdp.gamma**t * (state[:, None] * policy * mdp.reward).sum()
        state = np.einsum("s,sa,sat->t", state, policy, mdp.transition)
    return eta, visits


def optimal_values(mdp, iterations=3000):
    """V* [S] by value iteration."""
    values = np.zeros(len(mdp.start))
    for _ in range(iterations):
        values = (mdp.reward + mdp.gamma * mdp.transition @ values).max(1)
    return values


def deterministic_policies(mdp):
    """All A^O of them, [O, A] each."""
    for actions in itertools.product(range(mdp.actions), repeat=mdp.observations):
        yield np.eye(mdp.actions)[list(actions)]
