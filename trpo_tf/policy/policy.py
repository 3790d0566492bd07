"""The agent: normaliser, policy network, action distribution and value network, and how it acts."""

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from trpo_tf.config import Config, UsageError, first_line
from trpo_tf.policy import distributions, encoders, networks, normalizer


class Policy(tf.Module):
    """Everything an action needs, and the value estimate beside it.

    Observations are dicts of arrays [N, ...] by the names of encoders.py. Where networks have a memory, `is_first` [N]
    and the states before each row, [N, S], are among them: `specs` has them all.

    Args:
      observation_space, action_space: of a single environment.
      config: the group "policy and value networks", normalize_obs and rescale_action are read.
      seed: of the initial weights.
      policy_network, value_network: Keras models instead of those of `config`: from features (the vector [N, D]; a dict
        of that and the images, where there are images) to the distribution's outputs [N, K] and to values [N, 1].

    Raises:
      UsageError: a space is not supported, or a model does not fit it.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        config: Config,
        seed: int,
        policy_network: keras.Model | None = None,
        value_network: keras.Model | None = None,
    ):
        super().__init__(name="policy")
        self.family = distributions.Family(action_space, config)
        self.encoder = encoders.Encoder(observation_space, self.family.mask_size, config.image_encoder != "flat")
        self.normalizer = normalizer.Normalizer(self.encoder.normalized & config.normalize_obs)
        self.shared = config.share_torso
        if self.shared and (policy_network is not None or value_network is not None):
            raise UsageError("--share_torso goes with the networks of the flags, not with models of your own")
        images, sizes = self.encoder.images, config.hidden_sizes
        # Seeds: hidden layers count up from theirs, heads take one that no layer reaches.
        bias, gain = self.family.bias, distributions.LAST_GAIN
        policy_head = keras.layers.Dense(
            self.family.outputs,
            kernel_initializer=networks.orthogonal(gain, seed + 10_000),
            bias_initializer=lambda shape, dtype: keras.ops.cast(bias, dtype),
            name="policy_head",
        )
        value_head = keras.layers.Dense(
            1, kernel_initializer=networks.orthogonal(1.0, seed + 30_000), name="value_head"
        )
        parameters = distributions.Parameters(self.family, name="policy_parameters")
        if policy_network is None:
            policy = networks.Network(images, sizes, config, [policy_head, parameters], seed, "policy")
        else:
            policy = networks.Foreign(policy_network, images, [parameters], "policy")
        if value_network is not None:
            value = networks.Foreign(value_network, images, [], "value")
        else:
            own = ({}, ()) if self.shared else (images, sizes)
            value = networks.Network(*own, config, [value_head], seed + 20_000, "value")
        self.states = {f"{model.name}_state": model.state_size for model in (policy, value) if model.state_size}
        self.specs = {name: (leaf.shape, leaf.dtype) for name, leaf in self.encoder.leaves.items()}
        if self.states:
            widths = {"is_first": ()} | {name: (size,) for name, size in self.states.items()}
            self.specs |= {name: (shape, np.dtype(np.float32)) for name, shape in widths.items()}
        zeros = {name: tf.zeros([2, *shape], dtype) for name, (shape, dtype) in self.specs.items()}
        features = self.preprocess(zeros)
        self._make_weights(policy, value, features)
        self.network, self.value_network = networks.FlatNetwork(policy), networks.FlatNetwork(value)
        if {id(v) for v in policy.variables} & {id(v) for v in value.variables}:
            raise UsageError("policy_network and value_network share variables; --share_torso is the way to share")
        if policy_network is not None and config.fisher_product == "forward":
            self._try_forward_mode(features)

    def _make_weights(self, policy: keras.Model, value: keras.Model, features: dict) -> None:
        """Calls both models with two rows of features.

        Raises:
          UsageError: a model of the user's does not take the features, or gives other outputs than are needed.
        """
        needed = {"policy_network": (policy, self.family.outputs), "value_network": (value, 1)}
        for name, (model, outputs) in needed.items():
            given = features
            if self.shared and model is value:
                given = {"vector": policy(features, return_all=True)[2]}
            if isinstance(model, networks.Foreign):
                try:
                    shape = tuple(model.model(model.inputs_of(features), training=False).shape)
                except (
                    ArithmeticError,
                    AttributeError,
                    LookupError,
                    TypeError,
                    ValueError,
                    tf.errors.OpError,
                ) as error:
                    shapes = {key: tuple(x.shape[1:]) for key, x in features.items()}
                    raise UsageError(f"{name} does not make a tensor of {shapes}: {first_line(error)}") from error
                if shape != (2, outputs):
                    raise UsageError(f"{name} gives {shape[1:]} numbers for an observation; {outputs} are needed")
            model(given)

    def _try_forward_mode(self, features: dict) -> None:
        """Raises UsageError where a model of the user's is one that forward mode cannot pass."""

        def tangent(theta):
            with tf.autodiff.ForwardAccumulator(theta, theta) as accumulator:
                params = self.network(theta, features)
            return accumulator.jvp(params)

        try:
            tf.function(tangent, autograph=False).get_concrete_function(self.network.theta())
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(
                f"policy_network has layers that forward mode cannot pass; --fisher_product=reverse can: "
                f"{first_line(error)}"
            ) from error

    @property
    def compiled(self) -> bool:
        """Whether XLA pays for what the learner does; it makes convolutions on a CPU slower (docs/performance.md)."""
        return not self.encoder.images

    def preprocess(self, obs: dict, constants=None) -> dict[str, tf.Tensor]:
        """Observations to the networks' features; `constants`: the normaliser's, by default of now."""
        features = self.encoder(obs)
        if "vector" in features:
            features["vector"] = self.normalizer(features["vector"], constants)
        return features

    def params(self, theta: tf.Tensor, features: dict, length: int = 1) -> tf.Tensor:
        """The family's parameters [N, K] under the network's parameters theta [P].

        features of N rows are sequences of `length`, one after the other.
        """
        return self.masked(self.network(theta, features, length=length), features)

    def masked(self, params: tf.Tensor, features: dict) -> tf.Tensor:
        """params [N, K], those of the features' action_mask taken away."""
        return self.family.masked(params, features[encoders.MASK]) if self.encoder.masks else params

    def value_features(self, features: dict) -> dict[str, tf.Tensor]:
        """What the value network takes: features, or with a shared torso what that makes of them, row by row."""
        if not self.shared:
            return features
        return {"vector": self.network.model(features, return_all=True)[2]}

    def values(self, features: dict, length: int = 1) -> tf.Tensor:
        """Value estimates [N] of what `value_features` gives, in units of the scaled reward."""
        return self.value_network.model(features, length=length)[:, 0]

    @tf.function(autograph=False, reduce_retracing=True)
    def act(self, obs: dict, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Draws actions.

        Args:
          obs: [B, ...] each. noise: [B, noise_size], of the family.

        Returns:
          The family's parameters [B, K], the action as sampled [B, A], and the states [B, S] after these rows.
        """
        params, states = self.step(obs)
        return params, self.family.draw(params, noise), states

    @tf.function(autograph=False, reduce_retracing=True)
    def likeliest(self, obs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The mode's action [B, A], and the states [B, S] after these rows. obs: [B, ...] each."""
        params, states = self.step(obs)
        return self.family.mode(params), states

    def step(self, obs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The family's parameters [B, K] and the states after these rows. obs: [B, ...] each."""
        features, states = self.preprocess(obs), {}
        params, state, _ = self.network.model(features, return_all=True)
        if "policy_state" in self.states:
            states["policy_state"] = state
        if "value_state" in self.states:
            states["value_state"] = self.value_network.model(features, return_all=True)[1]
        return self.masked(params, features), states

    @tf.function(autograph=False)
    def acting_state(self) -> tuple[dict[str, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """The policy network's variables by path, and the normaliser's constants: all that acting depends on."""
        variables = {variable.path: tf.identity(variable.value) for variable in self.network.model.variables}
        return variables, self.normalizer.constants()

    @tf.function(autograph=False)
    def log_prob(self, params: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
        """Log-probabilities [N] of actions [N, A] as sampled, under the family's parameters [N, K]."""
        return self.family.log_prob(params, action)
