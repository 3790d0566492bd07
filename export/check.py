"""Checks whether the SavedModel of a policy will work in TF Serving. Prints every rule and the reason where it fails.

    python export/check.py MODEL_DIR [--requests=64]

MODEL_DIR is one version, the directory that holds saved_model.pb. The model runs in TensorFlow's session loader, as it
does in TF Serving. This file stands alone: it needs tensorflow and nothing of trpo_tf.

Exit status: 0 every rule holds, 1 a rule fails, 2 there is no SavedModel.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

tf.get_logger().setLevel("ERROR")
logging.set_verbosity(logging.ERROR)

FLAGS = flags.FLAGS
flags.DEFINE_integer("requests", 64, "rows of the random requests", lower_bound=4)

SIGNATURES = {  # inputs besides the observation, outputs besides the action
    "serving_default": ((), ("value", "valid")),
    "sample": (("seed",), ("log_prob", "raw_action", "valid", "value")),
    "evaluate": (("raw_action",), ("entropy", "log_prob", "valid", "value")),
    "distribution": ((), ("valid",)),
}
NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
TYPES = {tf.float32, tf.int8, tf.uint8, tf.int16, tf.int32, tf.int64, tf.bool, tf.string}  # JSON can state them
FORBIDDEN = {  # besides the operations that TensorFlow calls stateful, of which ALLOWED are the exceptions
    "runs Python, which a server does not have": {"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"},
    "reads files": {"ReadFile", "MatchingFiles"},
}
ALLOWED = {
    "Assert", "Case", "If", "PartitionedCall", "Placeholder", "PlaceholderWithDefault", "ReadVariableOp",
    "StatefulPartitionedCall", "VarHandleOp", "VarIsInitializedOp", "While",
}  # fmt: skip
METADATA = (
    "env", "observation_space", "action_space", "algorithm", "flags", "seed", "env_steps", "evaluation", "versions",
    "signatures",
)  # fmt: skip
DRAWS = 256  # of the same observation
CERTAIN = 0.2  # nats of entropy below which all draws of a discrete action may be equal
BATCH_SIZES = (1, 8, 32)  # of the warm-up requests
METADATA_FILE, WARM_UP_FILE = "assets.extra/policy.json", "assets.extra/tf_serving_warmup_requests"


class Failed(Exception):
    """A rule fails; the text is the reason."""


class Model:
    """A SavedModel: its directory, its graph, and a session in which it is loaded.

    Attributes:
      signatures: SignatureDef by name.
      functions: all functions of the graph by name.
      used: names of the functions that signatures and the initialisation call.
      nodes: the nodes that they run.

    Args:
      path: the directory of one version.
      rows: batch size of the random requests.
    """

    def __init__(self, path: Path, rows: int):
        self.path, self.rows = path, rows
        meta_graph, *_ = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
        self.graph_def = meta_graph.graph_def
        self.signatures = {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}
        self._initialisation = meta_graph.signature_def.get("__saved_model_init_op")
        self.functions = {f.signature.name: f for f in self.graph_def.library.function}
        self.used, self.nodes = self._reach()
        self._session = None

    def _reach(self):
        """Walks the graph backwards from the outputs, and into the functions that are called: `used` and `nodes`."""
        by_name = {node.name: node for node in self.graph_def.node}
        roots = [*self.signatures.values(), *([self._initialisation] if self._initialisation else [])]
        waiting = [t.name for s in roots for t in s.outputs.values()]
        seen, nodes = set(), []
        while waiting:
            name = waiting.pop().lstrip("^").partition(":")[0]
            if name in by_name and name not in seen:
                seen.add(name)
                nodes.append(by_name[name])
                waiting += by_name[name].input
        used, queue = set(), list(nodes)
        while queue:
            for value in queue.pop().attr.values():
                for function in [value.func.name, *(f.name for f in value.list.func)]:
                    if function in self.functions and function not in used:
                        used.add(function)
                        queue += self.functions[function].node_def
                        nodes += self.functions[function].node_def
        return used, nodes

    def run(self, signature: str, inputs: dict) -> dict[str, np.ndarray]:
        """The outputs of a signature by name. The first call loads the model.

        Raises:
          Failed: the session loader or the graph refuses.
        """
        try:
            if self._session is None:
                graph = tf.Graph()
                with graph.as_default():
                    session = tf.compat.v1.Session(graph=graph)
                    tf.compat.v1.saved_model.loader.load(session, ["serve"], str(self.path))
                self._session = session
            definition = self.signatures[signature]
            feed = {definition.inputs[name].name: value for name, value in inputs.items()}
            return self._session.run({name: info.name for name, info in definition.outputs.items()}, feed)
        except (tf.errors.OpError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
            reason = re.sub(r"\s+", " ", str(getattr(error, "message", None) or error))
            raise Failed(f"{signature}: {reason[:200]}") from None

    def request(self, signature: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs of a signature, [rows, ...] by name.

        Floats are random. Whole numbers and recurrent states are those of a warm-up request, because not every number
        is in a Discrete space and not every vector is a state. raw_action is a draw of `sample`.
        """
        random, inputs, known = np.random.default_rng(seed), {}, self._recorded(signature)
        for name, info in sorted(self.signatures[signature].inputs.items()):
            shape = (self.rows, *(max(d.size, 1) for d in info.tensor_shape.dim[1:]))
            dtype = tf.as_dtype(info.dtype)
            if name == "raw_action" and "sample" in self.signatures:
                inputs[name] = self.run("sample", self.request("sample", seed)).get("raw_action")
            elif name in known and name != "seed" and (not dtype.is_floating or name.endswith("_state")):
                inputs[name] = np.resize(known[name], shape)
            elif dtype.is_floating:
                inputs[name] = random.normal(size=shape).astype(dtype.as_numpy_dtype)
            elif dtype == tf.string:
                inputs[name] = np.full(shape, b"")
            else:
                most = 2 if name.startswith("action_mask") or dtype == tf.bool else 120
                inputs[name] = random.integers(0, most, shape).astype(dtype.as_numpy_dtype)
        return inputs

    def _recorded(self, signature: str) -> dict[str, np.ndarray]:
        """Inputs of the largest warm-up request of a signature; empty where there is none."""
        try:
            found = [inputs for name, inputs, _ in _warm_up(self.path) if name == signature]
        except Failed:
            found = []
        return max(found, key=lambda inputs: max(map(len, inputs.values())), default={})


def the_directory_is_a_number(model):
    """A server skips other directories, and serves the greatest number."""
    if not model.path.name.isdigit():
        raise Failed(f"it is called {model.path.name}; rename it to a whole number")


def the_signatures_are_there(model):
    """serving_default, sample, evaluate and distribution are there, with their inputs and outputs."""
    for signature, (inputs, outputs) in SIGNATURES.items():
        if signature not in model.signatures:
            raise Failed(f"{signature} is missing")
        definition = model.signatures[signature]
        if signature in ("serving_default", "sample"):
            outputs = (*outputs, *_actions(model))
        for kind, wanted, there in (("input", inputs, definition.inputs), ("output", outputs, definition.outputs)):
            for name in wanted:
                if name not in there:
                    raise Failed(f"{signature} has no {kind} {name}")
    for signature, definition in model.signatures.items():
        if not definition.inputs:
            raise Failed(f"{signature} has no input, which a request cannot state")
        if len(definition.outputs) < 2:
            raise Failed(f"{signature} has one output, whose name a REST answer omits")


def every_tensor_is_a_batch(model):
    """Shapes are [batch, ...], only the batch is unknown; JSON can state the type; names are [a-z][a-z0-9_]*."""
    for signature, definition in model.signatures.items():
        for name, info in (*definition.inputs.items(), *definition.outputs.items()):
            where, shape = f"{signature}: {name}", [d.size for d in info.tensor_shape.dim]
            if not NAME.match(name):
                raise Failed(f"{where!r} is not a name of lower-case letters, digits and _")
            if info.tensor_shape.unknown_rank or not shape:
                raise Failed(f"{where} has no batch axis")
            if shape[0] != -1:
                raise Failed(f"{where} has a batch of {shape[0]}; it has to be unknown")
            if name in definition.inputs and -1 in shape[1:]:
                raise Failed(f"{where} has an unknown axis besides the batch: {shape}")
            if tf.as_dtype(info.dtype) not in TYPES:
                raise Failed(f"{where} is {tf.as_dtype(info.dtype).name}, which JSON cannot state")


def operations_depend_on_the_request_only(model):
    """No operation runs Python, reads files, draws from a hidden random state or changes a variable."""
    for node in model.nodes:
        for reason, operations in FORBIDDEN.items():
            if node.op in operations:
                raise Failed(f"{node.op} {reason}")
        known = op_def_registry.get(node.op)
        if known is not None and known.is_stateful and node.op not in ALLOWED:
            raise Failed(f"{node.op} has a state besides the request")


def no_function_requires_xla(model):
    """TF Serving is built without XLA. A function that must be compiled by XLA fails at the first request."""
    for name in sorted(model.used):
        if model.functions[name].attr["_XlaMustCompile"].b:
            raise Failed(f"{name} was made with jit_compile=True")
    for node in model.nodes:
        if node.attr["_XlaMustCompile"].b:
            raise Failed(f"{node.name} was made with jit_compile=True")


def variables_are_stored_once(model):
    """Every variable is finite and is read by a signature; no two are equal."""
    try:
        reader = tf.train.load_checkpoint(str(model.path / "variables" / "variables"))
        names = [n for n in reader.get_variable_to_shape_map() if not n.startswith("_CHECKPOINTABLE")]
        values = {name: reader.get_tensor(name) for name in sorted(names)}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise Failed(f"variables cannot be read: {str(error)[:200]}") from None
    contents = {}
    for name, value in values.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise Failed(f"{name} is not finite")
        if value.size > 1 and value.dtype.kind == "f" and np.ptp(value) > 0:
            twin = contents.setdefault((value.shape, value.tobytes()), name)
            if twin != name:
                raise Failed(f"{name} and {twin} hold the same numbers")
    read = sum(node.op == "VarHandleOp" for node in model.nodes)
    stored = sum(not name.startswith("save_counter") for name in values)
    if stored > read:
        raise Failed(f"{stored} variables are stored, and {read} read by signatures")


def the_metadata_is_complete_and_correct(model):
    """policy.json has every entry, describes the signatures as they are, and names no newer TensorFlow than this."""
    path = model.path / METADATA_FILE
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failed(f"{METADATA_FILE}: {error}") from None
    for name in METADATA:
        if name not in metadata:
            raise Failed(f"{METADATA_FILE} has no {name}")
    for signature, definition in model.signatures.items():
        told = metadata["signatures"].get(signature)
        if told is None:
            raise Failed(f"{METADATA_FILE} does not know the signature {signature}")
        for kind, there in (("inputs", definition.inputs), ("outputs", definition.outputs)):
            actual = {
                name: {"dtype": tf.as_dtype(t.dtype).name, "shape": [d.size for d in t.tensor_shape.dim]}
                for name, t in there.items()
            }
            if told[kind] != actual:
                raise Failed(f"{METADATA_FILE} is wrong about the {kind} of {signature}")
    theirs, ours = metadata["versions"].get("tensorflow", "0.0"), tf.__version__
    if [int(n) for n in theirs.split(".")[:2]] > [int(n) for n in ours.split(".")[:2]]:
        raise Failed(f"it was written by TensorFlow {theirs}, and this is {ours}; a server must not be older")


def every_signature_answers(model):
    """Outputs for ordinary numbers are [batch, ...] and finite."""
    for signature in model.signatures:
        for name, value in model.run(signature, model.request(signature)).items():
            if value.ndim < 1 or len(value) != model.rows:
                raise Failed(f"{signature}: {name} has shape {value.shape} for {model.rows} rows")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise Failed(f"{signature}: {name} is not finite for ordinary numbers")


def any_request_gets_finite_actions(model):
    """Outputs are finite for NaN, infinity and the greatest numbers; `valid` is false for those rows only."""
    for signature in model.signatures:
        inputs = model.request(signature)
        if not model.run(signature, inputs).get("valid", np.ones(1, bool)).all():
            raise Failed(f"{signature}: valid is false for ordinary numbers")
        for name, value in inputs.items():
            for bad in _bad(name, value.dtype):
                asked = value.copy()
                asked[::2].reshape(len(asked[::2]), -1)[:, 0] = bad  # one number in every other row
                answer = model.run(signature, inputs | {name: asked})
                for output, found in answer.items():
                    if found.dtype.kind == "f" and not np.isfinite(found).all():
                        raise Failed(f"{signature}: {output} is not finite where {name} is {bad}")
                valid = answer.get("valid", np.zeros(1, bool))
                if not np.isfinite(bad) and valid[::2].any():
                    raise Failed(f"{signature}: valid is true where {name} is {bad}")
                if not valid[1::2].all():
                    raise Failed(f"{signature}: valid is false for rows beside one where {name} is {bad}")


def _bad(name: str, dtype: np.dtype) -> tuple:
    """Values that no environment gives in an input of this type."""
    if dtype.kind == "f":
        return np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).min
    if dtype.kind in "iu" and name != "seed":
        return np.iinfo(dtype).max, np.iinfo(dtype).min
    return ()


def answers_do_not_depend_on_the_batch(model):
    """A row has the same answer alone, in a whole batch and in a shuffled part of the batch."""
    for signature in model.signatures:
        inputs = model.request(signature)
        whole = model.run(signature, inputs)
        order = np.random.default_rng(1).permutation(model.rows)[: model.rows // 2 + 1]
        _same(signature, _rows(whole, order), model.run(signature, _rows(inputs, order)), "shuffled")
        for row in range(min(model.rows, 16)):
            here = slice(row, row + 1)
            _same(signature, _rows(whole, here), model.run(signature, _rows(inputs, here)), "alone")


def equal_requests_get_equal_answers(model):
    """A request that is repeated has the same answer; another seed draws another action."""
    for signature in model.signatures:
        inputs = model.request(signature)
        first = model.run(signature, inputs)
        for name, value in model.run(signature, inputs).items():
            if not np.array_equal(value, first[name]):
                raise Failed(f"{signature}: {name} was another the second time")
    _seeds_matter(model)


def _seeds_matter(model):
    """Draws for the row of the highest entropy, with many seeds."""
    inputs = model.request("evaluate")
    entropy = model.run("evaluate", inputs)["entropy"]
    row = int(entropy.argmax())
    asked = {name: np.repeat(inputs[name][row : row + 1], DRAWS, 0) for name in inputs if name != "raw_action"}
    numbers = np.arange(2 * DRAWS, dtype=np.int32)
    seeds = np.stack([numbers, 3 * numbers], 1)
    drawn, other = (model.run("sample", asked | {"seed": s})["raw_action"] for s in (seeds[:DRAWS], seeds[DRAWS:]))
    if entropy[row] < CERTAIN and np.array_equal(drawn, np.round(drawn)):
        return  # a policy that is certain of discrete choices draws the same ones
    if len(np.unique(drawn, axis=0)) == 1:
        raise Failed("sample: rows with seeds of their own draw the same action")
    if np.array_equal(drawn, other):
        raise Failed("sample: another seed draws the same actions")


def warm_up_requests_run(model):
    """TF Serving runs the warm-up requests when it loads a version, and refuses the version if one fails."""
    for signature, inputs, _ in _warm_up(model.path):
        if signature not in model.signatures:
            raise Failed(f"a warm-up request is for {signature}, which does not exist")
        if inputs.keys() != dict(model.signatures[signature].inputs).keys():
            raise Failed(f"a warm-up request of {signature} has the inputs {', '.join(sorted(inputs))}")
        model.run(signature, inputs)
    asked = {(signature, len(next(iter(inputs.values())))) for signature, inputs, _ in _warm_up(model.path)}
    for signature in model.signatures:
        for rows in BATCH_SIZES:
            if (signature, rows) not in asked:
                raise Failed(f"no warm-up request of {signature} has {rows} rows")


def answers_are_those_of_the_export(model):
    """Warm-up requests have the answers that the exporter recorded beside them."""
    for signature, inputs, recorded in _warm_up(model.path):
        if not recorded:
            raise Failed(f"a warm-up request of {signature} has no recorded answer")
        _same(signature, recorded, model.run(signature, inputs), "as recorded at the export")


RULES = [
    the_directory_is_a_number,
    the_signatures_are_there,
    every_tensor_is_a_batch,
    operations_depend_on_the_request_only,
    no_function_requires_xla,
    variables_are_stored_once,
    the_metadata_is_complete_and_correct,
    every_signature_answers,
    any_request_gets_finite_actions,
    answers_do_not_depend_on_the_batch,
    equal_requests_get_equal_answers,
    warm_up_requests_run,
    answers_are_those_of_the_export,
]


def _actions(model) -> list[str]:
    """Names of the outputs that are the action, by policy.json; `action` where it does not say."""
    try:
        metadata = json.loads((model.path / METADATA_FILE).read_text(encoding="utf-8"))
        return tf.nest.flatten(metadata.get("action", "action"))
    except (OSError, ValueError, AttributeError):
        return ["action"]


def _rows(tensors: dict, which) -> dict:
    """The rows of an index or slice."""
    return {name: value[which] for name, value in tensors.items()}


def _same(signature: str, expected: dict, answer: dict, how: str) -> None:
    """Compares outputs, floats up to rounding. `how` says in the reason what is compared.

    Raises:
      Failed: an output is missing or differs.
    """
    for name, value in expected.items():
        got = answer.get(name)
        if got is None or got.shape != value.shape:
            raise Failed(f"{signature}: {name} has another shape {how}")
        if value.dtype.kind == "f":
            wrong = ~np.isclose(got, value, rtol=1e-4, atol=1e-5)
            if wrong.any():
                raise Failed(f"{signature}: {name} is {got[wrong][0]} {how}, otherwise {value[wrong][0]}")
        elif not np.array_equal(got, value):
            raise Failed(f"{signature}: {name} is another {how}")


def _warm_up(path: Path):
    """Yields signature, inputs and recorded outputs of each warm-up request.

    Raises:
      Failed: the file is missing, damaged or too long.
    """
    file, kind = path / WARM_UP_FILE, _prediction_log()
    try:
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
        logs = [kind.FromString(record).predict_log for record in records]
    except Exception as error:
        raise Failed(f"{WARM_UP_FILE}: {str(error)[:200]}") from None
    if not 0 < len(logs) <= 1000:
        raise Failed(f"{len(logs)} warm-up requests; a server takes 1 to 1000")
    for log in logs:
        tensors = [
            {tensor.key: tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor.value)) for tensor in found}
            for found in (log.request.inputs, log.response.outputs)
        ]
        yield log.request.model_spec.signature_name or "serving_default", *tensors


_MESSAGES = {  # fields as name, number, type, of tensorflow_serving/apis/{prediction_log,predict,model}.proto
    "Spec": [("signature_name", 3, "string")],
    "Tensor": [("key", 1, "string"), ("value", 2, "bytes")],
    "Request": [("model_spec", 1, "Spec"), ("inputs", 2, "repeated Tensor")],
    "Response": [("outputs", 1, "repeated Tensor")],
    "Log": [("request", 1, "Request"), ("response", 2, "Response")],
    "PredictionLog": [("predict_log", 6, "Log")],
}


def _prediction_log():
    """The message class PredictionLog with the fields that are read here; tensors stay bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="check.proto", package="check", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {"string": field.TYPE_STRING, "bytes": field.TYPE_BYTES}
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = field.LABEL_REPEATED if kind.startswith("repeated ") else field.LABEL_OPTIONAL
            kind = kind.removeprefix("repeated ")
            of = {"type": kinds[kind]} if kind in kinds else {"type": field.TYPE_MESSAGE, "type_name": f".check.{kind}"}
            made.field.add(name=name, number=number, label=label, **of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("check.PredictionLog"))


def fingerprint(path: Path) -> str:
    """SHA-256 over the names and contents of all files but fingerprint.pb, which holds a random number."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "fingerprint.pb"):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def check(path: Path, rows: int = 64, rules=RULES) -> dict[str, str]:
    """The reason of every rule by its name; empty where the rule holds.

    Args:
      path: the directory of one version.
      rows: batch size of the random requests.
      rules: functions of a Model that raise Failed.

    Raises:
      OSError: there is no saved_model.pb, or it cannot be read.
      google.protobuf.message.DecodeError: it is not one.
    """
    model, reasons = Model(path, rows), {}
    for rule in rules:
        try:
            rule(model)
            reasons[rule.__name__] = ""
        except Failed as failed:
            reasons[rule.__name__] = str(failed)
        except Exception as error:  # a model on which a rule cannot be evaluated fails it
            reasons[rule.__name__] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return reasons


def main(argv):
    """Prints the rules and the fingerprint; returns the exit status."""
    if len(argv) != 2:
        print("usage: python export/check.py MODEL_DIR [--requests=64]", file=sys.stderr)
        return 2
    path = Path(argv[1]).resolve()
    try:
        reasons = check(path, FLAGS.requests)
    except Exception as error:
        print(f"{path}: no SavedModel: {error}", file=sys.stderr)
        return 2
    width = max(map(len, reasons))
    for rule, reason in reasons.items():
        print(f"{'FAILED' if reason else 'ok':<6}  {rule.replace('_', ' '):<{width}}  {reason}".rstrip())
    print(f"fingerprint {fingerprint(path)}")
    return 1 if any(reasons.values()) else 0


if __name__ == "__main__":
    app.run(main)
