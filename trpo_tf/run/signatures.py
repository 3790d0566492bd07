"""The signatures of a served policy: everything between what the environment gave and what it takes."""

from typing import Any

import tensorflow as tf

from trpo_tf.policy.policy import Policy


class Served(tf.Module):
    """The tracked part: plain variables only. A Keras model in here would load everywhere and then fail to answer."""

    def __init__(self, policy: Policy):
        super().__init__(name="served")
        self.normalizer = policy.normalizer if policy.encoder.vectors else None  # images are not normalised
        self.policy_variables, self.policy_fixed = _copies(policy.network.model)
        self.value_variables, self.value_fixed = _copies(policy.value_network.model)


def _copies(model) -> tuple[list[tf.Variable], list]:
    """Variables that are trained, and those that are not, with the model's values; random states as constants."""
    trained = [tf.Variable(v.value, name=v.path) for v in model.trainable_variables]
    fixed = [
        tf.Variable(v.value, name=v.path) if v.value.dtype.is_floating else tf.constant(v.value.numpy())
        for v in model.non_trainable_variables
    ]
    return trained, fixed


class Signatures:
    """What a policy is asked, as functions of tensors [batch, ...] by name, to dicts of such.

    Observations are one input per leaf. Where networks have a memory, its states are inputs and outputs of the same
    names, and `initial_state` gives those that an episode begins with.

    Args:
      policy: the structure; its parameters are not read.
      served: the variables.
      reward_scale: units of reward in one unit of the value network.
    """

    def __init__(self, policy: Policy, served: Served, reward_scale: float):
        self._policy, self._served, self._reward_scale = policy, served, reward_scale

    def concrete(self) -> dict[str, Any]:
        """The signatures by name, traced for any batch."""
        policy, family = self._policy, self._policy.family
        leaves = policy.encoder.leaves.items()
        obs = {name: tf.TensorSpec([None, *leaf.shape], leaf.dtype, name) for name, leaf in leaves}
        obs |= {name: tf.TensorSpec([None, size], tf.float32, name) for name, size in policy.states.items()}
        seed = tf.TensorSpec([None, 2], tf.int32, "seed")
        raw_action = tf.TensorSpec([None, family.action_size], tf.float32, "raw_action")
        wanted = {
            "serving_default": (self.action, obs),
            "sample": (self.sample, obs | {"seed": seed}),
            "evaluate": (self.evaluate, obs | {"raw_action": raw_action}),
            "distribution": (self.distribution, obs),
        }
        if policy.states:
            wanted["initial_state"] = self.initial_state, {"batch": tf.TensorSpec([None], tf.int32, "batch")}
        return {
            name: tf.function(function, autograph=False).get_concrete_function(**specs)
            for name, (function, specs) in wanted.items()
        }

    def action(self, **obs):
        """The mode."""
        params, answer = self._outputs(obs)
        family = self._policy.family
        return family.named(family.mode(params)) | answer

    def sample(self, *, seed, **obs):
        """A draw for every row, from a seed [2] of its own."""
        params, answer = self._outputs(obs)
        family = self._policy.family
        noise = tf.map_fn(
            lambda key: family.noise([], key), seed, fn_output_signature=tf.TensorSpec([family.noise_size], tf.float32)
        )
        raw_action = family.draw(params, noise)
        log_prob = family.log_prob(params, raw_action)
        return family.named(raw_action) | {"raw_action": raw_action, "log_prob": log_prob} | answer

    def evaluate(self, *, raw_action, **obs):
        """How likely an action is."""
        params, answer = self._outputs(obs)
        family = self._policy.family
        known, usable = family.bound(raw_action)
        answer["valid"] &= usable
        return {"log_prob": family.log_prob(params, known), "entropy": family.entropy(params)} | answer

    def distribution(self, **obs):
        """The distribution's parameters."""
        params, answer = self._outputs(obs)
        del answer["value"]
        return self._policy.family.describe(params) | answer

    def initial_state(self, *, batch):
        """States of an episode's beginning; `valid` beside them, since REST drops the name of a single output."""
        rows = tf.shape(batch)[0]
        states = {name: tf.zeros([rows, size]) for name, size in self._policy.states.items()}
        return states | {"valid": tf.ones([rows], tf.bool)}

    def _outputs(self, obs: dict) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The family's parameters, and what every answer holds."""
        policy, served = self._policy, self._served
        features, valid = self._features(obs)
        params, state, hidden = policy.network.call_with(
            served.policy_variables, served.policy_fixed, features, return_all=True
        )
        seen = {"vector": hidden} if policy.shared else features
        value, value_state, _ = policy.value_network.call_with(
            served.value_variables, served.value_fixed, seen, return_all=True
        )
        after = {"policy_state": state, "value_state": value_state}
        answer = {"value": value[:, 0] * self._reward_scale, "valid": valid}
        return policy.masked(params, features), answer | {name: after[name] for name in policy.states}

    def _features(self, obs: dict) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """What networks take, finite whatever was sent, and which rows [batch] were sound."""
        encoder, valid = self._policy.encoder, self._policy.encoder.valid(obs)
        for name in self._policy.states:
            network = self._policy.network if name == "policy_state" else self._policy.value_network
            bound = network.model.memory.largest_state
            known = tf.where(tf.math.is_nan(obs[name]), 0.0, tf.clip_by_value(obs[name], -bound, bound))
            valid &= tf.reduce_all(known == obs[name], -1)
            obs = obs | {name: known}
        features = encoder(obs)
        if "vector" in features:
            features["vector"] = self._served.normalizer(features["vector"])
        rows = tf.shape(next(iter(obs.values())))[0]
        return features | {"is_first": tf.zeros([rows])}, valid
