"""Predict requests and answers in TF Serving's JSON, by row or by column.

By row: {"instances": [{"observation": [...], ...}, ...]}, answered by {"predictions": [{"action": ..., ...}, ...]}.
By column: {"inputs": {"observation": [[...], ...], ...}}, answered by {"outputs": {"action": [...], ...}}.
Where a signature has one input or one output, its name may be left out, or is.
"""

import itertools
import json
import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from trpo_tf.serving.server import LARGEST_BATCH
from trpo_tf.serving.server.model import Refusal, Version, check_inputs, check_names

_TAKEN: dict[str, set[type]] = {
    "f": {float, int},
    "i": {int},
    "u": {int},
    "b": {bool},
}  # of JSON's values, by the kind of numpy's type


def answer(version: Version, text: bytes) -> dict[str, Any]:
    """The answer to the body of a predict request.

    Raises:
      Refusal: the body is no request, or the version refuses its inputs.
    """
    body = _parsed(text, version)
    name = body.get("signature_name", "") if isinstance(body, dict) else ""
    if not isinstance(name, str):
        raise Refusal("INVALID_ARGUMENT", '"signature_name" has to be a string')
    inputs, by_row = parse(body, version.signature(name))
    outputs = {name: value.tolist() for name, value in version.predict(name, inputs).items()}
    if not by_row:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def parse(body, signature: meta_graph_pb2.SignatureDef) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs of a request, [N, ...] by name, and whether it is by row.

    Raises:
      Refusal: the body is no request, or its inputs are not those of the signature.
    """
    if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
        raise Refusal("INVALID_ARGUMENT", 'the body has to be an object with either "instances" or "inputs"')
    names = set(signature.inputs)
    by_row = "instances" in body
    columns = _columns_of_rows(body["instances"], names) if by_row else _columns(body["inputs"], names)
    check_names(columns, signature)
    parts = {name: _flat(name, column) for name, column in columns.items()}
    check_inputs({name: (signature.inputs[name].dtype, shape) for name, (_, shape) in parts.items()}, signature)
    return {name: _array(name, *part, signature.inputs[name].dtype) for name, part in parts.items()}, by_row


def _parsed(text: bytes, version: Version):
    """The value of a JSON text.

    Raises:
      Refusal: it is none, or has more objects or lists than the largest batch. Each is many times its text.
    """
    lists = max(map(_lists, version.signatures.values()), default=0)
    if text.count(b"{") > LARGEST_BATCH + 1 or text.count(b"[") > lists:
        raise Refusal("INVALID_ARGUMENT", f"a request may have {LARGEST_BATCH} rows of the signature's shapes")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None


def _lists(signature: meta_graph_pb2.SignatureDef) -> int:
    """Lists in the largest request of a signature."""
    shapes = [[d.size for d in info.tensor_shape.dim[1:]] for info in signature.inputs.values()]
    of_a_row = sum(math.prod(shape[:axis]) for shape in shapes for axis in range(len(shape)))
    return LARGEST_BATCH * of_a_row + len(shapes) + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _columns_of_rows(rows, names: set[str]) -> dict[str, list]:
    """The value of "instances", transposed."""
    if not isinstance(rows, list) or not rows:
        raise Refusal("INVALID_ARGUMENT", '"instances" has to be a list with something in it')
    if len(rows) > LARGEST_BATCH:
        raise Refusal("INVALID_ARGUMENT", f"a request may have {LARGEST_BATCH} rows")
    if len(names) == 1 and not isinstance(rows[0], dict):
        rows = [{next(iter(names)): row} for row in rows]
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise Refusal("INVALID_ARGUMENT", "every instance has to have the same inputs")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _columns(columns, names: set[str]) -> dict[str, Any]:
    """The value of "inputs", by name."""
    if len(names) == 1 and not isinstance(columns, dict):
        columns = {next(iter(names)): columns}
    if not isinstance(columns, dict):
        raise Refusal("INVALID_ARGUMENT", '"inputs" has to name its columns')
    return columns


def _flat(name: str, value) -> tuple[list, tuple[int, ...]]:
    """The numbers of nested lists in one list, and the shape.

    Raises:
      Refusal: it is ragged.
    """
    level: list = [value]
    shape: list[int] = []
    while level and all(isinstance(part, list) for part in level):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise Refusal("INVALID_ARGUMENT", f"{name} is ragged: its parts have different lengths")
        shape += lengths
        level = list(itertools.chain.from_iterable(level))
    if any(isinstance(part, list) for part in level):
        raise Refusal("INVALID_ARGUMENT", f"{name} is ragged: its parts have different depths")
    return level, tuple(shape)


def _array(name: str, numbers: list, shape: tuple[int, ...], dtype: int) -> np.ndarray:
    """The numbers as an array of an input's type.

    Raises:
      Refusal: there is something else among them, or a number that the type does not hold.
    """
    wanted = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    if set(map(type, numbers)) - _TAKEN.get(wanted.kind, set()):
        raise Refusal("INVALID_ARGUMENT", f"{name} holds something else than {wanted.name}")
    whole = [x for x in numbers if type(x) is int]
    if wanted.kind in "iu" and whole and not np.iinfo(wanted).min <= min(whole) <= max(whole) <= np.iinfo(wanted).max:
        raise Refusal("INVALID_ARGUMENT", f"{name} has numbers outside of {wanted.name}")
    if wanted.kind != "f":
        return np.array(numbers, wanted).reshape(shape)
    exact = 2 ** (np.finfo(wanted).nmant + 1)  # up to here every whole number is one of the type
    x = np.zeros(0) if whole and not -exact <= min(whole) <= max(whole) <= exact else np.array(numbers, np.float64)
    if len(x) < len(numbers) or (np.isfinite(x) & (np.abs(x) > np.finfo(wanted).max)).any():
        raise Refusal("INVALID_ARGUMENT", f"{name} has numbers that {wanted.name} does not hold")
    return x.astype(wanted).reshape(shape)
