"""The signatures of a served policy, from what the environment gave to what the environment takes."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.acting.standardize import float32_is_enough
from trpo_tf.errors import UsageError
from trpo_tf.policy.policy import Policy

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # what every runtime and JSON take


class ServedVariables(tf.Module):
    """The object that a SavedModel tracks: variables with the values of the policy's, and no Keras model.

    TensorFlow's session loader, which TF Serving, C, Java and Go use, does not find the variables of a tracked Keras
    model: such a SavedModel loads, and fails at its first request.
    """

    def __init__(self, policy: Policy):
        super().__init__(name="served")
        self.normalizer = policy.normalizer
        self.policy_variables, self.policy_fixed = _copies(policy.network.model)
        self.value_variables, self.value_fixed = _copies(policy.value_network.model)


def _copies(model) -> tuple[list[tf.Variable], list]:
    """Copies of the trainable variables, and of the others; states of random generators become constants."""
    trained = [tf.Variable(v.value, name=v.path) for v in model.trainable_variables]
    fixed = [
        tf.Variable(v.value, name=v.path) if v.value.dtype.is_floating else tf.constant(v.value.numpy())
        for v in model.non_trainable_variables
    ]
    return trained, fixed


def _by_name(function: Callable[[dict[str, tf.Tensor]], Any]) -> Callable[..., Any]:
    """The function of a dict as one of keyword arguments of any names."""
    return lambda **inputs: function(inputs)


def check_exportable(policy: Policy) -> None:
    """Finds out whether a SavedModel of the policy can have the names that its signatures need; nothing is traced.

    Raises:
      UsageError: a name of an input or output is no name, or would be there twice.
    """
    distribution, states = policy.distribution, [*policy.states]
    params = tf.zeros([1, distribution.size])
    action = list(distribution.named(distribution.mode(params)))
    described = [*distribution.describe(params)]
    signatures = {
        "inputs": [*policy.encoder.leaves, *states, "seed", "raw_action"],
        "outputs": [*action, "raw_action", "log_prob", "value", "valid", *states],
        "parameters of the distribution": [*described, "valid", *states],
    }
    for kind, names in signatures.items():
        odd = [name for name in names if not _NAME.fullmatch(name) or names.count(name) > 1]
        if odd:
            raise UsageError(
                f"the policy cannot be exported: {', '.join(sorted(set(odd)))} among its {kind}; rename it"
            )


def _dtypes(policy: Policy) -> dict[str, np.dtype]:
    """The dtype of each leaf of an observation, by name.

    float32 where that is enough by the moments of now: many clients and conversions have no float64.
    """
    moments, encoder, dtypes, at = policy.normalizer.moments, policy.encoder, {}, 0
    enough = float32_is_enough(*(x.numpy() for x in (moments.count, moments.mean, moments.m2)))
    enough |= ~policy.normalizer.enabled
    for name, leaf in encoder.leaves.items():
        size = leaf.size if name in encoder.vectors else 0
        narrow = leaf.dtype == np.float64 and enough[at : at + size].all()
        dtypes[name], at = np.dtype(np.float32) if narrow else leaf.dtype, at + size
    return dtypes


class Signatures:
    """The signatures as functions: a dict of tensors [N, ...] by name in, another out.

    No name is a parameter: a user's names, of parts of spaces, cannot meet ours there.

    Every leaf of an observation is one input. The state of a recurrent network is an input [N, H]; the state after the
    observation is an output of the same name. Every answer but that of `initial_state` is finite for any input. Its
    output `valid` [N] bool is false where the inputs were not sound: where a float is NaN or infinite, where a whole
    number is outside of its Discrete space, where a state is none that the network gives.

    Args:
      policy: spaces, architecture and distribution; its variables are not read.
      served: the variables that are read.
      reward_scale: units of reward in one unit of the value network's output.
    """

    def __init__(self, policy: Policy, served: ServedVariables, reward_scale: float):
        self._policy, self._served, self._reward_scale = policy, served, reward_scale

    def concrete(self) -> dict[str, Any]:
        """The concrete functions by the names of the signatures, for batches of any size."""
        policy, distribution = self._policy, self._policy.distribution
        dtypes, leaves = _dtypes(policy), policy.encoder.leaves.items()
        obs = {name: tf.TensorSpec([None, *leaf.shape], dtypes[name], name) for name, leaf in leaves}
        obs |= {name: tf.TensorSpec([None, size], tf.float32, name) for name, size in policy.states.items()}
        seed = tf.TensorSpec([None, 2], tf.int32, "seed")
        raw_action = tf.TensorSpec([None, distribution.action_size], tf.float32, "raw_action")
        wanted: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "serving_default": (self.action, obs),
            "sample": (self.sample, obs | {"seed": seed}),
            "evaluate": (self.evaluate, obs | {"raw_action": raw_action}),
            "distribution": (self.distribution, obs),
        }
        if policy.states:
            wanted["initial_state"] = self.initial_state, {"batch": tf.TensorSpec([None], tf.int32, "batch")}
        return {
            name: tf.function(_by_name(function), autograph=False).get_concrete_function(**specs)
            for name, (function, specs) in wanted.items()
        }

    def action(self, inputs):
        """Takes the mode of the distribution.

        Returns:
          The action as the environment takes it, by leaf; `value` [N] in units of the reward; `valid`; states.
        """
        params, answer = self._outputs(inputs)
        distribution = self._policy.distribution
        return distribution.named(distribution.mode(params)) | answer

    def sample(self, inputs):
        """Draws an action for every row.

        The input `seed` is [N, 2] int32. The draw of a row depends on its own seed only.

        Returns:
          What `action` returns, with `raw_action` [N, A], the draw before clipping, and its `log_prob` [N].
        """
        params, answer = self._outputs(inputs)
        distribution = self._policy.distribution
        one = tf.TensorSpec([distribution.noise_size], tf.float32)
        noise = tf.map_fn(lambda key: distribution.noise([], key), inputs["seed"], fn_output_signature=one)
        raw_action = distribution.draw(params, noise)
        log_prob = distribution.log_prob(params, raw_action)
        return distribution.named(raw_action) | {"raw_action": raw_action, "log_prob": log_prob} | answer

    def evaluate(self, inputs):
        """Computes the log-probability of an action.

        The input `raw_action` is [N, A] float32, as `sample` gave it. An entry that no draw has is replaced by one that
        a draw can have, and `valid` is false.

        Returns:
          `log_prob` [N], `entropy` [N], `value` [N] in units of the reward, `valid`, states.
        """
        params, answer = self._outputs(inputs)
        distribution = self._policy.distribution
        possible, usable = distribution.bound(inputs["raw_action"])
        answer["valid"] &= usable
        return {"log_prob": distribution.log_prob(params, possible), "entropy": distribution.entropy(params)} | answer

    def distribution(self, inputs):
        """Computes the parameters of the distribution, [N, ...] by name; beside them `valid` and states."""
        params, answer = self._outputs(inputs)
        del answer["value"]
        return self._policy.distribution.describe(params) | answer

    def initial_state(self, inputs):
        """Gives the states at the beginning of an episode, zeros [N, H] each.

        The input `batch` is [N] int32 with any values; its length is the size of the batch.

        Returns:
          The states, and `valid`: a REST answer omits the name of an output that is the only one.
        """
        rows = tf.shape(inputs["batch"])[0]
        states = {name: tf.zeros([rows, size]) for name, size in self._policy.states.items()}
        return states | {"valid": tf.ones([rows], tf.bool)}

    def _outputs(self, inputs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The distribution's parameters [N, K]; `value`, `valid` and states, which most answers have in common."""
        policy, served = self._policy, self._served
        features, valid = self._features({name: inputs[name] for name in (*policy.encoder.leaves, *policy.states)})
        params, state, hidden = policy.network.call_with(
            served.policy_variables, served.policy_fixed, features, return_all=True
        )
        value_features = {"vector": hidden} if policy.shared else features
        value, value_state, _ = policy.value_network.call_with(
            served.value_variables, served.value_fixed, value_features, return_all=True
        )
        after = {"policy_state": state, "value_state": value_state}
        answer = {"value": value[:, 0] * self._reward_scale, "valid": valid}
        return policy.masked(params, features), answer | {name: after[name] for name in policy.states}

    def _features(self, obs: dict) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The networks' features, finite for any input, and which rows were sound, [N] bool."""
        encoder, valid = self._policy.encoder, self._policy.encoder.valid(obs)
        for name in self._policy.states:
            network = self._policy.network if name == "policy_state" else self._policy.value_network
            bound = network.model.core.largest_state
            possible = tf.where(tf.math.is_nan(obs[name]), 0.0, tf.clip_by_value(obs[name], -bound, bound))
            valid &= tf.reduce_all(possible == obs[name], -1)
            obs = obs | {name: possible}
        features = self._served.normalizer(encoder(obs))
        rows = tf.shape(next(iter(obs.values())))[0]
        return features | {"is_first": tf.zeros([rows])}, valid
