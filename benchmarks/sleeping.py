"""An environment that sleeps: as slow as a simulator of a robot, while the cores of this machine stay idle."""

import time

import gymnasium as gym
import numpy as np


class Sleeping(gym.Env):
    """Each step sleeps for a lognormal time. The observation is [seed, step]; one episode without an end.

    Args:
      seconds: mean of a step's time.
      sigma: standard deviation of its logarithm.
      straggle: every so many stretches of `stretch` steps, one is `slower` times as slow; 0: none is. Environments of
        consecutive seeds take their turns at it.
      stretch, slower: see above.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, seconds=0.005, sigma=0.5, straggle=0, stretch=64, slower=5.0):
        self._seconds, self._sigma = seconds, sigma
        self._straggle, self._stretch, self._slower = straggle, stretch, slower
        self._number = self._count = 0

    def reset(self, seed=None, options=None):
        """Starts; see gymnasium."""
        super().reset(seed=seed)
        self._number = self._number if seed is None else seed
        return self._obs(), {}

    def step(self, action):
        """Sleeps; see gymnasium."""
        time.sleep(self._next_seconds())
        self._count += 1
        return self._obs(), 0.0, False, False, {}

    def _next_seconds(self):
        mean = self._seconds * np.exp(self._sigma * self.np_random.normal() - self._sigma**2 / 2)
        turn = self._count // self._stretch + 37 * self._number  # 37 has no common factor with 100
        return mean * (self._slower if self._straggle and turn % self._straggle == 0 else 1.0)

    def _obs(self):
        return np.array([self._number, self._count], np.float64)
