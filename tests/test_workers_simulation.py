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
    Measured,
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
    update_seconds=0.0,
    update_seconds_per_transition=0.0,
    updates=10,
)


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


def test_one_worker_and_an_update_of_no_time():
    """The next fragment leaves as its predecessor arrives, before the update that the predecessor allows."""
    outcome = simulate(plain())
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.transitions_per_second == pytest.approx(1)
    assert outcome.staleness == {1: 9}
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


@pytest.mark.parametrize("update", [0.0, 0.5, 5.9])
def test_equal_workers_hide_a_shorter_update(update):
    """All arrive together; the learner has done one update since their dispatch."""
    outcome = simulate(plain(workers=4, update_seconds=update))
    assert outcome.staleness == {1: 9 * 4}
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.learner_busy == pytest.approx(update / 6)


def test_a_fast_and_a_slow_worker_by_hand():
    """Fragments of 1 and 3 seconds, updates of half a second.

    Time: who arrives, with which version; what the learner takes.
    1: fast 0. 2: fast 0, taken as update 1. 3: fast 0 and slow 0, taken after 1 update. 4: fast 1.
    5: fast 2, taken after 2 updates. 6: fast 2 and slow 1, taken after 3. 7: fast 3. 8: fast 4, taken after 4.
    Update 1 ends at 2.5 and update 5 at 8.5.
    """
    setting = plain(workers=2, envs_per_worker=1, time_steps=1, update_seconds=0.5, updates=5)
    outcome = Simulation(setting, [1 / 3, 1.0], itertools.repeat(1.0)).run()
    assert outcome.staleness == {0: 2, 1: 5, 2: 1}
    assert outcome.mean_staleness == pytest.approx(7 / 8)
    assert outcome.max_staleness == 2
    assert outcome.updates_per_second == pytest.approx(4 / 6)
    assert outcome.transitions_per_second == pytest.approx(8 / 6)
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.learner_busy == pytest.approx(4 * 0.5 / 6)
    assert outcome.fastest_share == pytest.approx(6 / 8)
    assert (outcome.sent, outcome.used, outcome.waiting, outcome.flying) == (12, 10, 0, 2)


def test_a_saturated_learner_by_hand():
    """Updates of 10 fragments' time: a batch of 4 waits, 3 more were under way, then nothing is dispatched.

    Update 2 uses four fragments of version 0 after 1 update. Each later one uses three that waited, staleness 2, and
    one of those dispatched as its predecessor began, staleness 1.
    """
    outcome = simulate(plain(workers=4, update_seconds=60.0))
    assert outcome.staleness == {1: 4 + 8, 2: 8 * 3}
    assert outcome.learner_busy == pytest.approx(1)
    assert outcome.transitions_per_second == pytest.approx(24 / 60)
    assert outcome.wait_share == pytest.approx(1 - 6 / 60, abs=0.01)
    assert outcome.waiting == 4 + 3


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("update", [0.1, 1.0, 5.9, 6.1, 11.0, 13.0, 60.0, 6000.0])
def test_without_overtaking_staleness_is_at_most_two(workers, update):
    """At most 2 W - 2 fragments are before one at its dispatch; with one worker there is none, and it is at most 1."""
    outcome = simulate(plain(workers=workers, update_seconds=update, receive_seconds=0.01))
    assert outcome.max_staleness <= min(2, workers)
    assert outcome.waiting <= 2 * workers - 1


@pytest.mark.parametrize("update", [1.01, 1.5, 10.0, 1000.0])
@pytest.mark.parametrize("workers", [2, 5, 16])
def test_staleness_under_updates_longer_than_any_fragment_is_at_most_three(workers, update):
    """At most one update ends during a flight, and the fragment is used by the next update but one at the latest."""
    setting = plain(workers=workers, update_seconds=update, updates=100)
    times = iter(np.random.default_rng(0).uniform(0.1, 1.0, 100_000))
    assert Simulation(setting, [1.0] * workers, times).run().max_staleness <= 3


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
    outcome = simulate(dataclasses.replace(NOISY, asynchronous=asynchronous, **costs), seed=1)
    assert outcome.sent == outcome.used + outcome.waiting + outcome.flying
    assert outcome.used == 40 * 16
    assert sum(outcome.staleness.values()) == 39 * 16
    assert outcome.flying <= 16


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
    assert outcome.transitions_per_second / outcome.efficiency == pytest.approx(1000 * setting.alone, rel=0.06)


@pytest.mark.parametrize(("cores", "slower"), [(2.0, 4.0), (5.0, 1.6), (8.0, 1.0), (100.0, 1.0)])
def test_busy_workers_beyond_the_cores_slow_each_other(cores, slower):
    assert simulate(plain(workers=8, cores=cores)).efficiency == pytest.approx(1 / slower)


def test_times_of_fragments_have_the_mean_and_spread_of_the_sum_of_their_steps():
    """Steps of mean 2 and variance 4 (exp(0.6^2) - 1); 4 * 3 of them and 4 times 0.25 to act."""
    setting = plain(envs_per_worker=3, time_steps=4, step_seconds=2.0, step_sigma=0.6, act_seconds=0.25)
    times = np.array(list(itertools.islice(fragment_times(setting, np.random.default_rng(0)), 100_000)))
    assert times.mean() == pytest.approx(24 + 1, rel=0.003)
    assert times.var() == pytest.approx(12 * 4 * (math.exp(0.36) - 1), rel=0.03)
    slow = dataclasses.replace(setting, straggler_share=0.2, straggler_factor=3.0)
    times = np.array(list(itertools.islice(fragment_times(slow, np.random.default_rng(0)), 100_000)))
    assert times.mean() == pytest.approx(25 * 1.4, rel=0.01)
    assert slow.fragment_seconds == pytest.approx(25 * 1.4)
    assert slow.alone == pytest.approx(12 / 35)


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
    rate, staleness = 4 * faster, 1 + staler
    return Measured(4, setting.asynchronous, False, rate, faster, staleness, 1, setting)


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
    found = compare(point(**changes))
    assert found.transitions_per_second == pytest.approx(4)
    assert found.mean_staleness == 1
    assert found.agrees is agrees


def record(**changes):
    return dataclasses.asdict(point()) | changes


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
