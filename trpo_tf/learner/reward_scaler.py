"""The scale of rewards."""

import tensorflow as tf

from trpo_tf.learner.shapes import same_shape
from trpo_tf.learner.transaction import if_finite
from trpo_tf.policy.normalizer import RunningMoments

_CLIP = 10.0  # of scaled rewards (Engstrom et al. 2020)


class RewardScaler(tf.Module):
    """Divides rewards by the running standard deviation of the discounted return.

    scaled = clip(r / sqrt(Var(R) + 1e-8), -10, 10), no shift of the mean;  R_t = gamma R_t-1 (1 - ended_t-1) + r_t
    belongs to each stream of experience, and comes with its rollouts.

    Reference: Engstrom et al. 2020, section 3 ("reward scaling").
    """

    def __init__(self, enabled: bool):
        super().__init__(name="reward_scaler")
        self.enabled = enabled
        self.moments = RunningMoments([], "reward_moments")

    def merge(self, discounted_return: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Takes the discounted returns R_t [T, B] of a new rollout into account, where mask [T, B] is 1.

        Returns:
          Whether it did, a bool scalar. Returns whose variance float32 cannot hold are left out, all of the rollout:
          divided by their deviation, any usual reward would be 0 from then on.
        """
        same_shape(discounted_return=discounted_return, mask=mask)

        def merge() -> tf.Tensor:
            self.moments.merge(tf.reshape(discounted_return, [-1]), tf.reshape(mask, [-1]))
            return tf.cast(self.moments.variance(), tf.float32)

        return if_finite(self.moments.variables, merge)[1]

    def __call__(self, reward) -> tf.Tensor:
        """Rewards [...] scaled."""
        return tf.clip_by_value(reward / self.scale(), -_CLIP, _CLIP) if self.enabled else reward

    def scale(self) -> tf.Tensor:
        """What rewards are divided by, float32; 1 when not enabled."""
        return self.std() if self.enabled else tf.constant(1.0)

    def std(self) -> tf.Tensor:
        """Running standard deviation of the discounted return, float32."""
        return tf.cast(tf.sqrt(self.moments.variance() + 1e-8), tf.float32)
