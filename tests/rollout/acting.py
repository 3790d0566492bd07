"""Environments that do what a test tells them, for processes of their own: nothing here imports TensorFlow."""

import copy

import gymnasium as gym
import numpy as np


class Acting(gym.Env):
    """Calls `act(environment number, step number)` at each step, which may return a reward; episodes last 4 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, act=lambda number, count: None):
        self.act = act

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.count = self.np_random_seed if seed is None else seed, 0
        return np.array([self.number], np.float64), {}

    def step(self, action):
        self.count += 1
        reward = self.act(self.number, self.count)
        return np.array([self.number], np.float64), 0.0 if reward is None else reward, self.count == 4, False, {}


class Loose(Acting):
    """Returns what it should not, and what numpy takes all the same."""

    def step(self, action):
        _, _, terminated, _, _ = super().step(action)
        return [1], np.array(0.1, np.float32), int(terminated), np.False_, {"not to be sent": lambda: None}


class Drawn(gym.Env):
    """Draws observations from a space of its own; episodes last 5 steps and pay noise; `masked`: a mask in `info`."""

    def __init__(self, observation_space, action_space, masked=False):
        self.observation_space, self.action_space = copy.deepcopy(observation_space), action_space
        self.masked = masked

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), self._info()

    def step(self, action):
        assert self.action_space.contains(action), action
        self.count += 1
        reward, obs = float(self.np_random.normal()), self.observation_space.sample()
        return obs, reward, self.count == 5, self.count == 5, self._info()

    def _info(self):
        mask = self.np_random.integers(2, size=4).astype(np.int8)
        mask[self.np_random.integers(4)] = 1
        return {"action_mask": mask} if self.masked else {}


class Broke(Exception):
    """An exception that cannot be rebuilt from its message."""

    def __init__(self, number, why):
        super().__init__(f"number {number} {why}: 100%\nand more")


def fail(number, count):
    """Raises at the second step of environment 1."""
    if number == 1 and count == 2:
        raise Broke(number, "broke")
