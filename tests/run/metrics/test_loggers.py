"""progress.csv over interruptions, columns that come later, loggers that fail."""

import csv
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import tensorflow as tf

from trpo_tf.messages import warn
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
    log(started(path), *map(row, (1, 2, 3, 4)))
    with open(path, "a") as file:
        file.write("5,50,1.")
    log(started(path, 2), row(3, 9.0))
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


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path, capsys):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1))
    path.rename(tmp_path / "aside")
    path.mkdir()
    log(logger, row(2))
    path.rmdir()
    (tmp_path / "aside").rename(path)
    log(logger, row(3))
    assert [r["update"] for r in read_csv(path)] == ["1", "2", "3"]
    assert capsys.readouterr().err.count("CsvLogger failed, training goes on") == 1


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


def test_warnings_escape_control_characters(capsys):
    warn("bad \x1b[31m name\n")
    assert capsys.readouterr().err == "trpo_tf: bad \\x1b[31m name\\n\n"


@pytest.mark.parametrize("damage", ["removed", "emptied", "other columns", "not text"])
def test_a_file_that_is_removed_or_damaged_stops_nothing(tmp_path, damage, capsys):
    path = tmp_path / "progress.csv"
    logger = started(path)
    log(logger, row(1))
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"emptied": b"", "other columns": b"a,b\n1,2\n", "not text": b"\xff\xfe\n\x80\n"}[damage])
    log(logger, row(2), row(3, mine=1.0))
    log(started(path, 3), row(4))
    assert [r["update"] for r in read_csv(path)][-1] == "4"
    assert "mine" in read_csv(path)[-1] or damage in ("other columns", "not text")
    assert "Traceback" not in capsys.readouterr().err
