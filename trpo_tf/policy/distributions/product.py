"""The distribution over a whole action space."""

from typing import Any

import gymnasium as gym
import keras
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.acting import samplers, spaces
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.arrays import join
from trpo_tf.config import PolicyConfig
from trpo_tf.policy import shapes
from trpo_tf.policy.distributions.bernoulli import Bernoulli
from trpo_tf.policy.distributions.beta import Beta
from trpo_tf.policy.distributions.bijector_cache import separate_cache
from trpo_tf.policy.distributions.categorical import Categorical
from trpo_tf.policy.distributions.gaussian import DiagonalGaussian

_CLASSES = {
    samplers.GaussianSampler: DiagonalGaussian,
    samplers.BetaSampler: Beta,
    samplers.CategoricalSampler: Categorical,
    samplers.BernoulliSampler: Bernoulli,
}


class ActionDistribution:
    """The distribution over an action space: the product of one distribution for each of its parts.

    The Fisher matrix is block-diagonal; log-probability, entropy and KL are sums. `log_prob`, `entropy`, `kl` and
    `mode` stand in for the TFP distributions of the parts. Shapes are checked when a function is traced.

    Args:
      space: of a single environment.
      config: action_distribution, rescale_action and init_log_std are read.

    Raises:
      UsageError: a part of the space is not supported.
    """

    def __init__(self, space: gym.Space, config: PolicyConfig):
        self.space = space
        self.sampler = sampler = ActionSampler(space, config)
        self.parts = {name: _CLASSES[type(part)](part) for name, part in sampler.parts.items()}
        self.size, self.outputs, self.bias = sampler.size, sampler.outputs, sampler.bias
        self.action_size, self.noise_size, self.mask_size = sampler.action_size, sampler.noise_size, sampler.mask_size
        self.in_numpy = sampler.in_numpy

    def log_prob(self, params: tf.Tensor, raw_action: tf.Tensor) -> tf.Tensor:
        """[N] of raw actions [N, A] under params [N, K].

        Raises:
          ValueError: a shape does not fit, here and in all that follow.
        """
        shapes.check("log_prob", {"params": (params, [self.size]), "raw_action": (raw_action, [self.action_size])})
        columns = (params, "size"), (raw_action, "action_size")
        return _sum(self._each(lambda part, params, action: part(params).log_prob(action), *columns))

    def entropy(self, params: tf.Tensor) -> tf.Tensor:
        """[N], in nats. params: [N, K]."""
        shapes.check("entropy", {"params": (params, [self.size])})
        return _sum(self._each(lambda part, params: part(params).entropy(), (params, "size")))

    def kl(self, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """KL(old || new) [N] of two sets of parameters [N, K]."""
        shapes.check("kl", {"old": (old, [self.size]), "new": (new, [self.size])})
        divergence = tfp.distributions.kl_divergence
        return _sum(self._each(lambda part, a, b: divergence(part(a), part(b)), (old, "size"), (new, "size")))

    def mode(self, params: tf.Tensor) -> tf.Tensor:
        """The likeliest raw action [N, A] under params [N, K]."""
        shapes.check("mode", {"params": (params, [self.size])})
        return join(self._each(lambda part, params: tf.cast(part(params).mode(), tf.float32), (params, "size")), tf)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v [N, K], F the Fisher information in params [N, K], v the tangent [N, K]."""
        shapes.check("fisher_product", {"params": (params, [self.size]), "tangent": (tangent, [self.size])})
        columns = (params, "size"), (tangent, "size")
        return join(self._each(lambda part, params, v: part.fisher_product(params, v), *columns), tf)

    def masked(self, params, mask, xp=tf):
        """params [N, K] with the choices taken away whose mask [N, mask_size] is 0."""
        shapes.check("masked", {"params": (params, [self.size]), "mask": (mask, [self.mask_size])})
        return self.sampler.masked(params, mask, xp)

    def noise(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """What the draws of samples [*shape] need, [*shape, noise_size]. seed: [2] int32."""
        fold = tf.random.experimental.stateless_fold_in
        seeds = [seed, *(fold(seed, k) for k in range(1, len(self.parts)))]
        return join([part.noise(shape, own) for part, own in zip(self.parts.values(), seeds, strict=True)], tf)

    def draw(self, params, noise, xp=tf):
        """Raw actions [N, A] of params [N, K] and noise [N, noise_size]."""
        shapes.check("draw", {"params": (params, [self.size]), "noise": (noise, [self.noise_size])})
        columns = (params, "size"), (noise, "noise_size")
        return join(self._each(lambda part, params, noise: part.draw(params, noise, xp), *columns), xp)

    def bound(self, raw_action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw actions [N, A] for any numbers [N, A], and which samples [N] were some."""
        shapes.check("bound", {"raw_action": (raw_action, [self.action_size])})
        known, usable = zip(*self._each(lambda part, x: part.bound(x), (raw_action, "action_size")), strict=True)
        return join(known, tf), tf.reduce_all(tf.stack(usable), 0)

    def to_env(self, raw_action, xp=tf) -> Any:
        """Raw actions [N, A] -> what the environments' step takes, [N, ...] in the structure of the space."""
        return self.sampler.to_env(raw_action, xp)

    def named(self, raw_action: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `to_env` gives, by the names in `structure`."""
        names: list[str] = []
        spaces.rebuild(self.structure(), names.append)
        return dict(zip(names, spaces.named(self.to_env(raw_action), "action").values(), strict=True))

    def structure(self) -> Any:
        """The action space as nested dicts and tuples of names: `action`, or action_<part>."""
        return self.sampler.structure()

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """The parameters [N, K] by name; with several parts, <part>_<name>."""
        described = self._each(lambda part, params: part.describe(params), (params, "size"))
        single = len(self.parts) == 1
        by_part = zip(self.parts, described, strict=True)
        return {key if single else f"{name}_{key}": value for name, part in by_part for key, value in part.items()}

    def _each(self, function, *columns) -> list:
        """function(part, its columns of each) for every part. columns: pairs of a tensor and its kind."""
        split = [self.sampler.split(x, kind) for x, kind in columns]
        with separate_cache():
            return [function(*of_part) for of_part in zip(self.parts.values(), *split, strict=True)]


class Parameters(keras.layers.Layer):
    """From a network's outputs to a distribution's parameters, [N, outputs] -> [N, K]; holds those that are free."""

    def __init__(self, distribution: ActionDistribution, **kwargs):
        super().__init__(**kwargs)
        self._sampler = distribution.sampler
        self.has_free = len(self._sampler.free) > 0

    def build(self, input_shape):
        """Creates the free parameters."""
        del input_shape
        if self.has_free:
            start = self._sampler.free
            self.free = self.add_weight(
                shape=start.shape, initializer=lambda shape, dtype: keras.ops.cast(start, dtype), name="free"
            )

    def call(self, x):
        """[N, outputs] -> [N, K]."""
        if not self.has_free:
            return x
        count = (keras.ops.shape(x)[0], len(self._sampler.free))
        free = keras.ops.broadcast_to(keras.ops.convert_to_tensor(self.free), count)
        return keras.ops.concatenate(self._sampler.interleave(x, free), axis=-1)


def _sum(parts: list[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.add_n(parts)
