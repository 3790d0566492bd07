"""Acting in NumPy: the same parameters, actions and modes as TensorFlow gives, from plain data and named weights."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS, OBSERVATIONS, sampled
from trpo_tf.acting import ActingSpec, ArrayActor, LayerSpec, stateful_act
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import TensorActor, make_actor

SPACES = {
    "box": (gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Box(-0.5, 2, (4,))),
    "discrete": (gym.spaces.Discrete(7, start=2), gym.spaces.Discrete(5, start=-3)),
    "hybrid": (OBSERVATIONS["tuple"], ACTIONS["dict"][0]),
    "masked": (
        gym.spaces.Dict({"x": OBSERVATIONS["box"], "action_mask": gym.spaces.MultiBinary(9)}),
        ACTIONS["multi_discrete"][0],
    ),
    "beta": (OBSERVATIONS["box"], ACTIONS["beta"][0]),
}
IN_TENSORFLOW = {"beta": {"action_distribution": "beta"}}


def make(case="box", **changes):
    changes = IN_TENSORFLOW.get(case, {}) | changes
    policy = Policy(*SPACES[case], PolicyConfig(hidden_sizes=(8, 6), **changes), 3)
    for number, variable in enumerate(policy.network.model.trainable_variables):
        variable.assign(tf.random.stateless_normal(variable.shape, [number, 0]))
    return policy


def observations(case, count=40):
    rng = np.random.default_rng(0)
    if case == "box":
        return {"observation": rng.normal(1, 3, (count, 2, 3)).astype(np.float32)}
    if case == "discrete":
        return {"observation": rng.integers(0, 11, count)}  # some outside the space
    return sampled(SPACES[case][0], count)


def compare(policy, obs):
    if policy.normalizer.enabled.any():
        policy.normalizer.commit(policy.encoder(obs), tf.ones(40))
    noise = policy.distribution.noise([40], [1, 2])
    actor = make_actor(policy)
    for ours, theirs in zip(actor(obs, noise.numpy()), policy.act(obs, noise), strict=True):
        assert len(ours) == len(theirs)
        if len(ours):
            assert ours.dtype == theirs.numpy().dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actor.mode(obs)[0], policy.likeliest(obs)[0], rtol=1e-4, atol=1e-5)
    acted = stateful_act(actor)(obs, np.ones(40, bool))
    expected = policy.distribution.to_env(actor.mode(obs)[0], np)
    tf.nest.map_structure(np.testing.assert_array_equal, acted, expected)
    return actor


@pytest.mark.parametrize("case", list(SPACES))
@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        *((activation, {}) for activation in ("tanh", "relu", "elu", "silu", "gelu")),
        *((activation, {"normalize_obs": False, "rescale_action": True}) for activation in ("tanh", "gelu")),
    ],
)
def test_it_acts_as_the_policy_does(case, activation, changes):
    actor = compare(make(case, activation=activation, **changes), observations(case))
    in_numpy = activation != "gelu" and case not in IN_TENSORFLOW  # NumPy has no erf, and no quantile of a Beta
    assert type(actor) is (ArrayActor if in_numpy else TensorActor)


def test_a_normalised_network_acts_in_numpy():
    assert type(compare(make(layer_norm="both"), observations("box"))) is ArrayActor


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_nan_is_the_mean_and_infinity_the_bound(activation):
    policy = make(activation=activation)
    policy.normalizer.commit({"vector": tf.random.stateless_normal([99, 6], [0, 0], 5.0)}, tf.ones(99))
    obs = np.zeros((2, 2, 3), np.float32)
    obs[0, 0, 0], obs[1, 0, 1] = np.nan, np.inf
    mean, scale, bound = (x.numpy() for x in policy.normalizer.constants()["vector"])
    clean = obs.copy()
    clean[0, 0, 0], clean[1, 0, 1] = mean[0], mean[1] + bound[1] / scale[1]
    actor = make_actor(policy)
    ours, theirs = (actor.mode({"observation": x})[0] for x in (obs, clean))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", list(SPACES))
def test_both_actors_have_one_face(case):
    policy = make(case)
    ours, theirs = make_actor(policy), TensorActor(policy)
    assert type(ours) is (TensorActor if case in IN_TENSORFLOW else ArrayActor)
    assert ours.specs == theirs.specs == policy.specs
    assert list(ours.leaves) == list(theirs.leaves) == list(policy.encoder.leaves)
    assert ours.states == theirs.states == {}
    for name, size in (("action_size", "action_size"), ("params_size", "size"), ("noise_size", "noise_size")):
        assert getattr(ours, name) == getattr(theirs, name) == getattr(policy.distribution, size)
    public = {name for name in dir(TensorActor) if not name.startswith("_")}
    assert {name for name in dir(ArrayActor) if not name.startswith("_")} == public
    with ours.single_threaded():
        params, raw_action, states = ours(observations(case, 3), np.zeros((3, ours.noise_size), np.float32) + 0.5)
    assert params.shape == (3, ours.params_size)
    assert raw_action.shape == (3, ours.action_size)
    assert states == []
    tf.nest.map_structure(np.testing.assert_array_equal, ours.to_env(raw_action), theirs.to_env(raw_action))


def by_hand():
    """Two inputs, one action: mean = 2 tanh(x0 - 3 x1 + 0.5) + 1, of inputs that no moment changes."""
    layers = LayerSpec("k0", "b0", "tanh"), LayerSpec("k1", "b1", "linear")
    config = PolicyConfig(action_distribution="gaussian")
    spec = ActingSpec(gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-1, 1, (1,)), config, layers, "free")
    weights = {"k0": [[1], [-3]], "b0": [0.5], "k1": [[2]], "b1": [1], "free": [np.log(0.25)]}
    moments = {"normalizer/count": 0.0, "normalizer/mean": np.zeros(2), "normalizer/m2": np.zeros(2)}
    return spec, {name: np.array(x) for name, x in (weights | moments).items()}


def test_a_network_by_hand():
    spec, weights = by_hand()
    actor = ArrayActor(spec)
    actor.set_weights(weights)
    obs = {"observation": np.array([[0.2, 0.1], [0.0, 0.3]], np.float32)}
    mean = 2 * np.tanh(np.array([[0.2 - 0.3 + 0.5], [-0.9 + 0.5]])) + 1
    params, raw_action, states = actor(obs, np.array([[1.0], [-2.0]], np.float32))
    np.testing.assert_allclose(params, np.concatenate([mean, np.full((2, 1), np.log(0.25))], 1), rtol=1e-6)
    np.testing.assert_allclose(raw_action, mean + 0.25 * np.array([[1.0], [-2.0]]), rtol=1e-6)
    assert states == []
    np.testing.assert_allclose(actor.mode(obs)[0], mean, rtol=1e-6)
    np.testing.assert_allclose(actor.to_env(raw_action), np.clip(raw_action, -1, 1))
    assert {x.dtype for x in (params, raw_action)} == {np.dtype(np.float32)}


def test_weights_are_copied_and_stay_until_the_next_ones():
    spec, weights = by_hand()
    actor, obs = ArrayActor(spec), {"observation": np.array([[0.2, 0.1]], np.float32)}
    actor.set_weights(weights)
    before = actor.mode(obs)[0]
    weights["k1"] = weights["k1"].astype(np.float32)
    actor.set_weights(weights)
    weights["k1"] *= 7
    np.testing.assert_array_equal(actor.mode(obs)[0], before)
    actor.set_weights(weights)
    np.testing.assert_allclose(actor.mode(obs)[0] - 1, 7 * (before - 1), rtol=1e-6)


def test_moments_standardise_what_comes_in():
    spec, weights = by_hand()
    actor = ArrayActor(spec)
    moments = {"normalizer/count": np.array(4.0), "normalizer/mean": np.array([1.0, 2.0])}
    actor.set_weights(weights | moments | {"normalizer/m2": np.array([16.0, 1.0])})  # deviations 2 and 0.5
    mean = actor.mode({"observation": np.array([[1.2, 2.1]], np.float32)})[0]
    np.testing.assert_allclose(mean, [[2 * np.tanh(0.1 - 3 * 0.2 + 0.5) + 1]], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("b1", None, "weights lack b1"),
        ("normalizer/m2", None, "weights lack normalizer/m2"),
        ("k0", np.zeros((3, 1)), r"weight k0 has shape \[3, 1\]; \[2, 1\] is needed"),
        ("k1", np.zeros((1, 2)), r"weight k1 has shape \[1, 2\]; \[1, 1\] is needed"),
        ("b0", np.zeros(4), r"weight k0 has shape \[2, 1\]; \[2, 4\] is needed"),
        ("b1", np.zeros((1, 1)), r"weight b1 has shape \[1, 1\]; \[1\] is needed"),
        ("free", np.zeros(2), r"weight free has shape \[2\]; \[1\] is needed"),
        ("normalizer/mean", np.zeros(1), r"weight mean has shape \[1\]; \[2\] is needed"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(name, value, message):
    spec, weights = by_hand()
    actor, obs = ArrayActor(spec), {"observation": np.array([[0.2, 0.1]], np.float32)}
    actor.set_weights(weights)
    before = actor.mode(obs)[0]
    wrong = {key: x for key, x in weights.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(ValueError, match=message):
        actor.set_weights(wrong | {"normalizer/count": np.array(3.0)})
    np.testing.assert_array_equal(actor.mode(obs)[0], before)


def test_what_numpy_cannot_do_is_refused():
    spec, _ = by_hand()
    with pytest.raises(RuntimeError, match="set_weights comes first"):
        ArrayActor(spec).mode({"observation": np.zeros((1, 2), np.float32)})
    with pytest.raises(ValueError, match="no gelu"):
        ArrayActor(ActingSpec(spec.observation_space, spec.action_space, spec.config, (LayerSpec("k", "b", "gelu"),)))
    with pytest.raises(ValueError, match="no recurrent states"):
        ArrayActor(ActingSpec(spec.observation_space, spec.action_space, spec.config, (), states={"policy_state": 4}))


WORKER = """
import sys
for name in ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "jax", "torch"):
    sys.modules[name] = None  # importing it raises ImportError
import pickle
import numpy as np
with open(sys.argv[1], "rb") as file:
    spec, weights, obs, noise = pickle.load(file)
from trpo_tf.acting import ArrayActor, stateful_act
actor = ArrayActor(spec)
actor.set_weights(weights)
with actor.single_threaded():
    result = *actor(obs, noise)[:2], actor.mode(obs)[0], stateful_act(actor)(obs, np.ones(len(noise), bool))
with open(sys.argv[2], "wb") as file:
    pickle.dump(result, file)
loaded = [name for name, module in sys.modules.items() if module and name.startswith("trpo_tf.")]
print(sorted({name.split(".")[1] for name in loaded}))
"""


@pytest.mark.parametrize("case", ["hybrid", "masked"])
def test_a_worker_without_tensorflow_acts_to_the_bit(case, tmp_path):
    policy, obs = make(case), observations(case)
    policy.normalizer.commit(policy.encoder(obs), tf.ones(40))
    noise = policy.distribution.noise([40], [1, 2]).numpy()
    (tmp_path / "in").write_bytes(pickle.dumps((policy.acting_spec(), policy.get_weights(), obs, noise)))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, tmp_path / "in", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['acting', 'config', 'errors', 'paths']"
    actor = make_actor(policy)
    params, raw_action, mode, acted = pickle.loads((tmp_path / "out").read_bytes())
    for ours, theirs in zip((params, raw_action), actor(obs, noise), strict=False):
        assert ours.tobytes() == theirs.tobytes()
    assert mode.tobytes() == actor.mode(obs)[0].tobytes()
    expected = actor.to_env(actor.mode(obs)[0])
    tf.nest.map_structure(np.testing.assert_array_equal, acted, expected)
