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
    *hidden, parameters = chain
    names = {id(variable): name for name, variable in model.named_variables().items()}
    layers: list[LayerSpec] = []
    for layer in hidden:
        longer = _with(layer, names, layers)
        if longer is None:
            return None
        layers = longer
    if type(parameters) is not Parameters:
        return None
    return tuple(layers), names[id(parameters.free)] if parameters.has_free else ""


def _with(layer: keras.layers.Layer, names: dict[int, str], before: list[LayerSpec]) -> list[LayerSpec] | None:
    """The layers before and one more, with the names of its weights; None where it is none that NumPy computes."""
    kind = None if "call" in vars(layer) else type(layer)
    if kind is keras.layers.LayerNormalization:
        usual = layer.axis in (-1, [-1], [1]) and layer.center and layer.scale and not layer.rms_scaling
        own = LayerSpec(names[id(layer.gamma)], names[id(layer.beta)], "linear", layer.epsilon) if usual else None
        return [*before, own] if own else None
    activation = next((name for function, name in _ACTIVATIONS if getattr(layer, "activation", None) is function), "")
    if kind is keras.layers.Dense and layer.use_bias and not layer.lora_enabled and activation:
        return [*before, LayerSpec(names[id(layer.kernel)], names[id(layer.bias)], activation)]
    if kind is keras.layers.Activation and before and before[-1].activation == "linear" and activation:
        return [*before[:-1], before[-1]._replace(activation=activation)]
    return None


def _is_float32(layer: keras.layers.Layer) -> bool:
    """Whether it takes, computes and stores float32; a quantised layer has a dtype policy of its own."""
    return layer.dtype_policy.name == "float32" and layer.input_dtype == "float32"
