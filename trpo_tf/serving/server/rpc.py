"""TF Serving's gRPC interface on one model: Predict, GetModelMetadata and GetModelStatus."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from trpo_tf.errors import described
from trpo_tf.serving.server import CONNECTIONS, GRACE_SECONDS, HEADER_SECONDS, LARGEST_REQUEST
from trpo_tf.serving.server.model import Model, Refusal, Version, check_inputs, check_names

_THREADS = 4  # requests that are answered at the same time


class _Services:
    """One method for each kind of request, named as in the service's definition."""

    def __init__(self, model: Model):
        self._model = model

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Outputs of a signature."""
        version, signature = self._find(request.model_spec), request.model_spec.signature_name
        definition = version.signature(signature)
        if unknown := sorted(set(request.output_filter) - set(definition.outputs)):
            raise Refusal("INVALID_ARGUMENT", f"outputs unknown: [{', '.join(unknown)}]")
        check_names(request.inputs, definition)
        shapes = {name: tuple(d.size for d in x.tensor_shape.dim) for name, x in request.inputs.items()}
        check_inputs({name: (x.dtype, shapes[name]) for name, x in request.inputs.items()}, definition)
        inputs = {name: _array(name, value) for name, value in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, value in version.predict(signature, inputs).items():
            if not request.output_filter or name in request.output_filter:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        self._name(response.model_spec, version)
        response.model_spec.signature_name = signature or "serving_default"
        return response

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Signatures."""
        version = self._find(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in version.signatures.items():
            signatures.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        self._name(response.model_spec, version)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def get_model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """States of the versions."""
        response = get_model_status_pb2.GetModelStatusResponse()
        state = get_model_status_pb2.ModelVersionStatus.State
        for number, name, text in self._model.status(request.model_spec.name, _asked(request.model_spec)):
            entry = response.model_version_status.add(version=number, state=state.Value(name))
            entry.status.error_message = text
        return response

    def _find(self, spec: model_pb2.ModelSpec) -> Version:
        if spec.version_label:
            raise Refusal("INVALID_ARGUMENT", "labels are not supported here")
        return self._model.get(spec.name, _asked(spec))

    def _name(self, spec: model_pb2.ModelSpec, version: Version) -> None:
        """Writes into a response which model and version it is from."""
        spec.name = self._model.name
        spec.version.value = version.number


def _asked(spec: model_pb2.ModelSpec) -> int | None:
    """The number of the version that is asked for; None: the newest, or all."""
    return spec.version.value if spec.HasField("version") else None


def _array(name: str, value) -> np.ndarray:
    """A TensorProto as an array. Its shape was checked: a proto may state one number for all entries of any shape.

    Raises:
      Refusal: it is no array, or larger than the largest request.
    """
    count = int(np.prod([d.size for d in value.tensor_shape.dim], dtype=object))
    if count * tf.as_dtype(value.dtype).size > LARGEST_REQUEST:
        raise Refusal("INVALID_ARGUMENT", f"{name} has {count} numbers, more than {LARGEST_REQUEST} bytes")
    try:
        return tf.make_ndarray(value)
    except (TypeError, ValueError) as error:
        raise Refusal("INVALID_ARGUMENT", f"{name}: {error}") from None


def _handler(kind: Any, method: Callable[[Any], Any]) -> grpc.RpcMethodHandler:
    """A method as gRPC calls it: bytes in, a message out, a status where it raises.

    gRPC's own parsing calls a message that is none an error of the server.
    """

    def answer(text: bytes, context: grpc.ServicerContext) -> Any:
        try:
            return method(kind.FromString(text))
        except Refusal as refusal:
            context.abort(grpc.StatusCode[refusal.code], str(refusal))
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no {kind.DESCRIPTOR.name}")
        except Exception as error:
            context.abort(grpc.StatusCode.INTERNAL, described(error))

    return grpc.unary_unary_rpc_method_handler(answer, None, lambda response: response.SerializeToString())


def _handlers(model: Model) -> list[grpc.GenericRpcHandler]:
    """The methods of both services by name."""
    services, metadata = _Services(model), get_model_metadata_pb2.GetModelMetadataRequest
    prediction = {
        "Predict": _handler(predict_pb2.PredictRequest, services.predict),
        "GetModelMetadata": _handler(metadata, services.get_model_metadata),
    }
    status = {"GetModelStatus": _handler(get_model_status_pb2.GetModelStatusRequest, services.get_model_status)}
    named = {"PredictionService": prediction, "ModelService": status}
    return [grpc.method_handlers_generic_handler(f"tensorflow.serving.{name}", of) for name, of in named.items()]


@contextlib.contextmanager
def listening(model: Model, address: str) -> Iterator[int]:
    """Answers in threads of its own while the context is entered; yields the port, a free one for 0.

    Args:
      address: host:port.

    Raises:
      RuntimeError: the port is taken.
    """
    options = [
        ("grpc.max_receive_message_length", LARGEST_REQUEST),
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", int(1000 * HEADER_SECONDS)),
    ]
    threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "grpc")
    server = grpc.server(threads, _handlers(model), options=options, maximum_concurrent_rpcs=CONNECTIONS)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(GRACE_SECONDS).wait()
