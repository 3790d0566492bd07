"""export/check.py passes what is sound and names what is broken: one broken model for every rule."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import check
from tests import exports
from tests.exports import METADATA
from trpo_tf.run import saved_model

EXAMPLES = {
    "observation": np.linspace(-2, 2, 96, dtype=np.float32).reshape(32, 3),
    "seed": np.stack([np.arange(32), np.arange(32)], 1).astype(np.int32),
}
OBS = tf.TensorSpec([None, 3], tf.float32)
SEED = tf.TensorSpec([None, 2], tf.int32)


class Served(tf.Module):
    """A policy with one matrix, of actions [N, 2]."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.random.default_rng(0).normal(size=(3, 2)), dtype=tf.float32)
        self.spare = None

    def parts(self):
        """Signatures as functions and the specifications of their inputs."""

        def mean(observation):
            valid = tf.reduce_all(tf.math.is_finite(observation), -1)
            known = tf.clip_by_value(tf.where(tf.math.is_finite(observation), observation, 0.0), -10.0, 10.0)
            return known @ self.w, {"value": tf.reduce_sum(known, -1), "valid": valid}

        def action(observation):
            found, answer = mean(observation)
            return answer | {"action": found}

        def sample(observation, seed):
            found, answer = mean(observation)
            noise = tf.map_fn(
                lambda key: tf.random.stateless_normal([2], key),
                seed,
                fn_output_signature=tf.TensorSpec([2], tf.float32),
            )
            drawn = found + noise
            return answer | {"action": drawn, "raw_action": drawn, "log_prob": -tf.reduce_sum(noise**2, -1)}

        def evaluate(observation, raw_action):
            found, answer = mean(observation)
            known = tf.clip_by_value(tf.where(tf.math.is_finite(raw_action), raw_action, 0.0), -10.0, 10.0)
            log_prob = -tf.reduce_sum((known - found) ** 2, -1)
            answer["valid"] &= tf.reduce_all(known == raw_action, -1)
            return answer | {"log_prob": log_prob, "entropy": tf.ones_like(log_prob)}

        def distribution(observation):
            found, answer = mean(observation)
            return {"mean": found, "valid": answer["valid"]}

        return {
            "serving_default": (action, {"observation": OBS}),
            "sample": (sample, {"observation": OBS, "seed": SEED}),
            "evaluate": (evaluate, {"observation": OBS, "raw_action": tf.TensorSpec([None, 2], tf.float32)}),
            "distribution": (distribution, {"observation": OBS}),
        }


def export(directory, change=lambda served, parts: None, examples=EXAMPLES, metadata=METADATA, **compiled):
    """A model below directory, after change(served, parts) has broken it."""
    served = Served()
    parts = served.parts()
    change(served, parts)
    functions = {
        name: tf.function(by_name(function), autograph=False, **compiled).get_concrete_function(
            **{key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in specs.items()}
        )
        for name, (function, specs) in parts.items()
    }
    path = directory / "1"
    saved_model.write(path, served, functions, metadata, dict(examples))
    return path


def by_name(function):
    return lambda **inputs: function(**inputs)


def also(parts, name, extend):
    """Lets a signature's answer pass through extend(answer, inputs)."""
    function, specs = parts[name]
    parts[name] = (lambda **inputs: extend(function(**inputs), inputs), specs)


def reasons(path):
    return check.check(path, 16)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return export(tmp_path_factory.mktemp("sound"))


def test_a_sound_model_passes(sound):
    assert not any(reasons(sound).values()), reasons(sound)


@pytest.mark.parametrize("scale", [3.0, 1000.0])
def test_a_policy_that_is_sure_of_its_choices_passes(tmp_path, scale):
    made = exports.make("categorical", tmp_path / "made", 8)
    made.policy.network.assign(scale * made.policy.network.theta())
    path = saved_model.save(made.policy, 1.0, METADATA, tmp_path / "sure")
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
    "double": (one(lambda a, i: {"x": tf.cast(a["value"], tf.float64)}), "every_tensor_is_a_batch", "float64"),
    "python": (
        one(lambda a, i: {"value": tf.ensure_shape(tf.numpy_function(np.copy, [a["value"]], tf.float32), [None])}),
        "nothing_in_it_needs_a_machine",
        "runs Python",
    ),
    "own_randomness": (
        one(lambda a, i: {"action": a["action"] + tf.random.normal(tf.shape(a["action"]))}),
        "nothing_in_it_needs_a_machine",
        "RandomStandardNormal",
    ),
    "file": (
        one(lambda a, i: {"x": a["value"] + tf.cast(tf.strings.length(tf.io.read_file(FILE)), tf.float32)}),
        "nothing_in_it_needs_a_machine",
        "ReadFile",
    ),
    "counter": (keeps_count, "the_same_request_has_one_answer", "value was another the second time"),
    "variable_changed": (
        lambda s, p: one(lambda a, i: {"value": a["value"] + tf.reduce_sum(s.w.scatter_sub(NOTHING)) * 0})(s, p),
        "nothing_in_it_needs_a_machine",
        "ResourceScatterSub has a state outside of the request",
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
        "rows_do_not_know_their_batch",
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
        "rows_do_not_know_their_batch",
        "action is",
    ),
    "batch_seed": (batch_seed, "rows_do_not_know_their_batch", "sample"),
    "seed_ignored": (
        lambda s, p: also(p, "sample", lambda a, i: a | {n: a["raw_action"] * 0 for n in ("action", "raw_action")}),
        "the_same_request_has_one_answer",
        "rows with seeds of their own draw the same action",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_named(kind, tmp_path):
    change, rule, words = BROKEN[kind]
    assert words in reasons(export(tmp_path, change))[rule]


def test_a_function_that_must_be_compiled_is_named(tmp_path):
    path = export(tmp_path, jit_compile=True)
    assert "jit_compile=True" in reasons(path)["nothing_must_be_compiled"]


def test_a_fixed_batch_is_named(tmp_path):
    fixed = {"observation": tf.TensorSpec([32, 3], tf.float32)}

    def change(served, parts):
        del served
        parts["mode"] = parts["serving_default"][0], fixed

    assert "a batch of 32" in reasons(export(tmp_path, change))["every_tensor_is_a_batch"]


def copied(path, tmp_path, name="1"):
    import shutil

    return Path(shutil.copytree(path, tmp_path / name))


def test_a_directory_that_servers_skip_is_named(sound, tmp_path):
    assert "latest" in reasons(copied(sound, tmp_path, "latest"))["the_directory_is_a_number"]


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
    assert words in reasons(path)["the_metadata_tells_what_it_is"]


def test_missing_files_are_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    (path / "assets.extra" / "policy.json").unlink()
    (path / "assets.extra" / "tf_serving_warmup_requests").unlink()
    for file in (path / "variables").iterdir():
        file.unlink()
    found = reasons(path)
    for rule in ("the_metadata_tells_what_it_is", "warm_up_requests_run", "variables_are_stored_once"):
        assert found[rule]
    assert found["every_signature_answers"]


def test_a_damaged_warm_up_file_is_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(file.read_bytes()[:-7])
    assert "tf_serving_warmup_requests" in reasons(path)["warm_up_requests_run"]


def test_weights_that_are_not_those_of_the_export_are_named(sound, tmp_path):
    path = copied(sound, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    changed = export(other, lambda served, parts: served.w.assign(served.w + 0.5))
    for file in (changed / "variables").iterdir():
        (path / "variables" / file.name).write_bytes(file.read_bytes())
    assert "as recorded" in reasons(path)["answers_are_those_of_the_export"]


def test_nothing_of_ours_is_needed_and_the_exit_status_tells(sound, tmp_path):
    program = str(Path(check.__file__))
    run = (
        "import runpy, sys; sys.argv = sys.argv[1:]; sys.modules['trpo_tf'] = None; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def call(path):
        command = [sys.executable, "-c", run, program, str(path), "--requests=8"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    good = call(sound)
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == f"fingerprint {saved_model.fingerprint(sound)}"
    bad = call(copied(sound, tmp_path, "one"))
    assert bad.returncode == 1
    assert "FAILED  the directory is a number" in bad.stdout
    assert call(tmp_path / "nothing").returncode == 2
