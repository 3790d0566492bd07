"""The update as a transaction: what is not finite is not committed, and what raises leaves variables as they were."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from trpo_tf.policy.tensor_actor import direct


def if_finite(variables: Iterable[Any], change: Callable[[], Any]) -> tuple[Any, tf.Tensor]:
    """Calls change(), which assigns to variables; they get back what they held where anything is not finite afterwards.

    Args:
      variables: of TensorFlow or Keras, all that `change` assigns to.
      change: returns a nest of tensors, perhaps (), which have to be finite, too.

    Returns:
      What `change` returned, and whether everything was finite, a bool scalar.
    """
    variables = list(variables)
    before = [tf.convert_to_tensor(variable) for variable in variables]
    returned = change()
    after = [tf.convert_to_tensor(variable) for variable in variables]
    numbers = [x for x in (*after, *tf.nest.flatten(returned)) if x.dtype.is_floating]
    finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(x)) for x in numbers]))
    for variable, old, new in zip(variables, before, after, strict=True):
        variable.assign(tf.where(finite, new, old))
    return returned, finite


class Undo:
    """Gives variables back what they held.

    Reading a variable copies nothing: what was read keeps its memory, and the next assignment takes other memory. One
    operation reads them all.

    Args:
      variables: of TensorFlow or Keras.
    """

    def __init__(self, variables: Iterable[Any]):
        self.variables = list(variables)

        def read() -> list[tf.Tensor]:
            return [tf.identity(tf.convert_to_tensor(variable)) for variable in self.variables]

        self._read = direct(tf.function(read, autograph=False).get_concrete_function())

    @contextlib.contextmanager
    def on_failure(self, first: Callable[[], Any] = lambda: None) -> Iterator[None]:
        """Gives variables back what they hold now where the block raises.

        Args:
          first: called before that, for what else may still be assigning to them.
        """
        before = self._read()
        try:
            yield
        except BaseException:
            first()
            for variable, value in zip(self.variables, before, strict=True):
                variable.assign(value)
            raise
