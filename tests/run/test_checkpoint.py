"""Checkpoints: whole or absent, and every kind of damage to every file found out."""

import json
import os
import shutil

import numpy as np
import pytest

from trpo_tf.run import checkpoint
from trpo_tf.run.checkpoint import Checkpoint, DamagedError, NoCheckpointError

FILES = ("state.safetensors", "manifest.json")


def some(update=3):
    arrays = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 4), np.float32),
        "int": np.array([update]),
    }
    return Checkpoint(arrays, {"update": update, "env_steps": 99, "best_return": None})


def test_round_trip_is_exact(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2)
    loaded = checkpoint.load(path)
    assert loaded.meta == some().meta
    assert set(loaded.arrays) == set(some().arrays)
    for name, array in some().arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        assert loaded.arrays[name].shape == array.shape
        assert loaded.arrays[name].tobytes() == array.tobytes()


def test_newest_wins_and_older_ones_are_removed(tmp_path):
    for update in (1, 2, 9, 10):
        checkpoint.save(tmp_path, some(update), keep=3)
    assert checkpoint.newest(tmp_path).meta["update"] == 10
    assert [path.name[-2:] for path in checkpoint.found(tmp_path)] == ["10", "09", "02"]


def test_a_run_that_was_set_back_forgets_the_future_it_left(tmp_path):
    for update in (1, 9, 10, 3):
        checkpoint.save(tmp_path, some(update), keep=3)
    assert [path.name[-2:] for path in checkpoint.found(tmp_path)] == ["03", "01"]


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / ".update_000000001.tmp").mkdir(parents=True)
    checkpoint.save(tmp_path, some(1), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000000001"]


def test_another_format_is_refused_not_passed_over(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1), keep=2)
    monkeypatch.setattr(checkpoint, "FORMAT", 4)
    checkpoint.save(tmp_path, some(2), keep=2)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(checkpoint.FormatError, match="format 4, this version reads 3"):
        checkpoint.newest(tmp_path)


def damage(path, kind):
    data = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[:-1])
    elif kind == "flipped":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif kind == "longer":
        path.write_bytes(data + b"\0")
    elif kind == "other":
        path.write_bytes(b"{}")
    elif kind == "symlink":
        path.with_name("elsewhere").write_bytes(data)
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "kind", ["absent", "empty", "truncated", "flipped", "longer", "other", "symlink", "directory", "fifo"]
)
def test_damage_is_named_and_the_older_checkpoint_used(tmp_path, name, kind):
    checkpoint.save(tmp_path, some(1), keep=2)
    path = checkpoint.save(tmp_path, some(2), keep=2)
    damage(path / name, kind)
    with pytest.raises(DamagedError, match="update_000000002"):
        checkpoint.load(path)
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append).meta["update"] == 1
    assert len(warnings) == 1
    assert "update_000000002" in warnings[0]
    shutil.rmtree(checkpoint.found(tmp_path)[1])
    with pytest.raises(NoCheckpointError):
        checkpoint.newest(tmp_path)


def test_another_checkpoints_file_is_found_out(tmp_path):
    a, b = (checkpoint.save(tmp_path, some(update), keep=2) for update in (1, 2))
    shutil.copy(a / FILES[0], b / FILES[0])
    with pytest.raises(DamagedError, match="checksum"):
        checkpoint.load(b)


def test_an_edited_manifest_is_found_out(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2) / FILES[1]
    manifest = json.loads(path.read_text())
    manifest["meta"]["env_steps"] = 5
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="checksum"):
        checkpoint.load(path.parent)


def test_arrays_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2)
    header = json.dumps({"a": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 8 << 40]}}).encode()
    data = len(header).to_bytes(8, "little") + header
    manifest = json.loads((path / FILES[1]).read_text())
    import hashlib

    manifest["files"][FILES[0]] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    manifest["sha256"] = checkpoint._digest(manifest)
    (path / FILES[0]).write_bytes(data)
    (path / FILES[1]).write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="Safetensor"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1), keep=2)
    real = checkpoint.write_file

    def full(path, data):
        if path.name == FILES[1]:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, some(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000000001"]
    assert checkpoint.newest(tmp_path).meta["update"] == 1


def test_a_damaged_checkpoint_of_the_same_update_is_replaced(tmp_path):
    path = checkpoint.save(tmp_path, some(5), keep=2)
    damage(path / FILES[0], "truncated")
    checkpoint.save(tmp_path, some(5), keep=2)
    assert checkpoint.load(path).meta["update"] == 5


@pytest.mark.parametrize("point", ["save_arrays", "save_manifest", "save_rename", "between", "saved"])
def test_a_save_in_the_place_of_another_that_ends_at_any_point_leaves_one_whole(tmp_path, monkeypatch, point):
    """A kill is played by leaving what is on disk at that point as it is."""
    from trpo_tf import faults

    path = checkpoint.save(tmp_path / "live", some(1), keep=1)

    def photograph(reached):
        if reached == point:
            shutil.copytree(tmp_path / "live", tmp_path / "killed")

    monkeypatch.setattr(faults, "hook", photograph)
    if point == "between":
        rename = type(path).rename

        def renamed(self, target):
            result = rename(self, target)
            if target.name.endswith(".old"):
                photograph("between")
            return result

        monkeypatch.setattr(type(path), "rename", renamed)
    checkpoint.save(tmp_path / "live", some(1), keep=1)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "killed").meta["update"] == 1
    again = checkpoint.save(tmp_path / "killed", some(1), keep=1)
    assert [found.name for found in (tmp_path / "killed").iterdir()] == [again.name]
    assert checkpoint.load(again).meta["update"] == 1
