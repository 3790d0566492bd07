"""Weights by name: all that acting depends on, the same names in every process, and back again to the bit."""

import time

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import sampled
from trpo_tf.acting import ArrayActor
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import TensorActor, make_actor

OBSERVATION, ACTION = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))
IMAGE = gym.spaces.Dict({"camera": gym.spaces.Box(0, 255, (16, 16, 1), np.uint8), "Speed": OBSERVATION})
MOMENTS = ["normalizer/count", "normalizer/m2", "normalizer/mean"]
KINDS = {
    "mlp": (OBSERVATION, {}),
    "gelu": (OBSERVATION, {"activation": "gelu"}),
    "gru": (OBSERVATION, {"network": "gru"}),
    "lstm_shared": (OBSERVATION, {"network": "lstm", "share_torso": True}),
    "image": (IMAGE, {}),
}


def make(kind="mlp", seed=0, networks=()):
    observation, changes = KINDS[kind]
    policy = Policy(observation, ACTION, PolicyConfig(hidden_sizes=(5, 4), **changes), seed, *networks)
    policy.normalizer.commit(features(policy, seed, seed + 1.0, 2.0), tf.ones(50))
    return policy


def features(policy, seed, mean, deviation=1.0):
    """Raw features of 50 observations."""
    rng = np.random.default_rng(seed)
    images = {k: rng.integers(0, 256, (50, *shape)).astype(np.uint8) for k, shape in policy.encoder.images.items()}
    return {"vector": tf.random.stateless_normal([50, 3], [seed, 1], mean, deviation)} | images


def inputs(policy, count=6):
    rng = np.random.default_rng(0)
    obs = {name: x.astype(policy.specs[name][1]) for name, x in sampled(policy.encoder.space, count).items()}
    if policy.states:
        obs["is_first"] = np.zeros(count, np.float32)
        obs |= {name: rng.uniform(-1, 1, (count, size)).astype(np.float32) for name, size in policy.states.items()}
    return obs, rng.normal(size=(count, policy.distribution.noise_size)).astype(np.float32)


def acted(actor, obs, noise):
    params, raw_action, states = actor(obs, noise)
    return b"".join(x.tobytes() for x in (params, raw_action, *states))


def test_weights_have_the_names_and_values_of_a_checkpoint():
    policy = make()
    weights = policy.get_weights()
    assert sorted(weights) == [
        *MOMENTS,
        "policy/policy_dense_0/bias", "policy/policy_dense_0/kernel",
        "policy/policy_dense_1/bias", "policy/policy_dense_1/kernel",
        "policy/policy_head/bias", "policy/policy_head/kernel",
        "policy/policy_parameters/free",
    ]  # fmt: skip
    for name, variable in policy.network.model.named_variables().items():
        np.testing.assert_array_equal(weights[name], variable.numpy())
    for name in ("count", "mean", "m2"):
        assert weights[f"normalizer/{name}"].dtype == np.float64
        np.testing.assert_array_equal(weights[f"normalizer/{name}"], getattr(policy.normalizer.moments, name))


def test_the_value_network_is_among_them_only_where_acting_carries_its_state():
    assert any(name.startswith("value/") for name in make("gru").get_weights())
    for kind in ("mlp", "lstm_shared", "image"):
        assert not any(name.startswith("value/") for name in make(kind).get_weights())


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_policy_with_anothers_weights_acts_as_the_other_to_the_bit(kind):
    learner, copy = make(kind, 1), make(kind, 2)
    obs, noise = inputs(learner)
    actor = make_actor(copy)
    before = acted(actor, obs, noise)
    copy.set_weights(learner.get_weights())
    assert copy.get_weights().keys() == learner.get_weights().keys()
    for name, x in learner.get_weights().items():
        assert copy.get_weights()[name].tobytes() == x.tobytes(), name
    expected = acted(make_actor(learner), obs, noise)
    assert acted(make_actor(copy), obs, noise) == expected != before


@pytest.mark.parametrize("kind", ["mlp", "gelu", "gru", "image"])
def test_an_actor_of_its_own_changes_with_set_weights_only(kind):
    learner, own = make(kind, 1), make(kind, 2)
    own.set_weights(learner.get_weights())
    actor = make_actor(own)
    assert type(actor) is (ArrayActor if kind == "mlp" else TensorActor)
    obs, noise = inputs(learner)
    before = acted(actor, obs, noise)
    learner.network.assign(learner.network.theta() * 1.5)
    learner.normalizer.commit(features(learner, 3, 4.0), tf.ones(50))
    assert acted(actor, obs, noise) == before
    actor.set_weights(learner.get_weights())
    expected = acted(make_actor(learner), obs, noise)
    assert acted(actor, obs, noise) == expected != before


def test_a_live_actor_follows_the_policy_and_takes_no_weights():
    learner = make("gelu", 1)
    actor = make_actor(learner, live=True)
    obs, noise = inputs(learner)
    old, before = learner.get_weights(), acted(actor, obs, noise)
    learner.network.assign(learner.network.theta() * 1.5)
    after = acted(actor, obs, noise)
    assert after != before
    actor.set_weights(old)
    assert acted(actor, obs, noise) == after
    name = "policy/policy_head/kernel"
    np.testing.assert_allclose(learner.get_weights()[name], 1.5 * old[name], rtol=1e-6)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_policy_are_refused_before_any_is_assigned(change):
    policy = make()
    before, weights = policy.get_weights(), make(seed=5).get_weights()
    if change == "missing":
        del weights["normalizer/m2"]
    elif change == "unknown":
        weights["policy/extra"] = np.zeros(3)
    else:
        weights["normalizer/mean"] = np.zeros(1)
    message = {
        "missing": "normalizer/m2 missing",
        "unknown": "policy/extra missing or unknown",
        "shape": r"mean.*\[1\].*\[3\]",
    }
    with pytest.raises(ValueError, match=message[change]):
        policy.set_weights(weights)
    for name, x in policy.get_weights().items():
        np.testing.assert_array_equal(x, before[name])


def test_weights_that_were_read_do_not_follow_the_policy():
    policy = make()
    weights = policy.get_weights()
    kept = {name: x.copy() for name, x in weights.items()}
    policy.set_weights(make(seed=9).get_weights())
    for name, x in weights.items():
        np.testing.assert_array_equal(x, kept[name])


def test_a_model_of_the_users_has_names_that_do_not_count_its_layers():
    def model(outputs):
        return keras.Sequential(
            [keras.layers.Dense(7, "selu"), keras.layers.BatchNormalization(), keras.layers.Dense(outputs)]
        )

    first, second = (make(seed=seed, networks=(model(2), model(1))) for seed in (1, 2))
    first.network.model.model.layers[1].moving_mean.assign(np.arange(7.0))
    assert "policy/2/gamma" in first.get_weights()
    second.set_weights(first.get_weights())
    obs, noise = inputs(first)
    assert acted(make_actor(second), obs, noise) == acted(make_actor(first), obs, noise)


def test_reading_weights_is_quick():
    policy = Policy(OBSERVATION, ACTION, PolicyConfig(), 0)
    policy.get_weights()
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        policy.get_weights()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2e-3  # about 0.2 ms; much below the 100 ms of an update
