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
from trpo_tf.rollout.workers.fragments import in_pieces

ROOT = Path(__file__).parents[1]
# A fragment of 2 time steps of 3 environments takes 6 seconds in one piece, an update nothing, nothing is random.
PLAIN = Setting(
    workers=1,
    envs_per_worker=3,
    time_steps=2,
    pieces=(1.0,),
    shortest_piece=1,
    step_seconds=1.0,
    step_sigma=0.0,
    act_seconds=0.0,
    send_seconds=0.0,
    piece_seconds=0.0,
    receive_seconds=0.0,
    update_seconds=0.0,
    update_seconds_per_transition=0.0,
    updates=10,
)


def equal(count):
    """Pieces."""
    return (1 / count,) * count


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


def fragments_in_flight(simulation):
    """A fragment that has not arrived is being collected, or an event awaits it."""
    return len(simulation.collecting) + len(simulation.events)


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
    simulation = Simulation(setting, [1 / 3, 1.0], itertools.repeat([1.0]))
    outcome = simulation.run()
    assert outcome.staleness == {0: 2, 1: 5, 2: 1}
    assert outcome.mean_staleness == pytest.approx(7 / 8)
    assert outcome.max_staleness == 2
    assert outcome.updates_per_second == pytest.approx(4 / 6)
    assert outcome.transitions_per_second == pytest.approx(8 / 6)
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.learner_busy == pytest.approx(4 * 0.5 / 6)
    assert outcome.fastest_share == pytest.approx(6 / 8)
    assert (len(simulation.waiting), fragments_in_flight(simulation)) == (0, 2)


def test_a_saturated_learner_by_hand():
    """Updates of 10 fragments' time: when one begins, 4 fragments do; they wait for the next, one update old."""
    simulation = Simulation(plain(workers=4, update_seconds=60.0), [1.0] * 4, itertools.repeat([6.0]))
    outcome = simulation.run()
    assert outcome.staleness == {1: 9 * 4}
    assert outcome.learner_busy == pytest.approx(1)
    assert outcome.transitions_per_second == pytest.approx(24 / 60)
    assert outcome.wait_share == pytest.approx(1 - 6 / 60, abs=0.01)
    assert len(simulation.waiting) == 4


@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
@pytest.mark.parametrize("update", [0.1, 2.9, 3.1, 5.9, 6.1, 11.9])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_pieces_sent_during_an_update_are_one_update_old(workers, update, pieces):
    """Equal workers, fragments of 12 seconds: ceil(k U / 12) of k pieces are sent before the update ends."""
    setting = plain(workers=workers, envs_per_worker=1, time_steps=12, pieces=equal(pieces), update_seconds=update)
    outcome = simulate(setting)
    stale = math.ceil(pieces * update / 12)
    expected = {0: 9 * workers * (pieces - stale), 1: 9 * workers * stale}
    assert outcome.staleness == pytest.approx({value: count / pieces for value, count in expected.items() if count})
    assert outcome.mean_staleness == pytest.approx(stale / pieces)
    assert outcome.efficiency == pytest.approx(1)


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_fragments_that_end_evenly_spread_have_pieces_of_a_mean_staleness_above_a_half(pieces):
    """A fragment that waits m / 8 of its time has floor(k m / 8) + 1 of k pieces sent before the last update ended."""
    setting = plain(workers=8, time_steps=8, pieces=equal(pieces), update_seconds=0.01)
    first, later = ([[i / pieces] * pieces for i in range(1, 9)], itertools.repeat([8 / pieces] * pieces))
    outcome = Simulation(setting, [1.0] * 8, itertools.chain(first, later)).run()
    assert outcome.max_staleness == 1
    assert outcome.mean_staleness == pytest.approx((pieces + 1) / (2 * pieces))
    assert 1 / outcome.updates_per_second == pytest.approx(8)


@pytest.mark.parametrize("pieces", [1, 4])
def test_with_one_worker_every_piece_is_one_update_old_where_updates_are_longer_than_fragments(pieces):
    """The next fragment begins with the update, and waits for its end."""
    assert simulate(plain(time_steps=4, pieces=equal(pieces), update_seconds=20.0)).staleness == {1: 9}


def test_the_end_of_a_piece_takes_time():
    """4 pieces: 4 * 3 to send, 12 to step, 3 * 0.5 and 0.25 to receive."""
    costs = {"send_seconds": 3.0, "piece_seconds": 0.5, "receive_seconds": 0.25}
    outcome = simulate(plain(time_steps=4, pieces=equal(4), **costs))
    assert 1 / outcome.updates_per_second == pytest.approx(12 + 12 + 1.5 + 0.25)
    assert outcome.thread_busy == pytest.approx(1.75 / 25.75)
    assert outcome.wait_share == pytest.approx(1 - 12 / 25.75)
    synchronous = simulate(plain(time_steps=4, pieces=equal(4), asynchronous=False, **costs))
    assert 1 / synchronous.updates_per_second == pytest.approx(3 + 12 + 0.25)


def test_the_ends_of_pieces_share_the_dispatching_thread():
    """40 workers, 2 pieces: the thread takes 0.25 and 0.5 per fragment of 6 transitions."""
    outcome = simulate(plain(workers=40, pieces=equal(2), piece_seconds=0.25, receive_seconds=0.5, updates=30))
    assert outcome.transitions_per_second == pytest.approx(6 / 0.75)
    assert outcome.thread_busy == pytest.approx(1)


def test_fragments_begin_where_there_is_room_and_go_on_in_any_case():
    """Fragments of 2 pieces: fast ones take 1 second, slow ones 11.2; an update takes 5.

    Time: what happens. A piece carries the version before its colon.
    1, 2: fast 0 0 arrives; update 1 begins with two of them. 3: fast 0 0 arrives, and is held back: slow flies.
    5.6: slow goes on, with version 0. 7: version 1, fast begins. 8: fast 1 1 arrives; update 2 takes two of fast
    (1 1 0 0). 9: fast 1 1 arrives, is held back. 11.2: slow 0 0 arrives. 13: update 3 takes them (1 1 2 2), both begin.
    14: fast 2 2 arrives, is held back. 18: version 3, fast begins. 18.6: slow goes on with version 3. 19: fast 3 3
    arrives; update 4 takes two of fast (1 1 0 0). 20: fast 3 3 arrives, is held back. 24: version 4, fast begins.
    24.2: slow 2 3 arrives; update 5 takes fast 3 3 and it (1 1 2 1). 25: fast 4 4 arrives, is held back.
    29.2: version 5, fast begins. 30.2: fast 5 5 arrives; update 6 takes two of fast (1 1 0 0).
    """
    setting = plain(workers=2, envs_per_worker=1, pieces=equal(2), update_seconds=5.0, updates=6)
    outcome = Simulation(setting, [1.0, 1 / 11.2], itertools.repeat([0.5, 0.5])).run()
    assert outcome.staleness == {0: 3, 1: 5.5, 2: 1.5}
    assert outcome.mean_staleness == pytest.approx((11 + 6) / 20)
    assert outcome.max_staleness == 2
    assert outcome.fastest_share == pytest.approx(8 / 10)


@pytest.mark.parametrize("time_steps", [1, 63, 64, 127, 128, 131])
def test_pieces_are_those_of_the_workers(time_steps):
    assert Setting(time_steps=time_steps).piece_steps == in_pieces(time_steps)
    assert Setting(time_steps=time_steps, asynchronous=False).piece_steps == (time_steps,)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("update", [0.1, 1.0, 5.9, 6.1, 11.0, 13.0, 60.0, 6000.0])
def test_without_overtaking_staleness_is_at_most_two(workers, update, pieces):
    """At most 2 W - 2 fragments are before one at its dispatch; with one worker there is none, and it is at most 1."""
    setting = plain(
        workers=workers, update_seconds=update, receive_seconds=0.01, pieces=equal(pieces), piece_seconds=0.01
    )
    simulation = Simulation(setting, [1.0] * workers, itertools.repeat([6.0 / pieces] * pieces))
    assert simulation.run().max_staleness <= min(2, workers)
    assert len(simulation.waiting) <= 2 * workers - 1


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("update", [1.01, 1.5, 10.0, 1000.0])
@pytest.mark.parametrize("workers", [2, 5, 16])
def test_staleness_under_updates_longer_than_any_fragment_is_at_most_three(workers, update, pieces):
    """At most one update ends during a flight, and the fragment is used by the next update but one at the latest."""
    setting = plain(workers=workers, time_steps=4, pieces=equal(pieces), update_seconds=update, updates=100)
    times = iter(np.random.default_rng(0).uniform(0.1 / pieces, 1 / pieces, (20_000, pieces)).tolist())
    assert Simulation(setting, [1.0] * workers, times).run().max_staleness <= 3


def test_workers_go_on_while_less_than_a_batch_waits():
    """A fragment that takes for ever stops nobody: the others' fragments fill the batches."""
    setting = plain(workers=3, update_seconds=0.5, updates=30)
    outcome = Simulation(setting, [1.0] * 3, itertools.chain([[math.inf]], itertools.repeat([1.0]))).run()
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
    assert sum(outcome.staleness.values()) == 39 * 16
    assert fragments_in_flight(simulation) <= 16


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
    outcome = Simulation(setting, [1.0, 0.5, 0.5], itertools.repeat([1.0])).run()
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
    """Times of the pieces of 100,000 fragments."""
    return np.array(list(itertools.islice(fragment_times(setting, np.random.default_rng(0)), 100_000)))


@pytest.mark.parametrize("pieces", [1, 2])
def test_times_of_pieces_have_the_mean_and_spread_of_the_sum_of_their_steps(pieces):
    """Steps of mean 2 and variance 4 (exp(0.6^2) - 1); 4 * 3 of them and 4 times 0.25 to act."""
    setting = plain(
        envs_per_worker=3, time_steps=4, step_seconds=2.0, step_sigma=0.6, act_seconds=0.25, pieces=equal(pieces)
    )
    times = drawn(setting)
    assert times.shape == (100_000, pieces)
    assert times.mean(0) * pieces == pytest.approx(24 + 1, rel=0.003)
    assert times.var(0) * pieces == pytest.approx(12 * 4 * (math.exp(0.36) - 1), rel=0.03)
    assert times.sum(1).var() == pytest.approx(12 * 4 * (math.exp(0.36) - 1), rel=0.03)
    slow = dataclasses.replace(setting, straggler_share=0.2, straggler_factor=3.0)
    assert drawn(slow).sum(1).mean() == pytest.approx(25 * 1.4, rel=0.01)
    assert slow.fragment_seconds == pytest.approx(25 * 1.4)


def test_a_straggler_is_slow_in_every_piece():
    times = drawn(plain(time_steps=4, pieces=equal(4), straggler_share=0.2, straggler_factor=3.0))
    assert set(map(tuple, times.tolist())) == {(3.0,) * 4, (9.0,) * 4}
    assert (times[:, 0] == 9.0).mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [{"workers": 0}, {"pieces": ()}, {"pieces": (0.5, 0.4)}, {"updates": 1}, {"step_seconds": 0.0}, {"cores": 0.0}],
)
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
    return Point(setting, transitions_per_second=4 * faster, efficiency=faster, mean_staleness=1 + staler)


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
    assert found == (point().setting, pytest.approx(4), pytest.approx(1), 1)
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
    whole = dataclasses.asdict(point().setting)
    path.write_text(json.dumps({"points": [record(setting={name: whole[name] for name in whole if name != "pieces"})]}))
    assert read_measured(path)[0].setting.pieces == (0.25, 0.25, 0.5)


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
