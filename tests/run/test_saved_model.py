"""SavedModels: the session loader in a process without this package, equal answers, rows that stand alone."""

import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export import check
from tests import exports
from tests.spaces_table import ACTIONS
from trpo_tf.run import saved_model

# What TF Serving, C, C++, Java and Go do: a session and the signature's tensor names, nothing of trpo_tf.
SESSION = """
import json, sys
import numpy as np
import tensorflow as tf
assert "trpo_tf" not in sys.modules
path, given, answers = sys.argv[1:]
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
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in exports.SLOWER else ()) for name in exports.CASES],
)
def exported(request, tmp_path_factory):
    """A policy with random weights, 50 observations with states by name, its SavedModel."""
    return exports.make(request.param, tmp_path_factory.mktemp(request.param))


def test_session_loader_in_a_fresh_process_equals_the_policy(exported, tmp_path):
    asked = exports.requests(exported)
    np.savez(tmp_path / "given.npz", **{name: x for inputs in asked.values() for name, x in inputs.items()})
    (tmp_path / "session.py").write_text(SESSION)
    command = [sys.executable, "session.py", str(exported.path), "given.npz", "answers.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = {name: {} for name in asked}
    for name, value in np.load(tmp_path / "answers.npz").items():
        signature, _, output = name.partition("/")
        got[signature][output] = value
    exports.check(exported, lambda name, inputs: got[name])


def test_warm_up_requests_are_those_of_the_serving_api_and_hold_the_answers(exported):
    asked = {name: set() for name in exports.requests(exported)}
    loaded = saved_model.LoadedPolicy(exported.path)
    for record in tf.data.TFRecordDataset(str(exported.path / saved_model.WARM_UP)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
        inputs = {name: tf.make_ndarray(value) for name, value in log.request.inputs.items()}
        signature, rows = log.request.model_spec.signature_name, len(next(iter(inputs.values())))
        asked[signature].add(rows)
        answer = loaded._model.signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
        assert answer.keys() == dict(log.response.outputs).keys()
        for name, value in answer.items():
            np.testing.assert_array_equal(tf.make_ndarray(log.response.outputs[name]), value)
    assert all(rows == {1, 8, 32} for rows in asked.values())


def test_the_checker_passes_it(exported):
    assert not any(check.check(exported.path, 8).values())


def split(policy, obs):
    """Observations, and the states as keyword arguments."""
    return tuple({k: v for k, v in obs.items() if (k in policy.states) == memory} for memory in (False, True))


def rows_of(nest, index):
    return tf.nest.map_structure(lambda x: x[index], nest)


def close(ours, theirs, **how):
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, **how), ours, theirs)


def test_a_row_is_answered_alone_as_in_a_batch_sampled_too(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, states = split(live, given)
    seeds = np.stack([np.full(50, 3), np.arange(50)], 1)
    batch = policy.sample(obs, seeds, **states)
    modes = policy.action(obs, **states)
    for i in (0, 17, 49):
        alone, memory = rows_of(obs, i), rows_of(states, i)
        close(policy.sample(alone, seeds[i], **memory), rows_of(batch, i), rtol=1e-5, atol=1e-5)
        close(policy.action(alone, **memory), rows_of(modes, i), rtol=1e-5, atol=1e-5)
    close(policy.sample(obs, seeds, **states), batch, rtol=0)
    other = policy.sample(obs, seeds + 1, **states)
    assert any(not np.array_equal(a, b) for a, b in zip(tf.nest.flatten(other), tf.nest.flatten(batch), strict=True))


def test_answers_have_the_structure_of_the_action_space(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, states = split(live, given)
    space = ACTIONS[exports.CASES[path.parent.name.rstrip("0123456789")][1]][0]
    action = policy.action(rows_of(obs, 0), **rows_of(states, 0))
    if isinstance(space, gym.spaces.Box):
        action = action.astype(space.dtype)
    assert space.contains(tf.nest.map_structure(lambda x: x[()], action))


def test_a_players_states_are_those_of_answers_fed_back(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, _ = split(live, given)
    play, states = policy.player(), policy.initial_state(50)
    assert set(states) == set(live.states)
    for t in range(3):
        is_first = np.full(50, t == 0)
        is_first[7] = t == 2
        states = {name: np.where(is_first[:, None], 0, x).astype(np.float32) for name, x in states.items()}
        answer = policy.predict(obs, **states)
        action = play(obs, is_first)
        close(action, policy.action(obs, **states), rtol=0)
        states = {name: answer[name] for name in states}


def test_answers_are_finite_and_marked_for_any_request(exported):
    policy, given, path = exported
    loaded = saved_model.LoadedPolicy(path)
    obs, states = split(policy, {name: x[:4].copy() for name, x in given.items()})
    expected = np.ones(4, bool)
    for x in obs.values():
        if x.dtype.kind == "f":
            for row, bad in enumerate((np.nan, np.inf, -np.inf)):
                x[row] = bad
            x[3], expected[:3] = 3e38, False
        elif x.dtype == np.int64:
            x[0], x[2], expected[[0, 2]] = -(2**40), 2**40, False
    for x in states.values():
        x[0, 0], x[2, 1], x[3] = np.nan, np.inf, 3e38
        expected[[0, 2, 3]] = False
    answer = loaded.predict(obs, **states)
    assert answer["valid"].tolist() == expected.tolist()
    for name, x in (answer | loaded.predict(obs, "sample", seed=np.zeros((4, 2)), **states)).items():
        assert np.isfinite(x).all(), name


def test_inputs_that_a_signature_does_not_take_are_named(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, states = split(live, given)
    taken = ", ".join(sorted(given))
    with pytest.raises(TypeError, match=f"serving_default takes {taken}, not {', '.join(sorted([*given, 'seed']))}"):
        policy.predict(obs, seed=np.zeros((50, 2)), **states)
    with pytest.raises(TypeError, match=f"sample takes {', '.join(sorted([*given, 'seed']))}, not {taken}"):
        policy.predict(obs, "sample", **states)


def test_arrays_of_another_shape_are_named(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, states = split(live, given)
    name, x = next(iter(obs.items()))
    wrong = x[..., None].repeat(2, -1)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        policy.predict(obs | {name: wrong}, **states)
    with pytest.raises(ValueError, match="seed has shape"):
        policy.sample(obs, np.zeros(2), **states)


def test_one_bad_action_does_not_fail_its_batch(exported):
    policy, given, path = exported
    loaded = saved_model.LoadedPolicy(path)
    obs, states = split(policy, given)
    _, params, _ = exports.live(policy, given)
    raw = policy.family.draw(params, policy.family.noise([50], [0, 1])).numpy()
    raw[1] = np.nan
    answer = loaded.predict(obs, "evaluate", raw_action=raw.astype(np.float64), **states)
    assert answer["valid"].tolist() == [True, False] + [True] * 48
    assert np.isfinite(answer["log_prob"]).all()


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
    policy, _, path = exports.make("gaussian", tmp_path)
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
    assert saved_model.LoadedPolicy(tmp_path).path.name == "2"


def test_what_is_not_a_saved_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no SavedModel"):
        saved_model.LoadedPolicy(tmp_path / "nothing")
