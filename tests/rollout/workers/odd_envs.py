"""Environments for workers on Ray; nothing here imports TensorFlow."""

import os
import threading
import time

import gymnasium as gym
import numpy as np


class Numbered(gym.Env):
    """obs = [seed, step since it was made, 0]; one episode without an end. Sleeps `seconds` a step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, seconds=0.0):
        self.seconds, self.number, self.count = seconds, -1, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.number = self.number if seed is None else seed
        return self._obs(), {}

    def step(self, action):
        time.sleep(self.seconds)
        self.count += 1
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        return np.array([self.number, self.count, 0], np.float64)


class Threaded(Numbered):
    """obs = [whether in the main thread of its process, step, in which thread]."""

    def _obs(self):
        return np.array([_in_main_thread(), self.count, threading.get_ident() % 2**31], np.float64)


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()


class Fatal(Numbered):
    """In a process other than `mine`, ends it, hangs in reset, or raises, as `how` says."""

    def __init__(self, how, mine):
        super().__init__()
        self.how, self.mine = how, mine

    def reset(self, seed=None, options=None):
        if self.how == "hang" and os.getpid() != self.mine:
            time.sleep(1000)
        return super().reset(seed=seed)

    def step(self, action):
        if os.getpid() != self.mine:
            if self.how == "exit":
                os._exit(3)
            if self.how == "raise":
                raise OSError("the licence server is gone")
        return super().step(action)


class Pixels(gym.Env):
    """Images of 36 x 36 in 4 frames; the reward is the action."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 4), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        return self._obs(), float(action), self.count == 7, False, {}

    def _obs(self):
        return self.np_random.integers(256, size=(36, 36, 4), dtype=np.uint8)


class Masked(gym.Env):
    """Of three actions the one that `info` forbids ends the process."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), self._info()

    def step(self, action):
        assert action != self.forbidden
        self.count += 1
        return np.zeros(2, np.float32), 1.0, self.count == 5, False, self._info()

    def _info(self):
        self.forbidden = int(self.np_random.integers(3))
        mask = np.ones(3, np.int8)
        mask[self.forbidden] = 0
        return {"action_mask": mask}


gym.register("Numbered-v0", entry_point=Numbered)
