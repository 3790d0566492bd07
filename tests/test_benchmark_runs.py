"""Runs of benchmarks and the numbers of their curves: what is recorded, when, and statistics over seeds."""

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
curves, runs = (importlib.import_module(name) for name in ("curves", "runs"))


class Case(NamedTuple):
    env: str
    recipe: str
    seed: int
    steps: int

    @property
    def name(self):
        return f"{self.env}-s{self.seed}"

    @property
    def flags(self):
        return ("--gamma=0.5",)


@pytest.mark.parametrize(
    ("steps", "returns", "expected"),
    [
        ([0, 100], [0.0, 10.0], 5.0),  # a line
        ([50, 100], [10.0, 20.0], 12.5),  # constant before its first point: 50 x 10 + 50 x 15
        ([50], [4.0], 4.0),
        ([50, 150], [0.0, 10.0], 1.25),  # cut at 100, where it is 5: a triangle of 50 x 5 / 2
        ([0, 50, 80], [0.0, 10.0, 10.0], 7.5),  # constant after its last point
    ],
)
def test_area_is_the_mean_over_all_steps(steps, returns, expected):
    assert curves.area(steps, returns, 100) == pytest.approx(expected)


def test_curves_are_interpolated_at_equal_distances():
    np.testing.assert_allclose(curves.on_grid([30, 70], [0.0, 40.0], 100, points=5), [0, 10, 30, 40, 40])


def test_every_update_before_a_cliff_that_looks_over_it_fell():
    # 20 new episodes in each update: the side after begins with the next update. Updates 4 to 14 of 0 to 19 are
    # counted. By hand: at update 5, 10 10 10 10 10 is before it and 10 10 10 10 0 after it. Difference and error are 2,
    # so it did not fall, and so it is at update 13. Between those the difference is larger than its error.
    episodes = np.arange(1, 21) * 20
    assert curves.falls(episodes, [10.0] * 10 + [0.0] * 10) == (7, 11)
    assert curves.falls(episodes, [0.0] * 10 + [10.0] * 10) == (0, 11)


def test_a_rising_and_a_level_return_never_fall():
    episodes = np.arange(1, 31) * 20
    assert curves.falls(episodes, np.arange(30.0)) == (0, 21)
    assert curves.falls(episodes, np.full(30, 7.0)) == (0, 21)


def test_noise_falls_as_often_as_the_t_distribution_says():
    # Of two sides of 5 normal values the difference over its error has Student's distribution, 8 degrees of freedom;
    # P(t < -1) = 0.1733.
    returns = np.random.default_rng(0).normal(size=10_000)
    fell, counted = curves.falls(np.arange(10_000) * 20, returns)
    assert fell / counted == pytest.approx(0.1733, abs=0.03)


def test_sides_share_no_episode():
    # 5 new episodes in each update: 4 updates later all 20 are new. Were the next update taken, 3 more would count.
    assert curves.falls(np.arange(1, 21) * 5, np.arange(20.0)) == (0, 20 - 4 - 4 - 4)
    assert curves.falls([20] * 20, np.arange(20.0)) == (0, 0)  # no episode ever ends


def test_interquartile_mean_leaves_out_a_quarter_on_each_side():
    assert curves.interquartile_mean(np.array([100.0, 1, 2, 3, 4, -50, 5, 6])) == 3.5  # of 2, 3, 4, 5
    assert curves.interquartile_mean(np.array([0.0, 3, 30])) == 11
    columns = np.array([[0.0, 1], [2, 1], [4, 1], [90, 1]])
    np.testing.assert_array_equal(curves.interquartile_mean(columns, axis=0), [3, 1])
    np.testing.assert_array_equal(curves.interquartile_mean(columns[:1], columns[1:], axis=0), [3, 1])


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = curves.interval(values, resamples=8000)
    error = values.std() / math.sqrt(400)  # of the mean of 400 drawn with replacement
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_each_sample_is_drawn_from_by_itself():
    # Of two constants nothing varies, however they are drawn, unless one sample takes the other's place.
    mean = lambda a, b, axis: 0.5 * (a.mean(axis) + b.mean(axis))  # noqa: E731
    assert tuple(curves.interval([1.0] * 3, [5.0] * 4, statistic=mean)) == (3.0, 3.0)


def test_one_run_has_no_interval():
    assert curves.with_interval([2.0, 4.0, 3.0], digits=1) == "3.0 (2.0 to 4.0)"
    assert curves.with_interval([2.0]) == "2"
    ratio = lambda a, b, axis: a.mean(axis) / b.mean(axis)  # noqa: E731
    assert curves.with_interval([2.0, 2.0], [1.0], statistic=ratio) == "2"
    low, high = curves.interval([[1.0, 2.0]])
    assert np.isnan([low, high]).all()
    assert np.shape(low) == (2,)


def test_intervals_of_curves_are_those_of_their_points():
    drawn = np.random.default_rng(2).normal(size=(6, 3))
    low, high = curves.interval(drawn)
    for k in range(3):
        np.testing.assert_allclose((low[k], high[k]), curves.interval(drawn[:, k]))


def test_runs_at_a_time_share_the_cores():
    assert runs.shares(range(4), 2) == [{0, 2}, {1, 3}]
    assert runs.shares([3, 5], 3) == [{3}, {5}, {3}]
    assert runs.shares(range(16), 16) == [{k} for k in range(16)]


CASE = Case("CartPole-v1", "classic_control", 100, 4000)
ROWS = [(1000, 40, 20.0, 0.01), (2000, 60, 30.0, 0.03), (3000, 80, 40.0, "inf"), (4000, 100, 50.0, 0.02)]


def fake(monkeypatch, raises=None, rows=ROWS):
    """Instead of training: writes what a training of four updates leaves, then raises. Returns the calls."""
    calls = []

    def trained(run_dir, *given):
        calls.append(given)
        run_dir.mkdir(parents=True)
        lines = ["update,env_steps,env/episodes,env/episode_return,policy/kl,time/elapsed_seconds"]
        lines += [f"{k},{n},{m},{r},{kl},{2 * k}" for k, (n, m, r, kl) in enumerate(rows)]
        (run_dir / "progress.csv").write_text("\n".join(lines) + "\n")
        if raises:
            raise raises
        (run_dir / "evaluation.json").write_text('{"return_mean": 77.0}')

    monkeypatch.setattr(runs, "trained", trained)
    return calls


def test_a_finished_run_leaves_its_record_and_nothing_else(tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    (tmp_path / "records").mkdir()
    record = runs.run(CASE, tmp_path, math.inf, math.inf)
    assert [*runs.read_records(tmp_path).items()] == [(CASE.name, record)]
    assert not any((tmp_path / "runs").iterdir())
    assert calls == [("CartPole-v1", "classic_control", 100, CASE.flags, None)]
    assert (record["env_steps"], record["updates"], record["final"]) == (4000, 4, 77.0)
    assert record["env_steps_per_second"] == 3000 / 6
    assert record["area"] == pytest.approx((20 + 25 + 35 + 45) / 4)
    assert (record["kl_mean"], record["kl_max"], record["kl_not_finite"]) == (pytest.approx(0.02), 0.03, 1)
    assert len(record["curve"]) == curves.POINTS
    assert [record["curve"][k] for k in (0, 24, 49)] == pytest.approx([20, 30, 50])  # at 80, 2000 and 4000 steps
    assert (record["fell"], record["counted"]) == (0, 0)


def test_a_run_that_breaks_down_is_recorded_as_that(tmp_path, monkeypatch):
    fake(monkeypatch, subprocess.CalledProcessError(1, "train"))
    (tmp_path / "records").mkdir()
    runs.run(CASE, tmp_path, math.inf, math.inf)
    assert runs.read_records(tmp_path) == {CASE.name: CASE._asdict() | {"failed": "after 4 updates"}}


@pytest.mark.parametrize(
    ("error", "rows"),
    [(subprocess.CalledProcessError(-9, "train"), ROWS), (subprocess.CalledProcessError(1, "train"), [])],
)
def test_what_no_step_size_did_is_not_recorded(error, rows, tmp_path, monkeypatch):
    fake(monkeypatch, error, rows)
    (tmp_path / "records").mkdir()
    with pytest.raises(subprocess.CalledProcessError):
        runs.run(CASE, tmp_path, math.inf, math.inf)
    assert not any((tmp_path / "records").iterdir())
    assert not any((tmp_path / "runs").iterdir())


def test_a_run_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    fake(monkeypatch, subprocess.TimeoutExpired("train", 1))
    (tmp_path / "records").mkdir()
    assert runs.run(CASE, tmp_path, math.inf, math.inf) is None
    assert not any((tmp_path / "records").iterdir())
    assert not any((tmp_path / "runs").iterdir())


def test_no_run_is_begun_without_time(tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    cases = [CASE, CASE._replace(seed=101)]
    assert runs.run_all(cases, tmp_path, 2, 0.0, math.inf) == (2, 0)
    assert calls == []
