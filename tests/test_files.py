"""Durable writes: what is written is on the disk before a rename may show it."""

import os

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
    assert synced == {(tmp_path / "a").stat().st_ino}


def test_everything_in_a_tree_is_synced_the_top_too(tmp_path, synced):
    (tmp_path / "below" / "empty").mkdir(parents=True)
    for name in ("a", "below/b"):
        (tmp_path / name).write_bytes(b"data")
    files.sync_tree(tmp_path)
    assert synced == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.sync_directory(tmp_path / "nothing")
