"""Shared pieces of the tests: quiet TensorFlow, small networks in float64, a tiny training configuration."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.policy.networks import FlatNetwork
from trpo_tf.policy.policy import Policy
from trpo_tf.trainer import use_threads

use_threads(Config(env="x"))  # as `train` does in a process of its own, so that both round alike

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
}


@pytest.fixture
def tiny():
    """Makes a Config that trains in seconds: tiny(total_steps=500, ...)."""
    return lambda **changes: Config(**(TINY | changes))


@pytest.fixture
def uncompiled(monkeypatch):
    """Without XLA, which takes longer to compile than a few updates of a few rows."""
    monkeypatch.setattr(Policy, "compiled", False)


@pytest.fixture
def stepped(uncompiled):
    """Starts an agent and takes so many steps: stepped(agent, 3) -> the metrics of each, its value fit included."""

    def take(agent, count=1):
        agent.start()
        rows = []
        for _ in range(count):
            row, fit = agent.step()
            rows.append(row | fit.result())
        agent.behavior.close()
        return rows

    return take


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
