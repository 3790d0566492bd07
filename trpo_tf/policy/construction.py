"""Makes the networks of a policy, and finds out whether models of the user's fit."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError, first_line
from trpo_tf.policy import networks
from trpo_tf.policy.distributions import ActionDistribution, Parameters


@contextlib.contextmanager
def keras_defaults() -> Iterator[None]:
    """Layers that are made and built in here are float32 with channels last, whatever keras.json or a program set."""
    config = keras.config
    before = config.floatx(), config.dtype_policy(), config.image_data_format()
    try:
        config.set_floatx("float32")
        config.set_dtype_policy("float32")
        config.set_image_data_format("channels_last")
        yield
    finally:
        config.set_floatx(before[0])
        config.set_dtype_policy(before[1])
        config.set_image_data_format(before[2])


def check_kind(argument: str, model: Any) -> None:
    """Raises UsageError where a model of the user's, if there is one, is not Keras 3's."""
    if model is not None and not isinstance(model, keras.layers.Layer):
        kind = f"{type(model).__module__.partition('.')[0]}'s {type(model).__name__}"
        raise UsageError(f"{argument} is {kind}; a model of Keras 3 is needed, keras.Model")


def make_networks(
    distribution: ActionDistribution,
    images: dict[str, tuple[tuple[int, ...], str]],
    config: PolicyConfig,
    seed: int,
    policy_model: keras.Model | None,
    value_model: keras.Model | None,
) -> tuple[keras.Model, keras.Model]:
    """The policy and value networks, without weights yet.

    Args:
      images: shape and dtype of each image by name.
      seed: of the initial weights.
      policy_model, value_model: of the user's, instead of those of `config`.
    """
    # Seeds: hidden layers count up from theirs, heads take one that no layer reaches.
    bias = distribution.bias
    policy_head = keras.layers.Dense(
        distribution.outputs,
        kernel_initializer=networks.orthogonal(networks.LAST_GAIN, seed + 10_000),
        bias_initializer=lambda shape, dtype: keras.ops.cast(bias, dtype),
        name="policy_head",
    )
    value_head = keras.layers.Dense(1, kernel_initializer=networks.orthogonal(1.0, seed + 30_000), name="value_head")
    parameters = Parameters(distribution, name="policy_parameters")
    sizes = config.hidden_sizes
    if policy_model is None:
        policy = networks.Network(images, sizes, config, [policy_head, parameters], seed, "policy")
    else:
        policy = networks.UserModel(policy_model, images, [parameters], "policy")
    if value_model is not None:
        value = networks.UserModel(value_model, images, [], "value")
    else:
        own = ({}, ()) if config.share_torso else (images, sizes)
        value = networks.Network(*own, config, [value_head], seed + 20_000, "value")
    return policy, value


def build(model: keras.Model, argument: str, features: dict[str, tf.Tensor], outputs: int) -> None:
    """Makes a network's weights by calling it with two samples of features.

    Args:
      argument: the name that a user knows the model by.
      outputs: how many numbers it has to give for each sample.

    Raises:
      UsageError: a model of the user's fails, gives other outputs than are needed, or has weights that are not float32.
    """
    if not isinstance(model, networks.UserModel):
        model(features)
        return
    with _named(argument, features):
        answer = model.model(model.inputs_of(features), training=False)
    if isinstance(answer, dict | list | tuple):
        raise UsageError(f"{argument} gives a {type(answer).__name__}; one tensor [N, {outputs}] is needed")
    with _named(argument, features):
        shape = tuple(answer.shape)
    if shape != (2, outputs):
        raise UsageError(f"{argument} gives {shape[1:]} numbers for an observation; {outputs} are needed")
    with _named(argument, features):
        model(features)
    trained = model.model.trainable_variables
    if not trained:
        raise UsageError(f"{argument} has nothing to train: every layer is frozen (trainable=False), or has no weights")
    if odd := [v for v in trained if v.dtype != "float32"]:  # flat parameters have one dtype
        raise UsageError(
            f"{argument} has weights of {odd[0].dtype}; float32 is needed, as in a layer of mixed_bfloat16: "
            f"{odd[0].path}"
        )


@contextlib.contextmanager
def _named(argument: str, features: dict[str, tf.Tensor]) -> Iterator[None]:
    """Turns whatever a model of the user's raises into a UsageError that names the model."""
    try:
        yield
    except Exception as error:
        shapes = {key: tuple(x.shape[1:]) for key, x in features.items()}
        raise UsageError(f"{argument} does not make a tensor of {shapes}: {_reason(error)}") from error


def check_apart(policy: keras.Model, value: keras.Model) -> None:
    """Raises UsageError where two models have a variable in common."""
    if {id(v) for v in policy.variables} & {id(v) for v in value.variables}:
        raise UsageError("policy_network and value_network share variables; --share_torso is the way to share")


def try_forward_mode(network: networks.FlatNetwork, features: dict[str, tf.Tensor]) -> None:
    """Raises UsageError where a model of the user's is one that forward mode cannot pass."""

    def tangent(theta):
        with tf.autodiff.ForwardAccumulator(theta, theta) as accumulator:
            params = network(theta, features)
        return accumulator.jvp(params)

    try:
        tf.function(tangent, autograph=False).get_concrete_function(network.theta())
    except Exception as error:
        raise UsageError(
            f"policy_network has layers that forward mode cannot pass; --fisher_product=reverse can: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What was raised, in one line. Keras raises it anew, below a line that says only which layer was called."""
    raised_anew = getattr(error, "_keras_call_info_injected", False)
    return first_line((raised_anew and error.__context__) or error)
