"""A session: an iterator of updates, its state by parts, and what a resumed one must share."""

import functools

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout.flaky import Flaky, drawn
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.environments import Environments
from trpo_tf.run.checkpoint import Checkpoint
from trpo_tf.session import Session

pytestmark = pytest.mark.usefixtures("eagerly")


def arrays(session):
    return {name: x.tobytes() for name, x in session.checkpoint().arrays.items()}


def test_updates_go_on_until_so_many_steps_are_done(make_session):
    session = make_session()
    rows = list(session.updates(150))
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert session.env_steps >= 150
    assert rows[-1]["env_steps"] == session.env_steps
    assert list(session.updates(150)) == []
    assert len(list(session.updates(session.env_steps + 1))) == 1


def test_the_learning_rate_falls_with_the_steps_that_are_asked_for(make_session):
    session = make_session(value_learning_rate=0.5)
    first, second, *_ = session.updates(600)
    assert first["value/learning_rate"] == 0.5
    assert second["value/learning_rate"] == pytest.approx(0.5 * (1 - first["env_steps"] / 600))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reuse": 2, "radius": "adaptive", "objective": "penalty"},
        {"pipeline": True, "checkpoint_every": 4},
        {"sampling": "vine", "vine_states": 8, "vine_steps": 3},
        pytest.param({"behavior_lag": 2}, marks=pytest.mark.slow),
        pytest.param({"network": "gru", "sequence_length": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_restored_session_goes_on_to_the_bit(make_session, settings):
    whole, other = make_session(**settings), make_session(**settings)
    for _ in range(2):
        whole.step()
    saved = whole.checkpoint()
    for _ in range(2):
        whole.step()
    other.restore(Checkpoint({name: x.copy() for name, x in saved.arrays.items()}, saved.meta))
    assert (other.update, other.env_steps) == (2, int(saved.arrays["session/env_steps"]))
    for _ in range(2):
        other.step()
    assert arrays(whole) == arrays(other)


def test_state_is_joined_under_the_names_of_the_parts(make_session):
    session = make_session(reuse=2)
    session.step()
    names = session.checkpoint().arrays
    assert {name.split("/")[0] for name in names} == {"policy", "learner", "source", "session"}
    for part in ("policy/normalizer/mean", "learner/adam/m", "learner/replay/0/advantage", "source/actions"):
        assert part in names


def test_without_a_source_the_environments_are_left_out(make_session):
    session = make_session()
    session.step()
    assert not [name for name in session.checkpoint(source=False).arrays if name.startswith("source/")]


def test_another_structure_is_refused_naming_both_values(make_session, tiny):
    session = make_session()
    saved = session.checkpoint()
    with pytest.raises(UsageError, match="num_envs=2: the checkpoint has 4"):
        make_session(num_envs=2).restore(saved)
    saved.meta["config"] |= {"max_kl": 0.01}  # not structural
    make_session().restore(saved)


def test_an_array_that_is_missing_or_has_another_shape_is_named(make_session):
    session = make_session()
    saved = session.checkpoint()
    name = "policy/policy/policy_dense_0/kernel"
    for value in (None, np.zeros((3, 8), np.float32)):
        broken = {key: x for key, x in saved.arrays.items() if key != name}
        broken |= {} if value is None else {name: value}
        with pytest.raises(UsageError, match=r"policy_dense_0/kernel has shape \(4, 8\) here"):
            make_session().restore(Checkpoint(broken, saved.meta))


def test_an_evaluation_changes_nothing_of_the_training(make_session):
    session = make_session()
    session.step()
    before = arrays(session)
    summary = session.evaluate(3).summary()
    assert summary["episodes"] == 3
    assert session.evaluation == {"update": 1} | summary
    assert arrays(session) == before


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_session):
    a, b, c = make_session(), make_session(), make_session(seed=1)
    for session in (a, b, c):
        session.step()
    assert arrays(a) == arrays(b)
    assert arrays(a) != arrays(c)


def test_environments_are_renewed_at_boundaries_only(make_session, monkeypatch):
    session, renewed = make_session(checkpoint_every=2), []
    monkeypatch.setattr(session.source, "renew", renewed.append)
    for _ in range(5):
        session.step()
    assert renewed == [2, 4]


@pytest.mark.parametrize(
    ("failed", "settings"),  # updates before; the next one is none, or one before a boundary
    [
        (3, {}),
        pytest.param(1, {"pipeline": True, "checkpoint_every": 4}, marks=pytest.mark.slow),
        pytest.param(1, {"sampling": "vine", "vine_states": 8}, marks=pytest.mark.slow),
        pytest.param(1, {}, marks=pytest.mark.slow),
        pytest.param(3, {"pipeline": True, "checkpoint_every": 4}, marks=pytest.mark.slow),
        pytest.param(1, {"pipeline": True, "checkpoint_every": 4, "behavior_lag": 1}, marks=pytest.mark.slow),
        pytest.param(3, {"pipeline": True, "checkpoint_every": 4, "behavior_lag": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_rollout_whose_update_failed_is_learned_from_when_it_goes_on(make_session, monkeypatch, settings, failed):
    whole, broken, resumed = (make_session(**settings) for _ in range(3))
    rows = [whole.step() for _ in range(5)]
    for _ in range(failed):
        broken.step()
    with monkeypatch.context() as patch:
        patch.setattr(broken.learner, "update", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            broken.step()
    assert (broken.update, broken.env_steps) == (failed, rows[failed - 1]["env_steps"])
    saved = broken.checkpoint()
    resumed.restore(Checkpoint({name: x.copy() for name, x in saved.arrays.items()}, saved.meta))
    for session in (broken, resumed):
        for expected in rows[failed:]:
            row = session.step()
            assert {k: v for k, v in row.items() if not k.startswith("time/")} == {
                k: v for k, v in expected.items() if not k.startswith("time/")
            }
        assert arrays(session) == arrays(whole)


@pytest.mark.slow
def test_restarts_are_counted_in_rows_and_over_a_resumption(tiny):
    config = tiny(env="given", num_envs=2, max_env_restarts=1000, checkpoint_every=50)
    whole, resumed = (
        Session(config, Environments(config.environment, functools.partial(Flaky, drawn(0.01)))) for _ in range(2)
    )
    rows = [whole.step() for _ in range(4)]
    saved = whole.checkpoint()
    rows += [whole.step() for _ in range(3)]
    counts = [(row["env/restarts"], row["env/dropped_rows"], row["env_steps"]) for row in rows]
    assert counts == sorted(counts)
    restarts, dropped, steps = counts[-1]
    assert restarts >= 3
    assert 0 < dropped < 50 * restarts
    assert steps + dropped + 2 * restarts <= 7 * 64
    resumed.restore(saved)
    for expected in rows[4:]:
        row = resumed.step()
        assert {k: v for k, v in row.items() if not k.startswith("time/")} == {
            k: v for k, v in expected.items() if not k.startswith("time/")
        }
    assert arrays(resumed) == arrays(whole)


def test_a_rebuild_that_fails_is_tried_again_at_the_next_step(make_session, monkeypatch):
    session, renew, failing = make_session(checkpoint_every=2), Collector.rebuild, [True]

    def rebuild(collector, update):
        if update and failing.pop():
            failing.append(False)
            raise EnvironmentFailure("environment failed: not now")
        return renew(collector, update)

    monkeypatch.setattr(Collector, "rebuild", rebuild)
    for _ in range(2):
        session.step()
    assert int(session.checkpoint().arrays["session/renewal_due"]) == 1
    session.step()
    assert session.source._collector.built_at == 2


@pytest.mark.parametrize(
    ("env", "changes", "named"),
    [
        ("CartPole-v1", {"env_backend": "envpool"}, "CartPole-v1 cannot be put back .*EnvPool"),
        (lambda: Hidden(), {}, "cannot be put back to where it was .put back, it goes on otherwise"),
    ],
)
def test_a_vine_in_environments_without_a_state_is_refused_before_anything_is_written(tiny, env, changes, named):
    config = tiny(sampling="vine", vine_states=8, **changes)
    session = Session(config, Environments(config.environment, None if isinstance(env, str) else env))
    with pytest.raises(UsageError, match=named):
        session.check()


class Hidden(gym.Env):
    """Keeps its state in its class."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)

    calls = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        Hidden.calls += 1
        return np.full(4, np.sin(Hidden.calls), np.float32)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "npg"}, {"objective": "penalty"}, {"share_torso": True}])
def test_env_steps_count_branches(make_session, settings):
    session = make_session(sampling="vine", vine_states=8, vine_steps=1, **settings)
    row = dict(session.step())
    rollout_rows = 64 - session.episodes  # all but the rows of resets
    assert rollout_rows - 4 <= row["env_steps"] - 8 * 2 <= 64
    assert row["policy/committed"] == 1
    assert row["policy/max_ratio_error"] < 1e-3
