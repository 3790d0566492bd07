"""Predict requests and answers in TF Serving's JSON, by row or by column.

By row: {"instances": [{"observation": [...], ...}, ...]}, answered by {"predictions": [{"action": ..., ...}, ...]}.
By column: {"inputs": {"observation": [[...], ...], ...}}, answered by {"outputs": {"action": [...], ...}}.
Where a signature has one input or one output, its name may be left out, or is.
"""

import json
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from trpo_tf.serving.server.model import Refusal, Version

_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}  # of numpy's types, those that an input of this kind takes
_EXACT_IN_FLOAT32 = 2**24  # the largest whole number below which float32 has all of them


def answer(version: Version, text: bytes) -> dict[str, Any]:
    """The answer to the body of a predict request.

    Raises:
      Refusal: the body is no request, or the version refuses its inputs.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
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

    Inputs that the signature does not have become empty arrays, so that `Version.predict` names them.

    Raises:
      Refusal: the body is no request, or a value is no array of its input's type.
    """
    if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
        raise Refusal("INVALID_ARGUMENT", 'the body has to be an object with either "instances" or "inputs"')
    names = set(signature.inputs)
    by_row = "instances" in body
    columns = _columns_of_rows(body["instances"], names) if by_row else _columns(body["inputs"], names)
    known = {name: column for name, column in columns.items() if name in names}
    arrays = {name: _array(name, column, signature.inputs[name].dtype) for name, column in known.items()}
    return arrays | {name: np.zeros(0) for name in columns.keys() - names}, by_row


def _columns_of_rows(rows, names: set[str]) -> dict[str, list]:
    """The value of "instances", transposed."""
    if not isinstance(rows, list) or not rows:
        raise Refusal("INVALID_ARGUMENT", '"instances" has to be a list with something in it')
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


def _array(name: str, value, dtype: int) -> np.ndarray:
    """The value as an array of an input's type.

    Raises:
      Refusal: it is ragged, of another kind, or has numbers that the type does not hold.
    """
    wanted = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    try:
        x = np.array(value)
    except ValueError:
        raise Refusal("INVALID_ARGUMENT", f"{name} is ragged: its parts have different lengths") from None
    if x.size and x.dtype.kind not in _KINDS[wanted.kind]:
        raise Refusal("INVALID_ARGUMENT", f"{name} holds something else than {wanted.name}")
    if wanted.kind in "iu" and x.size:
        limits = np.iinfo(wanted)
        if x.min() < limits.min or x.max() > limits.max:
            raise Refusal("INVALID_ARGUMENT", f"{name} has numbers outside of {wanted.name}")
    if wanted.kind == "f" and x.size:
        most = _EXACT_IN_FLOAT32 if x.dtype.kind in "iu" else np.finfo(wanted).max
        if (np.isfinite(x) & (np.abs(x) > most)).any():
            raise Refusal("INVALID_ARGUMENT", f"{name} has numbers that {wanted.name} does not hold")
    return x.astype(wanted)
