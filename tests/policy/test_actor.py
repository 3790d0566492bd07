"""Acting in NumPy: the same parameters, actions and modes as TensorFlow gives, for what is asked of it."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy

SPACES = {
    "box": (gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Box(-0.5, 2, (4,))),
    "discrete": (gym.spaces.Discrete(7, start=2), gym.spaces.Discrete(5, start=-3)),
}


def make(case="box", **changes):
    policy = Policy(*SPACES[case], Config(env="x", hidden_sizes=(8, 6), **changes), 3)
    for number, variable in enumerate(policy.network.model.trainable_variables):
        variable.assign(tf.random.stateless_normal(variable.shape, [number, 0]))
    return policy


def observations(policy, count=40):
    if policy.encoder.shape:
        return np.random.default_rng(0).normal(1, 3, (count, *policy.encoder.shape)).astype(np.float32)
    return np.random.default_rng(0).integers(0, 11, count)  # some outside the space


def compare(policy):
    obs = observations(policy)
    if policy.encoder.normalized:
        policy.normalizer.commit(policy.encoder(obs), tf.ones(len(obs)))
    noise = policy.family.noise([len(obs)], [1, 2])
    actor = Actor(policy)
    for ours, theirs in zip(actor(obs, noise.numpy()), policy.act(obs, noise), strict=True):
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    features = policy.preprocess(obs)
    mode = policy.family(policy.network.model(features)).mode()
    np.testing.assert_allclose(actor.greedy(obs), policy.family.to_env(mode), rtol=1e-4, atol=1e-5)
    return actor


@pytest.mark.parametrize("case", list(SPACES))
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "gelu"])
@pytest.mark.parametrize("changes", [{}, {"normalize_obs": False, "rescale_action": True}])
def test_it_acts_as_the_policy_does(case, activation, changes):
    actor = compare(make(case, activation=activation, **changes))
    assert (actor._call is None) == (activation != "gelu")  # NumPy has no erf


def test_a_network_of_other_layers_acts_through_tensorflow():
    policy = make()
    policy.network.model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Reshape((6, 1)), keras.layers.Flatten(), policy.network.model]
    )
    assert compare(policy)._call is not None


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_parameters_are_those_of_the_last_refresh(activation):
    policy = make(activation=activation)
    obs, noise = observations(policy), np.zeros((40, 4), np.float32)
    actor = Actor(policy)
    before = actor(obs, noise)[0]
    policy.network.assign(policy.network.theta() * 1.5)
    actor.refresh()
    after = actor(obs, noise)[0]
    np.testing.assert_allclose(after, policy.act(obs, noise)[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(before, after)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_nan_is_the_mean_and_infinity_the_bound(activation):
    policy = make(activation=activation)
    policy.normalizer.commit(tf.random.stateless_normal([99, 6], [0, 0], 5.0), tf.ones(99))
    obs = np.zeros((2, 2, 3), np.float32)
    obs[0, 0, 0], obs[1, 0, 1] = np.nan, np.inf
    mean, scale, bound = (x.numpy() for x in policy.normalizer.constants())
    clean = obs.copy()
    clean[0, 0, 0], clean[1, 0, 1] = mean[0], mean[1] + bound / scale[1]
    actor = Actor(policy)
    assert np.isfinite(actor.greedy(obs)).all()
    np.testing.assert_allclose(actor.greedy(obs), actor.greedy(clean), rtol=1e-5, atol=1e-5)
