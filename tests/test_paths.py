"""Paths: absolute, with home directories, and tried without a trace."""

import os

import pytest

from trpo_tf import paths
from trpo_tf.config import EvaluateConfig, PlotConfig, make_config
from trpo_tf.errors import UsageError


def test_a_path_is_absolute_and_knows_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert paths.absolute("x", "~/runs/a") == "/home/me/runs/a"
    assert paths.absolute("x", tmp_path / "a") == str(tmp_path / "a")
    assert paths.absolute("x", "a/../b") == f"{tmp_path}/a/../b", "a may be a link"
    assert paths.absolute("x", "./~a") == f"{tmp_path}/./~a"
    assert paths.absolute("x", "") == ""
    with pytest.raises(UsageError, match="x=~no_such_user/a: no home directory is known"):
        paths.absolute("x", "~no_such_user/a")


@pytest.mark.parametrize("path", ["a\nb", "a\x1b[31m/b", "a\u2028b"])
def test_a_path_with_control_characters_is_refused(path):
    with pytest.raises(UsageError, match=r"x=.*: control characters are not allowed") as raised:
        paths.absolute("x", path)
    assert str(raised.value).isprintable()


def test_every_path_of_a_record_is_absolute_but_for_stdout(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    config = make_config(env="x", run_dir="a", export_dir="~/b").run
    assert (config.run_dir, config.export_dir) == (f"{tmp_path}/a", "/home/me/b")
    evaluation = EvaluateConfig(saved_model="~/m", json="-", video="v")
    assert (evaluation.saved_model, evaluation.json, evaluation.video) == ("/home/me/m", "-", f"{tmp_path}/v")
    assert PlotConfig(run_dirs=["a", "~"]).run_dirs == (f"{tmp_path}/a", "/home/me")


def test_a_directory_is_tried_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    paths.try_directory("x", str(tmp_path / "a" / "b"))
    paths.try_directory("x", str(tmp_path))
    for bad in ("file", "file/a", "nowhere", "y" * 300, "a/" + "y" * 300):
        with pytest.raises(UsageError, match="cannot be written"):
            paths.try_directory("x", str(tmp_path / bad))
    assert sorted(os.listdir(tmp_path)) == ["file", "nowhere"]


def test_a_file_is_tried_and_stays_what_it_was(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "to_new").symlink_to(tmp_path / "new")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for good in ("file", "link", "new", "to_new", "pipe"):
        paths.try_file("x", str(tmp_path / good))
    for bad in ("folder", "none/file", "file/file", "y" * 300):
        with pytest.raises(UsageError, match="cannot be written"):
            paths.try_file("x", str(tmp_path / bad))
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link", "pipe", "to_new"]
