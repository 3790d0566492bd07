"""Run directories: names, locks, what they refuse, what they record."""

import os
import subprocess
import sys

import pytest

from trpo_tf.config import Config, UsageError
from trpo_tf.run.directory import RunDirectory, default_name


def test_a_fresh_directory_is_made_and_described(tmp_path):
    config = Config(env="Hopper-v5", run_dir=str(tmp_path / "a" / "b"), max_kl=0.02, hidden_sizes=(32, 16))
    directory = RunDirectory(config)
    directory.describe(config)
    flags = (directory.path / "flags.txt").read_text().splitlines()
    assert "--max_kl=0.02" in flags
    assert "--hidden_sizes=32,16" in flags
    assert "--normalize_obs" in flags
    assert not any("run_dir" in flag or "resume" in flag for flag in flags)
    assert '"tensorflow": "2.' in (directory.path / "versions.json").read_text()
    directory.close()


def test_a_directory_in_use_is_refused_naming_the_process(tmp_path):
    config = Config(env="Hopper-v5", run_dir=str(tmp_path / "run"))
    directory = RunDirectory(config)
    code = (
        "from trpo_tf.config import Config; from trpo_tf.run.directory import RunDirectory\n"
        f"RunDirectory(Config(env='Hopper-v5', run_dir={config.run_dir!r}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode != 0
    assert f"in use by process {os.getpid()}" in other.stderr
    directory.close()
    RunDirectory(config).close()


def test_a_directory_with_a_run_is_refused_without_resume(tmp_path):
    (tmp_path / "checkpoints" / "update_000000001").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds a run; pass --resume"):
        RunDirectory(Config(env="Hopper-v5", run_dir=str(tmp_path)))
    RunDirectory(Config(env="Hopper-v5", run_dir=str(tmp_path), resume=True)).close()


@pytest.mark.parametrize("name", ["..", "a\nb", "x" * 300, "tab\there"])
def test_unfit_names_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="printable name"):
        RunDirectory(Config(env="Hopper-v5", run_dir=f"{tmp_path}/{name}"))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunDirectory(Config(env="Hopper-v5", run_dir=str(tmp_path / "file" / "run")))


def test_default_names_have_no_separators():
    assert default_name(Config(env="ALE/Pong-v5", seed=3)).startswith("runs/ALE_Pong-v5-s3-")
