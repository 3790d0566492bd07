"""One setting: its default, range and meaning, as metadata of a dataclass field; and the check of its value."""

import dataclasses
import math
import os
import typing
from typing import Any

from trpo_tf.errors import UsageError


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
) -> Any:
    """A field of a configuration record.

    Args:
      default: its value where none is given.
      text: what it means, and its source.
      low, high: inclusive bounds. above, below: exclusive ones.
      choices: the values that are allowed.
      structural: a checkpoint's arrays, or what they mean, depend on it: a resumed run must agree.
      search: scale ("log" or "linear"), least and largest value worth trying when the setting is tuned.
    """
    metadata = {
        "help": text, "low": low, "high": high, "above": above, "below": below, "choices": choices,
        "structural": structural, "search": search,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class Record:
    """Base of configuration records: every field is checked when a record is made; paths become texts, lists tuples.

    Raises:
      UsageError: names the setting, its value and what is allowed.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.type is str and isinstance(value, os.PathLike):
                value = os.fspath(value)
            if typing.get_origin(field.type) is tuple:
                if not isinstance(value, (tuple, list)):
                    raise UsageError(f"--{field.name}={value!r}: a tuple is needed")
                value = tuple(value)
            object.__setattr__(self, field.name, value)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field, item)


def _check(field: dataclasses.Field, value: Any) -> None:
    meta = field.metadata
    kind = typing.get_args(field.type)[0] if typing.get_origin(field.type) is tuple else field.type
    if kind in (str, bool) and not isinstance(value, kind):
        raise UsageError(f"--{field.name}={value!r}: {'a text' if kind is str else 'True or False'} is needed")
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"--{field.name}={value}: not one of {', '.join(meta['choices'])}")
    if kind in (str, bool):
        return
    numeric = (int, float) if kind is float else int
    if isinstance(value, bool) or not isinstance(value, numeric):
        raise UsageError(f"--{field.name}={value!r}: {'a number' if kind is float else 'an integer'} is needed")
    if not math.isfinite(value):
        raise UsageError(f"--{field.name}={value}: not finite")
    bounds = (
        (meta["low"], ">=", lambda a, b: a >= b),
        (meta["high"], "<=", lambda a, b: a <= b),
        (meta["above"], ">", lambda a, b: a > b),
        (meta["below"], "<", lambda a, b: a < b),
    )
    for bound, sign, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise UsageError(f"--{field.name}={value}: must be {sign} {bound}")
