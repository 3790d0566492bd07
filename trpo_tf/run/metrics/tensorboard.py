"""TensorBoard event files."""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.messages import warn_on_failure
from trpo_tf.paths import absolute
from trpo_tf.run.metrics.logger import Logger


class TensorBoardLogger(Logger):
    """Writes the numbers of every row, by environment steps; words are left out.

    Args:
      directory: of the event files.
    """

    def __init__(self, directory: str | os.PathLike):
        super().__init__()
        self._directory, self._writer = absolute("directory", directory), None

    def start(self, agent: Any) -> None:
        """As Callback says."""
        with warn_on_failure("TensorBoard", self.failures):
            self._writer = tf.summary.create_file_writer(self._directory)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row."""
        if self._writer is None:
            return
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float, np.number))}
        # One record for all of them: tf.summary.scalar, one call each, would take longer than a line search.
        summary = tf.compat.v1.Summary(
            value=[tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        )
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=int(row["env_steps"]))
        self._writer.flush()

    def close(self) -> None:
        """As Callback says."""
        if self._writer is not None:
            with warn_on_failure("TensorBoard", self.failures, self._named):
                self._writer.close()
            self._writer = None
