"""Estimates: pure functions from what was rolled out, and values, to what the learner needs.

Of a trajectory whose transitions all have staleness 0 it is gae, else vtrace; of branches it is vine.
"""

from typing import NamedTuple

import tensorflow as tf


class Estimate(NamedTuple):
    """What transitions say about the policy theta_old; [T, W] each unless said otherwise, of branches [S, K]."""

    advantage: tf.Tensor  # standardised; 0 where the weight is 0
    returns: tf.Tensor  # [T, B], targets of the value network, of new transitions: the first B columns
    weights: tf.Tensor  # of a transition in surrogate, KL and Fisher products; 0 where the row is none
    behavior_logp: tf.Tensor  # denominator of the ratios: log mu(a|s); stale: max(log mu, log pi - log rho_max)
    advantage_std: tf.Tensor  # scalar float64, what advantages were divided by
