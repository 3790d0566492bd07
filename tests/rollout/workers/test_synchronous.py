"""Workers that step as one process would: to the bit, whichever dies, over boundaries, in a pipeline, resumed."""

import functools
import time

import numpy as np
import pytest

from tests.rollout.flaky import Flaky, drawn
from tests.rollout.helpers import NEEDS_ENVPOOL
from tests.rollout.workers.doubles import LocalFleet
from trpo_tf import sources
from trpo_tf.config import make_config
from trpo_tf.errors import EnvironmentFailure, Interrupted
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.vector_env import Episodes
from trpo_tf.rollout.workers.fleet import Reply, Trouble
from trpo_tf.rollout.workers.fragments import merged
from trpo_tf.rollout.workers.worker import Placed
from trpo_tf.session import Session
from trpo_tf.state import part


def never(slot, count, method):
    return ""


def now_and_then(slot, count, method):
    """Every seventh call, in turn before and after it is done."""
    return ("before" if count % 2 else "after") if count % 7 == 0 else ""


@pytest.fixture
def run(tiny, monkeypatch, eagerly):
    """Arrays of the checkpoint, rows and the fleet of a run of some updates."""
    made = []

    def go(updates, env=None, dies=never, saved=None, stop_at=None, **changes):
        fleets = []

        def fleet(acting, plan):
            fleets.append(LocalFleet(plan, dies))
            return fleets[-1]

        monkeypatch.setattr(sources, "_on_ray", fleet)
        monkeypatch.setattr("trpo_tf.rollout.workers.crew._LONGEST_PAUSE", 0.0)
        config = tiny(**({"env": "given"} if env else {}), **changes)
        session = Session(config, Environments(config.environment, env))
        made.append(session)
        session.total_steps = 10**6
        if saved is not None:
            session.restore(saved)
        rows = [session.step() for _ in range(updates)]
        checkpoint = session.checkpoint()
        return checkpoint, rows, fleets[0] if fleets else None

    yield go
    for session in made:
        session.close()


def same(a, b):
    assert a.arrays.keys() == b.arrays.keys()
    different = [name for name in a.arrays if a.arrays[name].tobytes() != b.arrays[name].tobytes()]
    assert not different


def columns(rows):
    apart = ("time/", "workers/")
    return [{name: row[name] for name in row if not name.startswith(apart)} for row in rows]


def synchronous(workers):
    return {"workers": workers, "workers_mode": "synchronous"}


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
SETTINGS = {
    "cartpole": {"env": "CartPole-v1"},
    "gymnasium": slow({"env": "CartPole-v1", "env_backend": "gymnasium"}),
    "half_cheetah": pytest.param({"env": "HalfCheetah-v5", "steps_per_update": 128}, marks=NEEDS_ENVPOOL),
    "pipeline": {"env": "CartPole-v1", "pipeline": True},
    "lag": slow({"env": "CartPole-v1", "behavior_lag": 1}),
    "reuse": slow({"env": "CartPole-v1", "reuse": 2}),
    "gru": slow({"env": "CartPole-v1", "network": "gru", "sequence_length": 4}),
    "beta": slow({"env": "Pendulum-v1", "action_distribution": "beta"}),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dies", [never, now_and_then])
def test_workers_do_what_one_process_does_to_the_bit(run, settings, dies):
    """Over the boundary at the third update, where environments are made anew."""
    local, local_rows, _ = run(5, **settings)
    for workers in (2, 4):
        with_workers, rows, fleet = run(5, dies=dies, **settings, **synchronous(workers))
        same(local, with_workers)
        assert columns(local_rows) == columns(rows)
        assert (fleet.deaths > 2) == (dies is now_and_then)
        assert rows[-1]["workers/deaths"] == fleet.deaths


def test_environments_that_fail_are_made_anew_as_in_one_process(run):
    env = functools.partial(Flaky, drawn(0.03))
    local, local_rows, _ = run(5, env)
    assert local_rows[-1]["env/restarts"] > 2
    with_workers, rows, _ = run(5, env, now_and_then, **synchronous(2))
    same(local, with_workers)
    assert columns(local_rows) == columns(rows)


def test_a_run_goes_on_with_other_workers_or_with_none(run):
    """From a checkpoint between boundaries: each repeats what was recorded, in its columns."""
    undisturbed, _, _ = run(7)
    saved, _, _ = run(4, **synchronous(2))
    for settings in (synchronous(4), {}, synchronous(1)):
        resumed, _, _ = run(3, saved=saved, **settings)
        same(undisturbed, resumed)


def test_more_failures_than_allowed_are_counted_over_all_workers(run):
    env = functools.partial(Flaky, drawn(0.05))
    with pytest.raises(EnvironmentFailure, match="max_env_restarts=4"):
        run(20, env, max_env_restarts=4, **synchronous(4))


def test_a_failure_leaves_the_state_as_it_was_and_the_next_call_goes_on(run, monkeypatch):
    undisturbed, _, _ = run(4)
    config = make_config(**undisturbed.meta["config"]).replace(**synchronous(2))

    class Failing(LocalFleet):
        def wait(self, seconds):
            found = super().wait(seconds)
            fails = self.count == 9
            return [
                x._replace(reply=Reply(None, (), Trouble("environment", "this call"))) if fails else x for x in found
            ]

    monkeypatch.setattr(sources, "_on_ray", lambda acting, plan: Failing(plan))
    session = Session(config, Environments(config.environment))
    session.total_steps = 10**6
    failures = 0
    while session.update < 4:
        try:
            before = session.checkpoint()
            session.step()
        except EnvironmentFailure:
            failures += 1
            assert not any(
                x.tobytes() != session.checkpoint().arrays[name].tobytes() for name, x in before.arrays.items()
            )
    assert failures == 1
    assert {name: x.tobytes() for name, x in session.checkpoint().arrays.items()} == {
        name: x.tobytes() for name, x in undisturbed.arrays.items()
    }
    session.close()


def test_a_run_that_is_to_end_does_not_wait_for_workers_that_hang(run, monkeypatch, tiny):
    class Hanging(LocalFleet):
        def wait(self, seconds):
            hangs = any(method == "step" for _, method, _ in self._calls.values())
            return time.sleep(0.01) or [] if hangs else super().wait(seconds)

    monkeypatch.setattr(sources, "_on_ray", lambda acting, plan: Hanging(plan))
    monkeypatch.setattr("trpo_tf.rollout.workers.synchronous._PATIENCE", 0.05)
    config = tiny(**synchronous(2))
    session = Session(config, Environments(config.environment))
    session.stopping = lambda: True
    with pytest.raises(Interrupted, match="did not finish in time"):
        session.step()
    assert session.checkpoint().meta["update"] == 0
    session.close()


def test_an_interrupt_leaves_no_answer_for_the_next_request(run, monkeypatch, tiny):
    class Stopped(LocalFleet):
        def wait(self, seconds):
            if self.count == 9:
                self.count += 1
                raise KeyboardInterrupt
            return super().wait(seconds)

    undisturbed, _, _ = run(3)
    monkeypatch.setattr(sources, "_on_ray", lambda acting, plan: Stopped(plan))
    config = tiny(**synchronous(4))
    session = Session(config, Environments(config.environment))
    session.total_steps = 10**6
    with pytest.raises(KeyboardInterrupt):
        session.step()
    for _ in range(3):
        session.step()
    ours = session.checkpoint().arrays
    assert [name for name, x in undisturbed.arrays.items() if x.tobytes() != ours[name].tobytes()] == []
    session.close()


def test_episodes_are_in_the_order_of_time_then_of_columns():
    parts = [Episodes([1.0, 2.0], [5, 6], [3, 9]), Episodes([3.0, 4.0], [7, 8], [3, 4])]
    assert merged(parts) == ([1.0, 3.0, 4.0, 2.0], [5, 7, 8, 6], [3, 3, 4, 9])
    assert merged([Episodes([], [], [])] * 2) == ([], [], [])


def test_an_actor_in_its_place_is_that_of_all_rows_to_the_bit():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(17, 64)).astype(np.float32), rng.normal(size=(64, 6)).astype(np.float32)

    class Actor:
        def __call__(self, obs, noise):
            x = np.tanh(obs["observation"] @ weights[0]) @ weights[1]
            return x, x + noise, [x * 2]

    obs = {"observation": rng.normal(size=(16, 17)).astype(np.float32)}
    noise = rng.normal(size=(16, 6)).astype(np.float32)
    whole = Actor()(obs, noise)
    for first in range(0, 16, 4):
        own = slice(first, first + 4)
        placed = Placed(Actor(), first, 16)
        for _ in range(2):
            params, action, states = placed({"observation": obs["observation"][own]}, noise[own])
            assert params.tobytes() == whole[0][own].tobytes()
            assert action.tobytes() == whole[1][own].tobytes()
            assert states[0].tobytes() == whole[2][0][own].tobytes()


def test_the_state_of_a_run_with_workers_is_that_of_a_collector(run):
    saved, _, _ = run(2, **synchronous(2))
    assert part("source", saved.arrays)["actions"].shape[1] == 4
