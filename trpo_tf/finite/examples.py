"""Finite MDPs that tell algorithms apart, each with a policy to start from."""

from typing import NamedTuple

import numpy as np

from trpo_tf.finite.mdp import Mdp, make_mdp


class Example(NamedTuple):
    """An MDP and a policy on it."""

    mdp: Mdp
    policy: np.ndarray  # [O, A], all of it above 0


def garnet(seed: int = 0, states: int = 8, actions: int = 3, branching: int = 3, gamma: float = 0.9) -> Example:
    """A random MDP: every action leads to `branching` states, with probabilities between sorted uniform numbers.

    Rewards are standard normal. The policy is uniform.

    Reference: Archibald, McKinnon, Thomas 1995, "On the generation of Markov decision processes".
    """
    rng = np.random.default_rng(seed)
    transition = np.zeros((states, actions, states))
    for s, a in np.ndindex(states, actions):
        cuts = np.sort(rng.random(branching - 1))
        transition[s, a, rng.choice(states, branching, replace=False)] = np.diff([0.0, *cuts, 1.0])
    reward, start = rng.normal(size=(states, actions)), np.full(states, 1.0 / states)
    return Example(make_mdp(transition, reward, gamma, start), np.full((states, actions), 1.0 / actions))


def two_states(gamma: float = 0.9) -> Example:
    """Two states. Action 0 stays, for a reward of 1 in the first and 2 in the second; action 1 goes to the other state.

    The policy stays with probability 0.8 in the first state and 0.2 in the second; it starts from its stationary
    distribution (0.8, 0.2). To stay in either state has a positive advantage, and the plain gradient weights it with
    visits: it learns to stay in the first state before it learns what the second one is worth.

    Reference: Kakade 2001, section 5, where the average reward is optimised; the numbers here are others.
    """
    stay, go = np.eye(2), np.eye(2)[::-1]
    reward = np.array([[1.0, 0.0], [2.0, 0.0]])
    policy = np.array([[0.8, 0.2], [0.2, 0.8]])
    return Example(make_mdp(np.stack([stay, go], 1), reward, gamma, np.array([0.8, 0.2])), policy)


def cliff(length: int = 4, fall: float = 20.0, gamma: float = 0.9) -> Example:
    """A corridor of states that look the same. Action 1 runs, for a reward of 1; action 0 goes back to its beginning.

    To run at the end of the corridor is a fall: it costs `fall` and leads back, too. The policy runs with probability
    0.05. It is seldom at the end, so to run has a positive mean advantage; a policy that always runs falls every
    `length` steps.
    """
    transition = np.zeros((length, 2, length))
    transition[:, 0, 0] = transition[np.arange(length), 1, (np.arange(length) + 1) % length] = 1.0
    reward = np.zeros((length, 2))
    reward[:, 1] = np.where(np.arange(length) < length - 1, 1.0, -fall)
    mdp = make_mdp(transition, reward, gamma, np.eye(length)[0], np.zeros(length, int))
    return Example(mdp, np.array([[0.95, 0.05]]))


EXAMPLES = {"garnet": garnet, "two_states": two_states, "cliff": cliff}
