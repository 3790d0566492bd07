"""The agent: normaliser, policy network, action distribution and value network, and how it acts."""

import gymnasium as gym
import keras
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.policy import distributions, encoders, networks, normalizer


class Policy(tf.Module):
    """Everything an action needs, and the value estimate beside it.

    Args:
      observation_space, action_space: of a single environment.
      config: hidden_sizes, activation, init_log_std, normalize_obs, rescale_action are read.
      seed: of the initial weights.

    Raises:
      UsageError: a space is not supported.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: Config, seed: int):
        super().__init__(name="policy")
        self.encoder = encoders.make(observation_space)
        self.family = distributions.make(action_space, config.rescale_action)
        self.normalizer = normalizer.Normalizer(self.encoder.size, config.normalize_obs and self.encoder.normalized)
        # Seeds: hidden layers count up from theirs, heads take one that no layer reaches.
        head = self.family.head(config.init_log_std, seed + 10_000)
        value_head = keras.layers.Dense(
            1, kernel_initializer=keras.initializers.Orthogonal(1.0, seed=seed + 30_000), name="value_head"
        )
        size, hidden, activation = self.encoder.size, config.hidden_sizes, config.activation
        self.network = networks.FlatNetwork(networks.mlp(size, hidden, activation, head, seed, "policy"))
        self.value_network = networks.FlatNetwork(
            networks.mlp(size, hidden, activation, value_head, seed + 20_000, "value")
        )

    def preprocess(self, obs: tf.Tensor) -> tf.Tensor:
        """Observations [N, ...] to the networks' features [N, D]."""
        return self.normalizer(self.encoder(obs))

    def values(self, features: tf.Tensor) -> tf.Tensor:
        """Value estimates [N] of features [N, D], in units of the scaled reward."""
        return self.value_network.model(features)[:, 0]

    @tf.function(autograph=False, reduce_retracing=True)
    def act(self, obs: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws actions.

        Args:
          obs: [B, ...]. seed: [2] int32; the same seed draws the same actions.

        Returns:
          action [B, ...] as sampled, its log-probability [B], and the action for the environment's step [B, ...].
        """
        distribution = self.family(self.network.model(self.preprocess(obs)))
        action = distribution.sample(seed=seed)
        return action, distribution.log_prob(action), self.family.to_env(action)

    @tf.function(autograph=False, reduce_retracing=True)
    def act_greedily(self, obs: tf.Tensor) -> tf.Tensor:
        """The mode's action for the environment's step, [B, ...]."""
        distribution = self.family(self.network.model(self.preprocess(obs)))
        return self.family.to_env(distribution.mode())
