"""What the tests of the environment side share."""

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.config import EnvironmentConfig
from trpo_tf.rollout.backends import envpool
from trpo_tf.rollout.environments import Environments

NEEDS_ENVPOOL = pytest.mark.skipif(not envpool.installed(), reason="EnvPool is not installed")
BACKENDS = ["gymnasium", pytest.param("envpool", marks=NEEDS_ENVPOOL)]


def environments(env="", num_envs=1, backend="auto", stagger=False, eval_env=None, **settings):
    """Environments of an id, or of what `env` is else."""
    named, given = (env, None) if isinstance(env, str) else ("given", env)
    config = EnvironmentConfig(env=named, num_envs=num_envs, env_backend=backend, stagger=stagger, **settings)
    return Environments(config, given, eval_env)


def vector_env(env, num_envs, seed, backend="auto", **settings):
    """A VectorEnv for training."""
    return environments(env, num_envs, backend, **settings).training(seed)


def drawn(space, count, rng):
    """Random actions [count, ...] in the structure of the space."""
    if isinstance(space, gym.spaces.Dict):
        return {key: drawn(part, count, rng) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(drawn(part, count, rng) for part in space)
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=count) + space.start
    if isinstance(space, gym.spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(count, *space.shape)) + space.start
    if isinstance(space, gym.spaces.MultiBinary):
        return rng.integers(2, size=(count, *space.shape)).astype(np.int8)
    low, high = np.maximum(space.low, -2), np.minimum(space.high, 2)
    return rng.uniform(low, high, (count, *space.shape)).astype(space.dtype)


def run(envs, steps, seed=0):
    """Random actions; obs [T+1, B, ...], action, and the fields of every step, stacked to [T, B]."""
    rng = np.random.default_rng(seed)
    obs, taken, actions = [np.array(envs.reset()["observation"])], [], []
    for _ in range(steps):
        actions.append(drawn(envs.action_space, envs.num_envs, rng))
        taken.append(envs.step(actions[-1]))
        obs.append(np.array(taken[-1].obs["observation"]))
    stacked = [np.stack(x) for x in zip(*(step[1:] for step in taken), strict=True)]
    return np.stack(obs), np.stack(actions), *stacked
