"""A policy as plain data: what an ArrayActor is made of, apart from its weights."""

import dataclasses
from typing import NamedTuple

import gymnasium as gym

from trpo_tf.config import PolicyConfig


class LayerSpec(NamedTuple):
    """One layer: activation(x @ kernel + bias), or, with an epsilon, activation(standardised x * kernel + bias).

    Standardised are the numbers of each row: (x - mean) / sqrt(variance + epsilon).
    """

    kernel: str  # name of a weight [D, K]; with an epsilon [D]
    bias: str  # name of a weight [K]
    activation: str  # a key of array_actor.ACTIVATIONS
    epsilon: float | None = None


@dataclasses.dataclass(frozen=True)
class ActingSpec:
    """What acting depends on besides weights. It can be pickled, and read where TensorFlow is not installed.

    Attributes:
      observation_space, action_space: of a single environment.
      config: action_distribution, init_log_std, rescale_action, normalize_obs and image_encoder are read.
      layers: from the normalised vector to the distribution's outputs.
      free: name of the weight with the parameters that no observation changes; empty: there are none.
      states: size of each recurrent state by name.
    """

    observation_space: gym.Space
    action_space: gym.Space
    config: PolicyConfig
    layers: tuple[LayerSpec, ...]
    free: str = ""
    states: dict[str, int] = dataclasses.field(default_factory=dict)
