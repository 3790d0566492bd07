"""The books under every order of results, deaths, duplicates, late results, time-outs and batches."""

import itertools

import numpy as np
import pytest

from tests.rollout.workers.doubles import Clock, ScriptedFleet, Specs, fragment
from trpo_tf.rollout.workers.asynchronous import AsynchronousSource
from trpo_tf.rollout.workers.crew import Crew
from trpo_tf.rollout.workers.fleet import Answer, Reply, Trouble
from trpo_tf.rollout.workers.fragments import Shapes
from trpo_tf.rollout.workers.ledger import Identity, Ledger


class Run:
    """An asynchronous source over a scripted fleet, driven without its thread."""

    def __init__(self, workers, state=None, env_steps=0):
        self.fleet, self.clock = ScriptedFleet(), Clock()
        self.source = AsynchronousSource(
            lambda serial: Crew(self.fleet, workers, 10.0, serial, clock=self.clock),
            workers,
            Shapes(Specs(), 1, 1),
            lambda params, action: np.zeros(len(params), np.float32),
            1000,
            1000,
        )
        self.source._ensure_thread = lambda: None
        if state is not None:
            self.source.restore(state)
        self.workers, self.version, self.env_steps = workers, 0, env_steps
        self.crew = self.source._begun()
        self.learned, self.late, self.staleness, self.versions = [], [], [], {}
        self.source.publish(0, {})

    def turn(self):
        self.source.dispatch_once(self.crew)
        for slot in range(self.workers):
            self.versions.setdefault(self.asked(slot), self.version)  # as if all were collected at once

    def asked(self, slot):
        """What a slot's worker was asked for, None where that is no fragment."""
        _, method, args = self.fleet.pending.get(slot, (0, "", ()))
        return args[0] if method == "fragment" else None

    def finish(self, slot, mask=1.0):
        if slot in self.fleet.pending:
            asked = self.asked(slot)
            self.late.append(
                self.fleet.answer(slot, fragment(asked, self.versions[asked], mask=mask) if asked else None)
            )

    def learn(self):
        rollout = self.source.next()
        self.learned += [tuple(x) for x in rollout.trajectory.obs["observation"][0].astype(int)]
        self.staleness += (self.version - rollout.version[0]).tolist()
        self.env_steps += int(rollout.trajectory.mask.sum())
        self.version += 1
        self.source.learned(self.env_steps)
        self.source.publish(self.version, {})

    @property
    def batch_waits(self):
        return self.source.ledger.waiting >= self.workers


def random_turn(run, rng):
    """Something happens to somebody."""
    slot, what = int(rng.integers(run.workers)), rng.random()
    if what < 0.55:
        run.finish(slot, mask=float(rng.random() < 0.8))
    elif what < 0.62:
        run.fleet.die(slot)
    elif what < 0.68 and run.late:
        run.fleet.events.append(run.late[rng.integers(len(run.late))])  # a duplicate, or long after it was given up
    elif what < 0.72:
        run.late += [Answer(slot, run.fleet.serials[slot], 10**6, Reply(None))]
        run.clock.now += 11  # a time-out of everybody who is busy
    elif what < 0.75 and run.asked(slot):
        run.fleet.answer(slot, trouble=Trouble("environment", "it broke"))
    elif what < 0.78 and run.asked(slot):
        run.fleet.answer(slot, "not a fragment")
    elif run.batch_waits:
        run.learn()
    run.turn()
    run.source.ledger.check(run.env_steps)


def test_a_new_version_is_told_to_whoever_has_begun_and_brought_to_whoever_begins_later():
    run = Run(2)
    assert run.fleet.told == []  # nobody has begun
    run.fleet.answer(0)
    run.turn()
    run.turn()
    _, _, args = run.fleet.pending[0]
    assert args == (Identity(0, 0, 0), 0, {}, 1)
    run.source.publish(1, {"w": 1})
    assert run.fleet.told == [(0, "take_weights", (1, {"w": 1}, 2))]  # in the middle of its fragment
    run.fleet.answer(1)
    run.turn()
    run.finish(0)
    run.turn()
    run.source._awaited = True  # there is room for everybody
    run.turn()
    newest = 1, {"w": 1}, 2
    asked = [run.fleet.pending[slot][2] for slot in range(2)]
    assert asked == [(Identity(0, 0, 1), *newest), (Identity(1, 1, 0), *newest)]
    run.fleet.die(0)
    run.turn()
    run.fleet.answer(0)
    run.turn()
    run.turn()
    assert run.fleet.pending[0][2] == (Identity(0, 2, 0), *newest)  # another worker in the same slot


@pytest.mark.parametrize("part", range(10))
def test_the_books_balance_and_nothing_is_learned_twice(part, monkeypatch):
    monkeypatch.setattr("trpo_tf.rollout.workers.crew._DEATHS", 10**9)
    refused = lost = 0
    for seed in range(part * 1000, (part + 1) * 1000):
        rng = np.random.default_rng(seed)
        run = Run(int(rng.integers(1, 5)))
        for _ in range(int(rng.integers(5, 60))):
            random_turn(run, rng)
        for _ in range(200):  # and from anywhere it goes on
            if run.batch_waits:
                break
            run.clock.now += 5
            for slot in range(run.workers):
                run.finish(slot)
            run.turn()
        else:
            raise AssertionError(f"seed {seed}: no batch any more")
        run.learn()
        assert len(set(run.learned)) == len(run.learned), f"seed {seed}: learned twice"
        by_worker = itertools.groupby(sorted(run.learned, key=lambda x: x[1:]), key=lambda x: x[1])
        for serial, of_one in by_worker:
            numbers = [number for _, _, number in of_one]
            assert numbers == list(range(len(numbers))), f"seed {seed}: a hole in worker {serial}: {numbers}"
        refused, lost = refused + run.source.ledger.refused, lost + run.source.ledger.lost
    assert refused > 100
    assert lost > 1000


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_learner_slower_than_its_workers_stays_two_versions_behind_at_most(workers):
    run = Run(workers)
    for slot in range(workers):
        run.finish(slot)
    for _ in range(50):
        for _ in range(10):  # everybody is ten times as fast as an update
            run.turn()
            for slot in range(workers):
                run.finish(slot)
        assert run.source.ledger.waiting <= 2 * workers - 1
        run.learn()
        run.turn()
    assert max(run.staleness) <= 2


def test_a_checkpoint_loses_what_was_flying_and_waiting_and_no_seed_is_used_again():
    run = Run(3)
    for _ in range(40):
        run.turn()
        for slot in range(3):
            run.finish(slot)
        if run.batch_waits:
            run.learn()
    run.turn()
    serials, asked = run.crew.serial, run.source.ledger.asked
    state = run.source.state()
    resumed = Run(2, state, run.env_steps)  # with fewer workers, too
    resumed.version = run.version
    resumed.source.publish(run.version, {})
    ledger = resumed.source.ledger
    assert ledger.lost == run.source.ledger.asked - run.source.ledger.consumed > 0
    assert resumed.fleet.started == [(0, serials), (1, serials + 1)]
    while not resumed.batch_waits:
        resumed.turn()
        for slot in range(2):
            resumed.finish(slot)
    resumed.learn()
    assert ledger.asked > asked
    assert not {serial for _, serial, _ in resumed.learned} & {serial for _, serial, _ in run.learned}


def test_a_batch_that_was_handed_out_and_not_learned_from_is_in_the_checkpoint():
    run = Run(2)
    while not run.batch_waits:
        run.turn()
        for slot in range(2):
            run.finish(slot)
    run.source.next()
    resumed = Run(2, run.source.state())
    resumed.source.learned(2)
    assert (resumed.source.ledger.consumed, resumed.source.ledger.steps) == (2, 2)


def test_a_run_that_had_no_workers_begins_its_books_late(capsys):
    run = Run(1, state={"actions": np.zeros(3)}, env_steps=500)
    assert "begin anew" in capsys.readouterr().err
    while not run.batch_waits:
        run.turn()
        run.finish(0)
    run.learn()
    assert (run.env_steps, run.source.ledger.steps) == (501, 1)
    again = Run(1, run.source.state(), env_steps=501)
    again.source.ledger.check(501)


def test_books_that_do_not_balance_are_found_out():
    ledger = Ledger()
    ledger.ask(0, 0)
    ledger.check(0)
    ledger.lost += 1
    with pytest.raises(AssertionError, match="fragments"):
        ledger.check(0)
    ledger.lost -= 1
    with pytest.raises(AssertionError, match="transitions"):
        ledger.check(1)
    with pytest.raises(AssertionError, match="one fragment in flight"):
        ledger.ask(0, 0)


WRONG = {
    "another fragment": lambda f: f._replace(identity=Identity(0, 0, 5)),
    "no fragment": lambda f: None,
    "no rollout": lambda f: f._replace(rollout=None),
    "no trajectory": lambda f: f._replace(rollout=f.rollout._replace(trajectory=())),
    "shape": lambda f: fragment(f.identity, 0, time_steps=2),
    "dtype": lambda f: f._replace(rollout=f.rollout._replace(version=f.rollout.version.astype(np.int64))),
    "name": lambda f: f._replace(
        rollout=f.rollout._replace(trajectory=f.rollout.trajectory._replace(obs={"other": np.zeros((2, 1, 3))}))
    ),
    "no array": lambda f: f._replace(
        rollout=f.rollout._replace(trajectory=f.rollout.trajectory._replace(mask=[[1.0]]))
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_was_not_asked_for_is_refused_and_its_worker_replaced(wrong):
    run = Run(1)
    run.fleet.answer(0)
    run.turn()
    run.turn()
    run.fleet.answer(0, wrong(fragment(run.asked(0), 0)))
    run.turn()
    assert (run.source.ledger.refused, run.source.ledger.waiting) == (1, 0)
    assert run.fleet.killed == [(0, 0)]
    run.turn()
    run.finish(0)
    run.turn()
    run.turn()
    assert run.asked(0) == Identity(0, 1, 0)
