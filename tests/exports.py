"""Exported policies for the tests, and what every signature of one has to answer."""

import json
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from tests.spaces_table import ACTIONS, OBSERVATIONS, sampled
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.serving import saved_model

SCALE = 2.5
METADATA = {
    "env": "x",
    "observation_space": "x",
    "action_space": "x",
    "algorithm": "TRPO",
    "flags": {},
    "seed": 0,
    "env_steps": 0,
    "evaluation": None,
    "versions": {"tensorflow": tf.__version__},
}
# An observation, an action, and the settings of Config besides those that the action brings.
CASES = {
    "gaussian": ("box", "box", {}),
    "rescaled": ("box", "box", {"rescale_action": True}),
    "matrix": ("matrix_of_doubles", "unbounded_matrix", {"normalize_obs": False}),
    "times": ("times", "box", {}),
    "categorical": ("box", "discrete", {}),
    "discrete": ("discrete", "discrete", {}),
    "hybrid": ("tuple", "dict", {"layer_norm": "both"}),
    "memory": ("multi_discrete", "multi_discrete", {"network": "lstm"}),
    "memory_shared": ("box", "multi_binary", {"network": "gru", "share_torso": True}),
    "pixels": ("dict", "tuple", {"share_torso": True}),
    "beta": ("multi_binary", "beta", {}),
    "squashed": ("bytes", "squashed", {}),
    "masked": ("masked", "dict", {}),
}
FAST = ("gaussian", "hybrid", "memory_shared")  # those of every run of the tests
MASKED = gym.spaces.Dict({"x": OBSERVATIONS["box"], "action_mask": gym.spaces.MultiBinary(7)})


class Exported(NamedTuple):
    """A policy with random weights, observations and states by name, [N, ...] each, and its SavedModel."""

    policy: Policy
    obs: dict
    path: object


def make(case, directory, rows=50) -> Exported:
    """Builds one of CASES below a directory."""
    return build(*CASES[case], directory, rows)


def build(name, action, changes, directory, rows) -> Exported:
    """Builds a policy of an observation and an action, with settings of Config, below a directory."""
    space, (action_space, settings) = MASKED if name == "masked" else OBSERVATIONS[name], ACTIONS[action]
    policy = Policy(space, action_space, PolicyConfig(hidden_sizes=(8,), init_log_std=0.5, **settings, **changes), 3)
    rng = np.random.default_rng(0)
    given = sampled(space, rows)
    given |= {name: rng.uniform(-1, 1, (rows, size)).astype(np.float32) for name, size in policy.states.items()}
    obs = {name: x.astype(policy.specs[name][1]) for name, x in given.items()}
    if policy.normalizer.enabled.any():
        policy.normalizer.commit(policy.encoder(obs), tf.ones(rows))
    for variable in policy.network.model.trainable_variables:
        # Less for a unit of many inputs: a sum of thousands of large terms depends on their order by more than 1e-5.
        scale = min(0.3, 1 / np.sqrt(np.prod(variable.shape[:-1])))
        variable.assign_add(scale * rng.normal(size=variable.shape))
    return Exported(policy, obs, saved_model.save(policy, SCALE, METADATA, directory))


def live(policy, obs):
    """Observations as tensors, the parameters, and the states afterwards."""
    given = {name: tf.constant(x) for name, x in obs.items()}
    if policy.states:
        given["is_first"] = tf.zeros(len(next(iter(obs.values()))))
    params, states = policy.step(given)
    return given, params, states


def requests(exported) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of every signature; the raw actions are drawn by the policy itself."""
    policy, obs, path = exported
    rows = len(next(iter(obs.values())))
    _, params, _ = live(policy, obs)
    raw = policy.distribution.draw(params, policy.distribution.noise([rows], [0, 1])).numpy()
    seed = np.stack([np.arange(rows), np.arange(rows) * 7], 1).astype(np.int32)
    wanted = {
        "serving_default": obs,
        "sample": obs | {"seed": seed},
        "evaluate": obs | {"raw_action": raw},
        "distribution": obs,
    }
    wanted |= {"initial_state": {"batch": np.arange(rows, dtype=np.int32)}} if policy.states else {}
    told = json.loads((path / saved_model.METADATA).read_text())["signatures"]
    return {
        signature: {name: x.astype(told[signature]["inputs"][name]["dtype"]) for name, x in inputs.items()}
        for signature, inputs in wanted.items()
    }


def answers(exported, asked, sampled_action) -> dict[str, dict[str, np.ndarray]]:
    """What the policy itself says, by signature and output.

    sampled_action: the raw actions that `sample` drew, whose probability and shape in the environment are checked.
    """
    policy, obs, _ = exported
    distribution = policy.distribution
    given, params, states = live(policy, obs)
    rows = len(next(iter(obs.values())))
    features = policy.preprocess(given)
    valid = {"valid": np.ones(rows, bool)}
    common = valid | {"value": policy.values(policy.value_features(features)) * SCALE} | states
    mode = make_actor(policy).mode({k: v.numpy() for k, v in given.items()})[0]
    result = {
        "serving_default": distribution.named(mode) | common,
        "sample": distribution.named(tf.constant(sampled_action))
        | {"raw_action": sampled_action, "log_prob": distribution.log_prob(params, sampled_action)}
        | common,
        "evaluate": {
            "log_prob": distribution.log_prob(params, asked["evaluate"]["raw_action"]),
            "entropy": distribution.entropy(params),
        }
        | common,
        "distribution": distribution.describe(params) | valid | states,
    }
    if policy.states:
        start = {name: np.zeros((rows, size), np.float32) for name, size in policy.states.items()}
        result["initial_state"] = start | valid
    return {name: {key: np.asarray(x) for key, x in outputs.items()} for name, outputs in result.items()}


def check(exported, ask, rtol=1e-5, atol=1e-5) -> None:
    """Asks every signature by ask(signature, inputs) -> outputs, and compares with the policy itself."""
    asked = requests(exported)
    got = {name: ask(name, inputs) for name, inputs in asked.items()}
    for name, expected in answers(exported, asked, np.asarray(got["sample"]["raw_action"])).items():
        assert got[name].keys() == expected.keys(), name
        for key, value in expected.items():
            np.testing.assert_allclose(got[name][key], value, rtol=rtol, atol=atol, err_msg=f"{name}: {key}")
