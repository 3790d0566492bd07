"""Draws docs/theory/lower_bound.png: return, surrogate and the lower bound of TRPO's theorem 1 along a policy step.

    python benchmarks/lower_bound.py

A random finite MDP with softmax policies. Return and advantages are computed exactly, by linear algebra; surrogate and
KL by the functions that training uses. The step leads from theta_old along the natural gradient.
"""

from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from absl import app

from trpo_tf.config import PolicyConfig
from trpo_tf.learner.objective import surrogate
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "theory" / "lower_bound.png"
STATES, ACTIONS, GAMMA = 4, 3, 0.4


def softmax(theta):
    """Logits [S, A] to probabilities [S, A]."""
    e = np.exp(theta - theta.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def main(argv):
    """Computes the three curves and draws them."""
    del argv
    rng = np.random.default_rng(0)
    transitions, reward = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)), rng.normal(size=(STATES, ACTIONS))
    start, theta_old = rng.dirichlet(np.ones(STATES)), rng.normal(size=(STATES, ACTIONS))

    def solve(policy):
        """Advantages [S, A], discounted visitation frequencies [S] that sum to 1 / (1 - gamma), and the return."""
        step = np.eye(STATES) - GAMMA * np.einsum("sa,sat->st", policy, transitions)
        values = np.linalg.solve(step, (policy * reward).sum(1))
        return reward + GAMMA * transitions @ values - values[:, None], np.linalg.solve(step.T, start), start @ values

    old = softmax(theta_old)
    advantage, visits, eta_old = solve(old)
    states, actions = np.divmod(np.arange(STATES * ACTIONS), ACTIONS)
    distribution = ActionDistribution(gym.spaces.Discrete(ACTIONS), PolicyConfig())
    weights = tf.constant((visits[:, None] * old)[states, actions])
    batch = Batch(
        features=(),
        raw_action=tf.constant(actions[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(old[states, actions])),
        advantage=tf.constant(advantage[states, actions]),
        weights=weights,
    )
    penalty = 4 * np.abs(advantage).max() * GAMMA / (1 - GAMMA) ** 2  # the coefficient C
    lengths, curves = np.linspace(-1.0, 1.5, 251), []
    for length in lengths:
        # The natural gradient of softmax logits is the advantage, up to a constant per state, which leaves pi as it is.
        theta = theta_old + length * advantage
        local = eta_old + float(surrogate(distribution, tf.constant(theta[states]), batch, weights))
        kl = float(tf.reduce_max(distribution.kl(tf.constant(theta_old), tf.constant(theta))))
        curves.append((solve(softmax(theta))[2], local, local - penalty * kl))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = "expected return", "surrogate L", "lower bound L - C max KL"
    for values, name, style in zip(np.array(curves).T, names, ("-", "--", "-"), strict=True):
        axes.plot(lengths, values, style, label=name)
    returns, _, bound = np.array(curves).T
    best = bound.argmax()
    assert (bound <= returns + 1e-12).all(), "theorem 1"
    axes.axvline(lengths[best], color="grey", linewidth=0.8, linestyle=":")
    axes.plot(0, eta_old, "ko", label="theta_old: all three meet")
    axes.plot(lengths[best], returns[best], "k^", label="a step to the top of the bound")
    axes.set(xlabel="step along the natural gradient", ylabel="return", ylim=(bound.max() - 1.2, returns.max() + 0.15))
    axes.legend(fontsize=8)
    figure.savefig(OUTPUT, dpi=110)
    print(OUTPUT)


if __name__ == "__main__":
    app.run(main)
