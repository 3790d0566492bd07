"""LoadedPolicy: structures, shapes and states of answers; requests that it refuses."""

import os
import shutil

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests import exports
from tests.served import assert_close, split
from tests.spaces_table import ACTIONS
from trpo_tf.config import EvaluateConfig
from trpo_tf.errors import UsageError
from trpo_tf.runs import run_evaluation
from trpo_tf.serving import saved_model
from trpo_tf.serving.loaded_policy import LoadedPolicy

ROWS = 50


class Loaded:
    """The loaded policy of an export, ROWS observations and recurrent states by name, the policy that was exported."""

    def __init__(self, exported):
        self.policy = LoadedPolicy(exported.path)
        self.given = {name: x[:ROWS] for name, x in exported.obs.items()}
        self.obs, self.states = split(exported, self.given)
        self.exported = exported


@pytest.fixture(scope="module")
def loaded(exported):
    return Loaded(exported)


def rows_of(nest, index):
    return tf.nest.map_structure(lambda x: x[index], nest)


def test_a_row_is_answered_alone_as_in_a_batch_sampled_too(loaded):
    policy, obs, states = loaded.policy, loaded.obs, loaded.states
    seeds = np.stack([np.full(ROWS, 3), np.arange(ROWS)], 1)
    batch = policy.sample(obs, seeds, **states)
    modes = policy.action(obs, **states)
    for i in (0, 17, 49):
        alone, memory = rows_of(obs, i), rows_of(states, i)
        assert_close(policy.sample(alone, seeds[i], **memory), rows_of(batch, i), rtol=1e-5, atol=1e-5)
        assert_close(policy.action(alone, **memory), rows_of(modes, i), rtol=1e-5, atol=1e-5)
    assert_close(policy.sample(obs, seeds, **states), batch, rtol=0)
    other = policy.sample(obs, seeds + 1, **states)
    assert any(not np.array_equal(a, b) for a, b in zip(tf.nest.flatten(other), tf.nest.flatten(batch), strict=True))


def test_answers_have_the_structure_of_the_action_space(loaded):
    case = loaded.policy.path.parent.name.rstrip("0123456789")
    space = ACTIONS[exports.CASES[case][1]][0]
    action = loaded.policy.action(rows_of(loaded.obs, 0), **rows_of(loaded.states, 0))
    if isinstance(space, gym.spaces.Box):
        action = action.astype(space.dtype)
    assert space.contains(tf.nest.map_structure(lambda x: x[()], action))


def test_the_states_of_a_stateful_act_function_are_those_of_answers_fed_back(loaded):
    policy, obs = loaded.policy, loaded.obs
    act, states = policy.stateful_act(), policy.initial_state(ROWS)
    if states:
        start = policy.predict({"batch": np.zeros(ROWS, np.int32)}, "initial_state")
        assert_close({name: start[name] for name in states}, states, rtol=0)
    assert set(states) == set(loaded.states)
    for t in range(3):
        is_first = np.full(ROWS, t == 0)
        is_first[7] = t == 2
        states = {name: np.where(is_first[:, None], 0, x).astype(np.float32) for name, x in states.items()}
        answer = policy.predict(obs, **states)
        assert_close(act(obs, is_first), policy.action(obs, **states), rtol=0)
        states = {name: answer[name] for name in states}


def test_answers_are_finite_and_marked_for_any_request(loaded):
    policy = loaded.policy
    obs, states = split(loaded.exported, {name: x[:4].copy() for name, x in loaded.given.items()})
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
    answer = policy.predict(obs, **states)
    assert answer["valid"].tolist() == expected.tolist()
    for name, x in (answer | policy.predict(obs, "sample", seed=np.zeros((4, 2)), **states)).items():
        assert np.isfinite(x).all(), name


def test_one_bad_action_does_not_fail_its_batch(loaded):
    policy = loaded.exported.policy
    _, params, _ = exports.live(policy, loaded.given)
    raw = policy.distribution.draw(params, policy.distribution.noise([ROWS], [0, 1])).numpy()
    raw[1] = np.nan
    answer = loaded.policy.predict(loaded.obs, "evaluate", raw_action=raw.astype(np.float64), **loaded.states)
    assert answer["valid"].tolist() == [True, False] + [True] * (ROWS - 2)
    assert np.isfinite(answer["log_prob"]).all()


def test_inputs_that_a_signature_does_not_take_are_named(loaded):
    policy, obs, states = loaded.policy, loaded.obs, loaded.states
    taken, with_seed = ", ".join(sorted(loaded.given)), ", ".join(sorted([*loaded.given, "seed"]))
    with pytest.raises(TypeError, match=f"serving_default takes {taken}, not {with_seed}"):
        policy.predict(obs, seed=np.zeros((ROWS, 2)), **states)
    with pytest.raises(TypeError, match=f"sample takes {with_seed}, not {taken}"):
        policy.predict(obs, "sample", **states)


def test_arrays_of_another_shape_are_named(loaded):
    policy, obs, states = loaded.policy, loaded.obs, loaded.states
    name, x = next(iter(obs.items()))
    wrong = x[..., None].repeat(2, -1)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        policy.predict(obs | {name: wrong}, **states)
    with pytest.raises(ValueError, match="seed has shape"):
        policy.sample(obs, np.zeros(2), **states)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"flags": []}', b'{"env": 3}', None])
def test_a_damaged_description_is_named(tmp_path, base, content):
    version = shutil.copytree(base / "1", tmp_path / "1")
    file = version / "assets.extra" / "policy.json"
    if content is None:
        os.truncate(file, 1 << 40)
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{file}: "):
        LoadedPolicy(tmp_path)
    with pytest.raises(UsageError, match=f"^{file}: "):
        run_evaluation(EvaluateConfig(env="Pendulum-v1", saved_model=str(tmp_path)))
    assert saved_model.find(tmp_path, {"update": 1}) is None


def test_what_is_not_a_saved_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no SavedModel"):
        LoadedPolicy(tmp_path / "nothing")
