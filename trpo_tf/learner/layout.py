"""From time-major arrays [T, W, ...] to the rows of a batch, and back. Pure functions of shapes.

With sequences of L time steps, the rows of one stand together: row (k W + b) L + l is time k L + l of column b. With
L = 1 that is the order t W + b.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Layout(NamedTuple):
    """T time steps of W columns, in sequences of L; T is a multiple of L, and N = T W."""

    time: int
    columns: int
    length: int

    @property
    def rows(self) -> int:
        """N."""
        return self.time * self.columns

    @property
    def sequences(self) -> int:
        """How many sequences the rows are."""
        return self.rows // self.length

    def flat(self, x: tf.Tensor) -> tf.Tensor:
        """[T, W, ...] or [T+1, W, ...] -> [T W, ...] or [(T+1) W, ...], time by time."""
        return tf.reshape(x, [-1, *x.shape[2:]])

    def by_sequence(self, x: tf.Tensor) -> tf.Tensor:
        """The first N of flat rows [>= N, ...], the rows of a sequence together."""
        x = x[: self.rows]
        if self.length == 1:
            return x
        x = tf.reshape(x, [-1, self.length, self.columns, *x.shape[1:]])
        return tf.reshape(tf.transpose(x, [0, 2, 1, *range(3, x.shape.rank)]), [-1, *x.shape[3:]])

    def batch(self, x: tf.Tensor) -> tf.Tensor:
        """[T, W, ...] or [T+1, W, ...] in batch order. With L = 1 the W rows of time T stay at the end: no copy."""
        if self.length == 1 and x.shape[0] > self.time:
            return self.flat(x)
        return self.by_sequence(self.flat(x))

    def time_major(self, x: tf.Tensor) -> tf.Tensor:
        """Rows [N, ...] in the order of a batch -> flat rows [N, ...], time by time."""
        x = tf.reshape(x, [-1, self.columns, self.length, *x.shape[1:]])
        return tf.reshape(tf.transpose(x, [0, 2, 1, *range(3, x.shape.rank)]), [self.rows, *x.shape[3:]])

    def column_of_row(self) -> np.ndarray:
        """The column of every row of a batch, [N] int."""
        return np.arange(self.rows) // self.length % self.columns

    def rows_of_sequences(self, sequences: tf.Tensor) -> tf.Tensor:
        """The rows of sequences [..., M] int32 -> [..., M L] int32."""
        if self.length == 1:
            return sequences
        rows = sequences[..., None] * self.length + tf.range(self.length)
        return tf.reshape(rows, [*sequences.shape[:-1], sequences.shape[-1] * self.length])
