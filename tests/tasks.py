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


class Offset(_Bandit):
    """A point for the sign of an odd number from -7 to 7, seen `offset` away: Unix time, where that is 1.7e9."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, offset=1.7e9, dtype=np.float64, render_mode=None):
        self._offset = offset
        self.observation_space = gym.spaces.Box(-(2**40), 2**40, (1,), dtype)

    def _draw(self):
        self._number = 2 * int(self.np_random.integers(-4, 4)) + 1
        return np.array([self._offset + self._number], self.observation_space.dtype)

    def _reward(self, action):
        return action == (self._number > 0)


class Burst(PositionCartPole):
    """CartPole-v1 whose environments all pay 1e38 in every step from the `first` to the `last` of their lives."""

    def __init__(self, first=128, last=330, render_mode=None):
        super().__init__(render_mode)
        self._first, self._last, self._steps = first, last, 0

    def step(self, action):
        self._steps += 1
        obs, reward, *rest = super().step(action)
        return obs, 1e38 if self._first <= self._steps < self._last else reward, *rest


for task in (Offset, Burst, MaskedInObservation, MaskedInInfo, Choices, Bits, Hybrid, PositionCartPole):
    if f"{task.__name__}-v0" not in gym.registry:
        gym.register(f"{task.__name__}-v0", task, disable_env_checker=True)

for name, settings in {"OffsetInt": {"dtype": np.int64}, "OffsetNone": {"offset": 0.0}}.items():
    if f"{name}-v0" not in gym.registry:
        gym.register(f"{name}-v0", Offset, disable_env_checker=True, kwargs=settings)
