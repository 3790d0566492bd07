"""Policy iteration: exact, with an error, and conservative. Each step is a pure function of an MDP and a policy."""

from typing import NamedTuple

import numpy as np

from trpo_tf.finite.mdp import Evaluation, Mdp, evaluate


def greedy(advantage: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """The deterministic policy of the largest advantages [O, A]. Of those that are equal, `policy` [O, A] decides."""
    rounding = 1e-10 * max(1.0, np.abs(advantage).max())
    return np.eye(advantage.shape[1])[(advantage + rounding * policy).argmax(1)]


def policy_iteration_step(mdp: Mdp, policy: np.ndarray, error: np.ndarray | float = 0.0) -> np.ndarray:
    """The greedy policy of the advantages of `policy` [O, A] plus an error [O, A].

    Exact policy iteration where the error is 0 and the policy sees the state: no state's value falls. In general,
    with e the largest |advantage used - A(s, a)|, eta falls by at most 2 e / (1 - gamma): the action that is chosen
    has A(s, a) >= -2 e.

    Where states share an observation, what is used is the mean of their advantages, weighted by visits. See
    `advantage_error` for e.

    Reference: Howard 1960; Schulman et al. 2015, equation 2.
    """
    return greedy(evaluate(mdp, policy).observed_advantage + error, policy)


def advantage_error(mdp: Mdp, of: Evaluation, error: np.ndarray | float = 0.0) -> float:
    """The e of `policy_iteration_step`: the largest |advantage used - A(s, a)|."""
    return float(np.abs((of.observed_advantage + error)[mdp.observation] - of.advantage).max())


def policy_iteration(mdp: Mdp, policy: np.ndarray) -> np.ndarray:
    """An optimal policy [S, A], by exact policy iteration from a policy [O, A]. The optimal policy sees the state."""
    seen, policy = mdp.observed(), mdp.by_state(policy)
    while not np.array_equal(policy, better := policy_iteration_step(seen, policy)):
        policy = better
    return policy


class Mixture(NamedTuple):
    """A step of conservative policy iteration."""

    policy: np.ndarray  # [O, A], (1 - alpha) old + alpha other
    other: np.ndarray  # [O, A], deterministic
    alpha: float  # in [0, 1]
    policy_advantage: float  # E over s ~ (1 - gamma) rho, a ~ other of A(s, a)


def conservative_step(mdp: Mdp, policy: np.ndarray, factor: float = 1.0) -> Mixture:
    """Mixes a policy [O, A] with its greedy policy, such that the lower bound on the return is largest.

    With other = pi', a = alpha, D = E over s ~ (1 - gamma) rho of sum_a pi'(a | s) A(s, a), the policy advantage, and
    epsilon = max_s |sum_a pi'(a | s) A(s, a)|:

      eta(new) - eta(old) >= a D / (1 - gamma) - 2 epsilon gamma a^2 / (1 - gamma)^2

    The right side is largest at a = (1 - gamma) D / (4 epsilon gamma), where it is D^2 / (8 epsilon gamma). Where that
    a is above 1, alpha is 1. So eta rises as long as D > 0.

    Kakade and Langford scale values by 1 - gamma, rewards are in [0, R], and epsilon <= R takes the place of
    epsilon gamma: a = (1 - gamma) D / (4 R), and eta rises by D^2 / (8 R).

    Reference: Kakade and Langford 2002, theorem 4.1, corollary 4.2; Schulman et al. 2015, equations 5 and 6.

    Args:
      factor: of alpha. The guarantee is of a factor in (0, 2).
    """
    of = evaluate(mdp, policy)
    other = greedy(of.observed_advantage, policy)
    advantage = (mdp.by_state(other) * of.advantage).sum(1)  # [S]
    gain = float((1.0 - mdp.gamma) * of.visits @ advantage)
    alpha = factor * (1.0 - mdp.gamma) * max(gain, 0.0)
    alpha /= max(4.0 * np.abs(advantage).max() * mdp.gamma, alpha, np.finfo(float).tiny)
    return Mixture((1.0 - alpha) * policy + alpha * other, other, alpha, gain)
