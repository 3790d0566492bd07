"""Models of the user's: whatever they raise is one line that names them, at every call."""

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
    with pytest.raises(UsageError, match="value_network does not make a tensor"):
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
        assert any(x.dtype == tf.uint8 for x in policy.preprocess(zeros(policy)).values()) == expected


def zeros(policy):
    return {name: tf.zeros([2, *shape], dtype) for name, (shape, dtype) in policy.specs.items()}
