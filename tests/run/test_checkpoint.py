"""Checkpoints: whole or absent, and every kind of damage to every file found out."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trpo_tf.errors import UsageError
from trpo_tf.run import checkpoint
from trpo_tf.run.checkpoint import Checkpoint, DamagedError, NoCheckpointError
from trpo_tf.state import StateError

FILES = ("state.*.safetensors", "manifest.json")
ROOT = Path(__file__).parents[2]
META = {
    "env_steps": 99, "evaluation": None, "backend": "envpool", "own_networks": [False, False], "config": {},
    "versions": {},
}  # fmt: skip


def file(path, pattern):
    """The only file of a checkpoint with such a name."""
    [found] = path.glob(pattern)
    return found


def some(update=3):
    arrays = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 4), np.float32),
        "int": np.array([update]),
    }
    return Checkpoint(arrays, META | {"update": update})


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
    (tmp_path / "update_000000001").mkdir()
    (tmp_path / "update_000000001" / ".manifest.json.tmp").write_text("{")
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
    damage(file(path, name), kind)
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
    shutil.copy(file(a, FILES[0]), file(b, FILES[0]))
    with pytest.raises(DamagedError, match="checksum"):
        checkpoint.load(b)


def test_an_edited_manifest_is_found_out(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2) / FILES[1]
    manifest = json.loads(path.read_text())
    manifest["meta"]["env_steps"] = 5
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="checksum"):
        checkpoint.load(path.parent)


def sealed(path, manifest):
    """Writes a manifest with a checksum that is right, as anybody can."""
    manifest = {name: value for name, value in manifest.items() if name != "sha256"}
    (path / FILES[1]).write_text(json.dumps(manifest | {"sha256": checkpoint._digest(manifest)}))


def with_arrays(path, data):
    """Puts other bytes into the place of the arrays, and seals the manifest."""
    arrays, manifest = file(path, FILES[0]), json.loads((path / FILES[1]).read_text())
    arrays.write_bytes(data)
    manifest["files"] = {arrays.name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    sealed(path, manifest)


def header(declared):
    text = json.dumps(declared).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        header({"a": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 8 << 40]}}),
        header({"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}) + bytes(8),
        header({"a": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}) + bytes(16),
        header([1, 2]),
        (1 << 40).to_bytes(8, "little") + b"{}",
        (1 << 62).to_bytes(8, "little") + bytes(100),
        b"",
        b"abc",
    ],
)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(tmp_path, data):
    path = checkpoint.save(tmp_path, some(), keep=2)
    with_arrays(path, data)
    with pytest.raises(DamagedError, match=r"state\..*safetensors: "):
        checkpoint.load(path)


DEEP = '[{"a":' * 20_000 + "1" + "}]" * 20_000
FORMS = {
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "not text": b"\xff\xfe\x00",
    "UTF-16": "{}".encode("utf-16"),
    "deep": DEEP,
    "deep and closed late": "[" * 400_000,
    "another form": '{"format": 3, "files": 3, "meta": 4}',
    "an integer of a million digits": '{"format": ' + "9" * 1_000_000 + "}",
    "too long": " " * (1 << 20) + "{}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_of_another_form_is_damage(tmp_path, form):
    path = checkpoint.save(tmp_path, some(), keep=2)
    text = FORMS[form]
    (path / FILES[1]).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedError, match=r"manifest\.json: "):
        checkpoint.load(path)


EDITS = {
    "format of another form": lambda m: m | {"format": [3]},
    "format true": lambda m: m | {"format": True},
    "files a list": lambda m: m | {"files": [1]},
    "no file": lambda m: m | {"files": {}},
    "two files": lambda m: m | {"files": m["files"] | {"state.safetensors": {"bytes": 1, "sha256": ""}}},
    "a path": lambda m: m | {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
    "a way up": lambda m: m | {"files": {"../state.safetensors": {"bytes": 1, "sha256": ""}}},
    "bytes a word": lambda m: m | {"files": {name: e | {"bytes": "9"} for name, e in m["files"].items()}},
    "an entry that is none": lambda m: m | {"files": dict.fromkeys(m["files"], 7)},
    "meta a list": lambda m: m | {"meta": ["update"]},
    "no config": lambda m: m | {"meta": {k: v for k, v in m["meta"].items() if k != "config"}},
    "config a list": lambda m: m | {"meta": m["meta"] | {"config": ["env"]}},
    "update a word": lambda m: m | {"meta": m["meta"] | {"update": "3"}},
    "update true": lambda m: m | {"meta": m["meta"] | {"update": True}},
    "update a float": lambda m: m | {"meta": m["meta"] | {"update": 3.0}},
    "evaluation a number": lambda m: m | {"meta": m["meta"] | {"evaluation": 3}},
    "evaluation empty": lambda m: m | {"meta": m["meta"] | {"evaluation": {}}},
    "backend a list": lambda m: m | {"meta": m["meta"] | {"backend": []}},
    "of another update": lambda m: m | {"meta": m["meta"] | {"update": 2}},
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_and_sealed_manifest_is_passed_over_and_named(tmp_path, edit):
    checkpoint.save(tmp_path, some(1), keep=2)
    path = checkpoint.save(tmp_path, some(3), keep=2)
    sealed(path, EDITS[edit](json.loads((path / FILES[1]).read_text())))
    said = []
    assert checkpoint.newest(tmp_path, said.append).meta["update"] == 1
    assert len(said) == 1
    assert "update_000000003" in said[0]


def test_a_name_that_comes_twice_is_damage(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2) / FILES[1]
    path.write_text(path.read_text().replace('"env_steps"', '"env_steps": 98, "env_steps"'))
    with pytest.raises(DamagedError, match="comes twice"):
        checkpoint.load(path.parent)


def test_a_manifest_of_a_terabyte_is_not_read(tmp_path):
    path = checkpoint.save(tmp_path, some(), keep=2)
    os.truncate(path / FILES[1], 1 << 40)
    with pytest.raises(DamagedError, match="1099511627776 bytes, at most"):
        checkpoint.load(path)
    checkpoint.save(tmp_path, some(), keep=2)
    arrays = file(path, FILES[0])
    os.truncate(arrays, 1 << 40)
    with pytest.raises(DamagedError, match="1099511627776 bytes, "):
        checkpoint.load(path)
    manifest = json.loads((path / FILES[1]).read_text())
    manifest["files"][arrays.name]["bytes"] = 1 << 40
    sealed(path, manifest)
    with pytest.raises(DamagedError, match="does not fit"):
        checkpoint.load(path)


def test_all_damaged_ones_are_named_the_first_three_and_a_number(tmp_path):
    for update in range(5):
        (checkpoint.save(tmp_path, some(update), keep=9) / FILES[1]).unlink()
    with pytest.raises(NoCheckpointError) as error:
        checkpoint.newest(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}: no valid checkpoint: {tmp_path}/update_000000004/manifest.json: No"
    )
    assert str(error.value).endswith("; and 2 more")
    assert str(error.value).count("manifest.json") == 3
    with pytest.raises(NoCheckpointError, match=r"nothing: no valid checkpoint$"):
        checkpoint.newest(tmp_path / "nothing")


def test_a_checkpoint_that_is_a_link_or_a_file_is_passed_over_and_replaced(tmp_path):
    checkpoint.save(tmp_path / "other", some(3), keep=2)
    checkpoint.save(tmp_path / "run", some(1), keep=2)
    link = tmp_path / "run" / "update_000000003"
    link.symlink_to(tmp_path / "other" / "update_000000003")
    said = []
    assert checkpoint.newest(tmp_path / "run", said.append).meta["update"] == 1
    assert said == [f"damaged checkpoint passed over: {link}: not a directory"]
    before = checkpoint.load(tmp_path / "other" / "update_000000003")
    checkpoint.save(tmp_path / "run", some(3)._replace(arrays={"a": np.ones(3)}), keep=2)
    assert not link.is_symlink()
    assert checkpoint.load(tmp_path / "other" / "update_000000003").arrays.keys() == before.arrays.keys()
    link.rename(tmp_path / "aside")
    link.write_text("")
    checkpoint.save(tmp_path / "run", some(3), keep=2)
    assert checkpoint.newest(tmp_path / "run").meta["update"] == 3


def test_names_of_users_are_neither_checkpoints_nor_removed(tmp_path):
    users = [
        "update_backup",
        "update_000000001 copy",
        "update_000000002.bak",
        "update_1",
        "update_" + chr(0x661) * 9,  # a digit, of another script
        "notes.txt",
    ]
    for name in users:
        (tmp_path / name).mkdir()
    for update in (1, 2, 3):
        checkpoint.save(tmp_path, some(update), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*users, "update_000000003"])
    (tmp_path / "update_000000003" / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, some(3), keep=1)
    assert (tmp_path / "update_000000003" / "notes.txt").read_text() == "mine"


def test_what_format_3_left_between_two_renames_is_found_and_kept_until_the_next_save_is_whole(tmp_path, monkeypatch):
    for end in ("old", "tmp"):
        checkpoint.write(tmp_path / f".update_000000003.{end}", some(3))
    said = []
    assert checkpoint.newest(tmp_path, said.append).path.name == ".update_000000003.tmp"
    damage(file(tmp_path / ".update_000000003.tmp", FILES[0]), "truncated")
    assert checkpoint.newest(tmp_path, said.append).path.name == ".update_000000003.old"
    assert said == []  # a save that was killed is no news
    monkeypatch.setattr(checkpoint, "write_file", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(tmp_path, some(4), keep=1)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path).meta["update"] == 3
    checkpoint.save(tmp_path, some(4), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000000004"]


def test_a_reader_meets_no_checkpoint_that_a_run_removes_meanwhile(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1), keep=1)
    real, said = checkpoint.read_file, []

    def late(path, most):
        monkeypatch.setattr(checkpoint, "read_file", real)
        checkpoint.save(tmp_path, some(2), keep=1)
        return real(path, most)

    monkeypatch.setattr(checkpoint, "read_file", late)
    assert checkpoint.newest(tmp_path, said.append).meta["update"] == 2

    def between(path, most):
        data = real(path, most)
        monkeypatch.setattr(checkpoint, "read_file", real)
        checkpoint.save(tmp_path, some(2)._replace(arrays={"b": np.ones(2)}), keep=1)
        return data

    monkeypatch.setattr(checkpoint, "read_file", between)
    assert checkpoint.newest(tmp_path, pytest.fail).arrays.keys() == {"b"}


def test_infinite_numbers_in_an_evaluation_are_null(tmp_path):
    saved = some()
    saved.meta["evaluation"] = {"update": 3, "return_mean": -np.inf, "return_std": float("nan"), "return_max": 1.5}
    path = checkpoint.save(tmp_path, saved, keep=1)
    json.loads((path / FILES[1]).read_text(), parse_constant=pytest.fail)
    found = {"update": 3, "return_mean": None, "return_std": None, "return_max": 1.5}
    assert checkpoint.load(path).meta["evaluation"] == found


def test_whatever_does_not_fit_names_the_checkpoint():
    with pytest.raises(DamagedError, match="runs/x: does not fit: KeyError"), checkpoint.taken_over(Path("runs/x")):
        {}["env_steps"]
    with pytest.raises(StateError, match="runs/x: checkpoint: w has shape"), checkpoint.taken_over(Path("runs/x")):
        raise StateError("checkpoint: w has shape (3,) here, nothing in the file")
    with pytest.raises(UsageError, match=r"^seed=1: the checkpoint has 2$"), checkpoint.taken_over(Path("runs/x")):
        raise UsageError("--seed=1: the checkpoint has 2")


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1), keep=2)
    real = checkpoint.write_file

    def full(path, *rest):
        if path.name == FILES[1]:
            raise OSError(28, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, some(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["update_000000001"]
    assert checkpoint.newest(tmp_path).meta["update"] == 1


def test_a_damaged_checkpoint_of_the_same_update_is_replaced(tmp_path):
    path = checkpoint.save(tmp_path, some(5), keep=2)
    for pattern in FILES:
        for kind in ("truncated", "directory", "symlink", "absent"):
            damage(file(path, pattern), kind)
            checkpoint.save(tmp_path, some(5), keep=2)
            assert checkpoint.load(path).meta["update"] == 5


def program(*line):
    """What a program of benchmarks/faults prints; fails where it finds something wrong."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"benchmarks/faults/{line[0]}", *line[1:]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")


@pytest.mark.slow
def test_kills_inside_saves_lose_nothing():
    """The program of a thousand kills, with few in a row and by the clock."""
    lines = program("saves.py", "--recoveries=2", "--timed=5", "--scenarios=again, keep 1")
    assert int(lines[2].split(" kills, 0 wrong")[0]) > 40


@pytest.mark.slow
def test_damaged_and_hostile_checkpoints_are_passed_over_and_named():
    lines = program("damage.py")
    assert int(lines[0].split()[0]) >= 48
    assert int(lines[1].split()[0]) >= 60
