"""benchmarks/against.py: numbers of made-up curves, the choice of a step size, what is run and what is reported."""

import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trpo_tf.config import make_config
from trpo_tf.config.algorithm import AlgorithmConfig

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
against, numbers = (importlib.import_module(name) for name in ("against", "against_report"))

STEPS = {"search": 40_000, "compare": 80_000, "sensitivity": 40_000}
PLAN = against.Plan(("CartPole-v1", "Hopper-v5"), ("trpo", "npg"), STEPS)


def made_up(case, final=100.0, **changes):
    """The record of a run."""
    curve = np.linspace(0.0, final, numbers.POINTS).tolist()
    measured = {"env_steps": case.steps, "updates": 8, "seconds": 10.0, "env_steps_per_second": 2000.0, "final": final}
    measured |= {"area": final / 2, "fell": 1, "counted": 4, "kl_mean": 0.01, "kl_max": 0.02, "kl_not_finite": 0}
    return case._asdict() | measured | {"curve": curve} | changes


def records_of(cases, **changes):
    return {case.name: made_up(case, **changes) for case in cases}


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
    assert numbers.area(steps, returns, 100) == pytest.approx(expected)


def test_curves_are_interpolated_at_equal_distances():
    np.testing.assert_allclose(numbers.on_grid([30, 70], [0.0, 40.0], 100, points=5), [0, 10, 30, 40, 40])


def test_every_update_before_a_cliff_that_looks_over_it_fell():
    # 20 new episodes in each update: the side after begins with the next update. Updates 4 to 14 of 0 to 19 are
    # counted. By hand: at update 5, 10 10 10 10 10 is before it and 10 10 10 10 0 after it. Difference and error are 2,
    # so it did not fall, and so it is at update 13. Between those the difference is larger than its error.
    episodes = np.arange(1, 21) * 20
    assert numbers.falls(episodes, [10.0] * 10 + [0.0] * 10) == (7, 11)
    assert numbers.falls(episodes, [0.0] * 10 + [10.0] * 10) == (0, 11)


def test_a_rising_and_a_level_return_never_fall():
    episodes = np.arange(1, 31) * 20
    assert numbers.falls(episodes, np.arange(30.0)) == (0, 21)
    assert numbers.falls(episodes, np.full(30, 7.0)) == (0, 21)


def test_noise_falls_as_often_as_the_t_distribution_says():
    # Of two sides of 5 normal values the difference over its error has Student's distribution, 8 degrees of freedom;
    # P(t < -1) = 0.1733.
    returns = np.random.default_rng(0).normal(size=10_000)
    fell, counted = numbers.falls(np.arange(10_000) * 20, returns)
    assert fell / counted == pytest.approx(0.1733, abs=0.03)


def test_sides_share_no_episode():
    # 5 new episodes in each update: 4 updates later all 20 are new. Were the next update taken, 3 more would count.
    assert numbers.falls(np.arange(1, 21) * 5, np.arange(20.0)) == (0, 20 - 4 - 4 - 4)
    assert numbers.falls([20] * 20, np.arange(20.0)) == (0, 0)  # no episode ever ends


def test_interquartile_mean_leaves_out_a_quarter_on_each_side():
    assert numbers.interquartile_mean(np.array([100.0, 1, 2, 3, 4, -50, 5, 6])) == 3.5  # of 2, 3, 4, 5
    assert numbers.interquartile_mean(np.array([0.0, 3, 30])) == 11
    np.testing.assert_array_equal(numbers.interquartile_mean(np.array([[0.0, 1], [2, 1], [4, 1], [90, 1]]), 0), [3, 1])


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = numbers.interval(values, resamples=8000)
    error = values.std() / math.sqrt(400)  # of the mean of 400 drawn with replacement
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_of_curves_are_those_of_their_points():
    curves = np.random.default_rng(2).normal(size=(6, 3))
    low, high = numbers.interval(curves)
    for k in range(3):
        np.testing.assert_allclose((low[k], high[k]), numbers.interval(curves[:, k]))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({0.1: [1.0, 3.0], 0.2: [5.0, 0.0], 0.3: [2.0, 2.0]}, 0.2),
        ({0.2: [2.0, 2.0], 0.1: [1.0, 3.0]}, 0.1),
        ({0.1: [-90.0, -80.0], 0.2: [None, 500.0]}, 0.1),
    ],
)
def test_the_step_size_with_the_highest_mean_is_chosen(scores, expected):
    assert numbers.best(scores) == expected


def test_a_step_size_is_chosen_when_its_whole_grid_is_there():
    search = records_of(PLAN.cases("search", {}))
    for name in search:
        if "Hopper-v5-npg-0.3-" in name:
            search[name]["area"] = 1000.0
    del search["search-CartPole-v1-npg-1-s101-10000"]
    assert PLAN.chosen(search) == {
        ("CartPole-v1", "trpo"): 0.003,
        ("Hopper-v5", "trpo"): 0.003,
        ("Hopper-v5", "npg"): 0.3,
    }


def test_what_is_run():
    search, compare, sensitivity = (
        [*PLAN.cases(part, {("Hopper-v5", "npg"): 0.3})] for part in ("search", "compare", "sensitivity")
    )
    assert len(search) == 2 * 2 * 5 * 2  # environments, algorithms, step sizes, seeds
    assert {(c.env, c.steps) for c in search} == {("CartPole-v1", 10_000), ("Hopper-v5", 40_000)}
    assert [c[1:] for c in compare] == [("Hopper-v5", "npg", 0.3, seed, 80_000) for seed in range(200, 210)]
    assert len(sensitivity) == 2 * 9 * 3
    tried = sorted({c.value for c in sensitivity if c.algorithm == "trpo"})
    np.testing.assert_allclose(np.diff(np.log10(tried)), 0.5, atol=1e-3)
    assert (tried[0], tried[-1]) == (1e-4, 1)
    everything = [*search, *compare, *sensitivity]
    assert len({c.name for c in everything}) == len(everything)


def test_every_algorithm_searches_as_many_step_sizes():
    assert {len({*a.grid}) for a in against.ALGORITHMS.values()} == {5}
    assert {round(a.wide[1] - a.wide[0], 6) for a in against.ALGORITHMS.values() if a.wide} == {4}


@pytest.mark.parametrize("name", against.ALGORITHMS)
def test_flags_are_settings_of_training(name):
    case = against.Case("search", "CartPole-v1", name, 0.01, 0, 1000)
    given = dict(flag.removeprefix("--").split("=") for flag in case.flags if "=" in flag)
    assert [given[setting] for setting in against.ALGORITHMS[name].settings] == ["0.01"] * len(
        against.ALGORITHMS[name].settings
    )
    if given["algorithm"] not in AlgorithmConfig.__dataclass_fields__["algorithm"].metadata["choices"]:
        pytest.skip(f"no algorithm {given['algorithm']} here")
    numeric = {key: float(x) for key, x in given.items() if key in against.ALGORITHMS[name].settings}
    words = {key: given[key] for key in ("algorithm", "objective", "vpg_optimizer", "xla") if key in given}
    make_config(env="CartPole-v1", **numeric, **words)


def test_runs_at_a_time_share_the_cores():
    assert against.shares(range(4), 2) == [{0, 2}, {1, 3}]
    assert against.shares([3, 5], 3) == [{3}, {5}, {3}]
    assert against.shares(range(16), 16) == [{k} for k in range(16)]


CASE = against.Case("search", "CartPole-v1", "npg", 0.1, 100, 4000)
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

    monkeypatch.setattr(against, "trained", trained)
    return calls


def test_a_finished_run_leaves_its_record_and_nothing_else(tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    (tmp_path / "records").mkdir()
    record = against.run(CASE, tmp_path, math.inf, math.inf)
    assert [*against.read_records(tmp_path).items()] == [(CASE.name, record)]
    assert not any((tmp_path / "runs").iterdir())
    assert calls == [("CartPole-v1", "classic_control", 100, CASE.flags, None)]
    assert (record["env_steps"], record["updates"], record["final"]) == (4000, 4, 77.0)
    assert record["env_steps_per_second"] == 3000 / 6
    assert record["area"] == pytest.approx((20 + 25 + 35 + 45) / 4)
    assert (record["kl_mean"], record["kl_max"], record["kl_not_finite"]) == (pytest.approx(0.02), 0.03, 1)
    assert len(record["curve"]) == numbers.POINTS
    assert [record["curve"][k] for k in (0, 24, 49)] == pytest.approx([20, 30, 50])  # at 80, 2000 and 4000 steps
    assert (record["fell"], record["counted"]) == (0, 0)


def test_what_was_reported_is_known(tmp_path, monkeypatch):
    fake(monkeypatch)
    (tmp_path / "records").mkdir()
    cases = [CASE, CASE._replace(part="compare", env="ALE/Pong-v5", seed=200)]
    for case in cases:
        against.run(case, tmp_path, math.inf, math.inf)
    results = tmp_path / "against.json"
    results.write_text(numbers.as_json([*against.read_records(tmp_path).values()], []))
    known = against.read_records(tmp_path / "elsewhere", results)
    assert {*known} == {case.name for case in cases}
    written = against.read_records(tmp_path)[cases[1].name]
    rounded = {key: pytest.approx(x, rel=1e-4) for key, x in written.items() if isinstance(x, float | list)}
    assert known[cases[1].name] == written | rounded


def test_a_run_that_breaks_down_is_recorded_as_that(tmp_path, monkeypatch):
    fake(monkeypatch, subprocess.CalledProcessError(1, "train"))
    (tmp_path / "records").mkdir()
    against.run(CASE, tmp_path, math.inf, math.inf)
    assert against.read_records(tmp_path) == {CASE.name: CASE._asdict() | {"failed": "after 4 updates"}}


@pytest.mark.parametrize(
    ("error", "rows"),
    [(subprocess.CalledProcessError(-9, "train"), ROWS), (subprocess.CalledProcessError(1, "train"), [])],
)
def test_what_no_step_size_did_is_not_recorded(error, rows, tmp_path, monkeypatch):
    fake(monkeypatch, error, rows)
    (tmp_path / "records").mkdir()
    with pytest.raises(subprocess.CalledProcessError):
        against.run(CASE, tmp_path, math.inf, math.inf)
    assert not any((tmp_path / "records").iterdir())
    assert not any((tmp_path / "runs").iterdir())


def test_a_run_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    fake(monkeypatch, subprocess.TimeoutExpired("train", 1))
    (tmp_path / "records").mkdir()
    assert against.run(CASE, tmp_path, math.inf, math.inf) is None
    assert not any((tmp_path / "records").iterdir())
    assert not any((tmp_path / "runs").iterdir())


def test_no_run_is_begun_without_time(tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    cases = [CASE, CASE._replace(seed=101)]
    assert against.run_all(cases, tmp_path, 2, 0.0, math.inf) == (2, 0)
    assert calls == []


def test_a_report_of_all_runs(tmp_path):
    chosen = {(env, name): 0.03 for env, name in itertools.product(PLAN.envs, PLAN.algorithms)}
    records = records_of(case for part in against.SEEDS for case in PLAN.cases(part, chosen))
    for k, record in enumerate(r for r in records.values() if r["part"] == "compare"):
        record["final"] = 100.0 + k // 4  # seeds are outermost: ten of them, with 100 to 109
    assert PLAN.missing(records) == []
    text = numbers.report(
        PLAN.of_records(records), PLAN.missing(records), PLAN.envs, PLAN.algorithms, tmp_path, tmp_path
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "against.json",
        "against.md",
        "against.png",
        "against_step_size.png",
    }
    assert text == (tmp_path / "against.md").read_text()
    assert "| npg | 104 (103 to 106), 25% | 104 (103 to 106), 25% |" in text
    line = next(line for line in text.splitlines() if line.startswith("| npg | 0.03 |"))
    assert line.startswith("| npg | 0.03 | 10 | 104 (")  # a mean of 104.5, rounded to even
    assert line.endswith("| 25% | 0.01 | 0.02 | 10 | 2,000 |")
    assert "Nothing." in text
    found = json.loads((tmp_path / "against.json").read_text())
    assert len(found["runs"]) == len(records)
    curve = next(run["curve"] for run in found["runs"] if run["part"] == "compare")
    assert len(curve) == numbers.POINTS
    assert curve[-1] == 100.0


def test_a_report_of_some_runs_names_what_is_missing_and_what_failed(tmp_path):
    records = records_of(PLAN.cases("search", {}))
    failed = next(case for case in PLAN.cases("search", {}) if (case.env, case.algorithm) == ("Hopper-v5", "npg"))
    records[failed.name] = failed._asdict() | {"failed": "after 3 updates"}
    del records["search-CartPole-v1-npg-1-s101-10000"]
    one = against.Case("compare", "Hopper-v5", "trpo", 0.03, 203, 80_000)
    records[one.name] = made_up(one, kl_mean=None, kl_max=None, counted=0)
    text = numbers.report(
        PLAN.of_records(records), PLAN.missing(records), PLAN.envs, PLAN.algorithms, tmp_path, tmp_path
    )
    assert f"{failed.value:g}: failed" in text
    assert "| trpo | 0.03 | 1 | 100 (100 to 100) |" in text
    missing = [line for line in text.splitlines() if line.startswith("- ")]
    assert missing == [
        "- search: CartPole-v1, npg: 1 runs",
        "- compare: CartPole-v1, trpo: 10 runs",
        "- compare: CartPole-v1, npg: 10 runs",
        "- compare: Hopper-v5, trpo: 9 runs",
        "- compare: Hopper-v5, npg: 10 runs",
        "- sensitivity: Hopper-v5, trpo: 27 runs",
        "- sensitivity: Hopper-v5, npg: 27 runs",
    ]
    assert not (tmp_path / "against_step_size.png").exists()


def test_records_of_other_steps_are_left_out():
    case = next(PLAN.cases("search", {}))
    records = records_of([case, case._replace(steps=case.steps + 1)])
    assert [r["steps"] for r in PLAN.of_records(records)] == [case.steps]


def test_a_report_of_nothing(tmp_path):
    text = numbers.report([], PLAN.missing({}), PLAN.envs, PLAN.algorithms, tmp_path, tmp_path)
    assert text.count("no runs") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"against.json", "against.md"}
