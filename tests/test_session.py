"""A session: an iterator of updates, its state by parts, and what a resumed one must share."""

import numpy as np
import pytest

from trpo_tf.errors import UsageError
from trpo_tf.run.checkpoint import Checkpoint


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
        {"behavior_lag": 2},
        {"pipeline": True, "checkpoint_every": 4},
        {"network": "gru", "sequence_length": 4},
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
