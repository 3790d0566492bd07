"""Sources of rollouts: which version acts, what a thread of its own may not change, what is saved."""

import threading

import keras
import numpy as np
import pytest

from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.sources.lagging import LaggingSource
from trpo_tf.rollout.sources.prefetching import PrefetchingSource
from trpo_tf.session import Session
from trpo_tf.types import Rollout, Trajectory

pytestmark = pytest.mark.usefixtures("eagerly")


def watched(session, monkeypatch):
    """The rollouts that the learner is given, from now on, and the policy's parameters when it was."""
    given, update = [], session.learner.update

    def record(rollout, *args):
        given.append((rollout, session.policy.network.theta().numpy()))
        return update(rollout, *args)

    monkeypatch.setattr(session.learner, "update", record)
    return given


def drawn_by(session, rollout, theta, constants=None) -> bool:
    """Whether the rollout's distributions are those of theta."""
    obs = {name: x[:-1].reshape(-1, *x.shape[2:]) for name, x in rollout.trajectory.obs.items()}
    params = session.policy.params(theta, session.policy.preprocess(obs, constants)).numpy()
    return np.allclose(params, rollout.behavior_params.reshape(params.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        pytest.param({}, [0, 1, 2, 3, 4, 5], marks=pytest.mark.slow),
        pytest.param({"behavior_lag": 2}, [0, 0, 0, 1, 2, 3], marks=pytest.mark.slow),
        ({"pipeline": True, "checkpoint_every": 4}, [0, 0, 1, 2, 4, 4]),
        ({"pipeline": True, "checkpoint_every": 4, "behavior_lag": 1}, [0, 0, 0, 1, 3, 3]),
    ],
)
def test_transitions_are_drawn_by_the_version_that_they_carry(make_session, monkeypatch, settings, versions):
    session = make_session(normalize_obs=False, **settings)
    given = watched(session, monkeypatch)
    for _ in range(6):
        session.step()
    for (rollout, _), version in zip(given, versions, strict=True):
        assert (rollout.version == version).all()
        matches = [drawn_by(session, rollout, theta) for _, theta in given]
        assert matches == [number == version for number in range(6)]


@pytest.mark.parametrize("network", ["mlp", pytest.param("gru", marks=pytest.mark.slow)])
def test_the_normaliser_of_the_version_acts_too(make_session, monkeypatch, network):
    """With a lag of one, the second rollout is drawn with the moments from before the first."""
    session = make_session(behavior_lag=1, network=network, sequence_length=1)
    given = watched(session, monkeypatch)
    first = session.policy.normalizer.constants()
    for _ in range(2):
        session.step()
    rollout, _ = given[1]
    assert drawn_by(session, rollout, given[0][1], first)
    assert not drawn_by(session, rollout, given[0][1])


def test_a_pipeline_collects_while_the_learner_works(make_session, monkeypatch):
    """The second rollout is begun before the first update ends, and need not be there for it to end."""
    session = make_session(pipeline=True, checkpoint_every=50)
    collect, update, began, ended = Collector.collect, session.learner.update, threading.Event(), threading.Event()

    def slow(collector, *args):
        if threading.current_thread() is not threading.main_thread():
            began.set()
            assert ended.wait(60)
        return collect(collector, *args)

    def announced(*args):
        result = update(*args)
        assert began.wait(20)
        ended.set()
        return result

    monkeypatch.setattr(Collector, "collect", slow)
    monkeypatch.setattr(session.learner, "update", announced)
    for _ in range(3):
        session.step()


def ahead(session):
    """Whether a rollout made ahead is in the checkpoint."""
    return any(name.startswith("source/ahead/") for name in session.checkpoint().arrays)


def test_nothing_is_collected_ahead_that_no_update_follows(make_session):
    session = make_session(pipeline=True, checkpoint_every=50, total_steps=100)
    session.step()
    assert ahead(session)
    session.step()
    assert not ahead(session)


def test_invalid_transitions_are_counted_with_the_rollout_they_are_in(make_session, monkeypatch):
    session, mask_invalid = make_session(pipeline=True, checkpoint_every=50), Collector._mask_invalid
    monkeypatch.setattr(Collector, "_mask_invalid", lambda self, *args: (mask_invalid(self, *args)[0], 2))
    assert [session.step()["env/invalid_rows"] for _ in range(3)] == [2, 4, 6]
    saved = session.checkpoint()
    again = make_session(pipeline=True, checkpoint_every=50)
    again.restore(saved)
    assert again.step()["env/invalid_rows"] == 8


@pytest.mark.slow
def test_a_version_is_kept_once_however_often_its_collection_fails(make_session, monkeypatch):
    session, collect = make_session(behavior_lag=2), Collector.collect
    for _ in range(3):
        session.step()

    def failing(collector, *args):
        raise EnvironmentFailure("environment failed: it broke")

    monkeypatch.setattr(Collector, "collect", failing)
    for _ in range(2):
        with pytest.raises(EnvironmentFailure):
            session.step()
    saved = session.checkpoint()
    monkeypatch.setattr(Collector, "collect", collect)
    again = make_session(behavior_lag=2)
    again.restore(saved)
    given = watched(again, monkeypatch)
    again.step()
    assert (given[0][0].version == 1).all()


def test_a_failure_ahead_is_raised_when_its_rollout_is_needed_and_can_be_saved(make_session, monkeypatch):
    session, collect = make_session(pipeline=True, checkpoint_every=50), Collector.collect

    def failing(collector, *args):
        if threading.current_thread() is not threading.main_thread():
            raise EnvironmentFailure("environment failed: it broke")
        return collect(collector, *args)

    monkeypatch.setattr(Collector, "collect", failing)
    session.step()
    assert not ahead(session)
    with pytest.raises(EnvironmentFailure, match="it broke"):
        session.step()


class Scripted:
    """A source that says which version acted, and remembers what it was told."""

    def __init__(self):
        self.published, self.closed = [], False

    def publish(self, version, weights):
        self.published.append(version)

    def next(self):
        nothing = Trajectory({}, *[np.zeros((1, 1))] * 6)
        return Rollout(nothing, np.zeros((1, 1)), np.array([[self.published[-1]]]), np.zeros((1, 1)), [], [], [], 0)

    def work_ahead(self):
        raise AssertionError("nobody asked for it")

    def renew(self, update):
        self.published.append(f"renewed at {update}")

    def state(self):
        return {"last": np.array(self.published[-1])}

    def restore(self, state):
        self.published = [int(state["last"])]
        return True

    def close(self):
        self.closed = True


def weights(version):
    return {"w": np.array([version])}


def test_a_lagging_source_hands_versions_on_late_and_remembers_them():
    inner = Scripted()
    source = LaggingSource(inner, 2)
    for version in range(5):
        source.publish(version, weights(version))
    assert inner.published == [0, 0, 0, 1, 2]
    state = source.state()
    other = LaggingSource(Scripted(), 2)
    assert other.restore(state)
    other.publish(5, weights(5))
    assert int(other.next().version[0, 0]) == 3
    source.close()
    assert inner.closed


def test_a_prefetching_source_hands_on_every_version_when_nothing_is_under_way():
    inner = Scripted()
    source = PrefetchingSource(inner)
    source.publish(0, weights(0))
    assert int(source.next().version[0, 0]) == 0
    source.work_ahead()
    source.wait()
    source.publish(1, weights(1))
    assert inner.published == [0]
    assert int(source.next().version[0, 0]) == 0
    assert inner.published == [0, 1]


def test_models_of_the_users_cannot_stay_behind(tiny):
    config = tiny(pipeline=True)
    with pytest.raises(UsageError, match="pipeline"):
        Session(config, Environments(config.environment), keras.Sequential([keras.layers.Dense(2)]))


def test_a_pipeline_needs_updates_between_checkpoints(tiny):
    with pytest.raises(UsageError, match="checkpoint_every=1: pipeline"):
        tiny(pipeline=True, checkpoint_every=1)
