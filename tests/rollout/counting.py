"""Environments with known answers, for the tests of the environment side."""

import gymnasium as gym
import numpy as np


class Counting(gym.Env):
    """obs = [episode number, step number]; episodes last 2, 3, 4, 5, 2, ... steps; every other one is truncated.

    Reward is the action. The first observation of the environment with seed s has episode number 100 s.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(3, start=1)

    def __init__(self, render_mode=None):
        self.episode = None

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.episode = 100 * (seed % 1000)
        else:
            self.episode += 1
        self.count = 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.count += 1
        over = self.count == 2 + self.episode % 4
        truncated = over and self.episode % 2 == 1
        return self._obs(), float(action), over and not truncated, truncated, {}

    def _obs(self):
        return np.array([self.episode, self.count], np.float64)


class Faulty(gym.Env):
    """Gives what it is told at chosen steps: Faulty({step: ("obs" | "reward", value)}); episodes last 5 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, faults=None, render_mode=None):
        self.faults, self.total = faults or {}, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert np.isfinite(action).all()
        self.total += 1
        self.count += 1
        obs, reward = np.full(2, self.count, np.float32), 1.0
        where, value = self.faults.get(self.total, (None, None))
        if where == "obs":
            obs[1] = value
        if where == "reward":
            reward = value
        return obs, reward, self.count == 5, False, {}


class Old(gym.Env):
    """Steps return four values, as before gymnasium."""

    observation_space, action_space = Faulty.observation_space, Faulty.action_space

    def __init__(self, render_mode=None):
        pass

    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, {}


class Words(Faulty):
    """Observations that nothing here can take."""

    observation_space = gym.spaces.Text(5)

    def reset(self, seed=None, options=None):
        return "a", {}

    def step(self, action):
        return "b", 0.0, False, False, {}


for kind in (Counting, Faulty, Old, Words):
    if f"{kind.__name__}-v0" not in gym.registry:
        gym.register(f"{kind.__name__}-v0", kind, disable_env_checker=True)
