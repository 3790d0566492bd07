"""The agent: initial weights, draws by seed, encoders."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import Config, UsageError
from trpo_tf.policy import encoders
from trpo_tf.policy.policy import Policy

BOX = gym.spaces.Box(-1, 1, (2,))


def make(obs_space=None, action_space=BOX, seed=0, **changes):
    return Policy(obs_space or gym.spaces.Box(-1, 1, (3,)), action_space, Config(env="x", **changes), seed)


def test_initial_weights_are_orthogonal_with_the_gains_of_the_recipe():
    policy = make(hidden_sizes=(8, 8), init_log_std=-0.7)
    variables = policy.network.model.variables + policy.value_network.model.variables
    weights = {v.path.removeprefix("policy/").removeprefix("value/"): v.numpy() for v in variables}
    for name, gain in (("policy_dense_1", 2.0), ("value_dense_1", 2.0)):
        kernel = weights[f"{name}/kernel"]
        np.testing.assert_allclose(kernel.T @ kernel, gain * np.eye(8), atol=1e-5)
    head = weights["policy_head/mean/kernel"]
    np.testing.assert_allclose(head.T @ head, 1e-4 * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(weights["policy_head/log_std"], -0.7)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert a.network.theta().numpy().tobytes() == b.network.theta().numpy().tobytes()
    assert a.network.theta().numpy().tobytes() != c.network.theta().numpy().tobytes()


def test_draws_follow_their_noise_and_log_probs_are_of_the_unclipped_action():
    policy = make(init_log_std=2.0)
    obs = tf.random.stateless_normal([64, 3], [0, 0])
    params, action, env_action = policy.act(obs, policy.family.noise([64], [3, 4]))
    again = policy.act(obs, policy.family.noise([64], [3, 4]))[1]
    other = policy.act(obs, policy.family.noise([64], [3, 5]))[1]
    assert action.numpy().tobytes() == again.numpy().tobytes()
    assert action.numpy().tobytes() != other.numpy().tobytes()
    assert np.abs(action).max() > 1
    assert np.abs(env_action).max() == 1
    mean, std = np.split(params.numpy().astype(np.float64), 2, 1)
    std = np.exp(std)
    expected = -0.5 * ((action.numpy() - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(policy.log_prob(params, action), expected.sum(1), rtol=1e-5)


def test_without_noise_the_mode_is_drawn():
    policy = make(action_space=gym.spaces.Discrete(4, start=10))
    obs = tf.random.stateless_normal([9, 3], [0, 0])
    logits = policy.network.model(policy.preprocess(obs)).numpy()
    np.testing.assert_array_equal(policy.act(obs, tf.zeros([9, 4]))[2], logits.argmax(-1) + 10)


def test_discrete_observations_are_one_hot_and_not_normalised():
    encoder = encoders.make(gym.spaces.Discrete(3, start=5))
    np.testing.assert_array_equal(encoder(tf.constant([5, 7, 8])), [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert encoder.valid(tf.constant([4, 5, 7, 8])).numpy().tolist() == [False, True, True, False]
    assert not make(gym.spaces.Discrete(3)).normalizer.enabled


def test_box_observations_are_flattened():
    encoder = encoders.make(gym.spaces.Box(0, 255, (2, 3), np.uint8))
    assert encoder(tf.zeros([4, 2, 3], tf.uint8)).shape == (4, 6)
    assert encoder.valid(tf.constant([[[1.0] * 3, [np.nan] * 3]])).numpy().tolist() == [False]


def test_unsupported_observation_spaces_are_named():
    with pytest.raises(UsageError, match=r"observation space Dict.* is not supported"):
        make(gym.spaces.Dict(a=BOX))
