"""SavedModels on disk: the session loader in a process without this package, weights, metadata, versions."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow_serving.apis import prediction_log_pb2

from export import check
from tests import exports
from trpo_tf.callbacks import Export
from trpo_tf.errors import UsageError
from trpo_tf.serving import saved_model, warm_up
from trpo_tf.serving.loaded_policy import LoadedPolicy

# What TF Serving, C, C++, Java and Go do: a session and the signature's tensor names, nothing of trpo_tf. Every line of
# standard input is a version, a file of inputs and a file for the outputs.
SESSION = """
import sys
import numpy as np
import tensorflow as tf
for line in sys.stdin:
    path, given, answers = line.split()
    given = dict(np.load(given))
    results = {}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], path)
        for name, signature in meta.signature_def.items():
            if name.startswith("__"):
                continue
            feed = {tensor.name: given[key] for key, tensor in signature.inputs.items()}
            fetched = session.run({key: tensor.name for key, tensor in signature.outputs.items()}, feed)
            results.update({f"{name}/{key}": value for key, value in fetched.items()})
    np.savez(answers, **results)
    assert "trpo_tf" not in sys.modules
    print("done", flush=True)
"""


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """A process with SESSION; session(version, given, answers) runs it on one version."""
    directory = tmp_path_factory.mktemp("session")
    (directory / "session.py").write_text(SESSION)
    with open(directory / "stderr", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "session.py"],
            cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip

    def run(*files):
        process.stdin.write(" ".join(map(str, files)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n", (directory / "stderr").read_text()

    yield run
    process.stdin.close()
    assert process.wait(30) == 0


def test_session_loader_in_a_fresh_process_equals_the_policy(exported, session, tmp_path):
    asked = exports.requests(exported)
    np.savez(tmp_path / "given.npz", **{name: x for inputs in asked.values() for name, x in inputs.items()})
    session(exported.path, tmp_path / "given.npz", tmp_path / "answers.npz")
    got = {name: {} for name in asked}
    for name, value in np.load(tmp_path / "answers.npz").items():
        signature, _, output = name.partition("/")
        got[signature][output] = value
    exports.check(exported, lambda name, inputs: got[name])


def test_warm_up_requests_are_those_of_the_serving_api_and_hold_the_answers(exported):
    asked = {name: set() for name in exports.requests(exported)}
    signatures = tf.saved_model.load(str(exported.path)).signatures
    for record in tf.data.TFRecordDataset(str(exported.path / warm_up.FILE)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
        inputs = {name: tf.make_ndarray(value) for name, value in log.request.inputs.items()}
        signature, rows = log.request.model_spec.signature_name, len(next(iter(inputs.values())))
        asked[signature].add(rows)
        answer = signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
        assert answer.keys() == dict(log.response.outputs).keys()
        for name, value in answer.items():
            np.testing.assert_array_equal(tf.make_ndarray(log.response.outputs[name]), value)
    assert all(rows == {1, 8, 32} for rows in asked.values())


def test_the_checker_passes_it(exported):
    assert not any(check.check(exported.path, 8).values())


def test_weights_are_stored_once(exported):
    policy, _, path = exported
    stored = tf.train.list_variables(str(path / "variables" / "variables"))
    sizes = [np.prod(shape) for name, shape in stored if "variables/" in name]
    assert sum(sizes) == policy.network.size + policy.value_network.size


def test_metadata_names_signatures_and_the_environment(exported):
    _, _, path = exported
    metadata = json.loads((path / "assets.extra" / "policy.json").read_text())
    assert metadata["env"] == "x"
    assert metadata["signatures"]["sample"]["inputs"]["seed"] == {"dtype": "int32", "shape": [-1, 2]}
    outputs = set(metadata["signatures"]["serving_default"]["outputs"])
    assert {"value", "valid"} < outputs
    assert outputs - {"value", "valid", "policy_state", "value_state"} == set(tf.nest.flatten(metadata["action"]))


def test_versions_count_up_and_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    policy, _, path = exports.make("gaussian", tmp_path, 8)
    assert [path.name, saved_model.save(policy, 1.0, {}, tmp_path).name] == ["1", "2"]
    monkeypatch.setattr(saved_model, "write_file", lambda path, data: (_ for _ in ()).throw(OSError(28, "full")))
    left = [tmp_path / f".export.{pid}.tmp" for pid in (1, 2)]
    for path in left:
        path.mkdir()
    os.utime(left[0], (0, 0))
    with pytest.raises(OSError, match="full"):
        saved_model.save(policy, 1.0, {}, tmp_path)
    assert [path.exists() for path in left] == [False, True], "another export may be under way"
    left[1].rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert LoadedPolicy(tmp_path).path.name == "2"


def test_directories_that_are_no_number_are_no_versions(tmp_path):
    for name in ("3", "12", "latest", ".export.1.tmp", "2²"):
        (tmp_path / name).mkdir()
    assert sorted(saved_model.versions(tmp_path)) == [3, 12]


# Below which names TensorFlow loads what was saved there.
LOADABLE = ["x", "a b", "a%41#b", "aé日", "a[b", "a]b[c", "a*b?", "a{1,2}b", "~", "a:b"]
NOT_LOADABLE = ["a[1]b", "[a]", "a\\b", "[!a]", "a\udcffb"]


@pytest.mark.parametrize("name", LOADABLE + NOT_LOADABLE)
def test_a_path_is_refused_where_tensorflow_could_not_load_from_it(tmp_path, name):
    directory = tmp_path / name
    module = tf.Module()
    module.v = tf.Variable([1.0])
    refused = loaded = None
    try:
        tf.saved_model.save(module, str(directory / "1"))
        loaded = tf.saved_model.load(str(directory / "1"))
    except (OSError, UnicodeEncodeError, tf.errors.OpError):
        loaded = None
    try:
        saved_model.check_directory(directory)
    except UsageError as error:
        refused = str(error)
        assert "\n" not in refused
        assert refused.isascii() or name.isascii()
    assert (refused is None) == (loaded is not None) == (name in LOADABLE)


def test_an_export_to_such_a_path_makes_nothing(tmp_path):
    policy = exports.make("gaussian", tmp_path, 8).policy
    with pytest.raises(UsageError, match=r"export_dir=.*: TensorFlow takes \[1\] in a path for a pattern"):
        saved_model.save(policy, 1.0, {}, tmp_path / "a[1]")
    with pytest.raises(UsageError, match=r"export_dir=.*: TensorFlow takes"):
        Export(tmp_path / "a[1]").start(None)
    Export(tmp_path / "a[1]", at_end=False).start(None)
    assert not (tmp_path / "a[1]").exists()


def test_exports_leave_no_graph_behind(tmp_path, monkeypatch):
    policy, made, create = exports.make("gaussian", tmp_path, 8).policy, [], FuncGraph.__init__

    def noted(graph, *args, **kwargs):
        create(graph, *args, **kwargs)
        if threading.current_thread() is threading.main_thread():  # others are of earlier tests: fits, servers
            made.append((graph.name, weakref.ref(graph)))

    monkeypatch.setattr(FuncGraph, "__init__", noted)
    saved_model.save(policy, 1.0, {}, tmp_path)
    gc.collect()
    assert len(made) > 5
    assert not [name for name, graph in made if graph() is not None]
