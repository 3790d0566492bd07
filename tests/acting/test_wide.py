"""Observations that float32 cannot hold: learned from, acted on and served as if nothing were added to them."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

import tests.tasks  # noqa: F401, registers environments
from export import client
from tests.conftest import SMALL
from tests.served import serving
from trpo_tf import TRPO, load_policy
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.serving.signatures import ServedVariables, Signatures

SETTINGS = SMALL | {
    "steps_per_update": 256,
    "value_minibatch_size": 64,
    "checkpoint_every": 50,
    "gamma": 0.9,
    "max_kl": 0.05,
}
NETWORKS = {"array": {}, "tensor": {"activation": "gelu"}, "recurrent": {"network": "gru", "sequence_length": 4}}
NUMBERS = np.array([[-7.0], [-5.0], [-3.0], [-1.0], [1.0], [3.0], [5.0], [7.0]])


@functools.cache
def trained(env, **settings):
    """An agent, which tests leave as it is, and its returns, 8 at most."""
    agent = TRPO(env, **(SETTINGS | settings | {"env_backend": "gymnasium"}))
    history = agent.learn(15 * 256)
    agent.close()
    return agent, [row["env/episode_return"] for row in history]


OFFSETS = [
    pytest.param("Offset-v0"),
    *(pytest.param(f"Offset{kind}-v0", marks=pytest.mark.slow) for kind in ("Int", "None")),
]


@pytest.mark.parametrize("env", OFFSETS)
@pytest.mark.parametrize(
    ("network", "more"),
    [
        ("array", {}),
        pytest.param("array", {"xla": "on", "reuse": 2, "pipeline": True}, marks=pytest.mark.slow),
        pytest.param("array", {"chunk_size": 60}, marks=pytest.mark.slow),
        pytest.param("tensor", {}, marks=pytest.mark.slow),
        pytest.param("recurrent", {}, marks=pytest.mark.slow),
    ],
)
def test_a_task_is_learned_at_an_offset_as_without(network, more, env):
    """At 1.7e9, which is Unix time, float32 has every 128th number only; the task is about -7 to 7."""
    agent, returns = trained(env, **NETWORKS[network], **more)
    assert type(agent._actor).__name__ == ("ArrayActor" if network == "array" else "TensorActor")
    assert returns[0] < 6 < 7 < returns[-1]


@pytest.mark.parametrize("env", OFFSETS)
def test_what_is_exported_acts_the_same(tmp_path, env):
    """Loaded here and asked over JSON and gRPC; the input is float64 only where the mean is far off."""
    offset = 0.0 if env == "OffsetNone-v0" else 1.7e9
    agent, _ = trained(env)
    actions, _ = agent.predict(offset + NUMBERS)
    assert actions.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [int(agent.predict(x)[0]) for x in offset + NUMBERS] == actions.tolist()
    version = agent.export(tmp_path)
    policy = load_policy(tmp_path)
    inputs = policy.metadata["signatures"]["serving_default"]["inputs"]
    assert inputs["observation"]["dtype"] == ("float64" if offset else "float32")
    asked = (offset + NUMBERS).astype(int if env == "OffsetInt-v0" else float)
    np.testing.assert_array_equal(policy.action(asked), actions)
    expected = policy.predict(asked, "distribution")["logits"]
    with serving(version.parent) as (_, rest_port, grpc_port):
        for url in (f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"):
            remote = client.Policy(url)
            np.testing.assert_allclose(remote.predict(asked, "distribution")["logits"], expected, rtol=1e-5)


@pytest.mark.parametrize(("normalize", "time"), [(True, "float64"), (False, "float32")])
def test_only_the_leaf_that_needs_it_is_float64(normalize, time):
    """Of three wide leaves one is Unix time; columns that are not standardised are float32."""
    space = {"time": gym.spaces.Box(1.7e9, 1.8e9, (1,), np.float64), "x": gym.spaces.Box(-5, 5, (2,), np.float64)}
    space |= {"n": gym.spaces.Box(0, 9, (), np.int64)}
    config = PolicyConfig(hidden_sizes=(4,), normalize_obs=normalize)
    policy, rng = Policy(gym.spaces.Dict(space), gym.spaces.Discrete(2), config, 0), np.random.default_rng(0)
    obs = {"time": 1.7e9 + rng.random((64, 1)), "x": rng.normal(size=(64, 2)), "n": rng.integers(0, 9, 64)}
    policy.normalizer.commit(policy.encoder({k: x.astype(np.float64) for k, x in obs.items()}), tf.ones(64))
    inputs = Signatures(policy, ServedVariables(policy), 1.0).concrete()["sample"].structured_input_signature[1]
    expected = {"n": "float32", "seed": "int32", "time": time, "x": "float32"}
    assert {name: spec.dtype.name for name, spec in inputs.items()} == expected
