"""Tasks with a known best return, for kinds of actions that the usual environments do not have."""

import gymnasium as gym
import numpy as np

from trpo_tf.acting.encoders import MASK

STEPS = 8


class _Bandit(gym.Env):
    """Eight rounds: an observation, an action, a reward of at most 1 that depends on both."""

    def __init__(self, render_mode=None):
        pass

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        self._obs = self._draw()
        return self._obs, self._info()

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = float(self._reward(action))
        self._count += 1
        self._obs = self._draw()
        return self._obs, reward, self._count == STEPS, False, self._info()

    def _info(self):
        return {}


class MaskedInObservation(_Bandit):
    """Of four prices the highest that is allowed pays 1, another allowed one 0; one that is not costs 10."""

    observation_space = gym.spaces.Dict({"price": gym.spaces.Box(0, 1, (4,)), MASK: gym.spaces.MultiBinary(4)})
    action_space = gym.spaces.Discrete(4, start=3)

    def _draw(self):
        mask = (self.np_random.random(4) < 0.6).astype(np.int8)
        mask[self.np_random.integers(4)] = 1
        return {"price": self.np_random.random(4).astype(np.float32), MASK: mask}

    def _reward(self, action):
        price, allowed = self._obs["price"], self._obs[MASK] > 0
        if not allowed[action - 3]:
            return -10.0
        return price[action - 3] == price[allowed].max()


class MaskedInInfo(MaskedInObservation):
    """The same with the mask in `info`, as gymnasium's Taxi has it, and not at an episode's end."""

    observation_space = gym.spaces.Box(0, 1, (4,))

    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0]["price"], self._info()

    def step(self, action):
        obs, *rest = super().step(action)
        return obs["price"], *rest

    def _info(self):
        return {MASK: self._obs[MASK]} if self._count < STEPS else {}


class Choices(_Bandit):
    """Two choices that depend on which of three situations it is, half a point each."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.MultiDiscrete([3, 4])

    def _draw(self):
        return int(self.np_random.integers(3))

    def _reward(self, action):
        return np.mean([action[0] == self._obs, action[1] == (self._obs + 2) % 4])


class Bits(_Bandit):
    """Four bits to be inverted, a quarter of a point each."""

    observation_space = action_space = gym.spaces.MultiBinary(4)

    def _draw(self):
        return self.np_random.integers(0, 2, 4).astype(np.int8)

    def _reward(self, action):
        return (action != self._obs).mean()


class Hybrid(_Bandit):
    """Half a point for the right switch, and half for the lever where the number is, less the square of what is off."""

    observation_space = gym.spaces.Tuple((gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)))
    action_space = gym.spaces.Dict({"lever": gym.spaces.Box(-1, 1, (1,)), "switch": gym.spaces.Discrete(2)})

    def _draw(self):
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), int(self.np_random.integers(2))

    def _reward(self, action):
        number, lamp = self._obs
        off = float(action["lever"][0] - number[0])
        return 0.5 * (action["switch"] == (number[0] > 0) ^ lamp) + 0.5 - 0.5 * off**2


class PositionCartPole(gym.ObservationWrapper):
    """CartPole-v1 without its velocities."""

    def __init__(self, render_mode=None):
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode))
        space = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[[0, 2]], space.high[[0, 2]])

    def observation(self, observation):
        return observation[[0, 2]]


for task in (MaskedInObservation, MaskedInInfo, Choices, Bits, Hybrid, PositionCartPole):
    if f"{task.__name__}-v0" not in gym.registry:
        gym.register(f"{task.__name__}-v0", task, disable_env_checker=True)
