"""What the server imports that environments' processes are forked from; BLAS has no threads in them, as in acting."""

import os

for _library in ("OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"  # read when it is loaded, with NumPy

import gymnasium.vector  # noqa: E402, F401

import trpo_tf.rollout.backends.processes  # noqa: E402, F401
