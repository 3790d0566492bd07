"""Names of state: every stateful part gives a dict of arrays, and what joins parts puts a prefix before each."""

from typing import Any

import numpy as np

from trpo_tf.errors import UsageError

State = dict[str, np.ndarray]


def prefixed(prefix: str, state: State) -> State:
    """The arrays of a part under prefix/name."""
    return {f"{prefix}/{name}": array for name, array in state.items()}


def part(prefix: str, state: State) -> State:
    """The arrays that `prefixed` put under a prefix, by their own names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): array for name, array in state.items() if name.startswith(start)}


def read(variables: dict[str, Any]) -> State:
    """The values of TensorFlow variables by name."""
    return {name: variable.numpy() for name, variable in variables.items()}


def assign(variables: dict[str, Any], state: State) -> None:
    """Gives TensorFlow variables the values that `read` gave.

    Raises:
      UsageError: one is missing or has another shape; names both.
    """
    for name, variable in variables.items():
        value, shape = state.get(name), tuple(variable.shape)
        if value is None or value.shape != shape:
            found = "nothing" if value is None else f"shape {value.shape}"
            raise UsageError(f"checkpoint: {name} has shape {shape} here, {found} in the file")
        variable.assign(value)
