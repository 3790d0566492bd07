"""A finite MDP, solved by linear algebra and sampled: what estimates are compared with, in the paper's notation."""

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.policy import distributions
from trpo_tf.types import Batch


def softmax(theta):
    e = np.exp(theta - theta.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def policies(seed, lag, states=4, actions=3, size=0.25):
    """The current policy, and the one `lag` updates before it: logits that wander."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(states, actions))
    behavior = softmax(logits)
    for _ in range(lag):
        logits = logits + size * rng.normal(size=logits.shape)
    return softmax(logits), behavior


def categorical(actions):
    return distributions.ActionDistribution(gym.spaces.Discrete(actions), PolicyConfig())


class Mdp:
    """Random transitions p [S, A, S], rewards r [S, A] and first states start [S]."""

    def __init__(self, seed, states=4, actions=3, gamma=0.8):
        rng = np.random.default_rng(seed)
        self.p, self.r = rng.dirichlet(np.ones(states), (states, actions)), rng.normal(size=(states, actions))
        self.start, self.gamma = rng.dirichlet(np.ones(states)), gamma

    def solve(self, policy):
        """V [S], A [S, A], discounted visitation frequencies rho [S] (unnormalised) and eta, for policy [S, A]."""
        transition, one = np.einsum("sa,sat->st", policy, self.p), np.eye(len(self.p))
        v = np.linalg.solve(one - self.gamma * transition, (policy * self.r).sum(1))
        rho = np.linalg.solve(one - self.gamma * transition.T, self.start)
        return v, self.r + self.gamma * self.p @ v - v[:, None], rho, self.start @ v

    def sample(self, policy, rng, time, envs):
        """States [T+1, B], actions [T, B], rewards [T, B] of a policy, from states drawn evenly."""
        state, states, actions = rng.integers(len(self.p), size=envs), [], []
        for _ in range(time):
            states.append(state)
            actions.append(draw(policy[state], rng))
            state = draw(self.p[state, actions[-1]], rng)
        states.append(state)
        return np.array(states), np.array(actions), self.r[np.array(states[:-1]), np.array(actions)]

    def every_row(self, behavior, advantage):
        """A batch of every (s, a), its weight rho(s) behavior(a | s); features are the states."""
        states, actions = np.divmod(np.arange(behavior.size), behavior.shape[1])
        return Batch(
            features=tf.constant(states, tf.int32),
            raw_action=tf.constant(actions[:, None], tf.float32),
            behavior_logp=tf.constant(np.log(behavior[states, actions])),
            advantage=tf.constant(advantage[states, actions]),
            weights=tf.constant((self.solve(behavior)[2][:, None] * behavior)[states, actions]),
        )


def draw(probabilities, rng):
    """One of K by its probabilities [N, K] -> [N]."""
    return (rng.random(len(probabilities))[:, None] > probabilities.cumsum(1)).sum(1)
