"""The served model: the newest version below a directory, loaded by TensorFlow's session loader."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from trpo_tf.errors import described, first_line, one_line
from trpo_tf.serving import warm_up
from trpo_tf.serving.saved_model import versions
from trpo_tf.serving.server import LARGEST_BATCH, LONGEST_TEXT


class Refusal(Exception):
    """A request that is not answered.

    Args:
      code: the name of gRPC's status.
      text: the reason; becomes one line of at most LONGEST_TEXT characters.
    """

    def __init__(self, code: str, text: str):
        super().__init__(one_line(text, LONGEST_TEXT))
        self.code = code


class Version:
    """One version, loaded; its warm-up requests have been answered.

    Raises:
      Exception: it cannot be loaded, or a warm-up request fails.
    """

    def __init__(self, path: Path):
        self.number = int(path.name)
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
            self.signatures = {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}
            self._answer_warm_up(path / warm_up.FILE)
        except BaseException:
            self._session.close()
            raise

    def _answer_warm_up(self, requests: Path) -> None:
        for record in tf.data.TFRecordDataset(str(requests)) if requests.is_file() else ():
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs)

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """The signature of a name; an empty name means serving_default.

        Raises:
          Refusal: there is no such signature.
        """
        name = name or "serving_default"
        if name not in self.signatures:
            raise Refusal("FAILED_PRECONDITION", f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs of a signature, [N, ...] by name.

        Args:
          inputs: [N, ...] by name, of exactly the types of the signature.

        Raises:
          Refusal: inputs are missing, unknown, or of another type or shape.
        """
        definition = self.signature(signature)
        check_names(inputs, definition)
        check_inputs({name: (tf.as_dtype(x.dtype).as_datatype_enum, x.shape) for name, x in inputs.items()}, definition)
        fetched = {name: info.name for name, info in definition.outputs.items()}
        feed = {definition.inputs[name].name: x for name, x in inputs.items()}
        try:
            return self._session.run(fetched, feed)
        except tf.errors.OpError as error:
            raise Refusal("INVALID_ARGUMENT", error.message) from None


def check_names(inputs, definition: meta_graph_pb2.SignatureDef) -> None:
    """Raises Refusal unless the inputs have the names of a signature."""
    wanted, given = set(definition.inputs), set(inputs)
    if wanted != given:
        missing, unknown = ", ".join(sorted(wanted - given)), ", ".join(sorted(given - wanted))
        raise Refusal("INVALID_ARGUMENT", f"inputs missing: [{missing}]; unknown: [{unknown}]")


def check_inputs(inputs: dict[str, tuple[int, tuple[int, ...]]], definition: meta_graph_pb2.SignatureDef) -> None:
    """Refuses what the signature does not take, from types and shapes alone: before any array is made.

    Args:
      inputs: number of the type and shape by name, of the signature's names.

    Raises:
      Refusal: a type or shape is another, the batch is empty or too large, or inputs have different batches.
    """
    batches = {shape[0] if shape else None for _, shape in inputs.values()}
    for name, (dtype, shape) in inputs.items():
        info = definition.inputs[name]
        wanted = [d.size for d in info.tensor_shape.dim]
        if len(shape) != len(wanted) or list(shape[1:]) != wanted[1:] or len(batches) > 1:
            raise Refusal(
                "INVALID_ARGUMENT", f"{name} has shape {_short(shape)}; {wanted} is needed, -1 the same for all"
            )
        if dtype != info.dtype:
            raise Refusal("INVALID_ARGUMENT", f"{name} is {_type_name(dtype)}; {_type_name(info.dtype)} is needed")
        if shape[0] < 1:
            raise Refusal("INVALID_ARGUMENT", "the batch is empty")
        if shape[0] > LARGEST_BATCH:
            raise Refusal("INVALID_ARGUMENT", f"{name} has {shape[0]} rows; a request may have {LARGEST_BATCH}")


def _short(shape: tuple[int, ...]) -> list:
    return list(shape) if len(shape) <= 8 else [*shape[:8], "..."]


def _type_name(number: int) -> str:
    """The name of a type by its number in types.proto; any number may come in a request."""
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"type {number}"


class Model:
    """The newest version below a directory. A newer one is loaded first, and then takes its place.

    A version that cannot be loaded is tried again when one of its files changes: it may have been under way.

    Args:
      name: the name that requests ask for.
      base: the directory of versions.
      warn: called with one line where a version cannot be loaded.
    """

    def __init__(self, name: str, base: Path, warn: Callable[[str], None]):
        self.name, self._base, self._warn = name, base, warn
        self._version: Version | None = None
        self._failed: dict[int, str] = {}
        self._tried: tuple[int, frozenset] | None = None  # the newest one when it failed: number and files
        self._closing = threading.Event()

    @property
    def number(self) -> int | None:
        """The number of the version that is served; None before the first one."""
        return self._version.number if self._version else None

    def refresh(self) -> bool:
        """Loads the newest version where it is not the served one. Returns whether it is served now."""
        try:
            newest = max(versions(self._base), default=None)
        except OSError:
            return False
        if newest is None or newest == self.number:
            return False
        path = self._base / str(newest)
        now = newest, _state(path)
        if now == self._tried:
            return False
        try:
            self._version = Version(path)
        except Exception as error:
            self._tried = now
            self._fail(newest, first_line(error))
            return False
        self._failed.pop(newest, None)
        return True

    def _fail(self, number: int, text: str) -> None:
        if self._failed.get(number) != text:
            self._warn(f"version {number} is not served: {text}")
        self._failed[number] = text

    def watch(self, seconds: float, changed: Callable[[int], None]) -> None:
        """Calls refresh every so many seconds until close; calls changed(number) after every exchange.

        What a look raises is said once, and the next look is taken all the same.
        """
        said = ""
        while not self._closing.wait(seconds):
            try:
                if self.refresh() and self.number is not None:
                    changed(self.number)
            except Exception as error:
                text = f"{self._base}: looking for versions failed: {described(error)}"
                if text != said:
                    self._warn(text)
                said = text

    def close(self) -> None:
        """Ends watch."""
        self._closing.set()

    def get(self, name: str, number: int | None = None) -> Version:
        """The version that answers a request; without a number, the newest.

        Raises:
          Refusal: another model or version is asked for, or no version is served yet.
        """
        version = self._version
        if name != self.name or version is None or number not in (None, version.number):
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {asked}")
        return version

    def status(self, name: str, number: int | None = None) -> list[tuple[int, str, str]]:
        """Number, state and error of the served version and of those that could not be loaded; of one, or of all.

        Raises:
          Refusal: another model or version is asked for.
        """
        known = [(failed, "END", text) for failed, text in self._failed.copy().items()]
        if self._version:
            known.append((self._version.number, "AVAILABLE", ""))
        known = [entry for entry in sorted(known, reverse=True) if number in (None, entry[0])]
        if name != self.name or not known:
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        return known


def _state(directory: Path) -> frozenset:
    """Path, size and time of every file below a directory: another one when something was written."""
    found = set()
    for path in (directory, *directory.rglob("*")):
        try:
            stat = path.lstat()
        except OSError:  # removed meanwhile
            continue
        found.add((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return frozenset(found)
