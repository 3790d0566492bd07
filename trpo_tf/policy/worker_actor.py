"""The actor of a rollout worker whose network NumPy cannot compute."""

import gymnasium as gym
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import TensorActor


def make(spaces: tuple[gym.Space, gym.Space], config: PolicyConfig, threads: int) -> TensorActor:
    """An actor with a policy of its own, which has no weights yet.

    Args:
      spaces: of observations and actions of one environment.
      config: of the run.
      threads: TensorFlow's, per operation.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return TensorActor(Policy(*spaces, config, 0))
