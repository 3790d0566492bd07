"""Which policy acts: its version, its parameters, and what a thread of its own may not change."""

import threading

import keras
import numpy as np
import pytest

from trpo_tf.config import UsageError
from trpo_tf.rollout.collector import Collector, EnvironmentFailure
from trpo_tf.trainer import Agent


@pytest.fixture
def started(tiny, uncompiled):
    """Makes an agent whose environments are there, without what XLA takes to compile."""

    def make(**changes):
        agent = Agent(tiny(**changes))
        agent.start()
        return agent

    return make


def watched(agent, monkeypatch):
    """The trajectories that the learner is given, from now on, and the policy's parameters when it was."""
    given, update = [], agent.learner.update

    def record(trajectory, *args):
        given.append((trajectory, agent.policy.network.theta().numpy()))
        return update(trajectory, *args)

    monkeypatch.setattr(agent.learner, "update", record)
    return given


def drawn_by(agent, trajectory, theta) -> bool:
    """Whether the trajectory's distributions are those of theta; the environment's numbers are not normalised here."""
    obs = {name: x[:-1].reshape(-1, *x.shape[2:]) for name, x in trajectory.obs.items()}
    params = agent.policy.params(theta, agent.policy.preprocess(obs)).numpy()
    return np.allclose(params, trajectory.behavior_params.reshape(params.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"behavior_lag": 2}, [0, 0, 0, 1, 2, 3]),
        ({"pipeline": True, "checkpoint_every": 4}, [0, 0, 1, 2, 4, 4]),
        ({"pipeline": True, "checkpoint_every": 4, "behavior_lag": 1}, [0, 0, 0, 1, 3, 3]),
    ],
)
def test_rows_are_drawn_by_the_version_that_they_carry(started, monkeypatch, settings, versions):
    agent = started(normalize_obs=False, **settings)
    given = watched(agent, monkeypatch)
    for _ in range(6):
        agent.step()
    agent.learner.wait()
    agent.behavior.close()
    for (trajectory, _), version in zip(given, versions, strict=True):
        assert (trajectory.policy_version == version).all()
        matches = [drawn_by(agent, trajectory, theta) for _, theta in given]
        assert matches == [number == version for number in range(6)]


def test_the_normaliser_of_the_version_acts_too(started, monkeypatch):
    """With a lag of one, the second trajectory is drawn with the moments from before the first."""
    agent = started(behavior_lag=1)
    given = watched(agent, monkeypatch)
    first = agent.policy.normalizer.constants()
    for _ in range(2):
        agent.step()
    agent.learner.wait()
    agent.behavior.close()
    trajectory, _ = given[1]
    obs = {name: x[:-1].reshape(-1, *x.shape[2:]) for name, x in trajectory.obs.items()}
    params = agent.policy.params(given[0][1], agent.policy.preprocess(obs, first)).numpy()
    np.testing.assert_allclose(params, trajectory.behavior_params.reshape(params.shape), atol=1e-5)
    assert not drawn_by(agent, trajectory, given[0][1])


def test_a_pipeline_collects_while_the_learner_works(started, monkeypatch):
    """The second trajectory is begun before the first update ends, and need not be there for it to end."""
    agent = started(pipeline=True, checkpoint_every=50)
    collect, update, began, ended = Collector.collect, agent.learner.update, threading.Event(), threading.Event()

    def slow(collector, version):
        if threading.current_thread() is not threading.main_thread():
            began.set()
            assert ended.wait(60)
        return collect(collector, version)

    def announced(*args):
        result = update(*args)
        assert began.wait(20)
        ended.set()
        return result

    monkeypatch.setattr(Collector, "collect", slow)
    monkeypatch.setattr(agent.learner, "update", announced)
    for _ in range(3):
        agent.step()
    agent.learner.wait()
    agent.behavior.close()


def test_nothing_is_collected_ahead_that_no_update_follows(started):
    agent = started(pipeline=True, checkpoint_every=50, total_steps=100)
    agent.step()
    assert agent.behavior.arrays().keys() & {"ahead/returns"}
    agent.step()
    assert not agent.behavior.arrays().keys() & {"ahead/returns"}
    agent.learner.wait()
    agent.behavior.close()


def test_invalid_rows_are_counted_with_the_rows_that_are_learned_from(started, monkeypatch):
    agent, mask_invalid = started(pipeline=True, checkpoint_every=50), Collector._mask_invalid

    def two_more(collector, trajectory, bad_obs):
        collector.invalid_rows += 2
        return mask_invalid(collector, trajectory, bad_obs)

    monkeypatch.setattr(Collector, "_mask_invalid", two_more)
    counts = []
    for _ in range(3):
        counts.append(agent.step()[0]["env/invalid_rows"])
        agent.behavior.wait()
    assert counts == [2, 4, 6]
    saved = agent.checkpoint()
    agent.behavior.close()
    again = started(pipeline=True, checkpoint_every=50)
    again.restore(saved)
    assert again.behavior.invalid_rows == 6
    assert again.step()[0]["env/invalid_rows"] == 8
    again.learner.wait()
    again.behavior.close()


def test_a_version_is_kept_once_however_often_its_collection_fails(started, monkeypatch):
    agent, collect = started(behavior_lag=2), Collector.collect
    for _ in range(3):
        agent.step()

    def failing(collector, version):
        raise EnvironmentFailure("environment failed: it broke")

    monkeypatch.setattr(Collector, "collect", failing)
    with pytest.raises(EnvironmentFailure):
        agent.step()
    saved = agent.checkpoint()
    agent.behavior.close()
    monkeypatch.setattr(Collector, "collect", collect)
    again = started(behavior_lag=2)
    again.restore(saved)
    given = watched(again, monkeypatch)
    again.step()
    again.learner.wait()
    again.behavior.close()
    assert (given[0][0].policy_version == 1).all()


def test_a_failure_ahead_is_raised_when_its_rows_are_needed_and_can_be_saved(started, monkeypatch):
    agent, collect = started(pipeline=True, checkpoint_every=50), Collector.collect

    def failing(collector, version):
        if threading.current_thread() is not threading.main_thread():
            raise EnvironmentFailure("environment failed: it broke")
        return collect(collector, version)

    monkeypatch.setattr(Collector, "collect", failing)
    agent.step()
    assert not [name for name in agent.checkpoint().arrays if name.startswith("ahead/")]
    with pytest.raises(EnvironmentFailure, match="it broke"):
        agent.step()
    agent.behavior.close()


def test_models_of_the_users_cannot_stay_behind(tiny):
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(UsageError, match="--pipeline"):
        Agent(tiny(pipeline=True), policy_network=model)


def test_a_pipeline_needs_updates_between_checkpoints(tiny):
    with pytest.raises(UsageError, match="--checkpoint_every=1: --pipeline"):
        tiny(pipeline=True, checkpoint_every=1)
