"""benchmarks/against.py: the choice of a step size, what is run and what is reported."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trpo_tf.config import make_config
from trpo_tf.config.algorithm import AlgorithmConfig

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
against, numbers, curves = (importlib.import_module(name) for name in ("against", "against_report", "curves"))

STEPS = {"search": 40_000, "compare": 80_000, "sensitivity": 40_000}
ALL = [*against.ALGORITHMS.items()]
PLAN = against.Plan(("CartPole-v1", "Hopper-v5"), ("trpo", "npg"), STEPS)


def made_up(case, final=100.0, **changes):
    """The record of a run."""
    curve = np.linspace(0.0, final, curves.POINTS).tolist()
    measured = {"env_steps": case.steps, "updates": 8, "seconds": 10.0, "env_steps_per_second": 2000.0, "final": final}
    measured |= {"area": final / 2, "fell": 1, "counted": 4, "kl_mean": 0.01, "kl_max": 0.02, "kl_not_finite": 0}
    return case._asdict() | measured | {"curve": curve} | changes


def records_of(cases, **changes):
    return {case.name: made_up(case, **changes) for case in cases}


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
    np.testing.assert_allclose(np.diff(np.log10(tried)), 1, atol=1e-3)
    assert (tried[0], tried[-1]) == (1e-6, 100)
    everything = [*search, *compare, *sensitivity]
    assert len({c.name for c in everything}) == len(everything)


def test_every_algorithm_searches_as_many_step_sizes():
    assert {len({*a.grid}) for a in against.ALGORITHMS.values()} == {5}
    decades = {name: (a.wide[1] - a.wide[0]) / (2 if name in numbers.OF_KL else 1) for name, a in ALL if a.wide}
    assert len(decades) == 5
    assert all(found == pytest.approx(4) for found in decades.values())
    assert {name for name, a in ALL if a.settings == ("max_kl",)} == {*numbers.OF_KL}


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


def test_what_was_reported_is_known(tmp_path):
    chosen = {("Hopper-v5", "npg"): 0.3}
    records = records_of([*PLAN.cases("search", {}), *PLAN.cases("compare", chosen)], area=1 / 3)
    (tmp_path / "against.json").write_text(numbers.as_json([*records.values()], []))
    known = against.reported(tmp_path / "against.json")
    assert known.keys() == records.keys()
    assert PLAN.chosen(known) == PLAN.chosen(records)
    name = next(case.name for case in PLAN.cases("compare", chosen))
    rounded = {key: pytest.approx(x, rel=1e-4) for key, x in records[name].items() if isinstance(x, float | list)}
    assert known[name] == records[name] | rounded


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
    assert len(curve) == curves.POINTS
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
    assert "| trpo | 0.03 | 1 | 100 | 100 |" in text
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
    compared = against.Case("compare", "Hopper-v5", "trpo", 0.5, 200, STEPS["compare"])
    records = records_of(x for y in (case, compared) for x in (y, y._replace(steps=y.steps + 1)))
    assert [r["steps"] for r in PLAN.of_records(records)] == [case.steps, compared.steps]
    assert PLAN.of_records(records_of([case._replace(value=0.5)])) == []


def test_a_report_of_nothing(tmp_path):
    text = numbers.report([], PLAN.missing({}), PLAN.envs, PLAN.algorithms, tmp_path, tmp_path)
    assert text.count("no runs") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"against.json", "against.md"}
