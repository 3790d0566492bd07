"""Work on the rows of a batch chunk by chunk: memory holds the activations of one chunk, not of the whole batch.

A chunk of 0, or one that holds every row, is the whole batch at once. The last chunk begins early where it would not be
full, so that all have one shape.
"""

import tensorflow as tf

from trpo_tf.learner.shapes import has_shape


def add_up(function, rows, weights: tf.Tensor, chunk: int):
    """The sum over chunks of function(rows of the chunk, their weights).

    Args:
      function: (nest of [C, ...], [C]) -> nest of tensors; sums over rows, to which a row of weight 0 adds nothing.
      rows: nest of [>= N, ...].
      weights: [N].
      chunk: C.

    Returns:
      What `function` returns for N rows at once, to rounding.

    Raises:
      ValueError: the weights have another shape.
    """
    has_shape("weights", weights, [None])
    count = weights.shape[0]
    if not 0 < chunk < count:
        return function(_slice(rows, 0, count), weights)

    def step(k, sums):
        return k + 1, tf.nest.map_structure(tf.add, sums, function(*_chunk(rows, weights, chunk, k)))

    zeros = tf.nest.map_structure(tf.zeros_like, function(*_chunk(rows, weights, chunk, 0)))
    return tf.while_loop(lambda k, _: k < -(-count // chunk), step, (0, zeros), parallel_iterations=1)[1]


def for_each(function, rows, weights: tf.Tensor, chunk: int) -> None:
    """Calls function(rows of a chunk, their weights) on every chunk, for what it does to variables.

    Arguments as `add_up`; the function's result is left alone.
    """
    has_shape("weights", weights, [None])
    count = weights.shape[0]
    if not 0 < chunk < count:
        function(_slice(rows, 0, count), weights)
        return

    def step(k):
        function(*_chunk(rows, weights, chunk, k))
        return (k + 1,)

    tf.while_loop(lambda k: k < -(-count // chunk), step, (0,), parallel_iterations=1)


def apply(function, rows, count: int, chunk: int) -> tf.Tensor:
    """function(rows), computed chunk by chunk.

    Args:
      function: nest of [C, ...] -> [C, ...]; every row by itself.
      rows: nest of [>= N, ...].
      count: N.
      chunk: C.

    Returns:
      [N, ...].
    """
    if not 0 < chunk < count:
        return function(_slice(rows, 0, count))
    chunks = -(-count // chunk)
    starts = tf.minimum(tf.range(chunks) * chunk, count - chunk)
    first = function(_slice(rows, 0, chunk))  # for its type and shape
    results = tf.map_fn(
        lambda start: function(_slice(rows, start, chunk)),
        starts,
        parallel_iterations=1,
        fn_output_signature=first.dtype,
    )
    before = (chunks - 1) * chunk
    return tf.concat([tf.reshape(results[:-1], [before, *first.shape[1:]]), results[-1, before - count :]], 0)


def _chunk(rows, weights, chunk: int, k):
    """Chunk k, with weight 0 for rows that the chunk before had."""
    start = tf.minimum(k * chunk, weights.shape[0] - chunk)
    taken, theirs = _slice((rows, weights), start, chunk)
    return taken, tf.where(start + tf.range(chunk) >= k * chunk, theirs, 0)


def _slice(rows, start, size: int):
    def one(x):
        return tf.slice(x, [start] + [0] * (x.shape.rank - 1), [size, *x.shape[1:]])

    return tf.nest.map_structure(one, rows)
