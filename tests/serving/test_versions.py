"""The server's model: which directories are versions, versions that are copied while it looks, looks that fail."""

import shutil
import threading
import time

import pytest

from tests import exports
from trpo_tf.serving import saved_model
from trpo_tf.serving.server import model as served


@pytest.mark.parametrize(
    "name", ["²", "٣", "008", "+3", "-3", "3.0", "1e3", " 3", "0x3", "1_000", str(2**63), "9" * 200, ".3", "3~"]
)
def test_a_name_that_is_no_plain_number_is_no_version(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "2").mkdir()
    assert saved_model.versions(tmp_path) == [2]


def test_zero_and_the_greatest_number_are_versions(tmp_path):
    for number in (0, 2**63 - 1):
        (tmp_path / str(number)).mkdir()
    assert sorted(saved_model.versions(tmp_path)) == [0, 2**63 - 1]


@pytest.fixture
def model(base, tmp_path):
    """A model of a directory without versions; what it says; the directory of a whole version."""
    said = []
    return served.Model("policy", tmp_path, said.append), said, base / "1"


@pytest.mark.parametrize("last", ["saved_model.pb", "variables.index", "variables.data-00000-of-00001"])
def test_a_version_that_is_copied_while_the_server_looks_is_served_when_it_is_whole(model, tmp_path, last):
    found, said, whole = model
    for path in sorted((path for path in whole.rglob("*") if path.is_file()), key=lambda path: path.name == last):
        assert not found.refresh()
        target = tmp_path / "1" / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[: len(content) // 2])
        assert not found.refresh()
        lines = len(said)
        assert not found.refresh()
        assert len(said) == lines, "the same state is not tried twice"
        target.write_bytes(content)
    assert said
    assert found.refresh()
    assert found.number == 1
    assert found.status("policy") == [(1, "AVAILABLE", "")]


def test_what_a_look_raises_is_said_once_and_the_next_look_is_taken(model, tmp_path, monkeypatch):
    found, said, whole = model
    looks, changes = [], []

    def versions(directory):
        looks.append(directory)
        if len(looks) < 4:
            raise ValueError("odd")
        return saved_model.versions(directory)

    monkeypatch.setattr(served, "versions", versions)
    shutil.copytree(whole, tmp_path / "1")
    watcher = threading.Thread(target=found.watch, args=(0.01, changes.append))
    watcher.start()
    deadline = time.monotonic() + 30
    while not changes and time.monotonic() < deadline:
        time.sleep(0.01)
    found.close()
    watcher.join()
    assert changes == [1]
    assert [line.partition(": ")[2] for line in said] == ["looking for versions failed: ValueError: odd"]


def test_a_newer_version_that_is_broken_leaves_the_older_one_and_is_named_once(model, tmp_path):
    found, said, whole = model
    shutil.copytree(whole, tmp_path / "1")
    assert found.refresh()
    (tmp_path / "2").write_text("no directory")
    for _ in range(3):
        assert not found.refresh()
    assert found.number == 1
    assert len(said) == 1
    assert said[0].startswith("version 2 is not served: ")


def test_the_export_numbers_versions_past_names_that_are_none(tmp_path):
    for name in ("008", "²", "7"):
        (tmp_path / name).mkdir()
    made = exports.make("gaussian", tmp_path, 8)
    assert made.path.name == "8"
