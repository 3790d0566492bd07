"""A softmax policy with one state, whose parameters are its logits: steps have a closed form."""

import numpy as np
import tensorflow as tf

from tests.learner.mdp import categorical
from trpo_tf.config import TrustRegionConfig
from trpo_tf.learner.objective import make_objective
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.step_limit import Constraint
from trpo_tf.types import Batch

PROBS, REWARD = np.array([0.5, 0.3, 0.2]), np.array([1.0, -0.5, 0.25])
ACTIONS = np.repeat(np.arange(3), [50, 30, 20])  # as often as they are likely: sample means are expectations
ADVANTAGE = REWARD[ACTIONS]
NATURAL = REWARD - PROBS @ REWARD  # the natural gradient, up to a constant that the Fisher matrix annihilates
VARIANCE = PROBS @ NATURAL**2  # its squared length under F = diag(p) - p p^T


def objective_of(probs, actions, advantage, dtype=tf.float64, fisher_product="forward"):
    """The objective of samples of a bandit, and its logits."""
    rows = len(actions)
    batch = Batch(
        features=tf.zeros([rows, 1], dtype),
        raw_action=tf.constant(np.array(actions)[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(np.array(probs)[actions]), dtype),
        advantage=tf.constant(advantage, dtype),
        weights=tf.ones(rows, dtype),
    )

    def network(logits, features):
        return tf.zeros([tf.shape(features)[0], 1], dtype) + logits

    objective = make_objective(network, categorical(len(probs)), batch, fisher_product=fisher_product)
    return objective, tf.constant(np.log(probs), dtype)


def take_step(probs=PROBS, actions=ACTIONS, advantage=ADVANTAGE, dtype=tf.float64, limit=None, **changes):
    """One policy step. Returns the logits before, those after, and what else is known of it.

    limit: a StepLimit; by default a Constraint by max_kl and max_step of the settings in `changes`.
    """
    config = TrustRegionConfig(**({"cg_damping": 0.0, "cg_tolerance": 1e-20} | changes))
    limit = limit or Constraint(float64(config.max_kl), float64(config.max_step))
    objective, theta = objective_of(probs, actions, advantage, dtype, config.fisher_product)
    step = policy_step(objective, limit, theta, config)
    return theta.numpy(), step.theta.numpy(), step


def float64(x):
    """A scalar tensor."""
    return tf.constant(x, tf.float64)


def centred(x):
    """Logits, or steps of them, without the constant that changes no probability."""
    return x - x.mean()
