"""A server for development: of TF Serving's REST and gRPC interfaces what clients of a policy use, on one model.

The model runs through the session loader, so that what would fail in TF Serving fails here. Left out: batching of
requests, several models, labels, Classify and Regress, gzip, monitoring, authentication, encryption.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import math
import signal
import threading
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from aiohttp import web
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from trpo_tf.config import ServeConfig, UsageError, first_line
from trpo_tf.run.metrics import warn
from trpo_tf.run.saved_model import WARM_UP, versions

_LARGEST = 32 << 20  # bytes of a request
_THREADS = 4
_HTTP = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404}


class Refusal(Exception):
    """Why a request gets no answer.

    Args:
      code: the name of gRPC's status.
      text: one line.
    """

    def __init__(self, code: str, text: str):
        super().__init__(" ".join(text.split())[:500])
        self.code = code


class Version:
    """One version, loaded and warm.

    Raises:
      Exception: it cannot be loaded, or a warm-up request fails.
    """

    def __init__(self, path: Path):
        self.number = int(path.name)
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph)
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        self.signatures = {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}
        requests = path / WARM_UP
        for record in tf.data.TFRecordDataset(str(requests)) if requests.is_file() else ():
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs)

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """A signature by its name; serving_default for none.

        Raises:
          Refusal: there is none.
        """
        name = name or "serving_default"
        if name not in self.signatures:
            raise Refusal("FAILED_PRECONDITION", f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs.

        Raises:
          Refusal: inputs are missing, unknown, or of another type or shape.
        """
        definition = self.signature(signature)
        wanted, given = set(definition.inputs), set(inputs)
        if wanted != given:
            missing, unknown = ", ".join(sorted(wanted - given)), ", ".join(sorted(given - wanted))
            raise Refusal("INVALID_ARGUMENT", f"inputs missing: [{missing}]; unknown: [{unknown}]")
        rows = {len(x) if x.ndim else None for x in inputs.values()}
        for name, x in inputs.items():
            info = definition.inputs[name]
            shape = [d.size for d in info.tensor_shape.dim]
            if x.ndim != len(shape) or list(x.shape[1:]) != shape[1:] or len(rows) > 1 or None in rows:
                raise Refusal(
                    "INVALID_ARGUMENT", f"{name} has shape {list(x.shape)}; {shape} is needed, -1 the same for all"
                )
            if tf.as_dtype(x.dtype) != tf.as_dtype(info.dtype):
                raise Refusal("INVALID_ARGUMENT", f"{name} is {x.dtype}; {tf.as_dtype(info.dtype).name} is needed")
        if rows == {0}:
            raise Refusal("INVALID_ARGUMENT", "the batch is empty")
        fetched = {name: info.name for name, info in definition.outputs.items()}
        feed = {definition.inputs[name].name: x for name, x in inputs.items()}
        try:
            return self._session.run(fetched, feed)
        except tf.errors.OpError as error:
            raise Refusal("INVALID_ARGUMENT", error.message) from None


class Model:
    """The newest version below a directory, exchanged when another appears: loaded first, the old one dropped then.

    Args:
      name: it is served under.
      base: the directory of versions.
      warn: called with one line where a version cannot be loaded.
    """

    def __init__(self, name: str, base: Path, warn):
        self.name, self._base, self._warn = name, base, warn
        self._version: Version | None = None
        self._failed: dict[int, str] = {}
        self._closing = threading.Event()

    @property
    def number(self) -> int | None:
        """The version that is served, or None."""
        return self._version.number if self._version else None

    def refresh(self) -> bool:
        """Looks for the newest version; whether another is served now."""
        try:
            newest = max(versions(self._base), default=None)
        except OSError:
            return False
        if newest is None or newest == self.number or newest in self._failed:
            return False
        try:
            self._version = Version(self._base / str(newest))
        except Exception as error:
            self._failed[newest] = " ".join(str(error).split())[:300]
            self._warn(f"version {newest} is not served: {self._failed[newest]}")
            return False
        return True

    def watch(self, seconds: float, changed) -> None:
        """Refreshes until closed; changed(number) after every exchange."""
        while not self._closing.wait(seconds):
            if self.refresh():
                changed(self._version.number)

    def close(self) -> None:
        """Ends watch."""
        self._closing.set()

    def get(self, name: str, number: int = 0) -> Version:
        """The version that answers.

        Raises:
          Refusal: another model or version was asked for, or none is there.
        """
        version = self._version
        if name != self.name or version is None or number not in (0, version.number):
            asked = f"Specific({name}, {number})" if number else f"Latest({name})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {asked}")
        return version

    def status(self, name: str, number: int = 0) -> list[tuple[int, str, str]]:
        """Number, state and error of every version that was loaded or refused.

        Raises:
          Refusal: another model or version was asked for.
        """
        known = [(n, "END", text) for n, text in self._failed.items()]
        if self._version:
            known.append((self._version.number, "AVAILABLE", ""))
        known = [entry for entry in sorted(known, reverse=True) if number in (0, entry[0])]
        if name != self.name or not known:
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        return known


def parse(body, signature: meta_graph_pb2.SignatureDef) -> tuple[dict[str, np.ndarray], bool]:
    """Inputs of a request in JSON, and whether it has rows ("instances") rather than columns ("inputs").

    Raises:
      Refusal: it has neither or both, or what is in it is no array of the input's type.
    """
    if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
        raise Refusal("INVALID_ARGUMENT", 'the body has to be an object with either "instances" or "inputs"')
    names = set(signature.inputs)
    by_row = "instances" in body
    if by_row:
        rows = body["instances"]
        if not isinstance(rows, list) or not rows:
            raise Refusal("INVALID_ARGUMENT", '"instances" has to be a list with something in it')
        if len(names) == 1 and not isinstance(rows[0], dict):
            rows = [{next(iter(names)): row} for row in rows]
        if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
            raise Refusal("INVALID_ARGUMENT", "every instance has to have the same inputs")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        columns = body["inputs"]
        if len(names) == 1 and not isinstance(columns, dict):
            columns = {next(iter(names)): columns}
        if not isinstance(columns, dict):
            raise Refusal("INVALID_ARGUMENT", '"inputs" has to name its columns')
    known = {name: column for name, column in columns.items() if name in names}
    arrays = {name: _array(name, column, signature.inputs[name].dtype) for name, column in known.items()}
    return arrays | {name: np.zeros(0) for name in columns.keys() - names}, by_row


def _array(name: str, value, dtype: int) -> np.ndarray:
    wanted = tf.as_dtype(dtype).as_numpy_dtype
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[np.dtype(wanted).kind]
    try:
        x = np.array(value)
    except ValueError:
        raise Refusal("INVALID_ARGUMENT", f"{name} is ragged: its parts have different lengths") from None
    if x.size and x.dtype.kind not in kinds:
        raise Refusal("INVALID_ARGUMENT", f"{name} holds something else than {np.dtype(wanted).name}")
    if np.dtype(wanted).kind in "iu" and x.size:
        limits = np.iinfo(wanted)
        if x.min() < limits.min or x.max() > limits.max:
            raise Refusal("INVALID_ARGUMENT", f"{name} has numbers outside of {np.dtype(wanted).name}")
    if np.dtype(wanted).kind == "f" and x.size:
        most = 2**24 if x.dtype.kind in "iu" else np.finfo(wanted).max  # the whole numbers that float32 knows apart
        if (np.isfinite(x) & (np.abs(x) > most)).any():
            raise Refusal("INVALID_ARGUMENT", f"{name} has numbers that {np.dtype(wanted).name} does not hold")
    return x.astype(wanted)


def rest(model: Model) -> web.Application:
    """GET /v1/models/NAME[/versions/N][/metadata], POST /v1/models/NAME[/versions/N]:predict."""

    def asked(request) -> tuple[str, int]:
        number = request.match_info.get("version", "0")
        if len(number) > 18 or ("version" in request.match_info and int(number) == 0):
            raise Refusal("NOT_FOUND", f"there is no version {number}")
        return request.match_info["name"], int(number)

    async def status(request):
        entries = [
            {
                "version": str(number),
                "state": state,
                "status": {"error_code": "UNKNOWN" if text else "OK", "error_message": text},
            }
            for number, state, text in model.status(*asked(request))
        ]
        return web.json_response({"model_version_status": entries})

    async def metadata(request):
        version = model.get(*asked(request))
        signatures = {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, definition in version.signatures.items()
        }
        spec = {"name": model.name, "signature_name": "", "version": str(version.number)}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    async def predict(request):
        version = model.get(*asked(request))
        body = await request.read()
        return web.json_response(await asyncio.to_thread(_answer, version, body))

    @web.middleware
    async def errors(request, handler):
        try:
            return await handler(request)
        except Refusal as refusal:
            return web.json_response({"error": str(refusal)}, status=_HTTP[refusal.code])
        except web.HTTPRequestEntityTooLarge:
            return web.json_response({"error": f"a request may have {_LARGEST} bytes"}, status=413)
        except web.HTTPException:
            return web.json_response({"error": f"Malformed request: {request.method} {request.path}"}, status=400)
        except Exception as error:
            return web.json_response({"error": f"{type(error).__name__}: {first_line(error)}"}, status=500)

    application = web.Application(middlewares=[errors], client_max_size=_LARGEST)
    for place in (r"/v1/models/{name:[^/:]+}", r"/v1/models/{name:[^/:]+}/versions/{version:\d+}"):
        application.router.add_get(place, status)
        application.router.add_get(f"{place}/metadata", metadata)
        application.router.add_post(f"{place}:predict", predict)
    return application


def _answer(version: Version, text: bytes) -> dict:
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


class _Services(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Predict, GetModelMetadata and GetModelStatus."""

    def __init__(self, model: Model):
        self._model = model

    def Predict(self, request, context):
        """Answers a PredictRequest."""
        with _refusing(context):
            version, signature = self._find(request.model_spec), request.model_spec.signature_name
            version.signature(signature)
            try:
                inputs = {name: _tensor(name, value) for name, value in request.inputs.items()}
            except (TypeError, ValueError) as error:
                raise Refusal("INVALID_ARGUMENT", str(error)) from None
            answer = predict_pb2.PredictResponse()
            for name, value in version.predict(signature, inputs).items():
                if not request.output_filter or name in request.output_filter:
                    answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            self._sign(answer.model_spec, version).signature_name = signature or "serving_default"
            return answer

    def GetModelMetadata(self, request, context):
        """Signatures."""
        with _refusing(context):
            version = self._find(request.model_spec)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version.signatures.items():
                signatures.signature_def[name].CopyFrom(definition)
            answer = get_model_metadata_pb2.GetModelMetadataResponse()
            self._sign(answer.model_spec, version)
            answer.metadata["signature_def"].Pack(signatures)
            return answer

    def GetModelStatus(self, request, context):
        """States of the versions."""
        with _refusing(context):
            answer = get_model_status_pb2.GetModelStatusResponse()
            state = get_model_status_pb2.ModelVersionStatus.State
            for number, name, text in self._model.status(request.model_spec.name, request.model_spec.version.value):
                entry = answer.model_version_status.add(version=number, state=state.Value(name))
                entry.status.error_message = text
            return answer

    def _find(self, spec) -> Version:
        if spec.version_label:
            raise Refusal("INVALID_ARGUMENT", "labels are not supported here")
        return self._model.get(spec.name, spec.version.value)

    def _sign(self, spec, version: Version):
        spec.name = self._model.name
        spec.version.value = version.number
        return spec


def _tensor(name: str, value) -> np.ndarray:
    """A tensor of a request; a few bytes of one may stand for any number of rows."""
    count = math.prod(d.size for d in value.tensor_shape.dim)
    if count * max(1, tf.as_dtype(value.dtype).size or 1) > _LARGEST:
        raise Refusal("INVALID_ARGUMENT", f"{name} has {count} numbers, more than {_LARGEST} bytes")
    return tf.make_ndarray(value)


@contextlib.contextmanager
def _refusing(context):
    try:
        yield
    except Refusal as refusal:
        context.abort(grpc.StatusCode[refusal.code], str(refusal))


@contextlib.contextmanager
def grpc_server(model: Model, address: str):
    """The gRPC interface, while it is entered; yields its port.

    Raises:
      RuntimeError: the address is taken.
    """
    options = [("grpc.max_receive_message_length", _LARGEST), ("grpc.so_reuseport", 0)]
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


@contextlib.contextmanager
def rest_server(model: Model, host: str, port: int):
    """The REST interface, while it is entered; yields its port.

    Raises:
      OSError: the address is taken.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    runner = web.AppRunner(rest(model), access_log=None)
    try:
        run(runner.setup())
        run(web.TCPSite(runner, host, port).start())
        yield runner.addresses[0][1]
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextlib.contextmanager
def running(config: ServeConfig, changed=lambda number: None):
    """Both interfaces of the newest version below config.model_dir, while it is entered.

    changed: called with the number of a version that has taken the place of another.

    Yields:
      The model, and the ports of REST and gRPC.

    Raises:
      UsageError: a port is taken.
    """
    model = Model(config.model_name, Path(config.model_dir), warn)
    model.refresh()
    watcher = threading.Thread(target=model.watch, args=(config.poll_seconds, changed), daemon=True)
    with contextlib.ExitStack() as stack:
        try:
            grpc_port = stack.enter_context(grpc_server(model, f"{config.host}:{config.grpc_port}"))
            rest_port = stack.enter_context(rest_server(model, config.host, config.rest_port))
        except (OSError, RuntimeError) as error:
            ports = f"--rest_port={config.rest_port} --grpc_port={config.grpc_port}"
            raise UsageError(f"{ports}: {first_line(error)}") from error
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(model.close)
        yield model, rest_port, grpc_port


def serve(config: ServeConfig) -> None:
    """Serves, and says so, until the process is interrupted or terminated.

    Raises:
      UsageError: a port is taken.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with running(config, lambda number: print(f"version {number}", flush=True)) as (model, rest_port, grpc_port):
        url = f"http://{config.host}:{rest_port}/v1/models/{model.name}"
        print(f"REST {url}  gRPC {config.host}:{grpc_port}", flush=True)
        print(f"version {model.number}" if model.number else f"waiting for a version in {config.model_dir}", flush=True)
        stopped.wait()
