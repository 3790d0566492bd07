"""Chunks against the whole batch."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import chunks

ROWS = np.random.default_rng(0).normal(size=(12, 3))
WEIGHTS = np.random.default_rng(1).uniform(size=10)


def compiled(function, *inputs):
    return tf.function(function, autograph=False, jit_compile=True)(*inputs)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 9, 10, 99])
def test_a_sum_counts_every_row_once(chunk):
    def function(rows, weights):
        return {"sum": tf.reduce_sum(weights[:, None] * rows["x"] ** 2, 0), "count": tf.reduce_sum(weights)}

    result = compiled(lambda x: chunks.add_up(function, {"x": x}, tf.constant(WEIGHTS), chunk), ROWS)
    np.testing.assert_allclose(result["sum"], WEIGHTS @ ROWS[:10] ** 2, rtol=1e-12)
    np.testing.assert_allclose(result["count"], WEIGHTS.sum(), rtol=1e-12)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 9, 10, 99])
def test_every_row_is_seen_once_in_order(chunk):
    total = tf.Variable(tf.zeros([3], tf.float64))

    def function(rows, weights):
        for row, weight in zip(tf.unstack(rows), tf.unstack(weights), strict=True):
            total.assign(tf.where(weight > 0, 2 * total + row, total))  # what it becomes depends on the order

    compiled(lambda x: chunks.for_each(function, x, tf.constant(WEIGHTS), chunk), ROWS)
    np.testing.assert_allclose(total, 0.5 ** np.arange(-9, 1) @ ROWS[:10], rtol=1e-12)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 9, 10, 99])
def test_rows_keep_their_places(chunk):
    def function(rows):
        return rows[0] * rows[1][:, None]

    factors = np.arange(12.0)
    result = compiled(lambda *x: chunks.apply(function, x, 10, chunk), ROWS, factors)
    np.testing.assert_allclose(result, (ROWS * factors[:, None])[:10], rtol=1e-12)


MEMORY = """
import sys
from pathlib import Path
import gymnasium as gym
import numpy as np
from trpo_tf.config import make_config
from trpo_tf.learner.learner import Learner
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.stepper import aligned
from trpo_tf.types import Rollout, Trajectory


def peak():
    # KiB of this program alone: in getrusage a new program begins with the peak of the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


chunk, time, envs = int(sys.argv[1]), 3000, 20
settings = {"cg_iterations": 1, "max_backtracks": 1, "value_epochs": 1}
config = make_config(env="x", num_envs=envs, steps_per_update=time * envs, chunk_size=chunk, **settings)
policy = Policy(gym.spaces.Box(-1, 1, (64, 64)), gym.spaces.Discrete(4), config.policy, 0)
learner = Learner(policy, config, 0)
random, shape = np.random.default_rng(0), (time, envs)
obs = aligned((time + 1, envs, 64, 64), np.dtype(np.float32))
for row in obs:
    row[...] = random.standard_normal(row.shape)
never, logp = np.zeros(shape, bool), np.full(shape, np.log(0.25), np.float32)
reward, ones = random.standard_normal(shape).astype(np.float32), np.ones(shape, np.float32)
action = random.integers(0, 4, (*shape, 1)).astype(np.float32)
(leaf,) = policy.specs
trajectory = Trajectory({leaf: obs}, action, logp, reward, never, never, ones)
rollout = Rollout(trajectory, (), np.zeros(shape, np.int32), reward.cumsum(0), [], [], [], 0)
before = peak()
metrics, fit = learner.update(rollout, 1, 0.0)
fit.result()
assert metrics["policy/reason"] == "accepted"
print((peak() - before) * 1024 / obs.nbytes)
"""


@pytest.mark.slow
def test_an_update_in_chunks_needs_no_second_batch():
    """60,000 observations of 64 x 64 are 937 MiB; compilation takes some 300 whatever the batch."""

    def growth(chunk):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(chunk)], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    assert growth(500) < 0.7
    assert growth(0) > 1.5, "else this measures nothing"


@pytest.mark.parametrize("function", [chunks.add_up, chunks.for_each])
@pytest.mark.parametrize("chunk", [0, 3])
def test_a_column_of_weights_is_refused(function, chunk, column):
    with pytest.raises(ValueError, match="weights has shape"):
        function(lambda rows, weights: tf.reduce_sum(weights), tf.constant(ROWS), tf.constant(column(WEIGHTS)), chunk)
