"""Models of the user's: whatever they raise is one line that names them, at every call."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy.policy import Policy

OBSERVATION, ACTION = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))


class Odd(Exception):
    """An exception of a class that nobody knows."""


class Failing(keras.Model):
    """A model that raises at one of its calls, counted from 1; its outputs fit before."""

    def __init__(self, outputs, error, at=1):
        super().__init__()
        self.dense, self.error, self.at, self.calls = keras.layers.Dense(outputs), error, at, 0

    def call(self, x, training=None):
        self.calls += 1
        if self.calls >= self.at:
            raise self.error
        return self.dense(x)


ERRORS = [
    Odd("one\ntwo"),
    AssertionError("one"),
    MemoryError("one"),
    NotImplementedError("one"),
    StopIteration("one"),
    OSError("one"),
]


def make(policy_network=None, value_network=None, **how):
    return Policy(OBSERVATION, ACTION, PolicyConfig(hidden_sizes=(4,)), 0, policy_network, value_network, **how)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("argument", ["policy_network", "value_network"])
def test_any_exception_at_the_first_call_names_the_model(error, argument):
    model = Failing(2 if argument == "policy_network" else 1, error)
    with pytest.raises(UsageError, match=rf"^{argument} does not make a tensor of .*vector.*3.*: one$") as raised:
        make(**{argument: model})
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_at_a_later_call_too(error):
    policy, value = Failing(2, error, at=1000), Failing(1, error, at=1000)
    make(policy, value, forward_mode=False)  # how often they are called when nothing fails
    for at in range(1, value.calls + 1):
        with pytest.raises(UsageError, match=r"^value_network does not make a tensor of .*: one$"):
            make(value_network=Failing(1, error, at))
    with pytest.raises(UsageError, match=r"^policy_network has layers that forward mode .*=reverse can: one$"):
        make(Failing(2, error, at=policy.calls + 1))
    assert make(Failing(2, error, at=policy.calls + 1), forward_mode=False).network.size == 3 * 2 + 2 + 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_not_a_failure_of_the_model(error):
    with pytest.raises(error):
        make(Failing(2, error()))


def test_what_is_no_tensor_is_named():
    class Texts(keras.Model):
        def call(self, x, training=None):
            return "two"

    with pytest.raises(UsageError, match="policy_network does not make a tensor"):
        make(Texts())
    with pytest.raises(UsageError, match="value_network is builtins's str; a model of Keras 3 is needed"):
        make(value_network="value.keras")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("argument", ["policy_network", "value_network"])
def test_weights_that_are_not_float32_are_named(dtype, argument):
    outputs = 2 if argument == "policy_network" else 1
    model = keras.Sequential([keras.layers.Dense(4, dtype=dtype), keras.layers.Dense(outputs)])
    with pytest.raises(UsageError, match=f"{argument} has weights of {dtype}; float32 is needed"):
        make(**{argument: model})


def test_images_tell_whether_features_hold_any():
    image = gym.spaces.Box(0, 255, (16, 16), np.uint8)
    for space, config, expected in (
        (OBSERVATION, {}, False),
        (image, {}, True),
        (image, {"image_encoder": "flat"}, False),
        (gym.spaces.Dict({"camera": image, "speed": OBSERVATION}), {}, True),
    ):
        policy = Policy(space, ACTION, PolicyConfig(hidden_sizes=(4,), **config), 0)
        assert policy.has_images is expected
        assert any(len(x.shape) > 2 for x in policy.preprocess(zeros(policy)).values()) == expected


def zeros(policy):
    return {name: tf.zeros([2, *shape], dtype) for name, (shape, dtype) in policy.specs.items()}


def dense(*layers):
    return keras.Sequential([keras.layers.Input((3,)), *layers])


class Named(keras.Model):
    """A model that gives a dict."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x, training=None):
        return {"mean": self.dense(x)}


def not_keras_3():
    import tf_keras

    return tf_keras.Sequential([tf_keras.layers.Dense(2)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: dense(keras.layers.Dense(2, trainable=False)), "has nothing to train: every layer is frozen"),
        (
            lambda: dense(keras.layers.Dense(2, dtype="float64", name="wide")),
            "has weights of float64; float32 is needed.*: .*wide/kernel",
        ),
        (lambda: dense(keras.layers.Dense(2, dtype="float16")), "has weights of float16"),
        (Named, r"gives a dict; one tensor \[N, 2\] is needed"),
        (not_keras_3, "is tf_keras's Sequential; a model of Keras 3 is needed"),
        (lambda: lambda x: x, "is builtins's function; a model of Keras 3 is needed"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_by_name(model, message):
    with pytest.raises(UsageError, match=f"^policy_network {message}") as raised:
        make(policy_network=model())
    assert "\n" not in str(raised.value)


def test_frozen_layers_stay_and_the_others_are_trained():
    frozen = keras.layers.Dense(4, "tanh", trainable=False)
    policy = make(policy_network=dense(frozen, keras.layers.Dense(2)))
    assert policy.network.size == 4 * 2 + 2 + 2  # the last layer, and log_std
    before = frozen.kernel.numpy()
    theta = policy.network.theta() + 1.0
    policy.network.assign(theta)
    np.testing.assert_array_equal(frozen.kernel, before)
    features = policy.preprocess({"observation": tf.zeros([2, 3])})
    np.testing.assert_allclose(policy.params(theta, features), policy.step({"observation": tf.zeros([2, 3])})[0])


@pytest.mark.parametrize(
    ("settings", "policy_has", "value_has"),
    [({}, 0, 2), ({"layer_norm": "value"}, 0, 2), ({"layer_norm": "both"}, 2, 2), ({"layer_norm": "none"}, 0, 0)],
)
def test_whose_layers_are_normalised(settings, policy_has, value_has):
    space = gym.spaces.Box(-1, 1, (3,))
    policy = Policy(space, space, PolicyConfig(hidden_sizes=(4, 5), **settings), 0)
    for network, expected in ((policy.network, policy_has), (policy.value_network, value_has)):
        kinds = [type(layer) for layer in network.model.body]
        assert kinds.count(keras.layers.LayerNormalization) == expected


@pytest.mark.slow
def test_global_settings_of_keras_do_not_reach_the_networks():
    """keras.json with float64, channels_first and another backend: everything is float32, and acts as without it."""
    code = """
import os, pathlib, tempfile
home = tempfile.mkdtemp()
os.environ |= {"KERAS_HOME": home, "TF_CPP_MIN_LOG_LEVEL": "3"}
text = '{"floatx": "float64", "epsilon": 1e-7, "backend": "jax", "image_data_format": "channels_first"}'
pathlib.Path(home, "keras.json").write_text(text)
from trpo_tf.policy.policy import Policy
import gymnasium as gym, keras, numpy as np
from trpo_tf.config import PolicyConfig
assert keras.config.floatx() == "float64" and keras.config.backend() == "tensorflow", keras.config.floatx()
space = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (16, 20, 3), np.uint8), "x": gym.spaces.Box(-1, 1, (2,))})
for settings in ({"image_encoder": "trpo", "layer_norm": "both"}, {"network": "gru", "image_encoder": "flat"}):
    policy = Policy(space, gym.spaces.Discrete(2), PolicyConfig(hidden_sizes=(4,), **settings), 0)
    odd = [v.path for v in policy.network.model.weights if v.dtype != "float32"]
    assert not odd, odd
    obs = {name: np.zeros((3, *shape), dtype) for name, (shape, dtype) in policy.specs.items()}
    params, _, _ = policy.act(obs, np.zeros((3, 2), np.float32))
    assert params.dtype == "float32", params.dtype
assert keras.config.floatx() == "float64" and keras.config.image_data_format() == "channels_first"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_keras_on_another_backend_is_refused():
    code = """
import sys, types
keras = types.ModuleType("keras")
keras.backend = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = keras
from trpo_tf.errors import UsageError
try:
    import trpo_tf.policy
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "Keras runs on jax in this process; KERAS_BACKEND=tensorflow is needed" in done.stdout, done.stderr[-2000:]
