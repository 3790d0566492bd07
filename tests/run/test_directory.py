"""Run directories: names, locks, what they refuse, what they record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trpo_tf.config import make_config
from trpo_tf.errors import UsageError
from trpo_tf.run.directory import RunDirectory, default_name

ROOT = Path(__file__).parents[2]


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
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert other.returncode != 0
    assert f"in use by process {os.getpid()}" in other.stderr
    directory.close()
    RunDirectory(path, False).close()


@pytest.mark.parametrize(
    "trace",
    [
        "checkpoints/update_000000001/", "checkpoints/.update_000000001.tmp/", "checkpoints/.update_000000001.old/",
        "checkpoints/anything", "best/update_000000001/", "progress.csv",
    ],
)  # fmt: skip
def test_a_directory_with_any_trace_of_a_run_is_refused_without_resume(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    if trace.endswith("/"):
        (tmp_path / trace).mkdir()
    else:
        (tmp_path / trace).write_text("update,env_steps\n1,100\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="holds a run; pass resume"):
        RunDirectory(str(tmp_path), False)
    assert sorted(tmp_path.rglob("*")) == before
    RunDirectory(str(tmp_path), True).close()


def test_a_directory_without_a_row_or_checkpoint_is_begun(tmp_path):
    for name in ("checkpoints", "best", "tensorboard"):
        (tmp_path / name).mkdir()
    (tmp_path / "progress.csv").write_text("update,env_steps\n")
    (tmp_path / "lock").write_text("")
    directory = RunDirectory(str(tmp_path), False)
    assert (tmp_path / "lock.pid").read_text() == f"{os.getpid()}\n"
    directory.close()


@pytest.mark.parametrize("name", ["checkpoints", "best", "tensorboard", "saved_model", "lock"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_link_in_a_run_directory_is_refused_in_one_line(tmp_path, name, resumed):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match=f"run_dir={tmp_path}/run: {name} in it is a symbolic link"):
        RunDirectory(tmp_path / "run", resumed)
    assert not list((tmp_path / "theirs").iterdir())
    (tmp_path / "run" / name).unlink()
    RunDirectory(tmp_path / "run", resumed).close()


def test_the_run_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    RunDirectory(tmp_path / "run", False).close()
    assert (tmp_path / "disk" / "lock").is_file()


@pytest.mark.parametrize("name", ["flags.txt", "versions.json", "lock.pid"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "theirs")
    directory = RunDirectory(tmp_path / "run", True)
    directory.describe(make_config(env="Hopper-v5"))
    directory.close()
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "run" / name).is_symlink()


def test_a_lock_is_left_by_a_process_that_was_killed_and_taken_by_the_next(tmp_path):
    code = f"""
import os, signal
from trpo_tf.run.directory import RunDirectory
kept = RunDirectory({str(tmp_path)!r}, False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -9, done.stderr
    RunDirectory(tmp_path, True).close()


def test_an_owner_that_is_not_known_is_another_process(tmp_path):
    directory = RunDirectory(tmp_path / "run", False)
    for content in (b"", b"9" * 101, b"many\n", None):
        (tmp_path / "run" / "lock.pid").unlink()
        if content is not None:
            (tmp_path / "run" / "lock.pid").write_bytes(content)
        with pytest.raises(UsageError, match=r"in use by another process$"):
            RunDirectory(tmp_path / "run", True)
        (tmp_path / "run" / "lock.pid").write_bytes(b"")
    directory.close()


def test_flags_hold_no_place_of_this_run_and_one_line_each(tmp_path):
    config = make_config(env="Hopper-v5", run_dir=str(tmp_path / "run"), export_dir=str(tmp_path / "models"))
    directory = RunDirectory(tmp_path / "run", False)
    directory.describe(config)
    directory.close()
    lines = (tmp_path / "run" / "flags.txt").read_text().splitlines()
    assert all(line.startswith("--") for line in lines)
    assert str(tmp_path) not in "".join(lines)
    for text in ("a\n--export_dir=/etc", "a\rb", "a\x1b[31m", "a\x85b", "a\u2028b"):
        with pytest.raises(UsageError, match=r"env_options=.*control characters"):
            make_config(env="Hopper-v5", env_options=text)


@pytest.mark.parametrize("name", ["..", "a\nb", "x" * 300, "tab\there"])
def test_unfit_names_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="printable name"):
        RunDirectory(f"{tmp_path}/{name}", False)
    with pytest.raises(UsageError, match=r"printable name|control characters"):
        make_config(env="x", run_dir=f"{tmp_path}/{name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/", "é", "a.b"])
def test_names_that_the_command_takes_are_those_that_a_directory_takes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = make_config(env="x", run_dir=name)
    RunDirectory(config.run.run_dir, False).close()
    assert (tmp_path / name / "lock").is_file()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunDirectory(str(tmp_path / "file" / "run"), False)


def test_default_names_have_no_separators():
    assert default_name(make_config(env="ALE/Pong-v5", seed=3)).startswith("runs/ALE_Pong-v5-s3-")
