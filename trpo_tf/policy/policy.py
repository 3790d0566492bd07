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

    def preprocess(self, obs: tf.Tensor, constants=None) -> tf.Tensor:
        """Observations [N, ...] to the networks' features [N, D]; `constants`: the normaliser's, by default of now."""
        return self.normalizer(self.encoder(obs), constants)

    def values(self, features: tf.Tensor) -> tf.Tensor:
        """Value estimates [N] of features [N, D], in units of the scaled reward."""
        return self.value_network.model(features)[:, 0]

    @tf.function(autograph=False, reduce_retracing=True)
    def act(self, obs: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws actions.

        Args:
          obs: [B, ...]. noise: [B, ...], of the family; 0 draws the mode.

        Returns:
          The family's parameters [B, K], the action as sampled [B, ...], and that for the environment's step [B, ...].
        """
        params = self.network.model(self.preprocess(obs))
        action = self.family.draw(params, noise)
        return params, action, self.family.to_env(action)

    @tf.function(autograph=False)
    def acting_state(self) -> tuple[dict[str, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """The policy network's variables by path, and the normaliser's constants: all that acting depends on."""
        variables = {variable.path: tf.identity(variable.value) for variable in self.network.model.variables}
        return variables, self.normalizer.constants()

    @tf.function(autograph=False)
    def log_prob(self, params: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
        """Log-probabilities [N] of actions [N, ...] as sampled, under the family's parameters [N, K]."""
        return self.family(params).log_prob(action)
