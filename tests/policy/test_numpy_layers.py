"""Which networks NumPy acts for: what a layer is decides, not what it or its activation is called."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.acting import ArrayActor, LayerSpec
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import TensorActor, make_actor

OBSERVATION, ACTION = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))
Dense = keras.layers.Dense


def named(name):
    """An activation of the user's that is called like one of Keras's, and is another function."""

    def function(x):
        return 0.5 * x**2

    function.__name__ = name
    return function


class Dense2(keras.layers.Dense):
    """A layer of the user's that computes something else."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


Dense2.__name__ = "Dense"


def built(make_layer, change):
    """A layer that is changed once it has weights."""
    layer = make_layer()
    layer.build((None, 3))
    change(layer)
    return layer


def replaced_call(layer):
    original = layer.call
    layer.call = lambda inputs, training=None: 3 * original(inputs)


def lora(layer):
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(tf.ones(layer.lora_kernel_b.shape))


FOREIGN = {
    "function_called_tanh": lambda: [Dense(6, named("tanh"))],
    "function_called_relu": lambda: [Dense(6, named("relu"))],
    "function_called_linear": lambda: [Dense(6, named("linear"))],
    "lambda": lambda: [Dense(6, lambda x: x - 1)],
    "subclass_called_dense": lambda: [Dense2(6, "tanh")],
    "mixed_bfloat16": lambda: [Dense(6, "tanh", dtype="mixed_bfloat16")],
    "bfloat16_input": lambda: [keras.layers.Input((3,), dtype="bfloat16"), Dense(6, "tanh", dtype="float32")],
    "no_bias": lambda: [Dense(6, "tanh", use_bias=False)],
    "leaky_relu": lambda: [Dense(6, "leaky_relu")],
    "activation_is_a_layer": lambda: [Dense(6, keras.layers.ReLU(negative_slope=0.3))],
    "nested": lambda: [keras.Sequential([Dense(6, "tanh")])],
    "batch_normalisation": lambda: [Dense(6, "tanh"), keras.layers.BatchNormalization()],
    "normalisation_without_offset": lambda: [Dense(6, "tanh"), keras.layers.LayerNormalization(center=False)],
    "normalisation_without_scale": lambda: [Dense(6, "tanh"), keras.layers.LayerNormalization(scale=False)],
    "normalisation_replaced": lambda: [Dense(3), built(keras.layers.LayerNormalization, replaced_call)],
    "activation_replaced": lambda: [Dense(3), built(lambda: keras.layers.Activation("tanh"), replaced_call)],
    "activation_called_tanh": lambda: [Dense(6), keras.layers.Activation(named("tanh"))],
    "activation_first": lambda: [keras.layers.Activation("tanh"), Dense(6)],
    "two_activations": lambda: [Dense(6, "relu"), keras.layers.Activation("tanh")],
    "lora": lambda: [built(lambda: Dense(6, "tanh"), lora)],
    "quantised": lambda: [built(lambda: Dense(6, "tanh"), lambda layer: layer.quantize("int8"))],
    "call_replaced": lambda: [built(lambda: Dense(6, "tanh"), replaced_call)],
}


def make(layers, outputs=2, observation=OBSERVATION, forward_mode=True, **changes):
    model = keras.Sequential([*layers, Dense(outputs)])
    return Policy(observation, ACTION, PolicyConfig(**changes), 0, model, forward_mode=forward_mode)


def assert_acts_as_the_policy(actor, policy, rtol=1e-5, atol=1e-6):
    obs = {"observation": np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)}
    noise = policy.distribution.noise([20], [1, 2]).numpy()
    params, raw_action, _ = actor(obs, noise)
    features = policy.preprocess(obs)
    expected = policy.params(policy.network.theta(), features)
    np.testing.assert_allclose(params, expected, rtol=rtol, atol=atol)
    np.testing.assert_allclose(raw_action, policy.distribution.draw(expected, noise), rtol=rtol, atol=atol)
    np.testing.assert_allclose(params[:, :2], policy.network.model.model(features["vector"]), rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_other_layers_act_through_tensorflow_and_as_they_learn(kind):
    policy = make(FOREIGN[kind](), forward_mode=kind != "quantised")
    assert policy.acting_spec() is None
    actor = make_actor(policy)
    assert type(actor) is TensorActor
    assert_acts_as_the_policy(actor, policy, *((0.02, 0.01) if "bfloat16" in kind else ()))


@pytest.mark.parametrize("activation", [None, "linear", "tanh", "relu", "elu", "silu"])
def test_dense_layers_of_kerass_own_activations_act_in_numpy(activation):
    policy = make([keras.layers.Input((3,)), Dense(6, activation), Dense(5, activation, trainable=False)])
    actor = make_actor(policy)
    assert type(actor) is ArrayActor
    assert_acts_as_the_policy(actor, policy)


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_normalised_layers_act_in_numpy(epsilon):
    norm = keras.layers.LayerNormalization(epsilon=epsilon)
    policy = make([Dense(6), norm, keras.layers.Activation("tanh"), keras.layers.LayerNormalization()])
    norm.gamma.assign([0.5, 1, 2, -1, 3, 1])
    norm.beta.assign([0.5, 0, 2, -1, 0, 1])
    actor = make_actor(policy)
    assert type(actor) is ArrayActor
    assert [(layer.activation, layer.epsilon) for layer in policy.acting_spec().layers] == [
        ("linear", None),
        ("tanh", epsilon),
        ("linear", 1e-3),
        ("linear", None),
    ]
    assert_acts_as_the_policy(actor, policy)


def test_the_function_itself_is_kerass_whatever_it_is_called_by():
    policy = make([Dense(6, keras.activations.tanh)])
    assert policy.acting_spec().layers == (
        LayerSpec("policy/0/kernel", "policy/1/bias", "tanh"),
        LayerSpec("policy/2/kernel", "policy/3/bias", "linear"),
    )
    assert policy.acting_spec().free == "policy/4/free"


def test_a_model_of_another_class_acts_through_tensorflow():
    class Twice(keras.Sequential):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training)

    x = keras.Input((3,))
    for model in (Twice([Dense(2)]), keras.Model(x, Dense(2)(x) + Dense(2)(x))):
        policy = Policy(OBSERVATION, ACTION, PolicyConfig(), 0, model)
        assert policy.acting_spec() is None
        assert_acts_as_the_policy(make_actor(policy), policy)


def test_the_networks_of_the_settings_are_float32_under_another_dtype_policy_too():
    config = PolicyConfig(hidden_sizes=(4,))
    usual, before = Policy(OBSERVATION, ACTION, config, 0).acting_spec(), keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        policy = Policy(OBSERVATION, ACTION, config, 0)
    finally:
        keras.config.set_dtype_policy(before)
    assert usual is not None
    assert policy.acting_spec().layers == usual.layers
    assert {x.dtype for name, x in policy.get_weights().items() if "normalizer" not in name} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("observation", "changes"),
    [
        (OBSERVATION, {"layer_norm": "both", "activation": "gelu"}),
        (OBSERVATION, {"activation": "gelu"}),
        (OBSERVATION, {"network": "lstm"}),
        (OBSERVATION, {"action_distribution": "beta"}),
        (gym.spaces.Box(0, 255, (16, 16), np.uint8), {}),
    ],
)
def test_what_numpy_lacks_has_no_spec(observation, changes):
    assert Policy(observation, ACTION, PolicyConfig(hidden_sizes=(4,), **changes), 0).acting_spec() is None


def test_a_recurrent_value_network_beside_a_model_of_the_users_keeps_its_state():
    policy = make([Dense(6, "tanh")], network="gru", hidden_sizes=(4,))
    assert policy.states == {"value_state": 4}
    assert policy.acting_spec() is None
    obs = {"observation": np.ones((2, 3), np.float32), "is_first": np.ones(2, np.float32)}
    obs["value_state"] = np.zeros((2, 4), np.float32)
    _, states = make_actor(policy).mode(obs)
    assert [x.shape for x in states] == [(2, 4)]
    assert np.abs(states[0]).max() > 0
