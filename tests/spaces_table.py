"""Action spaces, observation spaces and networks that everything has to work with, and an environment of any two."""

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.encoders import MASK, TAKEN

BOX = gym.spaces.Box(np.array([-2.0, -1.0], np.float32), np.array([2.0, 0.5], np.float32))
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
WHOLE, DOUBLES = gym.spaces.Box(-3, 7, (2,), np.int16), gym.spaces.Box(0.1, 0.7, (1,), np.float64)
HYBRID = gym.spaces.Dict(
    {"Move to": gym.spaces.Box(-1, 1, (2,)), "grip": gym.spaces.Discrete(2), "tools": gym.spaces.MultiDiscrete([2, 3])}
)

# Name: the space, and the settings of Config that go with it.
ACTIONS = {
    "box": (BOX, {}),
    "state_std": (BOX, {"action_distribution": "gaussian_with_state_std"}),
    "squashed": (BOX, {"action_distribution": "squashed_gaussian"}),
    "beta": (BOX, {"action_distribution": "beta"}),
    "unbounded_matrix": (gym.spaces.Box(-np.inf, np.inf, (2, 2)), {}),
    "discrete": (gym.spaces.Discrete(4, start=-2), {}),
    "multi_discrete": (gym.spaces.MultiDiscrete([2, 4, 3], start=[1, 0, -5]), {}),
    "multi_binary": (gym.spaces.MultiBinary((2, 2)), {}),
    "dict": (HYBRID, {}),
    "tuple": (gym.spaces.Tuple((gym.spaces.Discrete(3), BOX, gym.spaces.MultiBinary(2), WHOLE, DOUBLES)), {}),
}
NUMBERS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
OBSERVATIONS = {
    "box": NUMBERS,
    "matrix_of_doubles": gym.spaces.Box(-5, 5, (2, 2), np.float64),
    "times": gym.spaces.Box(1_700_000_000, 1_700_000_009, (3,), np.int64),
    "bytes": gym.spaces.Box(0, 255, (6,), np.uint8),
    "discrete": gym.spaces.Discrete(5, start=2),
    "multi_discrete": gym.spaces.MultiDiscrete([2, 5]),
    "multi_binary": gym.spaces.MultiBinary(4),
    "image_last": gym.spaces.Box(0, 255, (20, 24, 3), np.uint8),
    "image_first": gym.spaces.Box(0, 255, (4, 20, 24), np.uint8),
    "dict": gym.spaces.Dict({"camera": gym.spaces.Box(0, 255, (16, 16, 1), np.uint8), "Speed": NUMBERS}),
    "tuple": gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Dict({"seed": NUMBERS}))),
}
IMAGES = ("image_last", "image_first", "dict")
NETWORKS = {
    "mlp": {"image_encoder": "flat"},
    "cnn": {"image_encoder": "trpo"},
    "gru": {"network": "gru", "sequence_length": 2},
    "lstm": {"network": "lstm", "sequence_length": 2},
}


def sampled(space, rows=6):
    """Observations of a space by the names of their leaves, [rows, ...] each."""
    space.seed(0)
    leaves = [spaces.named(space.sample(), "observation", TAKEN) for _ in range(rows)]
    return {name: np.stack([leaf[name] for leaf in leaves]) for name in leaves[0]}


class Table(gym.Env):
    """Observations drawn from a space, by the environment's seed; episodes of 5 steps; the reward is random."""

    def __init__(self, observation, action, masked=False, render_mode=None):
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action][0]
        self._masked = masked
        if masked:
            sizes = _choices(self.action_space)
            parts = {"obs": self.observation_space, MASK: gym.spaces.MultiBinary(sum(sizes))}
            self.observation_space = gym.spaces.Dict(parts)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._count = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        if self._masked:
            chosen = zip(self._allowed(), _chosen(self.action_space, action), strict=True)
            assert all(part[choice] for part, choice in chosen)
        self._count += 1
        return self._observe(), float(self.np_random.normal()), self._count == 5, False, {}

    def _observe(self):
        self._obs = self.observation_space.sample()
        if self._masked:
            for part in self._allowed():
                part[self.np_random.integers(len(part))] = 1
        return self._obs

    def _allowed(self):
        return np.split(self._obs[MASK], np.cumsum(_choices(self.action_space))[:-1])


def _choices(space):
    if isinstance(space, gym.spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec.tolist()
    if isinstance(space, gym.spaces.Dict):
        return [n for key in sorted(space.keys()) for n in _choices(space[key])]
    return []


def _chosen(space, action):
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return np.ravel(action - space.start).tolist()
    if isinstance(space, gym.spaces.Dict):
        return [n for key in sorted(space.keys()) for n in _chosen(space[key], action[key])]
    return []


if "Table-v0" not in gym.registry:
    gym.register("Table-v0", Table, disable_env_checker=True)
