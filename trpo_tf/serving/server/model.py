"""The served model: the newest version below a directory, loaded by TensorFlow's session loader."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from trpo_tf.serving import warm_up
from trpo_tf.serving.saved_model import versions


class Refusal(Exception):
    """A request that is not answered.

    Args:
      code: the name of gRPC's status.
      text: the reason; becomes one line of at most 500 characters.
    """

    def __init__(self, code: str, text: str):
        super().__init__(" ".join(text.split())[:500])
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
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        self.signatures = {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}
        requests = path / warm_up.FILE
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
        _check_inputs(inputs, definition.inputs)
        fetched = {name: info.name for name, info in definition.outputs.items()}
        feed = {definition.inputs[name].name: x for name, x in inputs.items()}
        try:
            return self._session.run(fetched, feed)
        except tf.errors.OpError as error:
            raise Refusal("INVALID_ARGUMENT", error.message) from None


def _check_inputs(inputs: dict[str, np.ndarray], infos: dict[str, meta_graph_pb2.TensorInfo]) -> None:
    """Raises Refusal unless the inputs have the names, types and shapes of a signature, and equally many rows."""
    wanted, given = set(infos), set(inputs)
    if wanted != given:
        missing, unknown = ", ".join(sorted(wanted - given)), ", ".join(sorted(given - wanted))
        raise Refusal("INVALID_ARGUMENT", f"inputs missing: [{missing}]; unknown: [{unknown}]")
    batch_sizes = {len(x) if x.ndim else None for x in inputs.values()}
    for name, x in inputs.items():
        shape = [d.size for d in infos[name].tensor_shape.dim]
        if x.ndim != len(shape) or list(x.shape[1:]) != shape[1:] or len(batch_sizes) > 1 or None in batch_sizes:
            raise Refusal(
                "INVALID_ARGUMENT", f"{name} has shape {list(x.shape)}; {shape} is needed, -1 the same for all"
            )
        dtype = tf.as_dtype(infos[name].dtype)
        if tf.as_dtype(x.dtype) != dtype:
            raise Refusal("INVALID_ARGUMENT", f"{name} is {x.dtype}; {dtype.name} is needed")
    if batch_sizes == {0}:
        raise Refusal("INVALID_ARGUMENT", "the batch is empty")


class Model:
    """The newest version below a directory. A newer one is loaded first, and then takes its place.

    Args:
      name: the name that requests ask for.
      base: the directory of versions.
      warn: called with one line where a version cannot be loaded. Such a version is not tried again.
    """

    def __init__(self, name: str, base: Path, warn: Callable[[str], None]):
        self.name, self._base, self._warn = name, base, warn
        self._version: Version | None = None
        self._failed: dict[int, str] = {}
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
        if newest is None or newest == self.number or newest in self._failed:
            return False
        try:
            self._version = Version(self._base / str(newest))
        except Exception as error:
            self._failed[newest] = " ".join(str(error).split())[:300]
            self._warn(f"version {newest} is not served: {self._failed[newest]}")
            return False
        return True

    def watch(self, seconds: float, changed: Callable[[int], None]) -> None:
        """Calls refresh every so many seconds until close; calls changed(number) after every exchange."""
        while not self._closing.wait(seconds):
            if self.refresh() and self.number is not None:
                changed(self.number)

    def close(self) -> None:
        """Ends watch."""
        self._closing.set()

    def get(self, name: str, number: int = 0) -> Version:
        """The version that answers a request; number 0 means the newest.

        Raises:
          Refusal: another model or version is asked for, or no version is served yet.
        """
        version = self._version
        if name != self.name or version is None or number not in (0, version.number):
            asked = f"Specific({name}, {number})" if number else f"Latest({name})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {asked}")
        return version

    def status(self, name: str, number: int = 0) -> list[tuple[int, str, str]]:
        """Number, state and error of the served version and of those that could not be loaded; number 0 means all.

        Raises:
          Refusal: another model or version is asked for.
        """
        known = [(failed, "END", text) for failed, text in self._failed.items()]
        if self._version:
            known.append((self._version.number, "AVAILABLE", ""))
        known = [entry for entry in sorted(known, reverse=True) if number in (0, entry[0])]
        if name != self.name or not known:
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        return known
