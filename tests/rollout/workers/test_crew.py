"""Slots and their workers: who is asked, who is given up, when another one is begun, and when the run fails."""

import pytest

from tests.rollout.workers.doubles import Clock, ScriptedFleet
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.rollout.workers.crew import Crew
from trpo_tf.rollout.workers.fleet import Answer, Death, Reply, Trouble


def crew_of(slots=2, timeout=10.0, serial=0, needed=1):
    fleet, clock = ScriptedFleet(), Clock()
    return Crew(fleet, slots, timeout, serial, needed, clock), fleet, clock


def begun(slots=2, **settings):
    crew, fleet, clock = crew_of(slots, **settings)
    for slot in range(slots):
        fleet.answer(slot)
    assert crew.poll(0) == []
    assert crew.ready() == list(range(slots))
    return crew, fleet, clock


def replaced(crew, fleet, clock, slot=0):
    """The slot's worker dies, and another one begins."""
    fleet.die(slot)
    crew.poll(0)
    clock.now += 60
    crew.poll(0)
    fleet.answer(slot)
    crew.poll(0)


def test_workers_are_numbered_over_the_run_and_asked_when_they_are_ready():
    crew, fleet, _ = crew_of(serial=7)
    assert fleet.started == [(0, 7), (1, 8)]
    assert (crew.ready(), crew.alive) == ([], 0)
    fleet.answer(1)
    crew.poll(0)
    assert (crew.ready(), crew.alive) == ([1], 1)
    crew.ask(1, "fragment", "x")
    assert fleet.pending[1][1:] == ("fragment", ("x",))
    assert crew.ready() == []
    fleet.answer(1, "value")
    [answer] = crew.poll(0)
    assert (answer.slot, answer.reply.value) == (1, "value")
    assert crew.ready() == [1]


def test_a_dead_worker_is_replaced_at_once_by_one_with_another_serial():
    crew, fleet, _ = begun()
    crew.ask(0, "fragment")
    fleet.answer(0)
    crew.poll(0)
    crew.accept(0)
    crew.ask(0, "fragment")
    fleet.die(0)
    assert crew.poll(0) == [Death(0, 0, "killed")]
    assert fleet.started[2:] == [(0, 2)]
    assert (crew.deaths, crew.alive) == (1, 1)


def test_workers_that_answer_nothing_are_begun_again_after_1_2_4_up_to_30_seconds():
    crew, fleet, clock = begun(slots=20)  # many slots: the run does not fail yet
    pauses = []
    for count in range(3, 11):
        fleet.die(0)
        crew.poll(0)
        fleet.answer(1) if 1 in fleet.pending else None
        waited = 0.0
        while fleet.started[-1][1] < 17 + count:
            clock.now, waited = clock.now + 0.5, waited + 0.5
            crew.poll(0)
            assert waited < 100
        pauses.append(waited)
        fleet.answer(0)
        crew.poll(0)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]


def test_no_answer_in_time_is_a_death_and_what_comes_later_is_nobodys():
    crew, fleet, clock = begun()
    crew.ask(0, "fragment")
    late = Answer(0, 0, fleet.pending[0][0], Reply("late"))
    clock.now = 9.9
    assert crew.poll(0) == []
    clock.now = 10.1
    [death] = crew.poll(0)
    assert death[:2] == (0, 0)
    assert "--fragment_timeout=10" in death.message
    assert fleet.killed == [(0, 0)]
    fleet.events.append(late)
    assert crew.poll(0) == []
    assert crew.unasked == 1
    crew.ask(1, "replay", allowance=3.0)
    clock.now = 39.0
    assert crew.poll(0) == []
    clock.now = 41.0
    assert len(crew.poll(0)) == 1


def test_a_second_answer_to_the_same_is_nobodys():
    crew, fleet, _ = begun()
    crew.ask(0, "fragment")
    again = fleet.answer(0, "value")
    assert len(crew.poll(0)) == 1
    fleet.events.append(again)
    assert crew.poll(0) == []
    assert (crew.unasked, crew.ready()) == (1, [0, 1])


def test_what_was_abandoned_is_not_handed_on():
    crew, fleet, _ = begun()
    crew.ask(0, "fragment")
    crew.abandon()
    fleet.answer(0, "of before")
    assert crew.poll(0) == []
    crew.ask(0, "fragment")
    fleet.answer(0, "asked for")
    assert [event.reply.value for event in crew.poll(0)] == ["asked for"]


def test_three_deaths_per_slot_in_a_row_fail_the_run_with_what_the_last_one_said():
    crew, fleet, clock = begun()
    for _ in range(5):
        replaced(crew, fleet, clock)
    fleet.die(0, "environment failed: no licence")
    assert len(crew.poll(0)) == 1, "no event is lost"
    with pytest.raises(EnvironmentFailure, match="no licence; 6 workers in a row"):
        crew.poll(0)
    crew.poll(0)  # another training may go on


def test_an_answer_of_anybody_starts_the_count_anew():
    crew, fleet, clock = begun()
    for _ in range(12):
        replaced(crew, fleet, clock)
        crew.ask(1, "fragment")
        fleet.answer(1)
        crew.poll(0)
        crew.accept(1)
    assert crew.deaths == 12


def test_nobody_for_five_minutes_fails_the_run():
    crew, fleet, clock = crew_of()
    for clock.now in (0, 299, 301):
        crew.poll(0)
    with pytest.raises(
        EnvironmentFailure, match="for 5 minutes only 0 of 2 rollout workers were there: they could not"
    ):
        crew.poll(0)
    fleet.answer(0)
    for clock.now in (550, 900):
        crew.poll(0)
    crew.poll(0)  # one is there


def test_one_that_is_missing_for_five_minutes_fails_a_run_that_needs_all(capsys):
    crew, fleet, clock = crew_of(needed=2)
    fleet.answer(0)
    for clock.now in (0, 61):
        crew.poll(0)
    assert "for 60 seconds only 1 of 2 rollout workers are there" in capsys.readouterr().err
    for clock.now in (299, 301):
        crew.poll(0)
    assert "60 seconds" not in capsys.readouterr().err
    with pytest.raises(EnvironmentFailure, match="for 5 minutes only 1 of 2 rollout workers were there"):
        crew.poll(0)


def test_a_long_pause_of_whoever_polls_is_no_absence():
    """An evaluation may take an hour; a worker died just before, and another one began meanwhile."""
    crew, fleet, clock = begun()
    fleet.die(0)
    crew.poll(0)
    clock.now = 3600
    fleet.answer(0)
    crew.poll(0)
    crew.poll(0)
    assert crew.alive == 2


def test_what_fails_at_the_start_of_a_worker_is_a_death():
    crew, fleet, _ = crew_of()
    fleet.answer(0, trouble=Trouble("", "no module named theirs"))
    [death] = crew.poll(0)
    assert death.message == "no module named theirs"
    assert fleet.killed == [(0, 0)]


def test_warnings_of_workers_are_said_here_and_once(capsys):
    crew, fleet, _ = begun()
    for slot in range(2):
        crew.ask(slot, "fragment")
        fleet.answer(slot, "value", said=("a joint was stuck",))
        crew.poll(0)
    assert capsys.readouterr().err.count("a joint was stuck") == 1
