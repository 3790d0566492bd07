"""Recurrent states over episodes, whichever actor acts."""

import numpy as np
import pytest

from tests.acting.test_array_actor import make
from trpo_tf.acting import stateful_act
from trpo_tf.policy.tensor_actor import make_actor


@pytest.mark.parametrize("drawn", [False, True])
def test_states_are_carried_and_dropped_where_episodes_begin(drawn):
    policy = make(network="gru")
    actor, rng = make_actor(policy), np.random.default_rng(0)
    noise = np.full((3, actor.noise_size), 0.5, np.float32)
    act = stateful_act(actor, (lambda count: noise[:count]) if drawn else None)
    states = {name: np.zeros((3, size), np.float32) for name, size in policy.states.items()}
    assert set(states) == {"policy_state", "value_state"}
    for t in range(4):
        obs = {"observation": rng.normal(size=(3, 2, 3)).astype(np.float32)}
        is_first = np.array([t == 0, t == 2, False])
        given = obs | states | {"is_first": is_first.astype(np.float32)}
        raw_action, after = actor(given, noise)[1:] if drawn else actor.mode(given)
        np.testing.assert_array_equal(act(obs, is_first), policy.distribution.to_env(raw_action, np))
        states = dict(zip(sorted(states), after, strict=True))
    # From a state of zeros the first environment's action is another: states matter.
    fresh = stateful_act(actor, (lambda count: noise[:count]) if drawn else None)
    begun = fresh(obs, np.ones(3, bool))
    assert not np.allclose(begun[0], policy.distribution.to_env(raw_action, np)[0], atol=1e-4)


def test_two_functions_of_one_actor_keep_states_of_their_own():
    actor, rng = make_actor(make(network="gru")), np.random.default_rng(0)
    first, second = stateful_act(actor), stateful_act(actor)
    begin, go_on = np.ones(2, bool), np.zeros(2, bool)
    a, b, c = ({"observation": rng.normal(size=(2, 2, 3)).astype(np.float32)} for _ in range(3))
    first(a, begin)
    second(b, begin)
    alone = stateful_act(actor)
    alone(a, begin)
    np.testing.assert_array_equal(first(c, go_on), alone(c, go_on))
    assert not np.array_equal(second(c, go_on), first(c, begin))


def test_observations_are_cast_to_what_is_stored():
    actor = make_actor(make())
    obs = np.random.default_rng(0).normal(size=(2, 2, 3))
    ours = stateful_act(actor)({"observation": obs}, np.ones(2, bool))
    np.testing.assert_array_equal(ours, stateful_act(actor)({"observation": obs.astype(np.float32)}, np.ones(2, bool)))
    assert ours.dtype == np.float32
