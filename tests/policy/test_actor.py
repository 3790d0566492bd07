"""Acting in NumPy: the same parameters, actions and modes as TensorFlow gives, for what is asked of it."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS, OBSERVATIONS, sampled
from trpo_tf.config import Config
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy

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
    policy = Policy(*SPACES[case], Config(env="x", hidden_sizes=(8, 6), **changes), 3)
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
        policy.normalizer.commit(policy.encoder.vector(obs), tf.ones(40))
    noise = policy.family.noise([40], [1, 2])
    actor = Actor(policy)
    for ours, theirs in zip(actor(obs, noise.numpy()), policy.act(obs, noise), strict=True):
        assert len(ours) == len(theirs)
        if len(ours):
            assert ours.dtype == theirs.numpy().dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actor.mode(obs)[0], policy.likeliest(obs)[0], rtol=1e-4, atol=1e-5)
    played = actor.player()(obs, np.ones(40, bool))
    expected = policy.family.to_env(actor.mode(obs)[0], np)
    tf.nest.map_structure(np.testing.assert_array_equal, played, expected)
    return actor


@pytest.mark.parametrize("case", list(SPACES))
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "gelu"])
@pytest.mark.parametrize("changes", [{}, {"normalize_obs": False, "rescale_action": True}])
def test_it_acts_as_the_policy_does(case, activation, changes):
    actor = compare(make(case, activation=activation, **changes), observations(case))
    in_numpy = activation != "gelu" and case not in IN_TENSORFLOW  # NumPy has no erf, and no quantile of a Beta
    assert (actor._calls is None) == in_numpy


def test_a_network_of_other_layers_acts_through_tensorflow():
    assert compare(make(layer_norm=True), observations("box"))._calls is not None


def test_a_player_carries_the_states_and_drops_them_where_episodes_begin():
    policy = make(network="gru")
    actor, rng = Actor(policy), np.random.default_rng(0)
    play, states = actor.player(), {name: np.zeros((3, size), np.float32) for name, size in policy.states.items()}
    for t in range(4):
        obs = {"observation": rng.normal(size=(3, 2, 3)).astype(np.float32)}
        is_first = np.array([t == 0, t == 2, False])
        action, after = actor.mode(obs | states | {"is_first": is_first.astype(np.float32)})
        np.testing.assert_array_equal(play(obs, is_first), policy.family.to_env(action, np))
        states = dict(zip(sorted(states), after, strict=True))
    assert set(states) == {"policy_state", "value_state"}


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_parameters_are_those_of_the_last_refresh(activation):
    policy = make(activation=activation)
    obs, noise = observations("box"), np.zeros((40, 4), np.float32)
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
    clean[0, 0, 0], clean[1, 0, 1] = mean[0], mean[1] + bound[1] / scale[1]
    actor = Actor(policy)
    ours, theirs = (actor.mode({"observation": x})[0] for x in (obs, clean))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
