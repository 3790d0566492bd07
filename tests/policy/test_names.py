"""Names that users give parts of spaces never meet ours: such policies act, are exported, loaded and asked."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.served import assert_close
from trpo_tf import UsageError, load_policy
from trpo_tf.acting.encoders import Encoder
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.serving import saved_model
from trpo_tf.serving.signatures import check_exportable

OURS = [
    "self", "batch", "seed", "raw_action", "vector", "is_first", "policy_state", "value_state", "training", "mask",
    "value", "valid", "log_prob", "inputs", "observation", "action", "args", "kwargs", "name", "function", "length",
]  # fmt: skip
ODD = ["", " ", "_", "1", "class", "None", "lambda", "größe", "日本", "a/b:c^0", "x" * 300, "action_mask_history", 3]
ALIKE = ["a.b", "a_b", "A", "a", "a_", "Action Mask", "action-mask"]
IMAGES = ["dense_0", "head", "memory", "self", "vector"]
NUMBER, IMAGE = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(0, 255, (16, 16, 1), np.uint8)


def dict_of(keys, part=NUMBER):
    return gym.spaces.Dict(dict.fromkeys(keys, part))


def slow(*values):
    """Values of a parameter whose export takes seconds."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("observation", "action", "settings"),
    [
        (dict_of(["self", "batch", "class", "a.b", "a_b"]), dict_of(["value", "self"], NUMBER), {}),
        slow(dict_of([*OURS, *ODD, *ALIKE]), gym.spaces.Discrete(2), {}),
        slow(
            gym.spaces.Dict({"a": dict_of(["b", "self"]), "a_b": NUMBER, "batch": gym.spaces.Tuple([NUMBER, NUMBER])}),
            dict_of(["value", "valid", "self", "seed", "a.b", "a_b"], gym.spaces.Box(-1, 1, (1,))),
            {"network": "gru"},
        ),
        (
            gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(3), "action_mask_x": NUMBER, "Action Mask": NUMBER}),
            gym.spaces.Discrete(3),
            {},
        ),
        slow(dict_of(IMAGES, IMAGE), gym.spaces.Discrete(2), {"image_encoder": "trpo"}),
    ],
)
def test_any_key_is_exported_loaded_and_asked(tmp_path, observation, action, settings):
    policy = Policy(observation, action, PolicyConfig(hidden_sizes=(4,), **settings), 0)
    check_exportable(policy)
    actor, names = make_actor(policy), list(policy.encoder.leaves)
    observation.seed(0)
    obs = observation.sample()
    given = {
        name: np.asarray(x)[None].astype(leaf.dtype)
        for (name, leaf), x in zip(policy.encoder.leaves.items(), _leaves(obs), strict=True)
    }
    assert len(names) == len(set(names))
    recurrent = {name: np.zeros((1, size), np.float32) for name, size in policy.states.items()}
    raw_action, _ = actor.mode(given | ({"is_first": np.ones(1, np.float32)} | recurrent if recurrent else {}))
    saved_model.save(policy, 1.0, {}, tmp_path)
    loaded, states = load_policy(tmp_path), {name: x[0] for name, x in recurrent.items()}
    expected = tf.nest.map_structure(lambda x: x[0], actor.to_env(raw_action))
    assert_close(loaded.action(obs, **states), expected, rtol=1e-5, atol=1e-6)
    loaded.sample(obs, [0, 1], **states)
    loaded.predict(obs, "evaluate", raw_action=raw_action[0], **states)


def _leaves(obs):
    """Values of nested dicts and tuples, ordered as names are: keys as strings."""
    if isinstance(obs, dict):
        return [x for key in sorted(obs, key=str) for x in _leaves(obs[key])]
    return [x for part in obs for x in _leaves(part)] if isinstance(obs, tuple) else [obs]


def test_only_what_is_below_the_key_action_mask_is_a_mask():
    parts = {"action_mask": gym.spaces.MultiBinary(3), "action_mask_x": NUMBER, "Action Mask": NUMBER}
    encoder = Encoder(gym.spaces.Dict(parts), 3)
    assert [encoder.leaves[name].size for name in encoder.masks] == [3]
    nested = {
        "action_mask": gym.spaces.Dict({"a": gym.spaces.MultiBinary(2), "b": gym.spaces.MultiBinary(3)}),
        "x": NUMBER,
    }
    assert Encoder(gym.spaces.Dict(nested), 5).masks == ["action_mask_a", "action_mask_b"]
    assert Encoder(gym.spaces.Dict(nested), 0).masks == []


def test_what_cannot_be_exported_is_refused_before_anything_is_learned(monkeypatch):
    policy = Policy(dict_of(["a", "b"]), gym.spaces.Discrete(2), PolicyConfig(hidden_sizes=(4,)), 0)
    monkeypatch.setitem(policy.encoder.leaves, "seed", policy.encoder.leaves["a"])
    with pytest.raises(UsageError, match="cannot be exported: seed among its inputs; rename it"):
        check_exportable(policy)
