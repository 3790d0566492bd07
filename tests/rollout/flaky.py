"""Environments that fail as a test tells them; nothing here imports TensorFlow."""

import os
from typing import ClassVar

import gymnasium as gym
import numpy as np


class Flaky(gym.Env):
    """A random walk that calls fault(self, call, count) at every call; count: of that call in the whole process.

    obs = [position, steps of the episode]; episodes end at a distance of 3 or after 50 steps; the reward is 1 a step.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    counts: ClassVar[dict[str, int]] = {}

    def __init__(self, fault=lambda env, call, count: None):
        self.fault = fault
        self._call("constructor")

    def _call(self, call):
        self.counts[call] = self.counts.get(call, 0) + 1
        return self.fault(self, call, self.counts[call])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        changed = self._call("reset")
        self.steps, self.position = 0, self.np_random.normal() / 10
        result = self._obs(), {}
        return result if changed is None else changed(result)

    def step(self, action):
        changed = self._call("step")
        self.steps += 1
        self.position += (2 * int(action) - 1) / 4 + self.np_random.normal() / 4
        result = self._obs(), 1.0, bool(abs(self.position) > 3), self.steps >= 50, {}
        return result if changed is None else changed(result)

    def close(self):
        self._call("close")

    def _obs(self):
        return np.array([self.position, self.steps], np.float32)


def chance(p, call="step"):
    """Fails with probability p at every such call, otherwise each time that it is asked."""

    def fault(env, name, count):
        if name == call and int.from_bytes(os.urandom(4), "little") < p * 2**32:
            raise RuntimeError(f"{call} failed by chance")

    return fault


def drawn(p):
    """Fails with probability p at every step, again and again where the same seed and actions are given."""

    def fault(env, name, count):
        if name == "step" and env.np_random.random() < p:
            raise LookupError("step failed by its seed")

    return fault
