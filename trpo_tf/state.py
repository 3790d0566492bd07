"""Names of state: every stateful part gives a dict of arrays, and what joins parts puts a prefix before each."""

from typing import Any

import numpy as np

from trpo_tf.errors import UsageError


class StateError(UsageError):
    """State that does not fit what takes it over; the message names the array."""


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
      StateError: one is missing or has another shape or type; names both.
    """
    for name, variable in variables.items():
        value, ours = state.get(name), variable.numpy()
        if value is None or value.shape != ours.shape:
            found = "nothing" if value is None else f"shape {value.shape}"
            raise StateError(f"checkpoint: {name} has shape {ours.shape} here, {found} in the file")
        if value.dtype != ours.dtype:
            raise StateError(f"checkpoint: {name} is {ours.dtype} here, {value.dtype} in the file")
        variable.assign(value)


def numbers(owner: str, state: Any) -> State:
    """The state that somebody's code gives, as arrays that files can hold.

    Raises:
      UsageError: it is something else; names the owner.
    """
    if not isinstance(state, dict):
        raise UsageError(f"{owner}: its state() is {type(state).__name__}; a dict of arrays is needed")
    arrays = {}
    for name, value in state.items():
        try:
            arrays[str(name)] = np.asarray(value)
        except ValueError:  # of lists of different lengths
            arrays[str(name)] = np.asarray(None)
        if arrays[str(name)].dtype.kind not in "biuf":
            raise UsageError(f"{owner}: {name} of its state() is {type(value).__name__}; arrays of numbers are needed")
    return arrays
