"""What a worker needs to act: NumPy and the spaces of gymnasium, no TensorFlow."""

from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.acting.spec import ActingSpec, LayerSpec
from trpo_tf.acting.stateful import stateful_act

__all__ = ["ActingSpec", "ArrayActor", "LayerSpec", "stateful_act"]
