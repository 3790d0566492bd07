"""progress.csv over interruptions, columns that come later, loggers that fail."""

import csv
import json
import os
import shutil
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.messages import warn
from trpo_tf.run.metrics import csv as csv_module
from trpo_tf.run.metrics.csv import CsvLogger, read_csv
from trpo_tf.run.metrics.logger import Logger
from trpo_tf.run.metrics.row import Row
from trpo_tf.run.metrics.screen import Screen
from trpo_tf.run.metrics.tensorboard import TensorBoardLogger


def row(update, value=1.5, **more):
    return {"update": update, "env_steps": 10 * update, "env/episode_return": value, "eval/episode_return": None} | more


def agent(update=0, env_steps=0):
    return SimpleNamespace(update=update, env_steps=env_steps, total_steps=100)


def started(path, update=0):
    logger = CsvLogger(path)
    logger.start(agent(update))
    return logger


def log(logger, *rows):
    for one in rows:
        logger(agent(), Row(one))


def test_rows_are_written_and_read_back(tmp_path):
    path = tmp_path / "progress.csv"
    log(started(path), row(1, 1 / 3), row(2))
    rows = read_csv(path)
    assert [r["update"] for r in rows] == ["1", "2"]
    assert float(rows[0]["env/episode_return"]) == 1 / 3
    assert rows[0]["eval/episode_return"] == ""


def test_a_metric_that_first_appears_later_is_a_column_in_its_place(tmp_path):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1), row(2), row(3, **{"mine/first": 7.0, "policy/kl": 0.25}), row(4))
    rows = read_csv(path)
    assert list(rows[0]) == [
        "update", "env_steps", "env/episode_return", "eval/episode_return", "policy/kl", "mine/first",
    ]  # fmt: skip
    assert [r["mine/first"] for r in rows] == ["", "", "7.0", ""]
    assert [r["policy/kl"] for r in rows] == ["", "", "0.25", ""]
    assert [r["update"] for r in rows] == ["1", "2", "3", "4"]


def test_a_new_column_is_kept_over_a_resume(tmp_path):
    path = tmp_path / "progress.csv"
    log(started(path), row(1), row(2, mine=1.0))
    log(started(path, 2), row(3, mine=2.0))
    assert [r["mine"] for r in read_csv(path)] == ["", "1.0", "2.0"]


def test_a_resumed_run_drops_rows_after_its_checkpoint_and_a_torn_one(tmp_path):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, *map(row, (1, 2, 3, 4)))
    with open(path, "a") as file:
        file.write("5,50,1.")
    again = CsvLogger(path)
    again.restore(logger.state())
    again.start(agent(2))
    log(again, row(3, 9.0))
    assert os.listdir(tmp_path) == ["progress.csv"]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(r["update"], r["env/episode_return"]) for r in rows] == [("1", "1.5"), ("2", "1.5"), ("3", "9.0")]


def test_a_torn_row_within_the_kept_ones_is_dropped_too(tmp_path):
    path = tmp_path / "progress.csv"
    log(started(path), row(1))
    with open(path, "a") as file:
        file.write("2,20")
    log(started(path, 2), row(2))
    assert [r["update"] for r in read_csv(path)] == ["1", "2"]


def test_a_file_with_only_a_header_or_a_torn_one_starts_afresh(tmp_path):
    path = tmp_path / "progress.csv"
    for content in ("update,env_steps\n", "update,env_st", ""):
        path.write_text(content)
        log(started(path, 5), row(1))
        assert [r["update"] for r in read_csv(path)] == ["1"], content
        assert path.read_text().count("update") == 1


class Disk:
    """A disk that has room for so many bytes more, in the place of the real one."""

    def __init__(self, monkeypatch, room):
        self.room, self._real = room, (os.write, csv_module.write_file)
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(csv_module, "write_file", self.write_file)

    def write(self, descriptor, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        count = self._real[0](descriptor, data[: self.room])
        self.room -= count
        return count

    def write_file(self, path, data):
        if len(data) > self.room:
            raise OSError(28, "No space left on device")
        self._real[1](path, data)


@pytest.mark.parametrize("room", [0, 1, 8])
def test_rows_that_a_full_disk_refused_are_written_later(tmp_path, capsys, monkeypatch, room):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1))
    disk = Disk(monkeypatch, room)
    log(logger, row(2), row(3))
    assert [r["update"] for r in read_csv(path)] == ["1"]
    assert path.read_bytes().endswith(b"\n")
    disk.room = 10_000
    log(logger, row(4))
    assert [r["update"] for r in read_csv(path)] == ["1", "2", "3", "4"]
    assert capsys.readouterr().err.count("CsvLogger failed, training goes on") == 1


def test_a_disk_that_is_full_for_a_while_costs_no_row(tmp_path, monkeypatch):
    """Half of the updates find a disk with little room or none; some have new columns, so that all is written anew."""
    random, disk, path = np.random.default_rng(0), Disk(monkeypatch, 0), tmp_path / "progress.csv"
    for trial in range(20):
        logger = started(path)
        for update in range(1, 61):
            disk.room = int(random.choice([0, 1, 300, 2000])) if random.uniform() < 0.5 else 1 << 20
            more = {"eval/episode_return": 3.0, f"mine/{trial % 3}": "x" * 50} if random.uniform() < 0.1 else {}
            log(logger, row(update, random.normal(), **more, note="y" * 200))
        disk.room = 1 << 20
        log(logger, row(61))
        assert [int(r["update"]) for r in read_csv(path)] == list(range(1, 62)), trial
        assert os.listdir(tmp_path) == ["progress.csv"]
        path.unlink()


def test_rows_that_the_disk_refused_are_in_the_checkpoint_and_written_after_a_resume(tmp_path, monkeypatch):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1, 1 / 3))
    append = csv_module.append_file
    monkeypatch.setattr(csv_module, "append_file", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    monkeypatch.setattr(csv_module, "write_file", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    log(logger, row(2, 2 / 3), row(3, np.float32(0.1), word='a "b",\r\nc'))
    saved = logger.state()
    monkeypatch.undo()
    assert saved["unwritten"].dtype == np.uint8
    assert [r["update"] for r in read_csv(path)] == ["1"]
    append(path, b"2,20,9.9,\r\n")  # was written after all, before the kill: once, with what the checkpoint says
    again = CsvLogger(path)
    again.restore(saved)
    again.start(agent(3))
    log(again, row(4))
    rows = read_csv(path)
    assert [(r["update"], r["env/episode_return"]) for r in rows] == [
        ("1", str(1 / 3)), ("2", str(2 / 3)), ("3", "0.1"), ("4", "1.5"),
    ]  # fmt: skip
    assert rows[2]["word"] == 'a "b",\r\nc'
    assert json.loads(again.state()["unwritten"].tobytes()) == []


def test_a_row_that_waits_when_a_checkpoint_is_made_is_written_before_it(tmp_path):
    path, rest = tmp_path / "progress.csv", Future()
    logger = started(path)
    logger(agent(), Row(row(1), rest))
    rest.set_result({"value/loss": 0.5})
    logger.state()
    assert [r["value/loss"] for r in read_csv(path)] == ["0.5"]


def test_a_file_removed_while_running_is_begun_anew_with_its_header(tmp_path):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1, mine=1.0), row(2))
    path.unlink()
    log(logger, row(3), row(4))
    rows = read_csv(path)
    assert [r["update"] for r in rows] == ["3", "4"]
    assert "mine" in rows[0]
    assert path.read_text().count("update") == 1


DAMAGES = {
    "not text": b"\xff\xfe\n\x80\n",
    "other columns": b"a,b\r\n1,2\r\n",
    "no header": b"1,10,1.5,\r\n2,20,1.5,\r\n",
    "a column twice": b"update,update\r\n1,1\r\n",
    "a long field": b"update,a\r\n1," + b"x" * 200_000 + b"\r\n",
    "no line": b"something of somebody",
    "a directory": None,
    "a symbolic link": None,
    "a pipe": None,
    "too large": None,
}


def spoil(path, damage, tmp_path):
    path.unlink(missing_ok=True)
    if damage == "a directory":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif damage == "a symbolic link":
        (tmp_path / "theirs").write_text("theirs")
        path.symlink_to(tmp_path / "theirs")
    elif damage == "a pipe":
        os.mkfifo(path)
    elif damage == "too large":
        path.write_text("update\n")
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(DAMAGES[damage])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("when", ["running", "resumed"])
def test_a_damaged_file_is_put_aside_and_named_and_the_new_one_is_right(tmp_path, damage, when, capsys):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1), row(2))
    if when == "running":
        spoil(path, damage, tmp_path)
    else:
        saved, logger = logger.state(), CsvLogger(path)
        spoil(path, damage, tmp_path)
        logger.restore(saved)
        logger.start(agent(2))
    log(logger, row(3), row(4))
    assert [r["update"] for r in read_csv(path)] == ["3", "4"]
    assert f"{path} was renamed to progress.csv.damaged: " in capsys.readouterr().err
    aside = tmp_path / "progress.csv.damaged"
    if DAMAGES[damage] is not None:
        assert aside.read_bytes() == DAMAGES[damage]
    elif damage == "a directory":
        assert (aside / "mine").read_text() == "mine"
    elif damage == "a symbolic link":
        assert aside.is_symlink()
        assert (tmp_path / "theirs").read_text() == "theirs"
    spoil(path, damage, tmp_path)
    log(logger, row(5))
    assert os.path.lexists(tmp_path / "progress.csv.damaged.1")
    assert [r["update"] for r in read_csv(path)] == ["5"]


def test_rows_that_cannot_be_read_among_others_cost_the_others_nothing(tmp_path, capsys):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, *map(row, (1, 2, 3)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "2,20", *lines[3:]]) + "\n")
    log(logger, row(4))
    assert [r["update"] for r in read_csv(path)] == ["1", "3", "4"]
    assert "progress.csv.damaged: 1 of its rows cannot be read" in capsys.readouterr().err


def test_a_file_that_lost_its_column_of_updates_stops_no_resume(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("env_steps,policy/kl\r\n100,0.1\r\n")
    log(started(path, 3), row(4))
    assert [r["update"] for r in read_csv(path)] == ["4"]


def test_the_file_of_another_training_is_put_aside(tmp_path, capsys):
    path = tmp_path / "made" / "for it" / "progress.csv"
    logger = started(path)
    log(logger, row(1, 7.0), row(2))
    old = path.read_bytes()
    log(started(path), row(1, 8.0))
    log(started(path), row(1, 9.0))  # and this one's, too
    logger.start(agent())  # the same logger for another agent
    assert (path.parent / "progress.csv.old").read_bytes() == old
    assert [read_csv(path.with_name(f"progress.csv.old{k}"))[0]["env/episode_return"] for k in (".1", ".2")] == [
        "8.0", "9.0",
    ]  # fmt: skip
    assert "progress.csv was renamed to progress.csv.old: it is of another training" in capsys.readouterr().err


def test_learning_again_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / "progress.csv"
    log(started(path), row(1), row(2))
    log(started(path, 2), row(3))
    assert [r["update"] for r in read_csv(path)] == ["1", "2", "3"]
    assert os.listdir(tmp_path) == ["progress.csv"]


def test_a_file_deleted_between_two_runs_is_begun_anew(tmp_path):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1), row(2))
    saved = logger.state()
    path.unlink()
    again = CsvLogger(path)
    again.restore(saved)
    again.start(agent(2))
    log(again, row(3))
    assert [r["update"] for r in read_csv(path)] == ["3"]


def test_rows_that_a_checkpoint_claims_are_checked():
    for text in (b"{", b"3", b"[3]", b"[{}]", b'[{"update": "x"}]'):
        with pytest.raises((ValueError, TypeError, AttributeError, KeyError)):
            CsvLogger("x.csv").restore({"unwritten": np.frombuffer(text, np.uint8)})


def test_tensorboard_whose_directory_vanishes_or_cannot_be_made_is_a_warning(tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path / "gone")
    logger.start(agent())
    log(logger, row(1))
    shutil.rmtree(tmp_path / "gone")
    log(logger, *map(row, range(2, 50)))
    logger.close()
    (tmp_path / "file").write_text("")
    logger = TensorBoardLogger(tmp_path / "file" / "below")
    logger.start(agent())
    log(logger, row(1), row(2))
    logger.close()
    assert "training goes on" in capsys.readouterr().err


def test_values_that_cannot_be_logged_are_a_warning(tmp_path, capsys):
    class Odd:
        def __str__(self):
            raise RuntimeError("no text")

    logger = started(tmp_path / "progress.csv")
    log(logger, row(1, mine=Odd()), row(2))
    assert [r["update"] for r in read_csv(tmp_path / "progress.csv")] == ["2"]
    assert "CsvLogger failed, training goes on: no text" in capsys.readouterr().err


class Kept(Logger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def write(self, row):
        self.rows.append(row)


def test_a_logger_that_fails_is_named_once_and_does_not_end_the_training(capsys):
    class Broken(Logger):
        def write(self, row):
            raise OSError(28, "No space left on device")

    broken = Broken()
    log(broken, row(1), row(2))
    broken.finish(agent(), True)
    assert capsys.readouterr().err.count("Broken failed, training goes on") == 1


def test_a_row_waits_for_the_rest_of_it_and_is_written_once():
    logger, rest = Kept(), Future()
    logger(agent(), Row({"update": 1}, rest))
    assert logger.rows == []
    rest.set_result({"value/loss": 0.5})
    logger(agent(), Row({"update": 2}))
    logger.flush()
    assert logger.rows == [{"update": 1, "value/loss": 0.5}, {"update": 2}]


def test_what_is_put_into_a_row_after_the_logger_had_it_is_written():
    logger, rest = Kept(), Future()
    one = Row({"update": 1}, rest)
    logger(agent(), one)
    one["late"] = 1.0
    rest.set_result({})
    logger.flush()
    assert logger.rows == [{"update": 1, "late": 1.0}]


def test_a_value_fit_that_failed_is_no_fault_of_a_logger(capsys):
    rest = Future()
    rest.set_exception(tf.errors.ResourceExhaustedError(None, None, "out of memory"))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        Kept()(agent(), Row({"update": 1}, rest))
    assert "training goes on" not in capsys.readouterr().err


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    logger.start(agent())
    log(logger, row(1, 0.25, **{"policy/reason": "kl"}), row(2, 0.5))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("env/episode_return")] == [(10, 0.25), (20, 0.5)]
    assert "eval/episode_return" not in events.Tags()["scalars"]
    assert "policy/reason" not in events.Tags()["scalars"]


def test_a_screen_that_is_no_terminal_says_a_plain_line_now_and_then(capsys):
    screen = Screen(line_every=2, greeting="hello")
    screen.start(agent())
    log(screen, *(row(k, **{"time/env_steps_per_second": 5.0, "policy/kl": 0.01}) for k in (1, 2, 3)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hello"
    assert [line.split(" steps")[0].strip() for line in lines[1:]] == ["10", "30"]
    assert "18 s left" in lines[1]
    assert "KL 1.00e-02" in lines[1]
    assert "entropy -" in lines[1]


def test_a_screen_shows_nothing_of_parts_that_an_algorithm_does_not_have(capsys):
    screen = Screen()
    screen.start(agent())
    log(screen, row(1, **{"time/env_steps_per_second": 5.0, "search/sigma": 0.25}))
    [line] = capsys.readouterr().out.splitlines()
    assert "sigma 2.50e-01" in line
    assert "step -" in line
    assert not [label for label in ("KL", "CG residual", "explained var.", "workers", "staleness") if label in line]


def test_warnings_escape_control_characters(capsys):
    warn("bad \x1b[31m name\n")
    assert capsys.readouterr().err == "trpo_tf: bad \\x1b[31m name\n"
