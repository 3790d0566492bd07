"""Run directories: names, locks, what they refuse, what they record."""

import os
import subprocess
import sys

import pytest

from trpo_tf.config import make_config
from trpo_tf.errors import UsageError
from trpo_tf.run.directory import RunDirectory, default_name


def test_a_fresh_directory_is_made_and_described(tmp_path):
    config = make_config(env="Hopper-v5", run_dir=str(tmp_path / "a" / "b"), max_kl=0.02, hidden_sizes=(32, 16))
    directory = RunDirectory(config.run.run_dir, False)
    directory.describe(config)
    flags = (directory.path / "flags.txt").read_text().splitlines()
    assert "--max_kl=0.02" in flags
    assert "--hidden_sizes=32,16" in flags
    assert "--normalize_obs" in flags
    assert not any("run_dir" in flag or "resume" in flag for flag in flags)
    assert '"tensorflow": "2.' in (directory.path / "versions.json").read_text()
    directory.close()


def test_a_directory_in_use_is_refused_naming_the_process(tmp_path):
    path = str(tmp_path / "run")
    directory = RunDirectory(path, False)
    code = f"from trpo_tf.run.directory import RunDirectory; RunDirectory({path!r}, False)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode != 0
    assert f"in use by process {os.getpid()}" in other.stderr
    directory.close()
    RunDirectory(path, False).close()


def test_a_directory_with_a_run_is_refused_without_resume(tmp_path):
    (tmp_path / "checkpoints" / "update_000000001").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds a run; pass resume"):
        RunDirectory(str(tmp_path), False)
    RunDirectory(str(tmp_path), True).close()


@pytest.mark.parametrize("name", ["..", "a\nb", "x" * 300, "tab\there"])
def test_unfit_names_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="printable name"):
        RunDirectory(f"{tmp_path}/{name}", False)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunDirectory(str(tmp_path / "file" / "run"), False)


def test_default_names_have_no_separators():
    assert default_name(make_config(env="ALE/Pong-v5", seed=3)).startswith("runs/ALE_Pong-v5-s3-")
