"""The agent: normaliser, policy network, action distribution and value network, and how it acts."""

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from trpo_tf.acting.spec import ActingSpec
from trpo_tf.acting.standardize import MOMENTS
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy import construction, distributions, encoders, networks, normalizer, numpy_layers, shapes


class Policy(tf.Module):
    """Everything an action needs, and the value estimate beside it.

    Observations are dicts of arrays [N, ...] by the names of acting/encoders.py. Where networks are recurrent,
    `is_first` [N] and the states before each sample, [N, S], are among them: `specs` has the shape and dtype of each.

    Attributes:
      distribution, encoder, normalizer: between spaces and networks.
      network, value_network: FlatNetwork, pure functions of flat parameters.
      states: size of each recurrent state by name.
      shared: the value is read off the policy's last hidden layer.
      has_images: features hold images, which convolutions take.

    Args:
      observation_space, action_space: of a single environment.
      seed: of the initial weights.
      policy_network, value_network: Keras models instead of those of `config`: from features (the vector [N, D]; a dict
        of that and the images, where there are images) to the distribution's outputs [N, K] and to values [N, 1].
      forward_mode: try whether forward mode passes policy_network.

    Raises:
      UsageError: a space is not supported, or a model does not fit it.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        config: PolicyConfig,
        seed: int,
        policy_network: keras.Model | None = None,
        value_network: keras.Model | None = None,
        forward_mode: bool = True,
    ):
        super().__init__(name="policy")
        self._config, self.shared = config, config.share_torso
        self.distribution = distributions.ActionDistribution(action_space, config)
        self.encoder = encoders.Encoder(observation_space, self.distribution.mask_size, config.image_encoder != "flat")
        own = policy_network is None and value_network is None  # models of the user's take images as they are
        images = self.encoder.images if own and config.normalize_obs else {}
        self.normalizer = normalizer.Normalizer(self.encoder.normalized & config.normalize_obs, images)
        self.has_images = bool(self.encoder.images)
        if self.shared and (policy_network is not None or value_network is not None):
            raise UsageError("--share_torso goes with the networks of the flags, not with models of your own")
        construction.check_kind("policy_network", policy_network)
        construction.check_kind("value_network", value_network)
        with construction.keras_defaults():
            dtypes = {True: "float32", False: "uint8"}
            specs = {name: (shape, dtypes[name in images]) for name, shape in self.encoder.images.items()}
            policy, value = construction.make_networks(
                self.distribution, specs, config, seed, policy_network, value_network
            )
        self.states = {f"{model.name}_state": model.state_size for model in (policy, value) if model.state_size}
        self.specs = {name: (leaf.shape, leaf.dtype) for name, leaf in self.encoder.leaves.items()}
        if self.states:
            widths = {"is_first": ()} | {name: (size,) for name, size in self.states.items()}
            self.specs |= {name: (shape, np.dtype(np.float32)) for name, shape in widths.items()}
        with construction.keras_defaults():
            self._build(policy, value)
        if policy_network is not None and forward_mode:
            construction.try_forward_mode(self.network, self._two_samples())

    def _two_samples(self) -> dict[str, tf.Tensor]:
        """The features of two observations of zeros."""
        return self.preprocess({name: tf.zeros([2, *shape], dtype) for name, (shape, dtype) in self.specs.items()})

    def _build(self, policy: keras.Model, value: keras.Model) -> None:
        """Makes the networks' weights, `network` and `value_network`, and the shapes that they take."""
        features = self._two_samples()
        construction.build(policy, "policy_network", features, self.distribution.outputs)
        self.network = networks.FlatNetwork(policy)
        seen = self.value_features(features)
        construction.build(value, "value_network", seen, 1)
        self.value_network = networks.FlatNetwork(value)
        construction.check_apart(policy, value)
        self._shapes, self._value_shapes = (
            {name: x.shape[1:].as_list() for name, x in given.items()} for given in (features, seen)
        )

    def preprocess(self, obs: dict, constants=None) -> dict[str, tf.Tensor]:
        """Observations to the networks' features; `constants`: the normaliser's, by default of now."""
        return self.normalizer(self.encoder(obs), constants)

    def params(self, theta: tf.Tensor, features: dict, length: int = 1) -> tf.Tensor:
        """The distribution's parameters [N, K] under the network's parameters theta [P].

        The N samples of the features are sequences of `length` time steps, one after the other.

        Raises:
          ValueError: theta or a feature has another shape than is needed.
        """
        shapes.check_one("params", "theta", theta, [self.network.size])
        self._check_features("params", features, self._shapes)
        return self.masked(self.network(theta, features, length=length), features)

    def masked(self, params: tf.Tensor, features: dict) -> tf.Tensor:
        """params [N, K], those of the features' action_mask taken away."""
        return self.distribution.masked(params, features[encoders.MASK]) if self.encoder.masks else params

    def value_features(self, features: dict) -> dict[str, tf.Tensor]:
        """What the value network takes: features, or with a shared torso what that makes of each sample."""
        if not self.shared:
            return features
        return {"vector": self.network.model(features, return_all=True)[2]}

    def values(self, features: dict, length: int = 1) -> tf.Tensor:
        """Value estimates [N] of what `value_features` gives, in units of the scaled reward.

        Raises:
          ValueError: a feature has another shape than is needed.
        """
        self._check_features("values", features, self._value_shapes)
        return self.value_network.model(features, length=length)[:, 0]

    @staticmethod
    def _check_features(where: str, features: dict, needed: dict[str, list[int]]) -> None:
        shapes.check(where, {name: (features[name], rest) for name, rest in needed.items() if name in features})

    @tf.function(autograph=False, reduce_retracing=True)
    def act(self, obs: dict, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Draws actions.

        Args:
          obs: [B, ...] each. noise: [B, noise_size], of the distribution.

        Returns:
          The distribution's parameters [B, K], the raw action [B, A], and the recurrent states [B, S] afterwards.
        """
        params, states = self.step(obs)
        return params, self.distribution.draw(params, noise), states

    @tf.function(autograph=False, reduce_retracing=True)
    def likeliest(self, obs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The mode as a raw action [B, A], and the recurrent states [B, S] afterwards. obs: [B, ...] each."""
        params, states = self.step(obs)
        return self.distribution.mode(params), states

    def step(self, obs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The distribution's parameters [B, K] and the recurrent states afterwards. obs: [B, ...] each."""
        features, states = self.preprocess(obs), {}
        params, state, _ = self.network.model(features, return_all=True)
        if "policy_state" in self.states:
            states["policy_state"] = state
        if "value_state" in self.states:
            states["value_state"] = self.value_network.model(features, return_all=True)[1]
        return self.masked(params, features), states

    @tf.function(autograph=False)
    def log_prob(self, params: tf.Tensor, raw_action: tf.Tensor) -> tf.Tensor:
        """Log-probabilities [N] of raw actions [N, A] under the distribution's parameters [N, K]."""
        return self.distribution.log_prob(params, raw_action)

    def tried(self, most: int) -> tuple[int, bool]:
        """How many actions to try in a state, `most` at most, and whether those are all: raw actions 0, 1, ..."""
        choices = 0 if self.encoder.masks else self.distribution.sampler.choices
        return (choices, True) if 0 < choices <= most else (most, False)

    def acting_spec(self) -> ActingSpec | None:
        """The policy as plain data for an ArrayActor; None where NumPy cannot act for it."""
        layers = None
        if self.distribution.in_numpy and not self.states and not self.has_images:
            layers = numpy_layers.describe(self.network.model)
        if layers is None:
            return None
        return ActingSpec(self.encoder.space, self.distribution.space, self._config, *layers)

    def get_weights(self) -> dict[str, np.ndarray]:
        """All that acting depends on, by names that are the same in every process.

        Returns:
          The policy network's variables, the value network's too if that has a recurrent state, and the normaliser's
          moments; fresh arrays.
        """
        return {name: x.numpy() for name, x in self._read_weights().items()}

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Takes over what `get_weights` of a policy of the same structure gave.

        Raises:
          ValueError: names or shapes differ from this policy's; its variables stay.
        """
        variables = self._acting_variables()
        if odd := sorted(variables.keys() ^ weights.keys()):
            raise ValueError(f"weights of another policy: {', '.join(odd)} missing or unknown")
        for name, variable in variables.items():
            shapes.check_one("set_weights", name, weights[name], list(variable.shape))
        for name, variable in variables.items():
            variable.assign(weights[name])

    def variables_by_name(self) -> dict[str, keras.Variable | tf.Variable]:
        """Every variable of policy, value network and normaliser, by names that are the same in every process."""
        models = self.network.model, self.value_network.model
        named = {name: variable for model in models for name, variable in model.named_variables().items()}
        return named | self._moments()

    @tf.function(autograph=False)
    def _read_weights(self) -> dict[str, tf.Tensor]:
        return {name: tf.identity(tf.convert_to_tensor(x)) for name, x in self._acting_variables().items()}

    def _acting_variables(self) -> dict[str, keras.Variable | tf.Variable]:
        variables = dict(self.network.model.named_variables())
        if "value_state" in self.states:
            variables |= self.value_network.model.named_variables()
        return variables | self._moments()

    def _moments(self) -> dict[str, tf.Variable]:
        moments = self.normalizer.moments
        named = dict(zip(MOMENTS, (moments.count, moments.mean, moments.m2), strict=True))
        for image, its in self.normalizer.images.items():
            named |= {f"normalizer/{image}/{kind}": getattr(its, kind) for kind in ("count", "mean", "variance")}
        return named
