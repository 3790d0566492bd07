"""benchmarks/workers_simulation.py against cases computed by hand, and against what its semantics imply."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workers_simulation import (
    Point,
    Setting,
    Simulation,
    changed,
    compare,
    fitted,
    fragment_times,
    read_measured,
    simulate,
    sweep,
)

ROOT = Path(__file__).parents[1]
# A fragment of 2 time steps of 3 environments takes 6 seconds, an update nothing, nothing is random.
PLAIN = Setting(
    workers=1,
    envs_per_worker=3,
    time_steps=2,
    step_seconds=1.0,
    step_sigma=0.0,
    act_seconds=0.0,
    send_seconds=0.0,
    receive_seconds=0.0,
    publish_seconds=0.0,
    update_seconds=0.0,
    update_seconds_per_transition=0.0,
    updates=10,
)


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


def fragments_in_flight(simulation):
    """A fragment that has not arrived is being collected, or an event of its worker awaits it."""
    return len(simulation.collecting) + sum(bool(arguments) for *_, arguments in simulation.events)


def test_one_worker_and_an_update_of_no_time():
    """The update ends as the next fragment begins: nothing of it is collected before."""
    outcome = simulate(plain())
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.transitions_per_second == pytest.approx(1)
    assert outcome.staleness == {0: 9}
    assert outcome.wait_share == pytest.approx(0, abs=1e-9)
    assert outcome.fastest_share == 1
    synchronous = simulate(plain(asynchronous=False))
    assert synchronous.efficiency == pytest.approx(1)
    assert synchronous.staleness == {0: 9}


def test_synchronous_equal_workers_take_a_fragment_and_an_update():
    """5 workers: T B step = 6, update = 2 + 5 * 6 * 0.1 = 5."""
    setting = plain(asynchronous=False, workers=5, update_seconds=2.0, update_seconds_per_transition=0.1)
    outcome = simulate(setting)
    assert 1 / outcome.updates_per_second == pytest.approx(6 + 5)
    assert outcome.transitions_per_second == pytest.approx(30 / 11)
    assert outcome.efficiency == pytest.approx(6 / 11)
    assert outcome.learner_busy == pytest.approx(5 / 11)
    assert outcome.wait_share == pytest.approx(5 / 11)
    assert outcome.staleness == {0: 9 * 5}
    assert outcome.fastest_share == pytest.approx(1 / 5)


def test_sending_acting_and_receiving_take_time():
    """4 workers: 3 to send, 2 * 5 to act, 6 to step, 4 * 0.5 to receive one after the other, 7 to update."""
    costs = {"send_seconds": 3.0, "act_seconds": 5.0, "receive_seconds": 0.5, "update_seconds": 7.0}
    outcome = simulate(plain(asynchronous=False, workers=4, **costs))
    assert 1 / outcome.updates_per_second == pytest.approx(3 + 10 + 6 + 2 + 7)
    assert outcome.efficiency == pytest.approx(16 / 28)


def test_the_dispatching_thread_bounds_throughput():
    """40 workers make 40 fragments in 6 seconds; a thread that takes 0.5 for each receives 12."""
    outcome = simulate(plain(workers=40, receive_seconds=0.5))
    assert outcome.transitions_per_second == pytest.approx(6 / 0.5)
    assert outcome.efficiency == pytest.approx(12 / 40)
    assert outcome.thread_busy == pytest.approx(1)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("update", "publish", "seconds"),
    [
        (0.5, 0.75, {0: 4.75, 1: 1.25}),
        (5.9, 0.0, {0: 0.1, 1: 5.9}),
        (0.0, 6.0, {1: 6.0}),  # with the end of their fragment: it has nothing of that version
        (5.0, 3.0, {1: 4.0, 2: 2.0}),  # a version reaches the workers in their next fragment
        (20.0, 1.5, {1: 4.5, 2: 1.5}),
    ],
)
def test_equal_workers_collect_with_a_version_from_when_it_reaches_them(workers, update, publish, seconds):
    """Fragments of 6 seconds begin with an update. The first that count begin with version 0: nothing is older."""
    outcome = simulate(plain(workers=workers, update_seconds=update, publish_seconds=publish))
    first = {1: 6.0} if 2 in seconds else seconds
    expected = {age: workers * (8 * seconds[age] + first.get(age, 0)) / 6 for age in seconds}
    assert outcome.staleness == pytest.approx(expected)
    assert outcome.efficiency == pytest.approx(6 / max(6, update))
    assert outcome.learner_busy == pytest.approx(update / max(6, update))


def test_a_fast_and_a_slow_worker_by_hand():
    """Fragments of 1 and 3 seconds, updates of half a second.

    Time: who arrives, with the seconds collected with each version; what the learner takes.
    1: fast, 1 with 0. 2: fast, 1 with 0; update 1 begins with both, and ends at 2.5.
    3: fast, 0.5 with 0 and 0.5 with 1; slow, 2.5 with 0 and 0.5 with 1; both are taken after 1 update, until 3.5.
    4: fast, 0.5 with 1 and 0.5 with 2. 5: fast, 1 with 2; both are taken after 2 updates, until 5.5.
    6: fast, 0.5 with 2 and 0.5 with 3; slow, 0.5 with 1, 2 with 2, 0.5 with 3; taken after 3 updates, until 6.5.
    7: fast, 0.5 with 3 and 0.5 with 4. 8: fast, 1 with 4; both are taken after 4 updates, until 8.5.
    """
    setting = plain(workers=2, envs_per_worker=1, time_steps=1, update_seconds=0.5, updates=5)
    simulation = Simulation(setting, [1 / 3, 1.0], itertools.repeat(1.0))
    outcome = simulation.run()
    assert outcome.staleness == pytest.approx({0: 26 / 6, 1: 21 / 6, 2: 1 / 6})
    assert outcome.mean_staleness == pytest.approx(23 / 48)
    assert outcome.max_staleness == 2
    assert outcome.updates_per_second == pytest.approx(4 / 6)
    assert outcome.transitions_per_second == pytest.approx(8 / 6)
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.learner_busy == pytest.approx(4 * 0.5 / 6)
    assert outcome.fastest_share == pytest.approx(6 / 8)
    assert (len(simulation.waiting), fragments_in_flight(simulation)) == (0, 2)


def test_a_saturated_learner_by_hand():
    """Updates of 10 fragments' time: when one begins, 4 fragments do; they wait for the next, one update old."""
    simulation = Simulation(plain(workers=4, update_seconds=60.0), [1.0] * 4, itertools.repeat(6.0))
    outcome = simulation.run()
    assert outcome.staleness == {1: 9 * 4}
    assert outcome.learner_busy == pytest.approx(1)
    assert outcome.transitions_per_second == pytest.approx(24 / 60)
    assert outcome.wait_share == pytest.approx(1 - 6 / 60, abs=0.01)
    assert len(simulation.waiting) == 4


@pytest.mark.parametrize(("update", "publish", "wait"), [(0.01, 0.0, 3.5), (0.5, 0.25, 3.5), (2.5, 0.0, 3.25)])
def test_fragments_that_end_evenly_spread_get_older_as_they_wait(update, publish, wait):
    """One of 8 arrives each second and waits for 7, 6 ... 0. With U = 2.5 two are held back, and wait for 5.5 later."""
    setting = plain(workers=8, update_seconds=update, publish_seconds=publish)
    outcome = Simulation(setting, [1.0] * 8, itertools.chain(range(1, 9), itertools.repeat(8.0))).run()
    assert outcome.max_staleness == 1
    assert outcome.mean_staleness == pytest.approx((update + publish + wait) / 8)
    assert 1 / outcome.updates_per_second == pytest.approx(8)


@pytest.mark.parametrize(("publish", "stale"), [(3.0, 0), (4.0, 1), (9.0, 6)])
def test_sending_and_receiving_take_a_workers_time(publish, stale):
    """3 to send, 6 to step, 0.25 to receive. A version is published with the sending."""
    costs = {"send_seconds": 3.0, "receive_seconds": 0.25, "publish_seconds": publish}
    outcome = simulate(plain(**costs))
    assert outcome.mean_staleness == pytest.approx(stale / 6)
    assert 1 / outcome.updates_per_second == pytest.approx(9.25)
    assert outcome.thread_busy == pytest.approx(0.25 / 9.25)
    assert outcome.wait_share == pytest.approx(1 - 6 / 9.25)
    assert simulate(plain(asynchronous=False, **costs)).staleness == {0: 9}


def test_fragments_begin_where_there_is_room_and_go_on_in_any_case():
    """Fast fragments take 1 second, slow ones 11.2, an update 5, and its version 0.5 to reach the workers.

    Time: what happens. f 1 2 is a fast fragment, half of version 1 and half of 2. Staleness stands in brackets.
    1, 2: f 0 0; update 1 takes both. 3: f 0 0, fast is held back: slow flies. 7: update 1 ends, fast begins.
    8: f 0 1; update 2 takes f 0 0 (1 1) and it (1 0). 9: f 1 1, fast is held back. 11.2: slow, 7.5 of version 0 and
    3.7 of 1. 13: update 3 takes f 1 1 (1 1) and it (7.5: 2, 3.7: 1), both begin. 14: f 1 2, fast is held back.
    18: update 3 ends, fast begins. 19: f 2 3; update 4 takes f 1 2 (2 1) and it (1 0). 20: f 3 3, fast is held back.
    24: update 4 ends, fast begins. 24.2: slow, 0.5 of version 1, 5 of 2 and 5.7 of 3; update 5 takes f 3 3 (1 1) and
    it (0.5: 3, 5: 2, 5.7: 1). 25: f 3 4, fast is held back. 29.2: update 5 ends, fast begins.
    30.2: f 4 5; update 6 takes f 3 4 (2 1) and it (1 0).
    """
    setting = plain(workers=2, update_seconds=5.0, publish_seconds=0.5, updates=6)
    outcome = Simulation(setting, [1.0, 1 / 11.2], itertools.repeat(1.0)).run()
    expected = {0: 1.5, 1: 5.5 + (3.7 + 5.7) / 11.2, 2: 1 + (7.5 + 5) / 11.2, 3: 0.5 / 11.2}
    assert outcome.staleness == pytest.approx(expected)
    assert outcome.mean_staleness == pytest.approx((7.5 + 35.9 / 11.2) / 10)
    assert outcome.max_staleness == 3
    assert outcome.fastest_share == pytest.approx(8 / 10)


def test_a_fragment_is_shared_among_versions_by_work_and_not_by_time():
    """Two workers on one core, an update of 3 seconds. The second worker's fragment has 4.5 seconds of work.

    2, 4: the first worker brings fragments of 1 second of work; update 1 begins. 6: it brings the third and is held
    back, with 3 of 4.5 done. 7: update 1 ends with 4 of 4.5 done, the first worker begins. 8: the second has all done.
    """
    setting = plain(workers=2, cores=1.0, update_seconds=3.0, updates=2)
    outcome = Simulation(setting, [1.0] * 2, itertools.chain([1.0, 4.5], itertools.repeat(1.0))).run()
    assert outcome.staleness == pytest.approx({0: 0.5 / 4.5, 1: 1 + 4 / 4.5})
    assert 1 / outcome.updates_per_second == pytest.approx(4)


@pytest.mark.parametrize("publish", [0.0, 0.05])
@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("update", [0.1, 1.0, 5.9, 6.1, 11.0, 13.0, 60.0, 6000.0])
def test_without_overtaking_staleness_is_at_most_one_but_before_a_version_arrives(workers, update, publish):
    """A fragment is used by the next update but one that begins after its sending, at the latest."""
    setting = plain(workers=workers, update_seconds=update, receive_seconds=0.01, publish_seconds=publish)
    outcome = Simulation(setting, [1.0] * workers, itertools.repeat(6.0)).run()
    assert outcome.max_staleness <= (2 if publish else 1)
    assert outcome.mean_staleness <= 1 + publish / 6 + 1e-9


@pytest.mark.parametrize("update", [1.01, 1.5, 10.0, 1000.0])
@pytest.mark.parametrize("workers", [2, 5, 16])
def test_under_updates_longer_than_any_fragment_every_time_step_is_one_update_old(workers, update):
    """All begin with an update and wait for its end, however much their times differ."""
    times = iter(np.random.default_rng(0).uniform(0.1, 1, 20_000).tolist())
    setting = plain(workers=workers, update_seconds=update, updates=100)
    assert Simulation(setting, [1.0] * workers, times).run().staleness == pytest.approx({1: 99 * workers})


@pytest.mark.parametrize("publish", [0.0, 0.3])
@pytest.mark.parametrize("update", [0.05, 0.5, 2.0])
def test_the_staleness_of_a_time_step_is_the_updates_that_end_between_it_and_its_use(update, publish):
    """By the clock, at 400 moments of each fragment. A tenth of them are stragglers, and overtaken."""
    rng, fragments = np.random.default_rng(1), []

    class Traced(Simulation):
        def _collected(self, worker, start):
            fragments.append((start, self.now))  # no core is shared: progress is time
            super()._collected(worker, start)

    times = rng.uniform(0.5, 1.5, 2000) * np.where(rng.random(2000) < 0.1, 5, 1)
    setting = plain(workers=6, update_seconds=update, publish_seconds=publish, updates=60)
    outcome = Traced(setting, np.linspace(0.5, 1.5, 6).tolist(), times.tolist()).run()
    begin, end = np.array(fragments[: 60 * 6]).T[:, :, None]  # [60 * 6, 1] each
    ends = [*itertools.accumulate(end[5::6, 0], lambda last, full: max(last, full) + update, initial=0.0)][1:]
    version = np.searchsorted(ends, begin + (end - begin) * (np.arange(400) + 0.5) / 400 - publish)
    staleness = np.arange(60).repeat(6)[:, None] - version
    assert (staleness <= 1 + np.searchsorted(ends, end) - version).all()
    found, counts = np.unique(staleness[6:], return_counts=True)
    assert outcome.max_staleness == found.max() > 2
    assert outcome.staleness == pytest.approx(dict(zip(found.tolist(), counts / 400, strict=True)), abs=0.3)


def test_workers_go_on_while_less_than_a_batch_waits():
    """A fragment that takes for ever stops nobody: the others' fragments fill the batches."""
    setting = plain(workers=3, update_seconds=0.5, updates=30)
    outcome = Simulation(setting, [1.0] * 3, itertools.chain([math.inf], itertools.repeat(1.0))).run()
    assert outcome.fastest_share == pytest.approx(0.5, abs=0.02)
    assert outcome.updates_per_second == pytest.approx(2 / 3, rel=0.05)


NOISY = Setting(workers=16, straggler_share=0.05, host_sigma=0.3, updates=40)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("costs", [{}, {"update_seconds": 3.0}, {"receive_seconds": 0.1}, {"cores": 3.5}])
def test_no_fragment_is_lost_or_used_twice(asynchronous, costs):
    setting = dataclasses.replace(NOISY, asynchronous=asynchronous, **costs)
    times = list(itertools.islice(fragment_times(setting, np.random.default_rng(1)), 1000))
    simulation = Simulation(setting, np.linspace(0.5, 2.0, 16).tolist(), times)
    outcome = simulation.run()
    dispatched = 1000 - len(list(simulation.times))
    assert dispatched == 40 * 16 + len(simulation.waiting) + fragments_in_flight(simulation)
    assert sum(outcome.staleness.values()) == pytest.approx(39 * 16)
    assert fragments_in_flight(simulation) + len(simulation.idle) == 16


def test_equal_seeds_give_equal_outcomes():
    assert simulate(NOISY, seed=3) == simulate(NOISY, seed=3)
    assert simulate(NOISY, seed=3) != simulate(NOISY, seed=4)


def test_stragglers_hurt_synchronous_workers_more():
    def efficiency(asynchronous, share):
        return simulate(Setting(asynchronous=asynchronous, straggler_share=share, updates=300)).efficiency

    assert efficiency(False, 0.0) - efficiency(False, 0.01) > 0.15
    assert efficiency(True, 0.0) - efficiency(True, 0.01) < 0.02
    assert efficiency(True, 0.01) > 0.97


def test_a_faster_worker_gives_more_only_where_nobody_waits_for_the_slowest():
    hosts = plain(workers=4, host_sigma=0.5, updates=50)
    assert simulate(hosts).fastest_share > 0.3
    assert simulate(dataclasses.replace(hosts, asynchronous=False)).fastest_share == pytest.approx(1 / 4)


def test_cores_are_shared_in_equal_parts():
    """Three fragments on one core, of 1, 2 and 2 seconds of work: they end at 3, 5 and 5, and are received until 6."""
    setting = plain(workers=3, asynchronous=False, cores=1.0, receive_seconds=0.5)
    outcome = Simulation(setting, [1.0, 0.5, 0.5], itertools.repeat(1.0)).run()
    assert 1 / outcome.updates_per_second == pytest.approx(6)
    assert outcome.wait_share == pytest.approx(1 - (3 + 5 + 5) / (3 * 6))


def test_the_speeds_of_hosts_have_mean_one():
    setting = plain(workers=1000, host_sigma=0.5, updates=3)
    outcome = simulate(setting)
    assert outcome.transitions_per_second / outcome.efficiency == pytest.approx(1000 * 6 / 6, rel=0.06)


@pytest.mark.parametrize(("cores", "slower"), [(2.0, 4.0), (5.0, 1.6), (8.0, 1.0), (100.0, 1.0)])
def test_busy_workers_beyond_the_cores_slow_each_other(cores, slower):
    assert simulate(plain(workers=8, cores=cores)).efficiency == pytest.approx(1 / slower)


def drawn(setting):
    """Times of 100,000 fragments."""
    return np.array(list(itertools.islice(fragment_times(setting, np.random.default_rng(0)), 100_000)))


def test_times_of_fragments_have_the_mean_and_spread_of_the_sum_of_their_steps():
    """Steps of mean 2 and variance 4 (exp(0.6^2) - 1); 4 * 3 of them and 4 times 0.25 to act."""
    setting = plain(envs_per_worker=3, time_steps=4, step_seconds=2.0, step_sigma=0.6, act_seconds=0.25)
    times = drawn(setting)
    assert times.mean() == pytest.approx(24 + 1, rel=0.003)
    assert times.var() == pytest.approx(12 * 4 * (math.exp(0.36) - 1), rel=0.03)


def test_a_straggler_takes_so_many_times_as_long():
    setting = plain(straggler_share=0.2, straggler_factor=3.0, act_seconds=0.5)
    times = drawn(setting)
    assert set(times.tolist()) == {7.0, 21.0}
    assert (times == 21.0).mean() == pytest.approx(0.2, abs=0.01)
    assert setting.fragment_seconds == pytest.approx(7 * 1.4)


@pytest.mark.parametrize("changes", [{"workers": 0}, {"updates": 1}, {"step_seconds": 0.0}, {"cores": 0.0}])
def test_settings_that_mean_nothing_are_refused(changes):
    with pytest.raises(ValueError, match=r"needed|needs"):
        plain(**changes)


def test_a_fixed_batch_makes_fragments_shorter():
    base = plain(envs_per_worker=2, time_steps=7)
    fixed = list(sweep(base, [1, 4, 1000], batch=64))
    assert [setting.time_steps for setting in fixed[:3]] == [32, 8, 1]
    assert [setting.updates for setting in fixed[:3]] == [10_000, 2_500, 10]
    assert {setting.time_steps for setting in sweep(base, [1, 4, 1000], batch=None)} == {7}
    kinds = [(setting.asynchronous, setting.straggler_share, setting.workers) for setting in fixed]
    assert kinds == list(itertools.product([False, True], [0.0, 0.01], [1, 4, 1000]))


def test_fields_are_changed_by_name():
    assert changed(PLAIN, ["workers=7", "cores=2.5"]) == plain(workers=7, cores=2.5)
    with pytest.raises(TypeError, match="speed"):
        changed(PLAIN, ["speed=1"])


def point(faster=1.0, staler=0.0, **changes):
    """A measured point that is what the simulation says, but for these."""
    setting = plain(workers=4, update_seconds=1.0, **changes)
    return Point(setting, transitions_per_second=4 * faster, efficiency=faster, mean_staleness=1 / 6 + staler)


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, True),
        ({"faster": 1.09, "staler": -0.19}, True),
        ({"faster": 1.11}, False),
        ({"faster": 0.89}, False),
        ({"staler": 0.21}, False),
        ({"staler": -0.21}, False),
        ({"faster": math.nan}, False),
        ({"staler": math.nan}, False),
    ],
)
def test_what_was_measured_agrees_within_a_tenth_and_a_fifth_of_a_version(changes, agrees):
    found, ratio, difference, agreed = compare(point(**changes))
    assert found == (point().setting, pytest.approx(4), pytest.approx(1), pytest.approx(1 / 6))
    assert ratio == pytest.approx(changes.get("faster", 1), nan_ok=True)
    assert difference == pytest.approx(changes.get("staler", 0), nan_ok=True)
    assert agreed is agrees


def record(**changes):
    about = {"workers": 4, "asynchronous": True, "stragglers": False, "max_staleness": 1}
    return point()._asdict() | {"setting": dataclasses.asdict(point().setting)} | about | changes


def test_measured_points_are_read(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"points": [record(seconds=3.0)]}))
    assert read_measured(path) == [point()]
    path.write_text(json.dumps({"points": [record(workers=5)]}))
    with pytest.raises(ValueError, match="contradicts"):
        read_measured(path)
    path.write_text(json.dumps({"points": [record(setting={"speed": 1})]}))
    with pytest.raises(TypeError, match="speed"):
        read_measured(path)
    points = read_measured(ROOT / "benchmarks" / "results" / "workers.json")
    assert {point.setting.asynchronous for point in points} == {True, False}


def command(tmp_path, rate, *arguments):
    """The command's answer to one measured point, after a short sweep."""
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps({"points": [record(transitions_per_second=rate)]}))
    program = [sys.executable, "benchmarks/workers_simulation.py", "--workers=1,2", "--setting=updates=3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [*program, f"--measured={measured}", *arguments]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_ends_well_where_the_measured_agree(tmp_path):
    done = command(tmp_path, 4.0)
    assert done.returncode == 0, done.stderr
    assert "asynchronous, stragglers" in done.stdout
    assert "NO" not in done.stdout


def test_the_command_fails_where_the_measured_differ_and_draws_all_the_same(tmp_path):
    done = command(tmp_path, 8.0, f"--picture={tmp_path / 'workers.png'}")
    assert done.returncode == 1
    assert "NO" in done.stdout, done.stderr
    assert (tmp_path / "workers.png").read_bytes().startswith(b"\x89PNG")


def test_the_time_of_an_update_is_a_line_through_what_was_measured():
    """0.01 + 2e-5 per transition, of batches of 6, 12 and 24 transitions."""
    measured = [
        dataclasses.replace(PLAIN, workers=workers, update_seconds=0.01 + 2e-5 * 6 * workers) for workers in (1, 2, 4)
    ]
    found = fitted(measured)
    assert found.update_seconds == pytest.approx(0.01)
    assert found.update_seconds_per_transition == pytest.approx(2e-5)
    assert found.workers == 1
    assert fitted(measured[:1]) == measured[0]
