"""Acting through TensorFlow: one operation a step, for policies that NumPy cannot compute."""

from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.acting import threads
from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.policy.policy import Policy


class TensorActor:
    """A policy of any layers. The same face as ArrayActor, whose docstrings say what it takes and returns.

    Args:
      policy: acts.
      live: somebody else updates the policy's variables; the actor acts with them as they are, and `set_weights` does
        nothing. Otherwise the policy is the actor's own, and `set_weights` assigns to it.
    """

    def __init__(self, policy: Policy, live: bool = False):
        self._policy, self._live = policy, live
        distribution = policy.distribution
        self.sampler = distribution.sampler
        self.specs, self.leaves, self.states = dict(policy.specs), policy.encoder.leaves, dict(policy.states)
        self.action_size, self.params_size = distribution.action_size, distribution.size
        self.noise_size = distribution.noise_size
        obs = {name: tf.TensorSpec([None, *shape], dtype) for name, (shape, dtype) in self.specs.items()}
        noise = tf.TensorSpec([None, self.noise_size], tf.float32)
        self._act = direct(policy.act.get_concrete_function(obs, noise))
        self._mode = direct(policy.likeliest.get_concrete_function(obs))

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Acts with these weights from now on, unless live.

        Raises:
          ValueError: names or shapes are not those of the policy's weights, which stay.
        """
        if not self._live:
            self._policy.set_weights(weights)

    def __call__(self, obs: dict[str, np.ndarray], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
        """Parameters [B, K], raw actions [B, A], and each recurrent state [B, S] afterwards, ordered by name."""
        params, raw_action, *states = (x.numpy() for x in self._act(*self._tensors(obs), tf.constant(noise)))
        return params, raw_action, states

    def mode(self, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, list]:
        """The likeliest raw action [B, A], and each recurrent state [B, S] afterwards, ordered by name."""
        raw_action, *states = (x.numpy() for x in self._mode(*self._tensors(obs)))
        return raw_action, states

    def to_env(self, raw_action: np.ndarray) -> Any:
        """Raw actions [B, A] -> what the environments' step takes, [B, ...] in the structure of the action space."""
        return self._policy.distribution.to_env(raw_action, np)

    def single_threaded(self):
        """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
        return threads.single_threaded()

    def _tensors(self, obs: dict[str, np.ndarray]) -> list[tf.Tensor]:
        return [tf.constant(obs[name]) for name in sorted(self.specs)]  # the order of a traced function's inputs


def make_actor(policy: Policy, live: bool = False) -> ArrayActor | TensorActor:
    """An actor with the policy's weights of now: in NumPy if that can act for the policy, else through TensorFlow.

    Args:
      live: of a TensorActor. An ArrayActor acts with the weights of its last `set_weights` in any case.
    """
    spec = policy.acting_spec()
    if spec is None:
        return TensorActor(policy, live)
    actor = ArrayActor(spec)
    actor.set_weights(policy.get_weights())
    return actor


def direct(function):
    """A concrete function as one operation: its inputs in order, its outputs as a flat list.

    What tf.function does around that operation in Python costs as much as a small network.
    """
    captured, dtypes = function.captured_inputs, [output.dtype for output in function.outputs]
    return lambda *inputs: tf.raw_ops.StatefulPartitionedCall(args=[*inputs, *captured], Tout=dtypes, f=function)
