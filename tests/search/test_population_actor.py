"""Each environment's action is that of an ArrayActor with its candidate's weights."""

import numpy as np
import pytest
import tensorflow as tf

from tests.acting.test_array_actor import SPACES, make, observations
from trpo_tf.acting import ArrayActor, stateful_act
from trpo_tf.search.population_actor import PopulationActor

P, B = 3, 8


def population(policy, count=P):
    """Weights of so many policies, one by one and together."""
    rng, weights = np.random.default_rng(1), policy.get_weights()
    names = [name for layer in policy.acting_spec().layers for name in layer[:2]]
    each = [weights | {name: rng.normal(size=weights[name].shape) for name in names} for _ in range(count)]
    return each, weights | {name: np.stack([one[name] for one in each]) for name in names}


@pytest.mark.parametrize("changes", [{}, {"activation": "relu"}, {"layer_norm": "both"}], ids=["tanh", "relu", "norm"])
@pytest.mark.parametrize("case", [case for case in SPACES if case != "beta"])
def test_every_column_acts_as_its_candidate(case, changes):
    policy = make(case, **changes)
    obs = observations(case)
    if policy.normalizer.enabled.any():
        policy.normalizer.commit(policy.encoder(obs), tf.ones(40))
    each, together = population(policy)
    actor, alone = PopulationActor(policy.acting_spec()), ArrayActor(policy.acting_spec())
    actor.set_weights(together, B)
    assert actor.candidates == P
    mine = np.arange(B) % P
    for env, candidate in ((0, 2), (5, 0), (7, 0)):
        actor.assign(env, candidate)
        mine[env] = candidate
    seen = {name: x[:B] for name, x in obs.items()}
    taken = actor.act(actor.encode(seen))
    for env in range(B):
        alone.set_weights(each[mine[env]])
        expected = stateful_act(alone)({name: x[env : env + 1] for name, x in seen.items()}, np.ones(1, bool))
        for ours, theirs in zip(tf.nest.flatten(taken), tf.nest.flatten(expected), strict=True):
            np.testing.assert_allclose(ours[env], theirs[0], rtol=1e-5, atol=1e-6)


def test_whom_an_environment_had_before_is_forgotten_and_others_stay():
    policy = make("box")
    _, together = population(policy)
    actor = PopulationActor(policy.acting_spec())
    actor.set_weights(together, 2)
    features = actor.encode({name: np.repeat(x[:1], 2, 0) for name, x in observations("box").items()})
    first = actor.act(features).copy()
    actor.assign(0, 1)
    second = actor.act(features)
    np.testing.assert_allclose(second, first[[1, 1]], rtol=1e-6)
    assert not np.allclose(first[0], first[1])
