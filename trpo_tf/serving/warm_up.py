"""Warm-up requests: TF Serving runs each of them when it loads a version, before the version answers clients.

The file is a TFRecord of PredictionLog messages. Their fields are numbered in prediction_log.proto, predict.proto and
model.proto of tensorflow_serving/apis. They are encoded here by hand, so that an export needs tensorflow only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

FILE = Path("assets.extra") / "tf_serving_warmup_requests"  # below a version
BATCH_SIZES = (1, 8, 32)  # rows of the requests of each signature

# Field numbers of the messages.
_LOG_PREDICT = 6  # PredictionLog.predict_log
_REQUEST, _RESPONSE = 1, 2  # PredictLog
_MODEL_SPEC, _INPUTS, _OUTPUTS = 1, 2, 1  # PredictRequest, PredictRequest, PredictResponse
_SIGNATURE_NAME = 3  # ModelSpec
_KEY, _VALUE = 1, 2  # an entry of a map
_LENGTH_DELIMITED = 2  # the wire type of strings, bytes and messages


def write(path: Path, functions: dict[str, Any], examples: dict[str, np.ndarray]) -> None:
    """Writes requests of every signature with the answers that the signatures give now.

    Args:
      functions: the signatures, concrete.
      examples: inputs by name, [32, ...] each. raw_action is not among them: `sample` draws it.
    """
    sample = functions["sample"]
    examples = examples | {"raw_action": sample(**_inputs_of(sample, examples))["raw_action"].numpy()}
    with tf.io.TFRecordWriter(str(path)) as file:
        for name, function in functions.items():
            for rows in BATCH_SIZES:
                inputs = _inputs_of(function, {key: x[:rows] for key, x in examples.items()})
                request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, name.encode())) + _tensor_map(_INPUTS, inputs)
                response = _tensor_map(_OUTPUTS, function(**inputs))
                log = _field(_REQUEST, request) + _field(_RESPONSE, response)
                file.write(_field(_LOG_PREDICT, log))


def _inputs_of(function, examples: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """The examples that a signature takes, as tensors."""
    specs = function.structured_input_signature[1]
    return {name: tf.constant(examples[name], spec.dtype) for name, spec in specs.items()}


def _tensor_map(number: int, tensors: dict[str, tf.Tensor]) -> bytes:
    """A field map<string, TensorProto>."""
    protos = {name: tf.make_tensor_proto(x.numpy()).SerializeToString() for name, x in sorted(tensors.items())}
    entries = (_field(_KEY, name.encode()) + _field(_VALUE, proto) for name, proto in protos.items())
    return b"".join(_field(number, entry) for entry in entries)


def _field(number: int, content: bytes) -> bytes:
    """A field whose content is a string, bytes or a message."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """A non-negative number in groups of 7 bits, the lowest first; the highest bit says that another group follows."""
    *rest, last = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([byte | 0x80 for byte in rest] + [last])
