"""Advantages of a vine: what branches say about several actions in the same state."""

import tensorflow as tf

from trpo_tf.learner.estimate import Estimate
from trpo_tf.learner.shapes import has_shape, same_shape
from trpo_tf.learner.statistics import standardize


def action_values(reward, mask, terminated, end_values, gamma: float) -> tf.Tensor:
    """Q(s, a) = sum_i gamma^i r_i + gamma^h V(s_h) of branches that made h steps; V is left out after a terminal state.

    Reference: Schulman et al. 2015, section 5.2, with rollouts cut after some steps as in section 5 of Schulman et al.
    2016.

    Args:
      reward, mask: [S, K, H], mask 1 for the steps that were made, which come first.
      terminated: [S, K] bool.
      end_values: [S, K], V of the last observation.
      gamma: in [0, 1].

    Returns:
      [S, K].

    Raises:
      ValueError: a shape differs from these.
    """
    has_shape("reward", reward, [None, None, None])
    same_shape(reward=reward, mask=mask)
    same_shape(terminated=terminated, end_values=end_values, first_reward=reward[..., 0])
    discounts = tf.math.cumprod(tf.fill([reward.shape[-1]], tf.constant(gamma, reward.dtype)), exclusive=True)
    made = tf.reduce_sum(mask, -1)
    follows = tf.where(terminated, tf.zeros_like(made), tf.constant(gamma, reward.dtype) ** made * end_values)
    return tf.reduce_sum(tf.where(mask > 0, discounts * reward, 0.0), -1) + follows


def vine(action_value, behavior_logp, weight, all_actions: bool) -> Estimate:
    """The Estimate of the first actions of branches, [S, K] each; `returns` are of the trajectory, and are not here.

    With all actions, the surrogate is equation 15: sum_a pi(a|s) Q(s, a), which is the mean of ratio * A under weights
    pi_old(a|s). With draws of pi_old it is equation 16, where the ratios of a state are divided by their mean; see
    objective.surrogate. In both, a constant that is subtracted from all Q(s, .) of a state changes no gradient. The one
    taken here, the mean of Q(s, .) under these weights, makes the surrogate 0 at pi_old.

    Reference: Schulman et al. 2015, section 5.2, equations 15 and 16.

    Args:
      action_value: [S, K]. behavior_logp: [S, K], log pi_old(a|s).
      weight: [S], 0 where a state is left out, else 1.
      all_actions: the K actions of each state are all that there are.

    Raises:
      ValueError: a shape differs from these.
    """
    has_shape("action_value", action_value, [None, None])
    same_shape(action_value=action_value, behavior_logp=behavior_logp)
    has_shape("weight", weight, [action_value.shape[0]])
    share = tf.exp(behavior_logp) if all_actions else tf.ones_like(behavior_logp)
    value = tf.reduce_sum(share * action_value, 1, keepdims=True) / tf.reduce_sum(share, 1, keepdims=True)
    weights = share * weight[:, None]
    advantage, std = standardize(action_value - value, weights)
    return Estimate(advantage, (), weights, behavior_logp, std)
