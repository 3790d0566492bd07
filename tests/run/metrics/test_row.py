"""A row that waits for the value fit only where it must."""

from concurrent.futures import Future

import pytest

from trpo_tf.run.metrics.row import Row


def test_what_is_known_is_read_without_waiting_and_the_rest_waits():
    rest = Future()
    row = Row({"update": 1, "policy/kl": 0.5}, rest)
    assert (row["policy/kl"], row.complete) == (0.5, False)
    rest.set_result({"value/loss": 2.0})
    assert row.complete
    assert row["value/loss"] == 2.0
    assert dict(row) == {"update": 1, "policy/kl": 0.5, "value/loss": 2.0}


def test_what_is_put_in_stays_whatever_the_rest_says():
    rest = Future()
    row = Row({"update": 1}, rest)
    row["mine"] = 3.0
    rest.set_result({"mine": 4.0, "value/loss": 1.0})
    assert (row["mine"], row["value/loss"], len(row)) == (3.0, 1.0, 3)
    del row["mine"]
    assert "mine" not in row


def test_a_value_fit_that_failed_fails_where_its_metrics_are_read():
    rest = Future()
    rest.set_exception(ZeroDivisionError("broken"))
    row = Row({"update": 1}, rest)
    assert row["update"] == 1
    with pytest.raises(ZeroDivisionError):
        dict(row)


def test_a_metric_that_is_not_there_is_none_by_get():
    assert Row({"update": 1}).get("eval/episode_return") is None
    with pytest.raises(KeyError):
        Row({"update": 1})["eval/episode_return"]
