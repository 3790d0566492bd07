"""Which networks NumPy can act for: those made of nothing but layers that it computes as Keras does.

A layer is recognised by what it is, never by a name: a user's function may be called tanh and compute something else.
"""

import keras

from trpo_tf.acting.spec import LayerSpec
from trpo_tf.policy.distributions import Parameters
from trpo_tf.policy.networks import Network, UserModel

_ACTIVATIONS = (
    (keras.activations.linear, "linear"),
    (keras.activations.tanh, "tanh"),
    (keras.activations.relu, "relu"),
    (keras.activations.elu, "elu"),
    (keras.activations.silu, "silu"),
)


def describe(model: Network | UserModel) -> tuple[tuple[LayerSpec, ...], str] | None:
    """A policy network as ActingSpec's `layers` and `free`; None where NumPy cannot compute it."""
    chain = model.chain()
    outer = [model, model.model] if isinstance(model, UserModel) else [model]
    if chain is None or not all(_is_float32(layer) for layer in (*outer, *chain)):
        return None
    *dense, parameters = chain
    names = {id(variable): name for name, variable in model.named_variables().items()}
    found = [_dense(layer, names) for layer in dense]
    layers = [layer for layer in found if layer is not None]
    if type(parameters) is not Parameters or len(layers) < len(found):
        return None
    return tuple(layers), names[id(parameters.free)] if parameters.has_free else ""


def _dense(layer: keras.layers.Layer, names: dict[int, str]) -> LayerSpec | None:
    """One layer with the names of its weights; None where it is none that NumPy computes."""
    if type(layer) is not keras.layers.Dense or not layer.use_bias or layer.lora_enabled or "call" in vars(layer):
        return None
    kinds = [name for function, name in _ACTIVATIONS if layer.activation is function]
    return LayerSpec(names[id(layer.kernel)], names[id(layer.bias)], kinds[0]) if kinds else None


def _is_float32(layer: keras.layers.Layer) -> bool:
    """Whether it takes, computes and stores float32; a quantised layer has a dtype policy of its own."""
    return layer.dtype_policy.name == "float32" and layer.input_dtype == "float32"
