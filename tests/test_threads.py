"""TensorFlow's threads can be chosen after the import of all that trains: nothing starts TensorFlow before."""

import subprocess
import sys

SCRIPT = """
import trpo_tf.runs
from tensorflow.python.eager import context
print("started" if context.context()._initialized else "not started")
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.constant(1.0)
print("started" if context.context()._initialized else "not started")
"""


def test_importing_what_trains_does_not_start_tensorflow():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["not started", "started"]
