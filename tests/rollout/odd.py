"""An environment that answers whatever a test tells it, well or not."""

import gymnasium as gym
import numpy as np

LINE = gym.spaces.Box(-1, 1, (2,), np.float32)
ZEROS = np.zeros(2, np.float32)


class Odd(gym.Env):
    """Episodes of 4 steps. Whatever is given is answered; what is callable is called with the number of the step.

    The number of the step goes on over episodes; it is 0 until the first step.

    Args:
      obs, info, reward, terminated: of every answer; terminated None: True at the last step of each episode.
      answer: of step, instead of all of these. first: of reset.
    """

    opened = most_open = made = 0  # over all of them

    def __init__(
        self, observation=LINE, action=LINE, obs=ZEROS, info=None, reward=1.0, terminated=None, truncated=False,
        answer=None, first=None,
    ):  # fmt: skip
        self.observation_space, self.action_space = observation, action
        self._obs, self._info, self._reward = obs, info, reward
        self._terminated, self._truncated = terminated, truncated
        self._answer, self._first, self._count, self._open = answer, first, 0, True
        Odd.made, Odd.opened = Odd.made + 1, Odd.opened + 1
        Odd.most_open = max(Odd.most_open, Odd.opened)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._in_episode = 0
        return self._said(self._first) if self._first else (self._said(self._obs), self._said(self._info))

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._count += 1
        self._in_episode += 1
        if self._answer:
            return self._said(self._answer)
        terminated = self._in_episode == 4 if self._terminated is None else self._said(self._terminated)
        return self._said(self._obs), self._said(self._reward), terminated, self._truncated, self._said(self._info)

    def _said(self, what):
        return what(self._count) if callable(what) else what

    def close(self):
        Odd.opened -= self._open
        self._open = False
