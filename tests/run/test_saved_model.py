"""SavedModels: the session loader in a process without this package, equal answers, rows that stand alone."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS, OBSERVATIONS, sampled
from trpo_tf.config import Config
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy
from trpo_tf.run import saved_model

SCALE = 2.5
# An observation, an action, and the settings of Config besides those that the action brings.
CASES = {
    "gaussian": ("box", "box", {}),
    "rescaled": ("box", "box", {"rescale_action": True}),
    "matrix": ("matrix_of_doubles", "unbounded_matrix", {"normalize_obs": False}),
    "categorical": ("box", "discrete", {}),
    "discrete": ("discrete", "discrete", {}),
    "hybrid": ("tuple", "dict", {"layer_norm": True}),
    "memory": ("multi_discrete", "multi_discrete", {"network": "lstm"}),
    "memory_shared": ("box", "multi_binary", {"network": "gru", "share_torso": True}),
    "pixels": ("dict", "tuple", {"share_torso": True}),
    "beta": ("multi_binary", "beta", {}),
    "squashed": ("bytes", "squashed", {}),
    "masked": ("masked", "dict", {}),
}
MASKED = gym.spaces.Dict({"x": OBSERVATIONS["box"], "action_mask": gym.spaces.MultiBinary(7)})


def space_of(name):
    return MASKED if name == "masked" else OBSERVATIONS[name]


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


SLOWER = ("rescaled", "matrix", "squashed", "memory", "discrete")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOWER else ()) for name in CASES],
)
def exported(request, tmp_path_factory):
    """A policy with random weights, 50 observations with states by name, its SavedModel."""
    name, action, changes = CASES[request.param]
    space, (action_space, settings) = space_of(name), ACTIONS[action]
    policy = Policy(space, action_space, Config(env="x", hidden_sizes=(8,), init_log_std=0.5, **settings, **changes), 3)
    rng = np.random.default_rng(0)
    given = sampled(space, 50)
    given |= {name: rng.normal(size=(50, size)).astype(np.float32) for name, size in policy.states.items()}
    obs = {name: x.astype(policy.specs[name][1]) for name, x in given.items()}
    if policy.normalizer.enabled.any():
        policy.normalizer.commit(policy.encoder.vector(obs), tf.ones(50))
    policy.network.assign(policy.network.theta() + 0.3 * rng.normal(size=policy.network.size))
    path = saved_model.save(policy, SCALE, {"env": "x"}, tmp_path_factory.mktemp(request.param))
    return policy, obs, path


def live(policy, obs):
    """The parameters, and the states afterwards."""
    given = {name: tf.constant(x) for name, x in obs.items()}
    if policy.states:
        given["is_first"] = tf.zeros(50)
    params, states = policy.step(given)
    return given, params, states


def test_session_loader_in_a_fresh_process_equals_the_policy(exported, tmp_path):
    policy, obs, path = exported
    family = policy.family
    given, params, states = live(policy, obs)
    seeds = np.stack([np.arange(50), np.arange(50) * 7], 1).astype(np.int32)
    raw = family.draw(params, family.noise([50], [0, 1])).numpy()
    np.savez(tmp_path / "given.npz", seed=seeds, raw_action=raw, batch=np.arange(50, dtype=np.int32), **obs)
    (tmp_path / "session.py").write_text(SESSION)
    command = [sys.executable, "session.py", str(path), "given.npz", "answers.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    features = policy.preprocess(given)
    value = policy.values(policy.value_features(features)).numpy() * SCALE

    def close(name, expected):
        np.testing.assert_allclose(answers[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)

    for name, expected in family.named(Actor(policy).mode({k: v.numpy() for k, v in given.items()})[0]).items():
        close(f"serving_default/{name}", expected)
    for name in ("serving_default", "sample", "evaluate"):
        close(f"{name}/value", value)
        for state, expected in states.items():
            close(f"{name}/{state}", expected)
    close("evaluate/log_prob", family.log_prob(params, raw))
    close("evaluate/entropy", family.entropy(params))
    for name, tensor in family.describe(params).items():
        close(f"distribution/{name}", tensor)
    sampled = answers["sample/raw_action"]
    for name, expected in family.named(tf.constant(sampled)).items():
        close(f"sample/{name}", expected)
    close("sample/log_prob", family.log_prob(params, sampled))
    assert answers["serving_default/valid"].all()
    signatures = {name.split("/")[0] for name in answers.files}
    memory = {"initial_state"} if policy.states else set()
    assert signatures == {"serving_default", "sample", "evaluate", "distribution"} | memory
    for name, size in policy.states.items():
        np.testing.assert_array_equal(answers[f"initial_state/{name}"], np.zeros((50, size)))


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
        close(policy.sample(alone, seeds[i], **memory), rows_of(batch, i), rtol=1e-4, atol=1e-5)
        close(policy.action(alone, **memory), rows_of(modes, i), rtol=1e-4, atol=1e-5)
    close(policy.sample(obs, seeds, **states), batch, rtol=0)
    other = policy.sample(obs, seeds + 1, **states)
    assert any(not np.array_equal(a, b) for a, b in zip(tf.nest.flatten(other), tf.nest.flatten(batch), strict=True))


def test_answers_have_the_structure_of_the_action_space(exported):
    live, given, path = exported
    policy = saved_model.LoadedPolicy(path)
    obs, states = split(live, given)
    space = ACTIONS[CASES[path.parent.name.rstrip("0123456789")][1]][0]
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
    _, params, _ = live(policy, given)
    raw = policy.family.draw(params, policy.family.noise([50], [0, 1])).numpy()
    raw[1] = np.nan
    answer = loaded.predict(obs, "evaluate", raw_action=raw.astype(np.float64), **states)
    assert answer["valid"].tolist() == [True, False] + [True] * 48
    assert np.isfinite(answer["log_prob"]).all()


def test_graphs_hold_nothing_that_a_server_refuses(exported):
    _, _, path = exported
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    ops = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert not ops & {"PyFunc", "EagerPyFunc", "RandomUniform", "RandomStandardNormal", "ReadFile", "WriteFile"}
    assert not any("_XlaMustCompile" in f.attr and f.attr["_XlaMustCompile"].b for f in graph.library.function)
    for name, signature in model.meta_graphs[0].signature_def.items():
        if name.startswith("__"):
            continue
        assert len(signature.outputs) >= 2
        for tensor in [*signature.inputs.values(), *signature.outputs.values()]:
            assert tensor.tensor_shape.dim[0].size == -1, name


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


def test_versions_count_up_and_a_failed_export_leaves_nothing(exported, tmp_path, monkeypatch):
    policy, _, _ = exported
    assert [saved_model.save(policy, 1.0, {}, tmp_path).name for _ in range(2)] == ["1", "2"]
    monkeypatch.setattr(saved_model, "write_file", lambda path, data: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        saved_model.save(policy, 1.0, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert saved_model.LoadedPolicy(tmp_path).path.name == "2"


def test_what_is_not_a_saved_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no SavedModel"):
        saved_model.LoadedPolicy(tmp_path / "nothing")
