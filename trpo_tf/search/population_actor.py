"""Acting in NumPy with as many policies as there are environments: each environment has a candidate of its own."""

from typing import Any

import numpy as np

from trpo_tf.acting import standardize, threads
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.array_actor import apply
from trpo_tf.acting.encoders import MASK, Encoder
from trpo_tf.acting.spec import ActingSpec


class PopulationActor:
    """P policies that differ in the weights of their layers; in each of B environments one of them takes its mode.

    An environment's action is, to rounding, that of an ArrayActor with its candidate's weights.

    Args:
      spec: what Policy.acting_spec gives.

    Attributes:
      leaves: the leaves of the observation by name, with their shape and dtype.
      width: D, of the vector that observations become. normalizes: whether it is standardised by running moments.
      candidates: P.
    """

    def __init__(self, spec: ActingSpec):
        self._spec = spec
        self._sampler = ActionSampler(spec.action_space, spec.config)
        self._encoder = Encoder(spec.observation_space, self._sampler.mask_size, spec.config.image_encoder != "flat")
        self._enabled = self._encoder.normalized & spec.config.normalize_obs
        self.leaves, self.width, self.normalizes = self._encoder.leaves, self._encoder.size, bool(self._enabled.any())
        self.candidates = 0
        self._free = np.zeros(0, np.float32)
        self._constants: tuple
        self._population: list[np.ndarray] = []  # kernel [P, D or 1, K], bias [P, 1, K] of each layer in turn
        self._own: list[np.ndarray] = []  # the same [B, ...] of the environments' candidates

    def set_weights(self, weights: dict[str, np.ndarray], num_envs: int) -> None:
        """Acts with these weights from now on, candidate b mod P in environment b.

        Args:
          weights: as Policy.get_weights gives, but kernels and biases are [P, ...], one for each candidate.
          num_envs: B.
        """
        arrays = [weights[name] for layer in self._spec.layers for name in layer[:2]]
        self._population = [np.asarray(x if x.ndim == 3 else x[:, None], np.float32) for x in arrays]
        self.candidates = len(self._population[0])
        first = np.arange(num_envs) % self.candidates
        self._own = [x[first] for x in self._population]
        if self._spec.free:
            self._free = np.array(weights[self._spec.free], np.float32)
        count, mean, m2 = (np.asarray(weights[name], np.float64) for name in standardize.MOMENTS)
        constants = standardize.constants(count, mean, m2, self._enabled)
        self._constants = tuple(x.astype(self._encoder.dtype) for x in constants)

    def assign(self, env: int, candidate: int) -> None:
        """In this environment acts this candidate from now on."""
        for own, all_of_them in zip(self._own, self._population, strict=True):
            own[env] = all_of_them[candidate]

    def encode(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Observations [B, ...] by leaf to features: `vector` [B, D], not standardised, and perhaps an action_mask."""
        return self._encoder(obs)

    def act(self, features: dict[str, np.ndarray]) -> Any:
        """What the environments take, [B, ...], of what `encode` gave."""
        x = standardize.standardize(features["vector"], self._constants)[:, None]
        for k, layer in enumerate(self._spec.layers):
            x = apply(layer, x, *self._own[2 * k : 2 * k + 2])
        params = self._sampler.params(x[:, 0], self._free)
        if self._encoder.masks:
            params = self._sampler.masked(params, features[MASK])
        return self._sampler.to_env(self._sampler.mode(params))

    def single_threaded(self):
        """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
        return threads.single_threaded()
