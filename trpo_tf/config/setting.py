"""One setting: its default, range and meaning, as metadata of a dataclass field; and the check of its value."""

import csv
import dataclasses
import math
import numbers
import os
import typing
from typing import Any

from trpo_tf import paths
from trpo_tf.errors import UsageError

_LARGEST = 2**63 - 1  # integers that files and arrays can hold
_WORDS = {"true": True, "t": True, "yes": True, "y": True, "on": True, "1": True,
          "false": False, "f": False, "no": False, "n": False, "off": False, "0": False}  # fmt: skip
_NEEDED = {str: "a text", bool: "True or False", int: "an integer", float: "a number"}


def setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    structural: bool = False,
    search: tuple[str, float, float] | None = None,
    path: str = "",
    python: str = "",
) -> Any:
    """A field of a configuration record.

    Args:
      default: its value where none is given.
      text: what it means, and its source.
      low, high: inclusive bounds. above, below: exclusive ones.
      choices: the values that are allowed.
      structural: a checkpoint's arrays, or what they mean, depend on it: a resumed run must agree.
      search: scale ("log" or "linear"), least and largest value worth trying when the setting is tuned.
      path: what a path is needed for: "read" a directory, write a "directory", write a "file"; empty: it is no path.
      python: what Python has instead of it, where only the training command minds it.
    """
    metadata = {
        "help": text, "low": low, "high": high, "above": above, "below": below, "choices": choices,
        "structural": structural, "search": search, "path": path, "python": python,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class Record:
    """Base of configuration records: every field is checked when a record is made. Paths become absolute texts, lists
    tuples, and numbers those of Python.

    Raises:
      UsageError: names the setting, its value and what is allowed.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))


def checked(field: dataclasses.Field, value: Any) -> Any:
    """A setting's value as records have it.

    Raises:
      UsageError: it is none; names the setting, the value and what is allowed.
    """
    if typing.get_origin(field.type) is not tuple:
        return _checked(field, field.type, value)
    if not isinstance(value, (tuple, list)):
        raise UsageError(f"--{field.name}={value!r}: a tuple is needed")
    return tuple(_checked(field, typing.get_args(field.type)[0], item) for item in value)


def from_text(field: dataclasses.Field, text: str) -> Any:
    """The value that is meant by a text of the command line.

    Raises:
      UsageError: it is none; names the setting, the text and what is allowed.
    """
    several = typing.get_origin(field.type) is tuple
    kind: Any = typing.get_args(field.type)[0] if several else field.type
    try:
        items = [item.strip() for item in next(csv.reader([text], strict=True), [])] if several else [text]
        values = [_VALUE[kind](item) for item in items]
    except (ValueError, KeyError, csv.Error):
        needed = f"{_NEEDED[kind].split()[-1]}s separated by commas are" if several else f"{_NEEDED[kind]} is"
        raise UsageError(f"--{field.name}={text}: {needed} needed") from None
    return checked(field, values if several else values[0])


def _integer(text: str) -> int | float:
    """1000, 1_000 or 1e3."""
    try:
        return int(text)
    except ValueError:  # also one of more digits than Python reads
        return float(text)


_VALUE: dict[Any, Any] = {str: str, bool: lambda text: _WORDS[text.strip().lower()], int: _integer, float: float}


def _checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    meta = field.metadata
    if kind in (int, float):
        number = _number(field, kind, value)
        _check_range(field, value)  # and says it as it was given
        return number
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, kind):
        raise UsageError(f"--{field.name}={value!r}: {_NEEDED[kind]} is needed")
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"--{field.name}={value}: not one of {', '.join(meta['choices'])}")
    if kind is str:
        paths.check_characters(field.name, value)
    if meta["path"] and not (value == "-" and meta["path"] == "file"):  # -: stdout
        return paths.absolute(field.name, value)
    return value


def _number(field: dataclasses.Field, kind: Any, value: Any) -> int | float:
    """The number as an int or a float of Python, finite and not too large."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"--{field.name}={value!r}: {_NEEDED[kind]} is needed")
    if not isinstance(value, numbers.Integral):
        if not math.isfinite(value):
            raise UsageError(f"--{field.name}={value}: not finite")
        if kind is float:
            return float(value)
    whole = int(typing.cast(Any, value))
    if whole != value:
        raise UsageError(f"--{field.name}={value}: an integer is needed")
    if abs(whole) > _LARGEST:
        shown = value if whole.bit_length() < 1000 else f"{hex(whole)[:20]}..."  # Python writes no long ones
        raise UsageError(f"--{field.name}={shown}: must be within +-{_LARGEST}")
    return kind(whole)


def _check_range(field: dataclasses.Field, value: Any) -> None:
    meta = field.metadata
    bounds = (
        (meta["low"], ">=", lambda a, b: a >= b),
        (meta["high"], "<=", lambda a, b: a <= b),
        (meta["above"], ">", lambda a, b: a > b),
        (meta["below"], "<", lambda a, b: a < b),
    )
    for bound, sign, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise UsageError(f"--{field.name}={value}: must be {sign} {bound}")
