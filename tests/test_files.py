"""Durable writes: what is written is on the disk before a rename may show it."""

import os

import numpy as np
import pytest

from trpo_tf import files


@pytest.fixture
def synced(monkeypatch):
    """The inodes that fsync was called with."""
    inodes, fsync = set(), os.fsync

    def record(descriptor):
        inodes.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return inodes


def test_a_file_is_written_and_synced(tmp_path, synced):
    files.write_file(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert synced == {(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "theirs")  # nor in the place of the temporary file
    files.write_file(tmp_path / "link", b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "ours"
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic"):
        files.append_file(tmp_path / "link", b"more")
    with pytest.raises(OSError, match="not a regular file"):
        files.read_file(tmp_path / "link", 100)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    files.write_file(tmp_path / "a", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_file(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_an_append_is_whole_or_not_at_all(tmp_path, monkeypatch):
    files.write_file(tmp_path / "a", b"one,")
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:2])  # as a disk that is nearly full does

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.append_file(tmp_path / "a", b"two,")
    assert calls == [4, 2]
    assert (tmp_path / "a").read_bytes() == b"one,"
    assert files.append_file(tmp_path / "a", b"three").st_size == 9
    assert (tmp_path / "a").read_bytes() == b"one,three"


def test_a_file_that_is_larger_than_expected_is_not_read(tmp_path):
    files.write_file(tmp_path / "a", b"12345")
    assert files.read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, at most 4 expected"):
        files.read_file(tmp_path / "a", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_file(path, 100)


def test_json_has_null_where_numbers_are_not_finite():
    value = {"a": float("nan"), "b": [1, -np.inf, np.float64("inf")], "c": (0.1, {"d": 2}), "e": "NaN", "f": True}
    text = files.to_json(value)
    assert text == '{"a": null, "b": [1, null, null], "c": [0.1, {"d": 2}], "e": "NaN", "f": true}'


def test_everything_in_a_tree_is_synced_the_top_too(tmp_path, synced):
    (tmp_path / "below" / "empty").mkdir(parents=True)
    for name in ("a", "below/b"):
        (tmp_path / name).write_bytes(b"data")
    files.sync_tree(tmp_path)
    assert synced == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.sync_directory(tmp_path / "nothing")
