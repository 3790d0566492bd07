"""progress.csv over interruptions, and places that fail."""

import csv
from concurrent.futures import Future

import pytest
import tensorflow as tf

from trpo_tf.run import metrics
from trpo_tf.run.metrics import Csv, Metering, read_csv


def row(update, value=1.5):
    return {"update": update, "env_steps": 10 * update, "env/episode_return": value, "eval/episode_return": None}


def done():
    future = Future()
    future.set_result({})
    return future


def test_rows_are_written_and_read_back(tmp_path):
    path = tmp_path / "progress.csv"
    place = Csv(path, 0)
    place.write(row(1, 1 / 3))
    place.write(row(2))
    rows = read_csv(path)
    assert [r["update"] for r in rows] == ["1", "2"]
    assert float(rows[0]["env/episode_return"]) == 1 / 3
    assert rows[0]["eval/episode_return"] == ""


def test_a_resumed_run_drops_rows_after_its_checkpoint_and_a_torn_one(tmp_path):
    path = tmp_path / "progress.csv"
    place = Csv(path, 0)
    for update in (1, 2, 3, 4):
        place.write(row(update))
    with open(path, "a") as file:
        file.write("5,50,1.")
    resumed = Csv(path, 2)
    resumed.write(row(3, 9.0))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(r["update"], r["env/episode_return"]) for r in rows] == [("1", "1.5"), ("2", "1.5"), ("3", "9.0")]


def test_a_torn_row_within_the_kept_ones_is_dropped_too(tmp_path):
    path = tmp_path / "progress.csv"
    place = Csv(path, 0)
    place.write(row(1))
    with open(path, "a") as file:
        file.write("2,20")
    Csv(path, 2).write(row(2))
    assert [r["update"] for r in read_csv(path)] == ["1", "2"]


def test_a_file_with_only_a_header_or_a_torn_one_starts_afresh(tmp_path):
    path = tmp_path / "progress.csv"
    for content in ("update,env_steps\n", "update,env_st", ""):
        path.write_text(content)
        Csv(path, 5).write(row(1))
        assert [r["update"] for r in read_csv(path)] == ["1"], content
        assert path.read_text().count("update") == 1


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path):
    path = tmp_path / "progress.csv"
    place = Csv(path, 0)
    place.write(row(1))
    path.rename(tmp_path / "aside")
    path.mkdir()
    metering = Metering(place)
    metering.write(row(2), done())
    metering.flush()
    path.rmdir()
    (tmp_path / "aside").rename(path)
    place.write(row(3))
    assert [r["update"] for r in read_csv(path)] == ["1", "2", "3"]


def test_a_place_that_fails_is_named_once_and_the_others_go_on(capsys):
    class Broken:
        def write(self, metrics):
            raise OSError(28, "No space left on device")

    class Good(list):
        write = list.append

    good = Good()
    metering = Metering(Broken(), good)
    metering.write(row(1), done())
    metering.write(row(2), done())
    metering.flush()
    assert len(good) == 2
    assert capsys.readouterr().err.count("Broken failed, training goes on") == 1


def test_a_row_waits_for_the_rest_of_it_and_is_written_once():
    class Place(list):
        write = list.append

    place, rest = Place(), Future()
    metering = Metering(place)
    metering.write({"update": 1}, rest)
    assert place == []
    rest.set_result({"value/loss": 0.5})
    metering.write({"update": 2}, done())
    metering.flush()
    assert place == [{"update": 1, "value/loss": 0.5}, {"update": 2}]


def test_a_rest_that_failed_is_no_fault_of_a_place(capsys):
    rest = Future()
    rest.set_exception(tf.errors.ResourceExhaustedError(None, None, "out of memory"))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        Metering([]).write({"update": 1}, rest)
    assert "training goes on" not in capsys.readouterr().err


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = metrics.TensorBoard(tmp_path)
    for update in (1, 2):
        place.write(row(update, update / 4))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("env/episode_return")] == [(10, 0.25), (20, 0.5)]
    assert "eval/episode_return" not in events.Tags()["scalars"]


def test_warnings_escape_control_characters(capsys):
    metrics.warn("bad \x1b[31m name\n")
    assert capsys.readouterr().err == "trpo_tf: bad \\x1b[31m name\\n\n"
