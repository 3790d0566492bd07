"""Every space with every space and every network: updates, export, answers."""

import contextlib
import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS, IMAGES, NETWORKS, OBSERVATIONS
from trpo_tf.config import Config
from trpo_tf.policy.actor import Actor
from trpo_tf.run import saved_model
from trpo_tf.trainer import Agent

ALL = [
    (action, observation, network)
    for action, observation, network in itertools.product(ACTIONS, OBSERVATIONS, NETWORKS)
    if network != "cnn" or observation in IMAGES
]


def covering(cases, columns):
    """Greedily, the fewest cases in which all entries of so many columns occur together that do so at all."""

    def entries(case):
        return set(itertools.combinations(enumerate(case), columns))

    missing, chosen = set().union(*map(entries, cases)), []
    while missing:
        best = max(cases, key=lambda case: len(entries(case) & missing))
        chosen.append(best)
        missing -= entries(best)
    return chosen


PAIRS = covering(ALL, 2)  # for continuous integration
EACH = covering(PAIRS, 1)  # for every run of the tests


def marks(case):
    """When the case is run."""
    return () if case in EACH else [pytest.mark.slow] if case in PAIRS else [pytest.mark.slow, pytest.mark.whole]


@contextlib.contextmanager
def eagerly(wanted):
    """Without graphs, which take longer to build than two updates of a few rows."""
    tf.config.run_functions_eagerly(wanted)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("case", [pytest.param(case, id="-".join(case), marks=marks(case)) for case in ALL])
@pytest.mark.usefixtures("uncompiled")
def test_two_updates_and_the_answers_of_the_export(case, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "_WARM_UP_ROWS", (1,))
    action, observation, network = case
    masked = action in ("discrete", "multi_discrete", "dict") and ALL.index(case) % 2 == 0
    options = f"observation='{observation}',action='{action}',masked={masked}"
    config = Config(
        env="tests.spaces_table:Table-v0",
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
    agent = Agent(config)
    agent.start()
    with eagerly(case in PAIRS):
        for _ in range(2):
            row, fit = agent.step()
            assert row["policy/max_ratio_error"] < 1e-4
            assert 0 <= row["policy/kl"] <= config.max_kl
            assert row["policy/reason"] in ("accepted", "improvement", "kl")
            assert all(np.isfinite(x) for x in (row | fit.result()).values() if isinstance(x, float))
    trajectory, _ = agent.collector.collect()
    learner, policy = agent.learner, agent.policy
    learner.wait()
    # KL(old || new) is 0 before a step: the actor's parameters are the learner's.
    names = [name for name in policy.specs if name in trajectory.obs]
    first = {name: trajectory.obs[name][0] for name in names}
    acted = agent.collector._actor(first, np.zeros((3, policy.family.noise_size), np.float32) + 0.5)[0]
    params = policy.params(policy.network.theta(), policy.preprocess({k: tf.constant(v) for k, v in first.items()}))
    assert float(tf.reduce_max(tf.abs(policy.family.kl(tf.constant(acted), params)))) < 1e-5
    loaded = saved_model.LoadedPolicy(agent.export(tmp_path))
    obs = {name: first[name] for name in policy.encoder.leaves}
    is_first = np.ones(3, bool)
    ours, theirs = Actor(policy).player()(obs, is_first), loaded.player()(obs, is_first)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    assert len(agent.evaluate(2).returns) == 2
    agent.collector.close()
