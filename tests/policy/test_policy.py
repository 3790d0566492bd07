"""The agent: initial weights, draws by seed, features, recurrence, masks, models of the user's."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import OBSERVATIONS, sampled
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy.policy import Policy

BOX = gym.spaces.Box(-1, 1, (2,))


def make(obs_space=None, action_space=BOX, seed=0, networks=(), **changes):
    obs_space = obs_space or gym.spaces.Box(-1, 1, (3,))
    return Policy(obs_space, action_space, PolicyConfig(**changes), seed, *networks)


def plain(x):
    return {"observation": x}


def test_initial_weights_are_orthogonal_with_the_gains_of_the_recipe():
    policy = make(hidden_sizes=(8, 8), init_log_std=-0.7)
    variables = policy.network.model.variables + policy.value_network.model.variables
    weights = {v.path.removeprefix("policy/").removeprefix("value/"): v.numpy() for v in variables}
    for name, gain in (("policy_dense_1", 2.0), ("value_dense_1", 2.0)):
        kernel = weights[f"{name}/kernel"]
        np.testing.assert_allclose(kernel.T @ kernel, gain * np.eye(8), atol=1e-5)
    head = weights["policy_head/kernel"]
    np.testing.assert_allclose(head.T @ head, 1e-4 * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(weights["policy_parameters/free"], -0.7)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert a.network.theta().numpy().tobytes() == b.network.theta().numpy().tobytes()
    assert a.network.theta().numpy().tobytes() != c.network.theta().numpy().tobytes()


def test_a_std_that_each_observation_changes_starts_where_the_other_one_does():
    policy = make(action_distribution="gaussian_with_state_std", init_log_std=-0.7)
    params, _, _ = policy.act(plain(tf.random.stateless_normal([9, 3], [0, 0])), tf.zeros([9, 2]))
    np.testing.assert_allclose(params[:, 2:], -0.7, atol=0.05)
    assert params.numpy()[:, 2:].std(0).min() > 0


def test_draws_follow_their_noise_and_log_probs_are_of_the_unclipped_action():
    policy = make(init_log_std=2.0)
    obs = plain(tf.random.stateless_normal([64, 3], [0, 0]))
    params, action, states = policy.act(obs, policy.distribution.noise([64], [3, 4]))
    again = policy.act(obs, policy.distribution.noise([64], [3, 4]))[1]
    other = policy.act(obs, policy.distribution.noise([64], [3, 5]))[1]
    assert action.numpy().tobytes() == again.numpy().tobytes()
    assert action.numpy().tobytes() != other.numpy().tobytes()
    assert not states
    assert np.abs(action).max() > 1
    assert np.abs(policy.distribution.to_env(action)).max() == 1
    mean, std = np.split(params.numpy().astype(np.float64), 2, 1)
    std = np.exp(std)
    expected = -0.5 * ((action.numpy() - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(policy.log_prob(params, action), expected.sum(1), rtol=1e-5)


def test_the_likeliest_action_is_the_mode():
    policy = make(action_space=gym.spaces.Discrete(4, start=10))
    obs = plain(tf.random.stateless_normal([9, 3], [0, 0]))
    logits = policy.params(policy.network.theta(), policy.preprocess(obs)).numpy()
    np.testing.assert_array_equal(policy.distribution.to_env(policy.likeliest(obs)[0]), logits.argmax(-1) + 10)


def test_discrete_observations_are_not_normalised():
    assert not make(gym.spaces.Discrete(3)).normalizer.enabled.any()


def test_only_numbers_are_normalised_each_by_its_own_moments():
    space = gym.spaces.Dict(
        {"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(-9, 9, (1,)), "c": gym.spaces.MultiBinary(1)}
    )
    policy = make(space)
    obs = {"a": np.array([0, 1]), "b": np.array([[2.0], [6.0]], np.float32), "c": np.array([[1], [1]], np.int8)}
    policy.normalizer.commit(policy.encoder(obs), tf.ones(2))
    np.testing.assert_allclose(policy.preprocess(obs)["vector"], [[1, 0, -1, 1], [0, 1, 1, 1]], atol=1e-6)


def test_images_are_standardised_or_stay_bytes_and_flat_ones_are_numbers():
    space = OBSERVATIONS["image_first"]
    obs = sampled(space)
    for normalize, dtype in ((True, tf.float32), (False, tf.uint8)):
        features = make(space, normalize_obs=normalize).preprocess(obs)
        assert list(features) == ["observation"]
        assert features["observation"].dtype == dtype
    assert make(space, image_encoder="flat").preprocess(obs)["vector"].shape == (6, 4 * 20 * 24)


def test_before_the_first_moments_a_standardised_image_is_a_fraction_of_255():
    space = OBSERVATIONS["image_first"]
    obs, noise = sampled(space), np.zeros((6, 2), np.float32)
    policies = [make(space, normalize_obs=normalize) for normalize in (True, False)]
    np.testing.assert_allclose(*(policy.act(obs, noise)[0] for policy in policies), rtol=1e-3, atol=1e-6)


def test_models_of_the_users_take_images_as_bytes():
    space = OBSERVATIONS["image_first"]
    image = keras.Input(space.shape, dtype="uint8", name="observation")
    model = keras.Model({"observation": image}, keras.layers.Dense(1)(keras.layers.Flatten()(image)))
    policy = Policy(space, BOX, PolicyConfig(hidden_sizes=(4,)), 0, value_network=model)
    assert policy.preprocess(sampled(space))["observation"].dtype == tf.uint8


@pytest.mark.parametrize(
    ("shape", "order"), [((4, 20, 24), (1, 2, 0)), ((20, 24, 3), (0, 1, 2)), ((20, 24), (0, 1)), ((3, 20, 24, 2), None)]
)
def test_channels_come_last_whatever_the_image(shape, order):
    from trpo_tf.policy.networks import ChannelsLast

    image = np.random.default_rng(0).integers(0, 255, (2, *shape)).astype(np.uint8)
    out = ChannelsLast(shape)(tf.constant(image)).numpy()
    if order is None:
        expected = image.transpose(0, 2, 3, 1, 4).reshape(2, 20, 24, 6)
    else:
        expected = image.transpose(0, *(axis + 1 for axis in order)).reshape(2, 20, 24, -1)
    np.testing.assert_array_equal(out, expected)


def test_an_image_that_is_too_small_is_named():
    with pytest.raises(UsageError, match=r"\(16, 20, 1\) are too small for image_encoder=nature"):
        make(gym.spaces.Box(0, 255, (16, 20, 1), np.uint8), image_encoder="nature")


def test_unsupported_observation_spaces_are_named():
    with pytest.raises(UsageError, match=r"observation space Dict.*Text.* is not supported"):
        make(gym.spaces.Dict(a=BOX, b=gym.spaces.Text(3)))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("share_torso", [False, True])
def test_sequences_equal_single_steps_and_start_anew_at_is_first(kind, share_torso):
    length, envs = 4, 3
    policy = make(network=kind, sequence_length=length, hidden_sizes=(5, 6), share_torso=share_torso)
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(length, envs, 3)).astype(np.float32)
    is_first = (rng.random((length, envs)) < 0.4).astype(np.float32)
    states = {name: rng.normal(size=(envs, size)).astype(np.float32) for name, size in policy.states.items()}
    assert set(states) == ({"policy_state"} if share_torso else {"policy_state", "value_state"})
    rows, params = [], []
    for t in range(length):
        rows.append(plain(observed[t]) | {"is_first": is_first[t]} | states)
        given, _, after = policy.act(rows[-1], tf.zeros([envs, 2]))
        states = {name: after[name].numpy() for name in states}
        params.append(given.numpy())
    sequences = {
        name: np.stack([row[name] for row in rows], 1).reshape(envs * length, *rows[0][name].shape[1:])
        for name in rows[0]
    }
    ours = policy.params(policy.network.theta(), policy.preprocess(sequences), length)
    np.testing.assert_allclose(ours, np.stack(params, 1).reshape(envs * length, -1), atol=1e-6)
    # An episode's beginning forgets what was before: the same answer as from a state of zeros.
    fresh = rows[0] | {"is_first": np.ones(envs, np.float32)}
    zeros = {name: np.zeros_like(rows[0][name]) for name in policy.states}
    np.testing.assert_array_equal(
        policy.act(fresh, tf.zeros([envs, 2]))[0],
        policy.act(rows[0] | {"is_first": np.zeros(envs, np.float32)} | zeros, tf.zeros([envs, 2]))[0],
    )


def test_a_shared_torso_is_the_policys():
    policy = make(share_torso=True, hidden_sizes=(5,))
    assert policy.value_network.size == 6
    features = policy.preprocess(plain(tf.random.stateless_normal([4, 3], [0, 0])))
    hidden = policy.value_features(features)["vector"]
    layer = policy.network.model.body[0]
    np.testing.assert_allclose(hidden, np.tanh(features["vector"] @ layer.kernel + layer.bias), rtol=1e-5)


def test_masks_of_the_observation_reach_the_choices():
    space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (3,)), "action_mask": gym.spaces.MultiBinary(4)})
    policy = make(space, gym.spaces.Discrete(4))
    obs = sampled(space, 50)
    obs["action_mask"][:, 1] = 1
    params, action, _ = policy.act(obs, policy.distribution.noise([50], [0, 1]))
    assert policy.encoder.size == 3
    assert obs["action_mask"][np.arange(50), action.numpy()[:, 0].astype(int)].all()
    assert (tf.nn.softmax(params).numpy()[obs["action_mask"] == 0] == 0).all()


MASK_SPACES = {
    "multi_discrete": gym.spaces.MultiDiscrete([2] * 4),
    "picture": gym.spaces.Box(0, 1, (16, 16), np.uint8),
    "parts": gym.spaces.Tuple([gym.spaces.Discrete(2)] * 4),
    "bools": gym.spaces.Box(0, 1, (2, 2), bool),
}


@pytest.mark.parametrize("kind", list(MASK_SPACES))
def test_a_mask_is_numbers_whatever_its_space(kind):
    mask = MASK_SPACES[kind]
    count = 256 if kind == "picture" else 4
    space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (3,)), "action_mask": mask})
    policy = make(space, gym.spaces.Discrete(count))
    obs = sampled(space, 50)
    given = {name: x.astype(policy.specs[name][1]) for name, x in obs.items()}
    features = policy.preprocess(given)
    params = policy.params(policy.network.theta(), features)
    allowed = features["action_mask"].numpy() != 0
    assert allowed.shape == (50, count)
    some = allowed.any(1)
    assert some.sum() > 40
    np.testing.assert_array_equal(params.numpy()[some] > -1e8, allowed[some])
    np.testing.assert_array_equal(policy.encoder.arrays(given)["action_mask"], features["action_mask"])


def test_names_that_mean_something_else_are_not_given():
    picture = gym.spaces.Box(0, 255, (16, 16), np.uint8)
    space = gym.spaces.Dict({"vector": picture, "global": gym.spaces.Box(-1, 1, (2,)), "action_mask": picture})
    policy = make(space)  # a Box of actions: nothing to be masked
    assert set(policy.specs) == {"observation_vector", "observation_global", "action_mask"}
    given = {name: x.astype(policy.specs[name][1]) for name, x in sampled(space).items()}
    assert np.isfinite(policy.act(given, tf.zeros([6, 2]))[0]).all()


def test_an_observation_of_nothing_is_named():
    with pytest.raises(UsageError, match="nothing to be seen"):
        make(gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(4)}), gym.spaces.Discrete(4))


def test_a_mask_of_another_size_is_named_and_without_choices_it_is_an_observation():
    space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (3,)), "action_mask": gym.spaces.MultiBinary(4)})
    with pytest.raises(UsageError, match=r"action_mask has 4 entries.* 5 choices"):
        make(space, gym.spaces.Discrete(5))
    assert make(space).encoder.size == 7


def dense(outputs, *layers):
    return keras.Sequential([*layers, keras.layers.Dense(outputs)])


def twins():
    """A policy and a value network on one layer."""
    x = keras.Input((3,))
    hidden = keras.layers.Dense(4)(x)
    return keras.Model(x, keras.layers.Dense(2)(hidden)), keras.Model(x, keras.layers.Dense(1)(hidden))


def test_models_of_the_users_act_and_estimate():
    model, value = dense(2, keras.layers.Dense(7, "selu"), keras.layers.BatchNormalization()), dense(1)
    policy = make(networks=(model, value))
    obs = plain(tf.random.stateless_normal([4, 3], [0, 0]))
    params, _, _ = policy.act(obs, tf.zeros([4, 2]))
    features = policy.preprocess(obs)
    np.testing.assert_allclose(params[:, :2], model(features["vector"]), rtol=1e-6)
    np.testing.assert_allclose(params[:, 2:], -0.5)
    np.testing.assert_allclose(policy.values(features), value(features["vector"])[:, 0], rtol=1e-6)
    np.testing.assert_allclose(policy.params(policy.network.theta(), features), params, rtol=1e-6)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ((keras.Model(x := keras.Input((3,)), [x, x]), None), r"policy_network gives a list; one tensor \[N, 2\]"),
        ((dense(2, keras.layers.Reshape((3, 1)), keras.layers.LSTM(2)), None), "fisher_product=reverse can"),
        (twins(), "share variables"),
        ((dense(3), None), r"policy_network gives \(3,\) numbers for an observation; 2 are needed"),
        ((None, dense(2)), r"value_network gives \(2,\) numbers for an observation; 1 are needed"),
        (
            (keras.Sequential([keras.layers.Input((9,)), keras.layers.Dense(2)]), None),
            "policy_network does not make a tensor of .*3",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(networks, message):
    with pytest.raises(UsageError, match=message):
        make(networks=networks)


def test_a_shared_torso_is_not_one_of_the_users():
    with pytest.raises(UsageError, match="share_torso"):
        make(networks=(dense(2), None), share_torso=True)
