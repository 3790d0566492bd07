"""Every space with every space and every network: updates, export, answers."""

import numpy as np
import pytest
import tensorflow as tf

from tests.combinations import ALL, EACH, PAIRS
from tests.conftest import eager
from tests.spaces_table import ACTIONS, NETWORKS
from trpo_tf.acting.stateful import stateful_act
from trpo_tf.api import TRPO
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.serving import warm_up
from trpo_tf.serving.loaded_policy import LoadedPolicy


def marks(case):
    """When the case is run."""
    return () if case in EACH else [pytest.mark.slow] if case in PAIRS else [pytest.mark.slow, pytest.mark.whole]


@pytest.mark.parametrize("case", [pytest.param(case, id="-".join(case), marks=marks(case)) for case in ALL])
def test_two_updates_and_the_answers_of_the_export(case, tmp_path, monkeypatch):
    monkeypatch.setattr(warm_up, "BATCH_SIZES", (1,))
    action, observation, network = case
    masked = action in ("discrete", "multi_discrete", "dict") and ALL.index(case) % 2 == 0
    options = f"observation='{observation}',action='{action}',masked={masked}"
    agent = TRPO(
        "tests.spaces_table:Table-v0",
        xla="off",
        allow_env_module=True,
        env_options=options,
        num_envs=3,
        steps_per_update=24,
        hidden_sizes=(6, 5),
        value_epochs=1,
        value_minibatch_size=8,
        cg_iterations=2,
        share_torso=ALL.index(case) % 3 == 0,
        **ACTIONS[action][1],
        **NETWORKS[network],
    )
    session, policy = agent.session, agent.session.policy
    with eager(case in PAIRS):
        for _ in range(2):
            row = session.step()
            assert row["policy/max_ratio_error"] < 1e-4
            assert 0 <= row["policy/kl"] <= agent.config.trust_region.max_kl
            assert row["policy/reason"] in ("accepted", "improvement", "kl")
            assert all(np.isfinite(x) for x in row.values() if isinstance(x, float))
    session.source.publish(2, policy.get_weights())
    trajectory = session.source.next().trajectory
    session.learner.wait()
    # KL(old || new) is 0 before a step: the actor's parameters are the learner's.
    first = {name: trajectory.obs[name][0] for name in policy.specs}
    actor = make_actor(policy, live=True)
    acted = actor(first, np.zeros((3, policy.distribution.noise_size), np.float32) + 0.5)[0]
    params = policy.params(policy.network.theta(), policy.preprocess({k: tf.constant(v) for k, v in first.items()}))
    assert float(tf.reduce_max(tf.abs(policy.distribution.kl(tf.constant(acted), params)))) < 1e-5
    loaded = LoadedPolicy(agent.export(tmp_path))
    obs = {name: first[name] for name in policy.encoder.leaves}
    is_first = np.ones(3, bool)
    ours, theirs = stateful_act(actor)(obs, is_first), loaded.stateful_act()(obs, is_first)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    assert len(agent.evaluate(2).returns) == 2
    agent.close()
