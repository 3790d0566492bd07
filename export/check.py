"""Checks whether the SavedModel of a policy will work in TF Serving. Prints every rule and the reason where it fails.

    python export/check.py MODEL_DIR [--requests=64]

MODEL_DIR is one version, the directory that holds saved_model.pb. The rules of safety come first and read the files
only. Where one of them fails, nothing of the model is loaded or run. Otherwise the model runs in TensorFlow's session
loader, as it does in TF Serving. This file stands alone: it needs tensorflow and nothing of trpo_tf.

Exit status: 0 every rule holds, 1 a rule fails, 2 there is no SavedModel.
"""

import hashlib
import json
import math
import os
import re
import stat
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
TYPES = {  # JSON can state them
    tf.float32, tf.float64, tf.int8, tf.uint8, tf.int16, tf.int32, tf.int64, tf.bool, tf.string
}  # fmt: skip
FORBIDDEN = {  # besides the operations that TensorFlow calls stateful, of which ALLOWED are the exceptions
    "runs Python, which a server does not have": {"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"},
    "reads files": {"ReadFile", "MatchingFiles"},
}
ALLOWED = {
    "Assert", "Case", "If", "PartitionedCall", "Placeholder", "PlaceholderWithDefault", "ReadVariableOp",
    "StatefulPartitionedCall", "VarHandleOp", "VarIsInitializedOp", "While",
}  # fmt: skip
# Operations that reach outside of the process or run code, whether TensorFlow calls them stateful or not.
OUTSIDE = re.compile(
    "Py|File|Dataset|Iterator|Reader|Debug|Summary|Print|Lmdb|Sql|Rpc|Remote|Collective|TPU|Tpu|Dump|InitializeTable"
    "|CustomCall|CopyHost|DecodeProto|EncodeProto"
)
# Operations whose state is the process's own. That answers depend on it is another rule.
HARMLESS = re.compile(
    "Assign(Add|Sub|)VariableOp|Resource(Scatter|Gather)[A-Za-z]*|VariableShape|DestroyResourceOp|StatelessRandomGetAlg"
    "|DisableCopyOnRead|(Random|Truncated|Stateful|Parameterized|Multinomial)[A-Za-z0-9]*|TensorArray[A-Za-z0-9]*|TensorList[A-Za-z]*"
)
SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}
SUFFIXES = {b"", b".part", b"_temp/part"}  # of the saver's file names
OBJECTS = {"user_object", "variable", "function", "bare_concrete_function", "constant", "captured_tensor"}
LARGEST = {"saved_model.pb": 256 << 20, "policy.json": 16 << 20, "tf_serving_warmup_requests": 256 << 20}  # bytes
LARGEST_TENSOR = 64 << 20  # bytes, of a warm-up request
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
        file = path / "saved_model.pb"
        if not stat.S_ISREG(file.lstat().st_mode) or file.stat().st_size > LARGEST[file.name]:
            raise OSError(f"{file} is no plain file of at most {LARGEST[file.name]} bytes")
        self.saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        self.meta_graph = meta_graph = self.saved_model.meta_graphs[0]
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


def the_files_are_plain(model):
    """Files and directories only, no links, none larger than it can be; variables are no larger than their files."""
    for path in model.path.rglob("*"):
        mode, size = path.lstat().st_mode, path.lstat().st_size
        name = path.relative_to(model.path)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise Failed(f"{name} is neither a file nor a directory")
        if size > LARGEST.get(path.name, size):
            raise Failed(f"{name} has {size} bytes; it may have {LARGEST[path.name]}")
    folder = model.path / "variables"
    if (folder / "variables.index").exists():
        reader = tf.train.load_checkpoint(str(folder / "variables"))
        types = reader.get_variable_to_dtype_map()
        claimed = sum(math.prod(shape) * types[name].size for name, shape in reader.get_variable_to_shape_map().items())
        there = sum(path.stat().st_size for path in folder.glob("variables.data-*"))
        if claimed > there:
            raise Failed(f"variables of {claimed} bytes are said to be in files of {there}")


def the_file_holds_one_graph_and_nothing_beside_it(model):
    """One graph, to be served; no assets; no collection but the initialisation; only objects of known kinds."""
    graphs = model.saved_model.meta_graphs
    if len(graphs) != 1 or list(graphs[0].meta_info_def.tags) != ["serve"]:
        raise Failed(f"it has the graphs {[list(graph.meta_info_def.tags) for graph in graphs]}, not just ['serve']")
    if graphs[0].asset_file_def:
        raise Failed(f"it has the asset {graphs[0].asset_file_def[0].filename!r}")
    if odd := sorted(graphs[0].collection_def.keys() - {"saved_model_main_op"}):
        raise Failed(f"it has the collection {odd[0]!r}")
    for node in graphs[0].object_graph_def.nodes:
        if node.WhichOneof("kind") not in OBJECTS:
            raise Failed(f"it has an object of kind {node.WhichOneof('kind')}")


def no_operation_reaches_outside(model):
    """No operation in the file runs Python or touches files, network or terminal, used or not.

    Besides the saver: one function that saves and one that restores, called once each, on the file names that a loader
    gives.
    """
    savers = _saver_functions(model)
    for function in [None, *model.functions.values()]:
        own = function is not None and function.signature.name in savers
        for node in function.node_def if function is not None else model.graph_def.node:
            known = op_def_registry.get(node.op)
            if known is None and node.op not in model.functions:
                raise Failed(f"{node.op} is unknown")
            stateful = known is not None and known.is_stateful and node.op not in ALLOWED
            if own and node.op in SAVER:
                _check_file_names(function, node)
            elif node.op in SAVER or OUTSIDE.search(node.op) or (stateful and not HARMLESS.fullmatch(node.op)):
                where = f"the function {function.signature.name}" if function is not None else "the graph"
                raise Failed(f"{node.op} in {where} reaches outside of the model")


def _saver_functions(model) -> set[str]:
    """Names of the functions that save and restore.

    Raises:
      Failed: the saver has another form than TensorFlow's, or its functions are called from elsewhere, too.
    """
    saver, by_name = model.meta_graph.saver_def, {node.name: node for node in model.graph_def.node}
    if not saver.restore_op_name:
        return set()
    placeholder, functions = saver.filename_tensor_name.partition(":")[0], set()
    for name in (saver.save_tensor_name.partition(":")[0], saver.restore_op_name):
        node = by_name.get(name)
        function = (
            node.attr["f"].func.name
            if node is not None and node.op in ("StatefulPartitionedCall", "PartitionedCall")
            else ""
        )
        if function not in model.functions or not node.input or node.input[0] != placeholder:
            raise Failed(f"the saver's {name or 'operation'} calls no function of the file name")
        functions.add(function)
    if by_name.get(placeholder) is None or by_name[placeholder].op not in ("Placeholder", "PlaceholderWithDefault"):
        raise Failed("the saver's file name is not given by the loader")
    nodes = [*model.graph_def.node, *(node for f in model.functions.values() for node in f.node_def)]
    calls = [name for node in nodes for value in node.attr.values() for name in _named(value)]
    calls += [node.op for node in nodes if node.op in model.functions]
    if any(calls.count(function) != 1 for function in functions):
        raise Failed("the saver's functions are called from elsewhere, too")
    return functions


def _named(value) -> list[str]:
    """Names of the functions in an attribute."""
    names = [found.name for found in (value.func, *value.list.func) if found.name]
    inside = (part for found in (value.func, *value.list.func) for part in found.attr.values())
    return names + [name for part in inside for name in _named(part)]


def _check_file_names(function, node) -> None:
    """Raises Failed unless the file names of a saver's operation come from the function's first argument."""
    nodes, first = {n.name: n for n in function.node_def}, function.signature.input_arg[0].name
    waiting = list(node.input[:2] if node.op == "MergeV2Checkpoints" else node.input[:1])
    given = False
    while waiting:
        name = waiting.pop().partition(":")[0]
        source = nodes.get(name)
        if name == first:
            given = True
        elif source is not None and source.op in ("Identity", "StringJoin", "ShardedFilename", "Pack"):
            waiting += [
                x for x in source.input[: 1 if source.op == "ShardedFilename" else None] if not x.startswith("^")
            ]
        elif source is not None and source.op == "Select":
            waiting += source.input[1:3]
        elif source is None or source.op != "Const" or set(source.attr["value"].tensor.string_val) - SUFFIXES:
            raise Failed(f"{node.op} takes a file name that the loader did not give")
    if not given:
        raise Failed(f"{node.op} takes a file name that the loader did not give")


def the_directory_is_a_number(model):
    """A server skips other directories, and serves the greatest number."""
    if not re.fullmatch("0|[1-9][0-9]{0,18}", model.path.name):
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


SAFETY = [the_files_are_plain, the_file_holds_one_graph_and_nothing_beside_it, no_operation_reaches_outside]
# They load variables or run the model, so they are left out where a rule of safety fails.
RUN = [
    variables_are_stored_once,
    every_signature_answers,
    any_request_gets_finite_actions,
    answers_do_not_depend_on_the_batch,
    equal_requests_get_equal_answers,
    warm_up_requests_run,
    answers_are_those_of_the_export,
]
RULES = [
    *SAFETY,
    the_directory_is_a_number,
    the_signatures_are_there,
    every_tensor_is_a_batch,
    operations_depend_on_the_request_only,
    no_function_requires_xla,
    the_metadata_is_complete_and_correct,
    *RUN,
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
            {tensor.key: _array(tensor_pb2.TensorProto.FromString(tensor.value)) for tensor in found}
            for found in (log.request.inputs, log.response.outputs)
        ]
        yield log.request.model_spec.signature_name or "serving_default", *tensors


def _array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """A tensor as an array. It may state one number for all entries of any shape.

    Raises:
      Failed: it is too large.
    """
    sizes = [d.size for d in proto.tensor_shape.dim]
    if min(sizes, default=0) < 0 or math.prod(sizes) * tf.as_dtype(proto.dtype).size > LARGEST_TENSOR:
        raise Failed(f"a warm-up request has a tensor of shape {sizes[:8]}")
    return tf.make_ndarray(proto)


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
    model = Model(path, rows)
    unsafe = {rule: reason for rule in SAFETY if (reason := _reason(rule, model))}
    reasons = {}
    for rule in rules:
        if unsafe and rule in RUN:
            reasons[rule.__name__] = f"not run: it is false that {next(iter(unsafe)).__name__.replace('_', ' ')}"
        else:
            reasons[rule.__name__] = unsafe.get(rule, "") if rule in SAFETY else _reason(rule, model)
    return reasons


def _reason(rule, model) -> str:
    """Why a rule fails; empty where it holds."""
    try:
        rule(model)
    except Failed as failed:
        return str(failed)
    except Exception as error:  # a model on which a rule cannot be evaluated fails it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


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
    if not reasons["the_files_are_plain"]:
        print(f"fingerprint {fingerprint(path)}")
    return 1 if any(reasons.values()) else 0


if __name__ == "__main__":
    app.run(main)
