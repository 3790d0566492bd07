"""Orders of rows by hand: T = 4 time steps of W = 3 columns, in sequences of one and of two."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner.layout import Layout

TIMES = 10 * np.arange(5)[:, None] + np.arange(3)  # [T+1, W]: 10 t + w
BY_TIME = [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]
BY_PAIRS = [0, 10, 1, 11, 2, 12, 20, 30, 21, 31, 22, 32]
ORDERS = [(1, BY_TIME), (2, BY_PAIRS)]


@pytest.fixture(params=ORDERS, ids=["single", "pairs"])
def case(request):
    """A layout, and what is in its rows."""
    length, order = request.param
    return Layout(4, 3, length), order


def test_sizes(case):
    layout, _ = case
    assert (layout.rows, layout.sequences) == (12, 12 // layout.length)


def test_flat_is_time_by_time(case):
    layout, _ = case
    assert layout.flat(tf.constant(TIMES[:4])).numpy().tolist() == BY_TIME
    assert layout.flat(tf.constant(TIMES)).numpy().tolist() == [*BY_TIME, 40, 41, 42]


def test_a_batch_has_the_rows_of_a_sequence_together(case):
    layout, order = case
    assert layout.batch(tf.constant(TIMES[:4])).numpy().tolist() == order


def test_the_last_observation_stays_behind_the_others_or_goes(case):
    layout, order = case
    rest = [40, 41, 42] if layout.length == 1 else []
    assert layout.batch(tf.constant(TIMES)).numpy().tolist() == order + rest


def test_by_sequence_leaves_out_what_is_over(case):
    layout, order = case
    assert layout.by_sequence(tf.constant(TIMES.ravel())).numpy().tolist() == order
    assert layout.by_sequence(tf.constant(TIMES[:4].ravel())).numpy().tolist() == order


def test_time_major_undoes_it(case):
    layout, order = case
    assert layout.time_major(tf.constant(order)).numpy().tolist() == BY_TIME


def test_what_belongs_to_a_row_goes_with_it(case):
    """There and back with more dimensions."""
    layout, order = case
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 5))
    batch = layout.batch(tf.constant(x))
    for row, number in enumerate(order):
        np.testing.assert_array_equal(batch[row], x[number // 10, number % 10])
    np.testing.assert_array_equal(layout.time_major(batch), x.reshape(12, 2, 5))


def test_the_column_of_every_row(case):
    layout, order = case
    assert layout.column_of_row().tolist() == [number % 10 for number in order]


def test_the_rows_of_sequences(case):
    layout, order = case
    numbers = tf.constant([[2, 0], [1, 5]])
    rows = layout.rows_of_sequences(numbers).numpy()
    assert rows.shape == (2, 2 * layout.length)
    found = np.array(order)[rows].reshape(2, 2, layout.length)
    for place in np.ndindex(2, 2):
        sequence = int(numbers[place])
        block, column = divmod(sequence, 3)
        assert found[place].tolist() == [10 * (block * layout.length + k) + column for k in range(layout.length)]


def test_one_sequence_as_long_as_the_time_and_one_column():
    assert Layout(4, 3, 4).batch(tf.constant(TIMES[:4])).numpy().tolist() == TIMES[:4].T.ravel().tolist()
    assert Layout(4, 1, 2).batch(tf.constant(TIMES[:4, :1])).numpy().tolist() == [0, 10, 20, 30]
