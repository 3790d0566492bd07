"""Advantages of fresh transitions: generalised advantage estimation."""

import tensorflow as tf

from trpo_tf.config import AdvantageConfig
from trpo_tf.learner.estimate import Estimate
from trpo_tf.learner.shapes import has_shape, same_shape
from trpo_tf.learner.statistics import standardize
from trpo_tf.types import Trajectory


def generalized_advantage(reward, values, terminated, truncated, mask, gamma: float, gae_lambda: float) -> tf.Tensor:
    """Generalised advantage estimation.

    delta_t = r_t + gamma (1 - terminated_t) V(s_t+1) - V(s_t)
    A_t = delta_t + gamma lambda (1 - ended_t) A_t+1,   ended = terminated or truncated

    A truncated row bootstraps from V(obs[t + 1]), a terminated one does not. Rows with mask 0 get A = 0 and so pass
    nothing back: an episode cut by an invalid row keeps its last valid delta.

    Reference: Schulman et al. 2016, equations 11-16.

    Args:
      reward, terminated, truncated, mask: [T, B].
      values: [T+1, B].
      gamma, gae_lambda: in [0, 1].

    Returns:
      advantage [T, B].

    Raises:
      ValueError: a shape differs from these.
    """
    has_shape("reward", reward, [None, None])
    same_shape(reward=reward, terminated=terminated, truncated=truncated, mask=mask)
    has_shape("values", values, [reward.shape[0] + 1, reward.shape[1]])
    alive = 1.0 - tf.cast(terminated, reward.dtype)
    running = alive * (1.0 - tf.cast(truncated, reward.dtype))
    delta = tf.where(mask > 0, reward + gamma * alive * values[1:] - values[:-1], 0.0)
    decay = tf.where(mask > 0, gamma * gae_lambda * running, 0.0)
    return tf.scan(lambda later, row: row[0] + row[1] * later, (delta, decay), tf.zeros_like(delta[0]), reverse=True)


def gae(trajectory: Trajectory, reward: tf.Tensor, values: tf.Tensor, config: AdvantageConfig) -> Estimate:
    """The Estimate of fresh transitions [T, B]: generalised advantages, and advantage + value as targets.

    Args:
      trajectory: behavior_logp, terminated, truncated and mask are read.
      reward: [T, B], in units of the values.
      values: [T+1, B].
      config: gamma and gae_lambda are read.
    """
    flags = trajectory.terminated, trajectory.truncated, trajectory.mask
    advantage = generalized_advantage(reward, values, *flags, config.gamma, config.gae_lambda)
    standardized, std = standardize(advantage, trajectory.mask)
    return Estimate(standardized, advantage + values[:-1], trajectory.mask, trajectory.behavior_logp, std)
