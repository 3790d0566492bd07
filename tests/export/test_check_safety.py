"""export/check.py condemns what reaches outside of the model, wherever it is, and runs nothing of it."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from export import check
from tests.export.small_model import export


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return export(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "1"))


def rewrite(path, change):
    """Changes saved_model.pb by change(SavedModel)."""
    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())


def writing(file):
    """A function of a graph that writes a file, with its library; and the name of that function."""

    @tf.function(autograph=False)
    def write(prefix):
        tf.io.write_file(str(file), prefix)
        return prefix

    with tf.Graph().as_default() as graph:
        tf.identity(write(tf.constant("x")), "out")
        definition = graph.as_graph_def()
    return definition, definition.library.function[0].signature.name


def in_restore(model, file):
    """The function that restores writes a file first."""
    graph = model.meta_graphs[0].graph_def
    by_name = {node.name: node for node in graph.node}
    restore = by_name[model.meta_graphs[0].saver_def.restore_op_name].attr["f"].func.name
    function = next(f for f in graph.library.function if f.signature.name == restore)
    for name, text in (("evil_name", str(file)), ("evil_content", "x")):
        node = function.node_def.add(name=name, op="Const")
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
    function.node_def.add(name="evil", op="WriteFile", input=["evil_name:output:0", "evil_content:output:0"])
    function.control_ret["evil"] = "evil"
    function.signature.control_output.append("evil")
    function.signature.is_stateful = True


def in_main_op(model, file):
    """The initialisation writes a file."""
    evil, name = writing(file)
    meta = model.meta_graphs[0]
    meta.graph_def.library.function.extend(evil.library.function)
    for node in evil.node:
        meta.graph_def.node.add().CopyFrom(node)
        meta.graph_def.node[-1].name = f"evil_{node.name}"
        meta.graph_def.node[-1].input[:] = [f"evil_{x}" for x in node.input]
    tensor = meta.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"]
    tensor.name = "evil_out"
    meta.collection_def["saved_model_main_op"].node_list.value[:] = ["evil_out"]
    del name


def in_legacy_init_op(model, file):
    """The initialisation of old files writes a file."""
    in_main_op(model, file)
    del model.meta_graphs[0].signature_def["__saved_model_init_op"]
    del model.meta_graphs[0].collection_def["saved_model_main_op"]
    model.meta_graphs[0].collection_def["legacy_init_op"].node_list.value.append("evil_out")


def in_another_graph(model, file):
    """A second graph for other tags writes a file."""
    model.meta_graphs.add().CopyFrom(model.meta_graphs[0])
    model.meta_graphs[1].meta_info_def.tags[:] = ["serve", "gpu"]
    model.meta_graphs[1].graph_def.CopyFrom(writing(file)[0])


def in_another_graph_first(model, file):
    """The same, the other graph first."""
    in_another_graph(model, file)
    first, second = list(model.meta_graphs)
    model.ClearField("meta_graphs")
    model.meta_graphs.extend([second, first])


def in_an_attribute(model, file):
    """A function that only an attribute of a node names writes a file."""
    evil, name = writing(file)
    graph = model.meta_graphs[0].graph_def
    graph.library.function.extend(evil.library.function)
    graph.node[0].attr["_gradient_op"].func.name = name


def in_a_gradient(model, file):
    """A function that is the gradient of another writes a file."""
    evil, name = writing(file)
    graph = model.meta_graphs[0].graph_def
    graph.library.function.extend(evil.library.function)
    graph.library.gradient.add(function_name=graph.library.function[0].signature.name, gradient_func=name)


def in_a_signature(model, file):
    """A function that a signature calls writes a file."""
    graph = model.meta_graphs[0].graph_def
    function = next(f for f in graph.library.function if "signature_wrapper" in f.signature.name)
    function.node_def.add(name="evil", op="WriteFile")


def from_a_signature(model, file):
    """The function that restores is called by a signature, too."""
    del file
    graph, saver = model.meta_graphs[0].graph_def, model.meta_graphs[0].saver_def
    restore = next(node for node in graph.node if node.name == saver.restore_op_name)
    graph.node.add().CopyFrom(restore)
    graph.node[-1].name = "again"


def other_file_names(model, file):
    """The saver restores from a file of its own choice."""
    graph, saver = model.meta_graphs[0].graph_def, model.meta_graphs[0].saver_def
    restore = next(node for node in graph.node if node.name == saver.restore_op_name)
    node = graph.node.add(name="chosen", op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(str(file)))
    restore.input[0] = "chosen"


def other_file_names_inside(model, file):
    """The function that restores reads a file of its own choice."""
    graph, saver = model.meta_graphs[0].graph_def, model.meta_graphs[0].saver_def
    call = next(node for node in graph.node if node.name == saver.restore_op_name)
    function = next(f for f in graph.library.function if f.signature.name == call.attr["f"].func.name)
    node = function.node_def.add(name="chosen", op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(str(file)))
    next(n for n in function.node_def if n.op == "RestoreV2").input[0] = "chosen:output:0"


def debug_operation(model, file):
    """An operation that TensorFlow does not call stateful writes a file."""
    node = model.meta_graphs[0].graph_def.node.add(name="evil", op="DebugIdentity")
    node.attr["debug_urls"].list.s.append(f"file://{file}".encode())


def unknown_operation(model, file):
    del file
    model.meta_graphs[0].graph_def.node.add(name="evil", op="MyOwnOp")


def asset(model, file):
    model.meta_graphs[0].asset_file_def.add(filename=str(file))


def collection(model, file):
    model.meta_graphs[0].collection_def["queue_runners"].bytes_list.value.append(str(file).encode())


def resource(model, file):
    del file
    model.meta_graphs[0].object_graph_def.nodes.add().resource.device = ""


EVIL = [
    in_restore, in_main_op, in_legacy_init_op, in_another_graph, in_another_graph_first, in_an_attribute, in_a_gradient,
    in_a_signature, from_a_signature, other_file_names, other_file_names_inside, debug_operation, unknown_operation,
    asset, collection, resource,
]  # fmt: skip


@pytest.mark.parametrize("change", EVIL, ids=lambda change: change.__name__)
def test_what_reaches_outside_is_condemned_and_not_run(copy, tmp_path, change, monkeypatch):
    file = tmp_path / "written"
    rewrite(copy, lambda model: change(model, file))
    monkeypatch.setattr(check.Model, "run", lambda *_: pytest.fail("it was run"))
    found = check.check(copy, 8)
    safety = [found[rule.__name__] for rule in check.SAFETY]
    assert any(safety)
    assert not any(reason.startswith("not run") for reason in safety)
    for rule in check.RUN:
        assert found[rule.__name__].startswith("not run"), rule
    assert not file.exists()


@pytest.mark.parametrize("change", [in_restore, in_main_op])
def test_the_evil_model_is_one(copy, tmp_path, change):
    """The session loader does write the file: what the check refuses would have happened."""
    file = tmp_path / "written"
    rewrite(copy, lambda model: change(model, file))
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(copy))
    assert file.exists()


def test_the_command_says_it_and_fails(copy, tmp_path, capsys):
    file = tmp_path / "written"
    rewrite(copy, lambda model: in_restore(model, file))
    check.FLAGS(["check.py", "--requests=8"])
    assert check.main(["check.py", str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("not run: it is false that no operation reaches outside" in line for line in lines) == len(check.RUN)
    assert any(line.startswith("FAILED  no operation reaches outside") and "WriteFile" in line for line in lines)
    assert not file.exists()


def link(path):
    target = path.parent / "elsewhere"
    target.write_bytes((path / "variables" / "variables.index").read_bytes())
    (path / "variables" / "variables.index").unlink()
    (path / "variables" / "variables.index").symlink_to(target)


def pipe(path):
    os.mkfifo(path / "assets.extra" / "pipe")


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        cwd = os.getcwd()
        os.chdir(path)  # a socket's path is short
        try:
            made.bind("socket")
        finally:
            os.chdir(cwd)


def long_metadata(path):
    os.truncate(path / "assets.extra" / "policy.json", 1 << 40)


def short_variables(path):
    os.truncate(path / "variables" / "variables.data-00000-of-00001", 3)


@pytest.mark.parametrize("change", [link, pipe, a_socket, long_metadata, short_variables], ids=lambda f: f.__name__)
def test_files_that_are_none_are_condemned_and_not_read(copy, change):
    change(copy)
    found = check.check(copy, 8)
    assert found["the_files_are_plain"]
    assert found["variables_are_stored_once"].startswith("not run")


@pytest.mark.parametrize("make", [lambda file: os.mkfifo(file), lambda file: file.symlink_to("/dev/zero")])
def test_a_saved_model_that_is_no_file_is_none(copy, make, capsys):
    file = copy / "saved_model.pb"
    file.unlink()
    make(file)
    check.FLAGS(["check.py", "--requests=8"])
    assert check.main(["check.py", str(copy)]) == 2
    assert "no plain file" in capsys.readouterr().err
