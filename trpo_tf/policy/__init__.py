"""Keras networks, TensorFlow Probability distributions, the observation normaliser; acting through TensorFlow."""

import os
import sys

from trpo_tf.errors import UsageError

if "keras" not in sys.modules:  # Keras reads it once, before keras.json
    os.environ["KERAS_BACKEND"] = "tensorflow"
elif (backend := sys.modules["keras"].backend.backend()) != "tensorflow":
    raise UsageError(f"Keras runs on {backend} in this process; KERAS_BACKEND=tensorflow is needed before its import")
