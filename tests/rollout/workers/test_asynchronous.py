"""Training on what asynchronous workers bring: the versions, the books, resuming, and what ends it."""

import gc
import sys
import time

import numpy as np
import pytest

from tests.rollout.counting import Faulty
from tests.rollout.workers.doubles import LocalFleet
from trpo_tf import sources
from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.errors import EnvironmentFailure, Interrupted, UsageError
from trpo_tf.rollout.environments import Environments
from trpo_tf.runs import run_training
from trpo_tf.session import Session


@pytest.fixture
def make(tiny, monkeypatch, eagerly):
    """Makes sessions of four environments in two asynchronous workers of this process."""
    made = []
    monkeypatch.setattr("trpo_tf.rollout.workers.crew._LONGEST_PAUSE", 0.0)

    def go(env=None, fleet=LocalFleet, **changes):
        monkeypatch.setattr(sources, "_on_ray", lambda acting, plan: fleet(plan))
        config = tiny(**{"workers": 2} | ({"env": "given"} if env else {}) | changes)
        made.append(Session(config, Environments(config.environment, env)))
        made[-1].total_steps = 10**6
        made[-1].start()
        return made[-1]

    yield go
    for session in made:
        session.close()


def test_every_transition_was_drawn_by_the_policy_that_its_version_names(make):
    """The parameters of each are computed anew, from the weights that were published as that version."""
    session, archive, seen = make(steps_per_update=256), {}, []
    publish, taken = session.source.publish, session.source.next

    def keep(version, weights):
        archive[version] = {name: x.copy() for name, x in weights.items()}
        publish(version, weights)

    def look():
        seen.append(taken())
        return seen[-1]

    session.source.publish, session.source.next = keep, look
    for _ in range(8):
        session.step()
    actor, versions = ArrayActor(session.policy.acting_spec()), set()
    for update, rollout in enumerate(seen):
        obs = rollout.trajectory.obs["observation"][:-1]
        for t, b in np.ndindex(rollout.version.shape):
            actor.set_weights(archive[int(rollout.version[t, b])])
            params, _, _ = actor({"observation": obs[t, b : b + 1]}, np.zeros((1, actor.noise_size), np.float32))
            np.testing.assert_allclose(params[0], rollout.behavior_params[t, b], atol=1e-5)
        versions |= {update - int(version) for version in np.unique(rollout.version)}
    assert len(versions) > 1, "else nothing was stale"


def test_rows_tell_of_staleness_and_of_workers(make):
    session = make()
    rows = [dict(session.step()) for _ in range(6)]
    assert rows[0]["stale/mean_staleness"] == 0
    assert max(row["stale/max_staleness"] for row in rows) >= 1
    for row in rows:
        shares = [row[f"stale/share_of_staleness_{k}"] for k in range(9)] + [row["stale/share_of_older"]]
        assert sum(shares) == pytest.approx(1)
        assert sum(k * share for k, share in enumerate(shares[:9])) == pytest.approx(row["stale/mean_staleness"])
        assert row["workers/alive"] == 2
    assert rows[-1]["workers/fastest_share"] >= 0.5
    assert session.env_steps == session.source.ledger.steps


def test_the_radius_shrinks_with_the_staleness_of_the_batch_itself(make):
    """max_kl / (1 + s), with s the mean staleness; max_step is out of the way."""
    session = make(max_step=1e9)
    rows = [session.step() for _ in range(8)]
    used = [(row["stale/mean_staleness"], row["policy/max_kl_used"]) for row in rows]
    assert len({stale for stale, _ in used}) > 1
    for stale, max_kl in used:
        assert max_kl == pytest.approx(0.03 / (1 + stale), rel=1e-5)


def test_deaths_cost_what_was_in_flight_and_nothing_is_learned_twice(make):
    def dies(slot, count, method):
        return ("before" if count % 2 else "after") if method == "fragment" and count % 5 == 0 else ""

    session = make(fleet=lambda plan: LocalFleet(plan, dies))
    for _ in range(12):
        row = session.step()
    ledger = session.source.ledger
    assert row["workers/deaths"] > 3
    assert row["workers/lost_fragments"] > 3
    assert ledger.steps == session.env_steps


def test_a_run_goes_on_with_its_books_and_with_new_workers(make):
    session = make()
    for _ in range(4):
        session.step()
    saved = session.checkpoint()
    serials = session.source._totals["serial"]
    resumed = make(workers=4)
    resumed.restore(saved)
    assert resumed.env_steps == session.env_steps
    row = resumed.step()
    assert resumed.source.ledger.steps == resumed.env_steps > session.env_steps
    assert resumed.source._totals["serial"] >= serials + 4
    assert row["update"] == 5


def test_a_run_without_workers_goes_on_with_them_and_not_the_other_way(make, capsys):
    local = make(workers=0, pipeline=True)
    local.step()
    local.source._source._collector.restarts = 5
    resumed = make(pipeline=True)
    resumed.restore(local.checkpoint())
    assert resumed.source._totals["restarts"] == 5
    resumed.step()
    assert "begin anew" in capsys.readouterr().err
    assert resumed.source.ledger.steps == resumed.env_steps - local.env_steps
    with pytest.raises(UsageError, match="checkpoint of asynchronous workers"):
        make(workers=0, pipeline=True).restore(resumed.checkpoint())
    with pytest.raises(UsageError, match="checkpoint of asynchronous workers"):
        make(workers_mode="synchronous", pipeline=True).restore(resumed.checkpoint())


def test_an_update_that_fails_keeps_its_batch_and_the_books_balance(make, monkeypatch):
    session = make()
    session.step()
    update, fails = session.learner.update, [True]

    def failing(*args):
        if fails.pop():
            fails.append(False)
            raise RuntimeError("out of memory")
        fails.append(False)
        return update(*args)

    monkeypatch.setattr(session.learner, "update", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.step()
    saved = session.checkpoint()
    session.step()
    assert session.source.ledger.steps == session.env_steps
    resumed = make()
    resumed.restore(saved)
    resumed.step()
    assert (resumed.env_steps, resumed.source.ledger.consumed) == (session.env_steps, 4)


def test_a_batch_that_was_taken_is_given_again_until_it_was_learned_from(make):
    """An interrupt may come in between."""
    session = make()
    session.source.publish(0, session.policy.get_weights())
    batch = session.source.next()
    assert session.source.next() is batch
    session.step()
    assert session.source.ledger.steps == session.env_steps
    assert session.source.next() is not batch


def test_what_waits_when_workers_are_closed_is_lost_and_others_go_on(make):
    session = make()
    session.step()
    source = session.source
    source.close()
    assert (source.ledger.waiting, source.ledger.outstanding(0), source._crew) == (0, None, None)
    source.ledger.check(session.env_steps)
    session.step()
    assert source.ledger.steps == session.env_steps > 64


def test_an_old_error_does_not_end_what_begins_after_workers_were_closed(make):
    session = make()
    session.step()
    session.source._error = EnvironmentFailure("of before")
    session.close()
    session.step()
    assert session.source.ledger.steps == session.env_steps


def test_a_batch_that_was_taken_and_is_gone_is_lost(make):
    """A checkpoint between the two: the session has not got it yet."""
    session = make()
    session.step()
    session.source.next()
    resumed = make()
    resumed.restore(session.checkpoint())
    resumed.step()
    assert resumed.source.ledger.steps == resumed.env_steps
    assert resumed.source.ledger.lost >= 2


@pytest.mark.parametrize("fails", [False, True])
def test_workers_end_when_nobody_has_the_agent_any_more(make, fails):
    """Also after the thread has ended with an error."""
    fleets = []

    class Kept(LocalFleet):
        closed = False

        def __init__(self, plan):
            super().__init__(plan)
            fleets.append(self)

        def close(self):
            self.closed = True

    session = make(fleet=Kept)
    session.step()
    thread = session.source._thread
    if fails:
        session.source._error = EnvironmentFailure("of before")
        thread.join(10)
    session.source = None
    del session
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert fleets[0].closed


def test_a_run_that_is_to_end_waits_for_nobody(make):
    class Hanging(LocalFleet):
        def wait(self, seconds):
            time.sleep(0.002)
            return []

    session = make(fleet=Hanging)
    session.stopping = lambda: True
    with pytest.raises(Interrupted, match="ends without the batch"):
        session.step()


def test_an_environment_that_always_raises_fails_with_its_own_message(make, capsys):
    class Broken(Faulty):
        def __init__(self):
            super().__init__({})
            self.steps = 0

        def step(self, action):
            self.steps += 1
            if self.steps > 1:  # the session tries one
                raise OSError("the licence server is gone")
            return super().step(action)

    with pytest.raises(EnvironmentFailure, match="licence server is gone"):
        make(Broken, max_env_restarts=0).step()
    assert "another one" not in capsys.readouterr().err


def test_transitions_with_nan_are_counted_over_all_workers(make):
    nans = {k: ("reward", np.nan) for k in range(3, 200, 3)}
    session = make(lambda: Faulty(nans), max_invalid_rows=20)
    rows = []
    with pytest.raises(EnvironmentFailure, match="more than max_invalid_rows=20"):
        rows.extend(session.updates(10**5))
    assert session.invalid <= 20


@pytest.mark.parametrize("changes", [{"network": "gru", "sequence_length": 4}, {"reuse": 2}, {"behavior_lag": 1}])
def test_it_goes_with_memory_with_reuse_and_with_a_lag(make, changes):
    session = make(**changes)
    for _ in range(4):
        row = session.step()
    assert np.isfinite(row["policy/kl"])
    if "behavior_lag" in changes:
        assert row["stale/mean_staleness"] >= 1


def test_a_pipeline_is_what_workers_are_in_any_case(make, capsys):
    make(pipeline=True).step()
    assert "--pipeline changes nothing" in capsys.readouterr().err


def test_what_workers_cannot_have_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    import keras

    convolution = keras.Sequential([keras.layers.Input((4,)), keras.layers.Reshape((4, 1)), keras.layers.Conv1D(2, 2)])
    network = keras.Sequential([convolution, keras.layers.Flatten(), keras.layers.Dense(2)])
    config = tiny(workers=2, run_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="your own model"):
        run_training(config, policy_network=network)
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is missing"):
        run_training(config)
    assert not (tmp_path / "run").exists()


def test_the_staleness_that_workers_need_is_not_masked(tiny):
    for settings, least in (({}, 2), ({"reuse": 2}, 3), ({"behavior_lag": 1}, 3)):
        with pytest.raises(UsageError, match=f"must be >= {least}; transitions of asynchronous"):
            tiny(workers=2, max_staleness=least - 1, **settings)
        tiny(workers=2, max_staleness=least, **settings)


def test_own_models_go_with_workers_where_numpy_computes_them(tiny):
    import keras

    config = tiny(workers=2)
    dense = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    made = Environments(config.environment)
    session = Session(config, made, policy_network=dense)
    sources._plan(sources.Acting(config, made, session.policy, session.spaces, True, lambda: False))
    wide = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.LeakyReLU()])
    other = Session(config, made, policy_network=keras.Sequential([wide, keras.layers.Dense(2)]))
    with pytest.raises(UsageError, match="Dense layers"):
        sources._plan(sources.Acting(config, made, other.policy, other.spaces, True, lambda: False))
