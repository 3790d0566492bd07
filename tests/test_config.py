"""Configuration: ranges, messages, round trips."""

import dataclasses
import json
import math

import numpy as np
import pytest

from trpo_tf.config import (
    EvaluateConfig,
    ExportConfig,
    PlotConfig,
    check_address,
    from_dict,
    make_config,
    of_checkpoint,
    portable,
    settings,
    structural,
    to_dict,
)
from trpo_tf.errors import UsageError


def test_time_steps_are_rounded_up():
    assert make_config(env="x", num_envs=16, steps_per_update=2048).time_steps == 128
    assert make_config(env="x", num_envs=10, steps_per_update=2048).time_steps == 205


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
        ("run_dir", "x/.."),
        ("total_steps", 1e5 + 0.5),
        ("total_steps", 10**30),
        ("total_steps", -(10**30)),
        ("total_steps", 10**400),
        pytest.param("total_steps", 10**5000, id="more digits than Python writes"),
        ("total_steps", 1e300),
        ("total_steps", "1e5"),
        ("max_kl", True),
        ("max_kl", 1j),
        ("hidden_sizes", "64,64"),
    ],
)
def test_values_out_of_range_name_the_flag_and_the_value(name, value):
    with pytest.raises(UsageError) as error:
        make_config(env="x", **{name: value})
    assert str(error.value).startswith(f"{name}=")
    assert error.value.message.startswith(f"--{name}=")
    assert "\n" not in str(error.value)


def test_paths_and_lists_are_taken(tmp_path):
    config = make_config(env="x", run_dir=tmp_path, hidden_sizes=[8, 4])
    assert (config.run.run_dir, config.policy.hidden_sizes) == (str(tmp_path), (8, 4))


def test_whole_numbers_of_any_kind_are_integers_and_become_those_of_python():
    given = {"total_steps": 1e5, "num_envs": np.int64(4), "hidden_sizes": [np.int32(8), 4.0], "max_kl": np.float32(0.5)}
    made = to_dict(make_config(env="x", **given, gamma=1))
    assert made["total_steps"] == 100_000
    assert [type(made[name]) for name in ("total_steps", "num_envs", "max_kl", "gamma")] == [int, int, float, float]
    assert json.loads(json.dumps(made)) == made


def test_settings_of_a_place_are_not_taken_elsewhere():
    values = to_dict(make_config(env="x", run_dir="a", export_dir="b", seed=3, resume=True))
    left = portable(values)
    assert values.keys() - left.keys() == {"run_dir", "resume", "export_dir", "ray_address", "allow_insecure_ray"}
    assert left["seed"] == 3


def test_a_checkpoints_settings_are_taken_up_but_for_what_its_user_decides():
    values = to_dict(make_config(env="m:x", run_dir="a", allow_env_module=True, seed=3, gamma=0.5))
    with pytest.raises(UsageError, match="imports a module"):
        of_checkpoint(values, {})
    made = of_checkpoint(values, {"env": "x", "gamma": 0.7})
    assert (made.environment.env, made.environment.allow_env_module, made.run.run_dir) == ("x", False, "")
    assert (made.run.seed, made.advantage.gamma) == (3, 0.7)
    assert of_checkpoint(values, {"allow_env_module": True}).environment.env == "m:x"
    with pytest.raises(UsageError, match="no such setting: gama; perhaps gamma"):
        of_checkpoint(values, {"env": "x", "gama": 0.7})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 4}, "with workers"),
        ({"reuse": 2}, "and reuse"),
        ({"pipeline": True}, "with pipeline"),
        ({"radius": "adaptive"}, "radius=adaptive"),
        ({"network": "gru"}, "network=gru"),
        ({"noise_color": 1}, "with noise_color, since branches draw white noise; leave one of them out"),
        ({"vine_states": 2049}, "vine_states=2049: must be <= 2048"),
        ({"vine_actions": 1}, "vine_actions=1"),
    ],
)
def test_what_does_not_go_with_a_vine_is_named(settings, named):
    with pytest.raises(UsageError, match=named):
        make_config(env="x", sampling="vine", **settings)


def test_a_vine_takes_gymnasium_and_leaves_what_was_asked_for():
    assert make_config(env="x", sampling="vine").environment.env_backend == "gymnasium"
    assert make_config(env="x", sampling="vine", env_backend="envpool").environment.env_backend == "envpool"
    config = make_config(env="x", sampling="vine")
    assert from_dict(to_dict(config)) == config


def test_workers_share_the_environments_evenly():
    with pytest.raises(UsageError, match=r"workers=3: must divide num_envs=16.*or num_envs=18"):
        make_config(env="x", num_envs=16, workers=3)
    with pytest.raises(UsageError, match="workers are processes already"):
        make_config(env="x", num_envs=16, workers=4, env_processes=True)
    for address in ("ray://host:10001", "host"):
        with pytest.raises(UsageError, match="must be host:port"):
            make_config(env="x", workers=4, ray_address=address)
    with pytest.raises(UsageError, match="goes with workers"):
        make_config(env="x", ray_address="host:6379")
    assert make_config(env="x", workers=4).workers.asynchronous
    assert not make_config(env="x", workers=4, workers_mode="synchronous").workers.asynchronous


def test_the_cluster_of_a_run_that_goes_on_is_given_again():
    """A file that names one would be obeyed by whoever resumes it, and a cluster runs what its members send."""
    values = to_dict(make_config(env="x", workers=4, ray_address="10.0.0.1:6379"))
    assert of_checkpoint(values, {}).workers.ray_address == ""
    with pytest.raises(UsageError, match="the run's workers were at 10"):
        check_address(values, {})
    for given in ({"ray_address": "10.0.0.2:6379"}, {"ray_address": ""}, {"workers": 0}):
        check_address(values, given)
    check_address(to_dict(make_config(env="x", workers=4)), {})
    assert of_checkpoint(values, {}).workers.workers == 0, "an agent of a cluster is loaded without it"
    assert of_checkpoint(values, {"workers": 2}).workers.workers == 2
    assert of_checkpoint(to_dict(make_config(env="x", workers=4)), {}).workers.workers == 4


def test_a_run_that_goes_on_has_a_directory():
    with pytest.raises(UsageError, match="resume needs run_dir"):
        make_config(env="x", resume=True)


def test_bounds_themselves_are_allowed():
    bounds = {"gamma": 1.0, "gae_lambda": 0.0, "fisher_fraction": 1.0, "seed": 2**31 - 1, "hidden_sizes": ()}
    made = to_dict(make_config(env="x", **bounds)) | {"hidden_sizes": ()}
    assert {name: made[name] for name in bounds} == bounds


@pytest.mark.parametrize(
    "make",
    [
        make_config,
        EvaluateConfig,
        lambda: EvaluateConfig(run_dir="a", saved_model="b"),
        lambda: EvaluateConfig(saved_model="b", best=True),
        ExportConfig,
        PlotConfig,
    ],
)
def test_what_is_missing_or_contradicts_is_said(make):
    with pytest.raises(UsageError) as error:
        make()
    assert "--" in error.value.message
    assert "--" not in str(error.value)


def test_dictionaries_round_trip():
    config = make_config(env="x", hidden_sizes=(3, 4), max_kl=0.5)
    assert from_dict(to_dict(config)) == config
    with pytest.raises(UsageError, match=r"another version.*colour"):
        from_dict(to_dict(config) | {"colour": 1})


def test_every_setting_says_what_it_means_and_has_a_name_of_its_own():
    fields = [field for _, field in settings()]
    for record in (EvaluateConfig, ExportConfig, PlotConfig):
        fields += dataclasses.fields(record)
    for field in fields:
        assert len(field.metadata["help"]) > 5, field.name
    names = [field.name for _, field in settings()]
    assert len(names) == len(set(names))


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UsageError, match="no such setting: gama; perhaps gamma"):
        make_config(env="x", gama=0.9)


def test_a_setting_is_replaced_and_the_others_stay():
    config = make_config(env="x", max_kl=0.5, num_envs=3).replace(num_envs=4)
    assert (config.environment.num_envs, config.trust_region.max_kl) == (4, 0.5)


def test_what_checkpoints_depend_on_is_part_of_the_setting():
    assert {"env", "seed", "hidden_sizes", "reuse", "checkpoint_every"} <= set(structural())
    assert not {"max_kl", "total_steps", "run_dir", "chunk_size", "xla"} & set(structural())


def test_ranges_for_tuning_hold_the_default_and_are_allowed():
    searched = [field for _, field in settings() if field.metadata["search"]]
    assert len(searched) >= 8
    for field in searched:
        scale, low, high = field.metadata["search"]
        assert scale in ("log", "linear")
        assert low <= field.default <= high, field.name
        for value in (low, high):
            make_config(env="x", **{field.name: field.type(value)})
