"""Configuration: ranges, messages, round trips."""

import dataclasses
import math

import pytest

from trpo_tf.config import Config, EvaluateConfig, ExportConfig, PlotConfig, UsageError, from_dict, to_dict


def test_time_steps_are_rounded_up():
    assert Config(env="x", num_envs=16, steps_per_update=2048).time_steps == 128
    assert Config(env="x", num_envs=10, steps_per_update=2048).time_steps == 205


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 1.5),
        ("gamma", math.nan),
        ("max_kl", 0.0),
        ("max_kl", -1.0),
        ("max_kl", math.inf),
        ("num_envs", 0),
        ("num_envs", 2.5),
        ("seed", -1),
        ("seed", 2**31),
        ("total_steps", True),
        ("backtrack_ratio", 1.0),
        ("fisher_fraction", -0.1),
        ("hidden_sizes", (64, 0)),
        ("activation", "sigmoidish"),
        ("env_backend", ""),
        ("value_learning_rate", "fast"),
        ("normalize_obs", "false"),
        ("hidden_sizes", 64),
        ("run_dir", 3),
    ],
)
def test_values_out_of_range_name_the_flag_and_the_value(name, value):
    with pytest.raises(UsageError) as error:
        Config(env="x", **{name: value})
    assert str(error.value).startswith(f"--{name}=")
    assert "\n" not in str(error.value)


def test_paths_and_lists_are_taken(tmp_path):
    config = Config(env="x", run_dir=tmp_path, hidden_sizes=[8, 4])
    assert (config.run_dir, config.hidden_sizes) == (str(tmp_path), (8, 4))


def test_bounds_themselves_are_allowed():
    bounds = {"gamma": 1.0, "gae_lambda": 0.0, "fisher_fraction": 1.0, "seed": 2**31 - 1, "hidden_sizes": ()}
    made = to_dict(Config(env="x", **bounds)) | {"hidden_sizes": ()}
    assert {name: made[name] for name in bounds} == bounds


@pytest.mark.parametrize(
    "make",
    [
        Config,
        EvaluateConfig,
        lambda: EvaluateConfig(run_dir="a", saved_model="b"),
        lambda: EvaluateConfig(saved_model="b", best=True),
        ExportConfig,
        PlotConfig,
    ],
)
def test_what_is_missing_or_contradicts_is_said(make):
    with pytest.raises(UsageError, match="--"):
        make()


def test_dictionaries_round_trip():
    config = Config(env="x", hidden_sizes=(3, 4), max_kl=0.5)
    assert from_dict(to_dict(config)) == config
    with pytest.raises(UsageError, match=r"another version.*colour"):
        from_dict(to_dict(config) | {"colour": 1})


def test_every_field_says_what_it_means():
    for record in (Config, EvaluateConfig, ExportConfig, PlotConfig):
        for field in dataclasses.fields(record):
            assert len(field.metadata["help"]) > 5, field.name
