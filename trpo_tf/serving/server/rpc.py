"""TF Serving's gRPC interface on one model: Predict, GetModelMetadata and GetModelStatus."""

import concurrent.futures
import contextlib
import math
from collections.abc import Iterator

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from trpo_tf.serving.server import LARGEST_REQUEST
from trpo_tf.serving.server.model import Model, Refusal, Version

_THREADS = 4  # requests that are answered at the same time


class _Services(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """One method for each kind of request, named as in the service's definition."""

    def __init__(self, model: Model):
        self._model = model

    def Predict(self, request, context):
        """Outputs of a signature."""
        with _refusing(context):
            version, signature = self._find(request.model_spec), request.model_spec.signature_name
            version.signature(signature)  # an unknown signature is refused before any input is looked at
            try:
                inputs = {name: _array(name, value) for name, value in request.inputs.items()}
            except (TypeError, ValueError) as error:
                raise Refusal("INVALID_ARGUMENT", str(error)) from None
            response = predict_pb2.PredictResponse()
            for name, value in version.predict(signature, inputs).items():
                if not request.output_filter or name in request.output_filter:
                    response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            self._name(response.model_spec, version)
            response.model_spec.signature_name = signature or "serving_default"
            return response

    def GetModelMetadata(self, request, context):
        """Signatures."""
        with _refusing(context):
            version = self._find(request.model_spec)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version.signatures.items():
                signatures.signature_def[name].CopyFrom(definition)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            self._name(response.model_spec, version)
            response.metadata["signature_def"].Pack(signatures)
            return response

    def GetModelStatus(self, request, context):
        """States of the versions."""
        with _refusing(context):
            response = get_model_status_pb2.GetModelStatusResponse()
            state = get_model_status_pb2.ModelVersionStatus.State
            for number, name, text in self._model.status(request.model_spec.name, request.model_spec.version.value):
                entry = response.model_version_status.add(version=number, state=state.Value(name))
                entry.status.error_message = text
            return response

    def _find(self, spec: model_pb2.ModelSpec) -> Version:
        if spec.version_label:
            raise Refusal("INVALID_ARGUMENT", "labels are not supported here")
        return self._model.get(spec.name, spec.version.value)

    def _name(self, spec: model_pb2.ModelSpec, version: Version) -> None:
        """Writes into a response which model and version it is from."""
        spec.name = self._model.name
        spec.version.value = version.number


def _array(name: str, value) -> np.ndarray:
    """A TensorProto as an array.

    A proto may state one number for all entries, so a request of a few bytes may ask for an array of any size.

    Raises:
      Refusal: the array would be larger than the largest request.
      TypeError, ValueError: it is no array.
    """
    count = math.prod(d.size for d in value.tensor_shape.dim)
    if count * max(1, tf.as_dtype(value.dtype).size or 1) > LARGEST_REQUEST:
        raise Refusal("INVALID_ARGUMENT", f"{name} has {count} numbers, more than {LARGEST_REQUEST} bytes")
    return tf.make_ndarray(value)


@contextlib.contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns a Refusal into gRPC's status."""
    try:
        yield
    except Refusal as refusal:
        context.abort(grpc.StatusCode[refusal.code], str(refusal))


@contextlib.contextmanager
def listening(model: Model, address: str) -> Iterator[int]:
    """Answers in threads of its own while the context is entered; yields the port, a free one for 0.

    Args:
      address: host:port.

    Raises:
      RuntimeError: the port is taken.
    """
    options = [("grpc.max_receive_message_length", LARGEST_REQUEST), ("grpc.so_reuseport", 0)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(_THREADS), options=options)
    services = _Services(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(1).wait()
