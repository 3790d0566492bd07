"""Shared pieces of the tests: quiet TensorFlow, small networks in float64, a tiny training configuration."""

import contextlib
import gc
import multiprocessing
import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import ComputeConfig, make_config
from trpo_tf.policy.networks import FlatNetwork
from trpo_tf.rollout.environments import Environments
from trpo_tf.session import Session
from trpo_tf.training import use_threads

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's `make test &`; processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

use_threads(ComputeConfig())  # as a training process does, so that both round alike

# XLA takes longer to compile than a few updates of a few transitions: off, but for tests of what it compiles.
TINY = {
    "env": "CartPole-v1",
    "num_envs": 4,
    "steps_per_update": 64,
    "hidden_sizes": (8,),
    "value_epochs": 2,
    "value_minibatch_size": 16,
    "cg_iterations": 3,
    "eval_episodes": 2,
    "final_eval_episodes": 2,
    "checkpoint_every": 3,
    "eval_every": 4,
    "xla": "off",
}
# What trpo_tf.TRPO takes of it beside the environment; the rest is the training command's.
SMALL = {name: value for name, value in TINY.items() if name != "env" and "eval" not in name}


@pytest.fixture(autouse=True)
def _collected_quickly():
    """Collections walk what the test made, and not TensorFlow's half a million objects."""
    if multiprocessing.active_children():
        gc.collect()  # an expected error may hold environments in processes; frozen, they would never be freed
    gc.freeze()


@contextlib.contextmanager
def eager(wanted=True):
    """Without graphs: for a few updates of a few rows they take longer to build than the updates."""
    tf.config.run_functions_eagerly(wanted)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def eagerly():
    """The test runs without graphs."""
    with eager():
        yield


@pytest.fixture
def tiny():
    """Makes a configuration that trains in seconds: tiny(total_steps=500, ...)."""
    return lambda **changes: make_config(**(TINY | changes))


@pytest.fixture
def make_session(tiny):
    """Makes sessions of tiny configurations, and closes them: make_session(reuse=2) -> Session."""
    made = []

    def make(**changes):
        config = tiny(**changes)
        made.append(Session(config, Environments(config.environment)))
        made[-1].start()
        return made[-1]

    yield make
    for session in made:
        session.close()
        session.learner.wait()


@pytest.fixture
def small_network():
    """Makes a two-layer float64 network with random weights: small_network(inputs, heads) -> FlatNetwork, theta, x."""

    def make(inputs, heads, rows=7, seed=0):
        layers = [
            keras.layers.Input((inputs,), dtype="float64"),
            keras.layers.Dense(4, "tanh", dtype="float64"),
            *heads,
        ]
        network = FlatNetwork(keras.Sequential(layers))
        rng = np.random.default_rng(seed)
        theta = tf.constant(rng.normal(size=network.size) * 0.5, tf.float64)
        return network, theta, tf.constant(rng.normal(size=(rows, inputs)), tf.float64)

    return make
