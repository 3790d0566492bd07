"""benchmarks/returns.py: which runs it makes, and what it reports of them."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trpo_tf import cli
from trpo_tf.config import Config

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
returns, numbers, curves = (importlib.import_module(name) for name in ("returns", "returns_report", "curves"))
HOPPER = {"env": "Hopper-v5", "recipe": "mujoco", "steps": 1_000_000}


def made_up(seed, final, area, tried="", **changes):
    """The record of a run."""
    curve = np.linspace(0.0, 2 * area, curves.POINTS).tolist()
    return HOPPER | {"seed": seed, "tried": tried, "final": final, "area": area, "curve": curve} | changes


def test_no_seed_is_for_choosing_and_for_reporting():
    assert {name: len(seeds) for name, seeds in returns.SEEDS.items()} == {"choosing": 10, "reporting": 10}
    assert not {*returns.SEEDS["choosing"]} & {*returns.SEEDS["reporting"]}


def test_what_is_run_seed_after_seed():
    found = [*returns.cases(["Hopper-v5", "Reacher-v5", "Ant-v5"], ["mujoco"], ["", "--gae_lambda=0.9"], [100, 101], 0)]
    assert [case[:3] for case in found[::2]] == [
        ("Reacher-v5", "mujoco", 100),
        ("Hopper-v5", "mujoco", 100),
        ("Reacher-v5", "mujoco", 101),
        ("Hopper-v5", "mujoco", 101),
    ]
    assert {case.steps for case in found} == {1_000_000}
    assert {case.steps for case in returns.cases(["Hopper-v5"], [], [""], [100], 5000)} == {5000}
    names = [case.name for case in found]
    assert len({*names}) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=") for name in names)


def test_the_peer_has_one_recipe_per_environment_and_none_for_images():
    found = [*returns.peer_cases([env for env, _ in returns.TABLE], [10, 11], 0)]
    envs = {case.env for case in found}
    assert len(envs) == len(found) / 2
    assert "Pong-v5" not in envs
    assert {case.steps for case in found if case.env in ("CartPole-v1", "Hopper-v5")} == {100_000, 1_000_000}
    assert [*returns.peer_cases(["Pong-v5"], [10], 0)] == []


def test_records_of_the_peer_are_put_beside_ours(monkeypatch, tmp_path):
    asked = []
    answer = {"steps": [500, 1000], "returns": [10.0, 30.0], "final": 40.0}
    monkeypatch.setattr(returns.peers, "ask", lambda seconds, **settings: asked.append((seconds, settings)) or answer)
    record = returns.peer(returns.Case("Hopper-v5", returns.PEER, 10, 1000, ""), tmp_path, 7.0)
    expected = {"env": "Hopper-v5", "seed": 10, "steps": 1000, "normalize": True, "cg_iterations": 25}
    assert [(seconds, {name: settings[name] for name in expected}) for seconds, settings in asked] == [(7.0, expected)]
    assert (record["final"], record["area"]) == (40, 0.5 * 10 + 0.5 * 20)
    assert len(record["curve"]) == curves.POINTS
    records = [made_up(10, 3000.0, 50.0), record | {"steps": 1_000_000}, record | {"steps": 1_000_000, "final": 20.0}]
    cells = [cell.strip() for cell in numbers.table(records).splitlines()[2].strip("|").split("|")]
    assert cells[-2:] == ["30", "20"]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ("", {}),
        ("--gae_lambda=0.8 --hidden_sizes=8,8", {"gae_lambda": 0.8, "hidden_sizes": (8, 8)}),
        ("--env_options='a=1, b=2'", {"env_options": "a=1, b=2"}),
    ],
)
def test_settings_are_taken_by_the_training_command(tried, expected):
    case = returns.Case("Hopper-v5", "mujoco", 100, 1000, tried)
    given = cli.parse(Config, ["train", *case.flags])
    asked = {"total_steps": 1000, "eval_every": 0, "final_eval_episodes": 20, "xla": "off"} | expected
    assert {name: given[name] for name in asked} == asked


def test_results_are_read_back(tmp_path):
    path = tmp_path / "choosing.json"
    assert returns.load(path) == {}
    records = [made_up(101, 3000.123456, 2000.0), made_up(100, 1.0, 2.0, "--gae_lambda=0.9")]
    returns.save({returns.case_of(r): r for r in records}, path)
    found = returns.load(path)
    assert {case.seed: record["final"] for case, record in found.items()} == {101: 3000.1, 100: 1.0}
    assert len(path.read_text().splitlines()) == 4


def test_the_table_has_the_iqm_and_the_worst_seed():
    finals = [0.0, 100, 200, 300, 400, 500, 600, 10_000]
    records = [made_up(10 + k, final, 50.0) for k, final in enumerate(finals)]
    records += [made_up(18, 0, 0), made_up(19, 0, 0, "--gae_lambda=0.9")]
    records[8] = HOPPER | {"seed": 18, "tried": "", "failed": "after 3 updates"}
    (line,) = numbers.table(records).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["Hopper-v5", "`flags/mujoco.flags`", "1,000,000", "8, 1 failed"]
    assert cells[4].startswith("350 (")  # of 200, 300, 400, 500
    assert cells[5:8] == ["1512", "0", "50"]


def test_settings_are_compared_on_the_same_seeds():
    records = [made_up(100 + k, 1.0, area) for k, area in enumerate([100.0, 100, 1000])]
    records += [made_up(100 + k, 1.0, area, "--gae_lambda=0.9") for k, area in enumerate([110.0, 130])]
    text = numbers.settings_table(records)
    (line,) = [line for line in text.splitlines() if line.startswith("| `--gae_lambda=0.9` | 2 |")]
    assert line.split("|")[-2].strip() == "1.20 (1.10 to 1.30)"
    assert text.splitlines()[-1] == "| `--gae_lambda=0.9` | 1 | 1.20 (1.10 to 1.30) |"


def test_the_mean_over_tasks_is_that_of_ratios():
    records = [made_up(100, 1.0, 100.0), made_up(100, 1.0, 200.0, "a")]
    records += [r | {"env": "Ant-v5", "area": 10.0} for r in records]
    assert numbers.settings_table(records).splitlines()[-1] == "| `a` | 2 | 1.50 |"


def test_recipes_are_compared_with_those_before():
    (case,) = returns.before_cases(["Hopper-v5", "LunarLander-v3"], [10])
    assert case[:4] == ("Hopper-v5", "mujoco", 10, 1_000_000)
    given = cli.parse(Config, ["train", *case.flags])
    assert (given["action_distribution"], given["layer_norm"]) == ("gaussian", "none")
    records = [made_up(10, 1.0, 130.0), made_up(11, 1.0, 110.0)]
    records += [made_up(seed, 1.0, 100.0, case.tried) for seed in (10, 11)]
    *_, line, mean = numbers.gains(records).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")][:2] == ["Hopper-v5", "2, 2"]
    assert line.split("|")[-2].strip() == mean.split("|")[-2].strip() == "1.20 (1.10 to 1.30)"
    assert len(numbers.gains(records[:2]).splitlines()) == 2


def test_the_picture_has_the_recipe_of_each_environment(tmp_path):
    numbers.draw([made_up(10, 1.0, 100.0), made_up(11, 1.0, 120.0)], tmp_path / "returns.png")
    assert (tmp_path / "returns.png").stat().st_size > 10_000
    numbers.draw([made_up(10, 1.0, 100.0, "--gae_lambda=0.9")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_what_has_a_record_is_not_run_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(returns, "RESULTS", tmp_path)
    monkeypatch.setattr(returns, "run_all", lambda cases, *_: asked.extend(case.seed for case in cases) or (0, 0))
    returns.save({returns.case_of(r): r for r in [made_up(100, 1.0, 2.0)]}, tmp_path / "choosing.json")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "one.json").write_text(json.dumps(made_up(101, 3.0, 4.0)))
    (tmp_path / "records" / "other.json").write_text(json.dumps(made_up(10, 5.0, 6.0)))
    settings = {"envs": ["Hopper-v5"], "recipes": [], "tried": [""], "count": 4, "steps": 0}
    settings |= {"peer": False, "before": False}
    given = argparse.Namespace(seeds="choosing", work_dir=str(tmp_path), jobs=1, budget_seconds=0, **settings)
    monkeypatch.setattr(returns.flags, "FLAGS", given)
    assert returns.main([]) == 0
    assert asked == [102, 103]
    assert {case.seed for case in returns.load(tmp_path / "choosing.json")} == {100, 101}
