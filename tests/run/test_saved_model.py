"""SavedModels: the session loader in a process without this package, equal answers, rows that stand alone."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy
from trpo_tf.run import saved_model

SCALE = 2.5
BOX = gym.spaces.Box(np.array([-2.0, -1.0], np.float32), np.array([2.0, 0.5], np.float32))
CASES = {
    "gaussian": (gym.spaces.Box(-np.inf, np.inf, (3,)), BOX, {}),
    "rescaled": (gym.spaces.Box(-np.inf, np.inf, (3,)), BOX, {"rescale_action": True}),
    "matrix": (gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.Box(-1, 1, (2, 1)), {"normalize_obs": False}),
    "categorical": (gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Discrete(4, start=7), {}),
    "discrete": (gym.spaces.Discrete(5, start=2), gym.spaces.Discrete(3), {}),
}

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


@pytest.fixture(scope="module", params=list(CASES))
def exported(request, tmp_path_factory):
    obs_space, action_space, changes = CASES[request.param]
    policy = Policy(obs_space, action_space, Config(env="x", hidden_sizes=(8,), init_log_std=0.5, **changes), 3)
    rng = np.random.default_rng(0)
    if isinstance(obs_space, gym.spaces.Discrete):
        obs = rng.integers(obs_space.start, obs_space.start + obs_space.n, 50)
    else:
        obs = rng.normal(1.0, 3.0, size=(50, *obs_space.shape)).astype(np.float32)
    policy.normalizer.commit(policy.encoder(obs), tf.ones(50))
    policy.network.assign(policy.network.theta() + 0.3 * rng.normal(size=policy.network.size))
    path = saved_model.save(policy, SCALE, {"env": "x"}, tmp_path_factory.mktemp(request.param))
    return policy, obs, path


def test_session_loader_in_a_fresh_process_equals_the_policy(exported, tmp_path):
    policy, obs, path = exported
    seeds = np.stack([np.arange(50), np.arange(50) * 7], 1).astype(np.int32)
    features = policy.preprocess(obs)
    distribution = policy.family(policy.network.model(features))
    raw = distribution.sample(seed=[0, 1]).numpy()
    np.savez(tmp_path / "given.npz", observation=obs, seed=seeds, raw_action=raw)
    (tmp_path / "session.py").write_text(SESSION)
    command = [sys.executable, "session.py", str(path), "given.npz", "answers.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    value = policy.values(features).numpy() * SCALE

    def close(name, expected):
        np.testing.assert_allclose(answers[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)

    close("serving_default/action", Actor(policy).greedy(obs))
    for name in ("serving_default", "sample", "evaluate"):
        close(f"{name}/value", value)
    close("evaluate/log_prob", distribution.log_prob(raw))
    close("evaluate/entropy", distribution.entropy())
    for name, tensor in policy.family.describe(policy.network.model(features)).items():
        close(f"distribution/{name}", tensor)
    sampled = answers["sample/raw_action"]
    close("sample/action", policy.family.to_env(sampled))
    close("sample/log_prob", distribution.log_prob(sampled))
    assert answers["serving_default/valid"].all()
    signatures = {name.split("/")[0] for name in answers.files}
    assert signatures == {"serving_default", "sample", "evaluate", "distribution"}


def test_a_row_is_answered_alone_as_in_a_batch_sampled_too(exported):
    _, obs, path = exported
    policy = saved_model.LoadedPolicy(path)
    seeds = np.stack([np.full(50, 3), np.arange(50)], 1)
    batch = policy.sample(obs, seeds)
    for i in (0, 17, 49):
        np.testing.assert_allclose(policy.sample(obs[i], seeds[i]), batch[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.action(obs[i]), policy.action(obs)[i], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(policy.sample(obs, seeds), batch)
    assert not np.array_equal(policy.sample(obs, seeds + 1), batch)


def test_answers_are_finite_and_marked_for_any_request(exported):
    policy, obs, path = exported
    loaded = saved_model.LoadedPolicy(path)
    if np.issubdtype(policy.encoder.dtype, np.floating):
        bad = np.stack([np.full(obs.shape[1:], x, np.float32) for x in (np.nan, np.inf, -np.inf, 3e38)])
        valid = [False, False, False, True]
    else:
        bad, valid = np.array([-(2**40), 1, 7, 6]), [False, False, False, True]
    answer = loaded.predict(bad)
    assert answer["valid"].tolist() == valid
    assert np.isfinite(answer["action"]).all()
    assert np.isfinite(answer["value"]).all()
    assert np.isfinite(loaded.sample(bad, np.zeros((4, 2)))).all()


def test_inputs_that_a_signature_does_not_take_are_named(exported):
    _, obs, path = exported
    policy = saved_model.LoadedPolicy(path)
    with pytest.raises(TypeError, match="serving_default takes observation, not observation, seed"):
        policy.predict(obs, seed=np.zeros((50, 2)))
    with pytest.raises(TypeError, match="sample takes observation, seed, not observation"):
        policy.predict(obs, "sample")


def test_one_bad_action_does_not_fail_its_batch(exported):
    policy, obs, path = exported
    loaded = saved_model.LoadedPolicy(path)
    raw = policy.family(policy.network.model(policy.preprocess(obs))).sample(seed=[0, 1]).numpy()
    raw[1] = 99 if raw.dtype == np.int64 else np.nan
    answer = loaded.predict(obs, "evaluate", raw_action=raw.astype(np.float64))
    assert answer["valid"].tolist() == [True, False] + [True] * (len(obs) - 2)
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
    assert set(metadata["signatures"]["serving_default"]["outputs"]) == {"action", "value", "valid"}


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
