"""export/check.py passes what is sound and names what is broken: one broken model for every rule."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import check
from tests.export.small_model import OBS, also, export
from tests.exports import METADATA
from tests.served import made
from trpo_tf.serving import saved_model


def reasons(path):
    """Of all rules."""
    return check.check(path, 16)


def reason(path, rule):
    """Of one rule."""
    return check.check(path, 16, [getattr(check, rule)])[rule]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return export(tmp_path_factory.mktemp("sound"))


def test_a_sound_model_passes(sound):
    assert not any(reasons(sound).values()), reasons(sound)


@pytest.mark.parametrize("scale", [3.0, 1000.0])
def test_a_policy_that_is_certain_of_its_choices_passes(tmp_path, tmp_path_factory, scale):
    policy = made("categorical", tmp_path_factory).policy
    theta = policy.network.theta()
    policy.network.assign(scale * theta)
    try:
        path = saved_model.save(policy, 1.0, METADATA, tmp_path)
    finally:
        policy.network.assign(theta)
    assert not any(reasons(path).values()), reasons(path)


def every(change):
    """A change of every signature's answer."""
    return lambda served, parts: [also(parts, name, change) for name in list(parts)]


def one(change, name="serving_default"):
    return lambda served, parts: also(parts, name, lambda answer, inputs: answer | change(answer, inputs))


def without(name):
    return lambda served, parts: parts.pop(name)


def replaced(name, function, **specs):
    def change(served, parts):
        del served
        parts[name] = (function, specs)

    return change


def batch_seed(served, parts):
    """One seed for the whole batch."""
    del served
    sample, specs = parts["sample"]

    def once(observation, seed):
        return sample(observation, tf.tile(seed[:1], [tf.shape(observation)[0], 1]))

    parts["sample"] = once, specs


def keeps_count(served, parts):
    served.spare = tf.Variable(0.0)

    def more(answer, inputs):
        del inputs
        return {"value": answer["value"] + served.spare.assign_add(1.0)}

    one(more)(served, parts)


def stored_twice(served, parts):
    del parts
    served.spare = tf.Variable(served.w.value())


def keras_inside(served, parts):
    served.spare = keras.Sequential([keras.layers.Input([3]), keras.layers.Dense(1)])
    one(lambda answer, inputs: {"value": served.spare(inputs["observation"])[:, 0]})(served, parts)


FILE = str(Path(__file__))
NOTHING = tf.IndexedSlices(tf.zeros([1, 2]), tf.constant([0]))
# What breaks the model: the rule that has to name it, and words of the reason.
BROKEN = {
    "missing_signature": (without("evaluate"), "the_signatures_are_there", "evaluate is missing"),
    "missing_output": (
        lambda s, p: also(p, "sample", lambda answer, _: {k: v for k, v in answer.items() if k != "log_prob"}),
        "the_signatures_are_there",
        "no output log_prob",
    ),
    "one_output": (
        replaced("mode", lambda observation: {"action": observation}, observation=OBS),
        "the_signatures_are_there",
        "one output",
    ),
    "scalar": (one(lambda a, i: {"mean": tf.reduce_mean(a["value"])}), "every_tensor_is_a_batch", "no batch axis"),
    "name": (one(lambda a, i: {"Action": a["action"]}), "every_tensor_is_a_batch", "not a name"),
    "complex": (one(lambda a, i: {"x": tf.cast(a["value"], tf.complex64)}), "every_tensor_is_a_batch", "complex64"),
    "python": (
        one(lambda a, i: {"value": tf.ensure_shape(tf.numpy_function(np.copy, [a["value"]], tf.float32), [None])}),
        "operations_depend_on_the_request_only",
        "runs Python",
    ),
    "own_randomness": (
        one(lambda a, i: {"action": a["action"] + tf.random.normal(tf.shape(a["action"]))}),
        "operations_depend_on_the_request_only",
        "RandomStandardNormal",
    ),
    "file": (
        one(lambda a, i: {"x": a["value"] + tf.cast(tf.strings.length(tf.io.read_file(FILE)), tf.float32)}),
        "operations_depend_on_the_request_only",
        "ReadFile",
    ),
    "counter": (keeps_count, "equal_requests_get_equal_answers", "value was another the second time"),
    "variable_changed": (
        lambda s, p: one(lambda a, i: {"value": a["value"] + tf.reduce_sum(s.w.scatter_sub(NOTHING)) * 0})(s, p),
        "operations_depend_on_the_request_only",
        "ResourceScatterSub has a state besides the request",
    ),
    "no_action": (
        lambda s, p: also(p, "sample", lambda answer, _: {k: v for k, v in answer.items() if k != "action"}),
        "the_signatures_are_there",
        "sample has no output action",
    ),
    "partly_valid": (
        every(lambda a, i: a | {"valid": a["valid"] | tf.math.is_finite(tf.reduce_max(i["observation"], -1))}),
        "any_request_gets_finite_actions",
        "valid is true where observation is -inf",
    ),
    "never_valid": (
        every(lambda a, i: a | {"valid": tf.zeros_like(a["valid"])}),
        "any_request_gets_finite_actions",
        "valid is false for ordinary numbers",
    ),
    "valid_as_others": (
        every(lambda a, i: a | {"valid": tf.fill(tf.shape(a["valid"]), tf.reduce_all(a["valid"]))}),
        "any_request_gets_finite_actions",
        "valid is false for rows beside one",
    ),
    "count_of_rows": (
        one(lambda a, i: {"x": tf.zeros_like(a["value"], tf.int64) + tf.cast(tf.shape(a["value"])[0] > 1, tf.int64)}),
        "answers_do_not_depend_on_the_batch",
        "x is another",
    ),
    "stored_twice": (stored_twice, "variables_are_stored_once", "hold the same numbers"),
    "keras": (keras_inside, "every_signature_answers", "serving_default"),
    "nan": (
        one(lambda a, i: {"action": i["observation"][:, :2]}),
        "any_request_gets_finite_actions",
        "action is not finite where observation is nan",
    ),
    "always_valid": (
        every(lambda a, i: a | {"valid": tf.ones_like(a["valid"])}),
        "any_request_gets_finite_actions",
        "valid is true where observation is nan",
    ),
    "batch_mean": (
        one(lambda a, i: {"action": a["action"] - tf.reduce_mean(a["action"], 0)}),
        "answers_do_not_depend_on_the_batch",
        "action is",
    ),
    "batch_seed": (batch_seed, "answers_do_not_depend_on_the_batch", "sample"),
    "seed_ignored": (
        lambda s, p: also(p, "sample", lambda a, i: a | {n: a["raw_action"] * 0 for n in ("action", "raw_action")}),
        "equal_requests_get_equal_answers",
        "rows with seeds of their own draw the same action",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_named(kind, tmp_path):
    change, rule, words = BROKEN[kind]
    assert words in reason(export(tmp_path, change), rule)


def test_a_function_that_must_be_compiled_is_named(tmp_path):
    path = export(tmp_path, compiled=("distribution",))
    assert "jit_compile=True" in reason(path, "no_function_requires_xla")


def test_a_fixed_batch_is_named(tmp_path):
    fixed = {"observation": tf.TensorSpec([32, 3], tf.float32)}

    def change(served, parts):
        del served
        parts["mode"] = parts["serving_default"][0], fixed

    assert "a batch of 32" in reason(export(tmp_path, change), "every_tensor_is_a_batch")


def copied(path, tmp_path, name="1"):
    return Path(shutil.copytree(path, tmp_path / name))


def test_a_directory_that_servers_skip_is_named(sound, tmp_path):
    assert "latest" in reason(copied(sound, tmp_path, "latest"), "the_directory_is_a_number")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("env"), "has no env"),
        (lambda m: m["versions"].update(tensorflow="99.1.0"), "written by TensorFlow 99.1.0"),
        (lambda m: m["signatures"].pop("sample"), "does not know the signature sample"),
        (lambda m: m["signatures"]["sample"]["inputs"]["seed"].update(shape=[2]), "wrong about the inputs of sample"),
    ],
)
def test_metadata_that_is_wrong_is_named(sound, tmp_path, change, words):
    path = copied(sound, tmp_path)
    file = path / "assets.extra" / "policy.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))
    assert words in reason(path, "the_metadata_is_complete_and_correct")


def test_missing_files_are_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    (path / "assets.extra" / "policy.json").unlink()
    (path / "assets.extra" / "tf_serving_warmup_requests").unlink()
    for file in (path / "variables").iterdir():
        file.unlink()
    found = reasons(path)
    for rule in ("the_metadata_is_complete_and_correct", "warm_up_requests_run", "variables_are_stored_once"):
        assert found[rule]
    assert found["every_signature_answers"]


def test_a_damaged_warm_up_file_is_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(file.read_bytes()[:-7])
    assert "tf_serving_warmup_requests" in reason(path, "warm_up_requests_run")


def test_weights_that_are_not_those_of_the_export_are_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    changed = export(other, lambda served, parts: served.w.assign(served.w + 0.5))
    for file in (changed / "variables").iterdir():
        (path / "variables" / file.name).write_bytes(file.read_bytes())
    assert "as recorded" in reason(path, "answers_are_those_of_the_export")


def test_nothing_of_ours_is_needed_and_the_exit_status_tells(sound, tmp_path):
    """One rule fails, so that the exit status is known to come from the rules; all are evaluated without trpo_tf."""
    run = (
        "import runpy, sys; sys.argv = sys.argv[1:]; sys.modules['trpo_tf'] = None; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", run, check.__file__, str(copied(sound, tmp_path, "one")), "--requests=8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    *lines, fingerprint = done.stdout.splitlines()
    assert [line[:6] for line in lines].count("ok    ") == len(check.RULES) - 1
    assert "FAILED  the directory is a number" in lines[len(check.SAFETY)]
    assert fingerprint == f"fingerprint {saved_model.fingerprint(sound)}"


def test_a_sound_model_has_status_0_and_no_model_has_2(sound, tmp_path, capsys):
    check.FLAGS(["check.py", "--requests=8"])
    assert check.main(["check.py", str(sound)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"fingerprint {saved_model.fingerprint(sound)}"
    assert check.main(["check.py", str(tmp_path / "nothing")]) == 2
    assert "no SavedModel" in capsys.readouterr().err
    assert check.main(["check.py"]) == 2
