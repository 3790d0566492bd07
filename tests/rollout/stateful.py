"""Environments that keep their state in odd places; nothing here imports TensorFlow."""

import collections
import ctypes
import os
import random
import signal
import threading
import time

import gymnasium as gym
import numpy as np

from tests.rollout.acting import Acting


class Walk(gym.Env):
    """A random walk; obs = [position]; episodes end at a distance of 2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.draw()
        return self.obs(), {}

    def step(self, action):
        self.position += (2 * int(action) - 1) / 10 + self.draw()
        return self.obs(), self.position, bool(abs(self.position) > 2), False, {}

    def draw(self):
        return self.np_random.normal() / 10

    def obs(self):
        return np.array([self.position])


def plus(x):
    return x


def minus(x):
    return -x


class Everywhere(Walk):
    """State in containers, in an object that knows its environment, in generators of all kinds, in shared objects."""

    def __init__(self):
        self.sign = plus
        self.history = collections.deque([0.0] * 3, maxlen=3)
        self.helper = Helper(self)
        self.old, self.python = np.random.RandomState(3), random.Random(3)
        self.table = {"a": [np.zeros(2), np.zeros(2)], ("b", 1): {4, 5}}
        self.alias = self.table["a"]
        self.space = gym.spaces.Dict(low=gym.spaces.Box(-1, 0), high=gym.spaces.Discrete(3))
        self.space.seed(3)

    def reset(self, seed=None, options=None):
        result = super().reset(seed=seed)
        self.own = self.np_random.spawn(1)[0]
        self.shared = self.own
        self.state, self.steps = self.rising, 0
        self.__dict__.pop("late", None)
        return result

    def step(self, action):
        self.steps += 1
        obs, reward, terminated, *_ = super().step(action)
        return obs, reward, terminated, self.steps == 30, {}

    def rising(self):
        self.state = self.falling
        return 0.1

    def falling(self):
        if self.own.random() < 0.3:
            self.state = self.rising
        return -0.05

    def draw(self):
        late = getattr(self, "late", 0.0)
        self.late = late + 0.01
        self.history.append(np.sin(self.helper.count) * late)
        self.helper.count += 1
        if self.helper.count % 5 == 0:
            self.sign = minus if self.sign is plus else plus
        np.remainder(self.alias[0] + self.python.random(), 1.0, out=self.alias[0])
        self.table[("b", 1)].add(self.helper.count % 7)
        found = self.space.sample()
        noise = self.old.normal() + self.python.random() + float(found["low"][0]) + int(found["high"])
        if hasattr(self, "own"):
            noise += self.own.normal() + self.shared.normal() + self.state()
        noise = self.sign(noise)
        return (noise + sum(self.history) + self.table["a"][0].sum() + len(self.table[("b", 1)]) - 9) / 100


class Helper:
    """An object of an environment."""

    def __init__(self, env):
        self.env, self.count, self.draw = env, 0, env.draw


class Unseeded(Walk):
    """Draws for the first time when it is stepped, from a generator that nobody seeded."""

    def reset(self, seed=None, options=None):
        self.position = 0.0
        return self.obs(), {}


class Stopping(Walk):
    """Fails for good in a step when a file is there."""

    def __init__(self, path):
        self.path = path

    def step(self, action):
        if self.path.exists():
            self.position = "nowhere"
            raise OSError("no power")
        return super().step(action)


class Handing(Walk):
    """Hands out the very array that it goes on to work in."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.array = np.array([self.position])
        return self.array, {}

    def step(self, action):
        result = super().step(action)
        self.array[0] = self.position
        return self.array, *result[1:]


class Holding(Walk):
    """Steps another environment that it does not wrap."""

    def __init__(self):
        self.inner = gym.make("Pendulum-v1")

    def reset(self, seed=None, options=None):
        self.inner.reset(seed=seed)
        return super().reset(seed=seed)

    def draw(self):
        return float(self.inner.step(np.ones(1, np.float32))[0][2])


class Choosing(Walk):
    """Takes two choices in no order, each of which it allows a part of, and a number."""

    action_space = gym.spaces.Dict(
        b=gym.spaces.Discrete(3, start=2), a=gym.spaces.MultiDiscrete([2, 4]), c=gym.spaces.Box(0, 1)
    )

    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0], self.info()

    def step(self, action):
        chosen = [0 + action["a"][0], 2 + action["a"][1], 6 + action["b"] - 2]
        assert self.mask[chosen].all(), action
        return *super().step(action["a"][0])[:4], self.info()

    def info(self):
        self.mask = np.zeros(9, np.int8)
        for first, size in ((0, 2), (2, 4), (6, 3)):
            self.mask[first + self.np_random.integers(size, size=size - 1)] = 1
        return {"action_mask": self.mask}


class Held(gym.Wrapper):
    """Repeats the action before with probability 0.3, by a generator of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.own, self.last = np.random.default_rng(3), None

    def step(self, action):
        if self.last is None or self.own.random() > 0.3:
            self.last = action
        return self.env.step(self.last)


class InC(Walk):
    """Draws from the generator of the C library."""

    library = ctypes.CDLL(None)

    def draw(self):
        return self.library.rand() % 1000 / 10_000


class Global(Walk):
    """Draws from NumPy's global generator."""

    def draw(self):
        return np.random.normal() / 10  # noqa: NPY002


class GlobalAtReset(Walk):
    """Draws from Python's global generator when it is reset, and only then."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position = random.random()
        return self.obs(), {}


class OfTheClass(Walk):
    """Counts in its class."""

    count = 0

    def draw(self):
        OfTheClass.count += 1
        return OfTheClass.count / 1000


class Closure(Walk):
    """Counts in a variable of a function."""

    def __init__(self):
        count = 0

        def draw():
            nonlocal count
            count += 1
            return count / 1000

        self.draw = draw


class Clock(Walk):
    """Looks at the time."""

    def draw(self):
        return time.perf_counter() % 1


class Working(Walk):
    """Has a thread."""

    def __init__(self):
        self.thread = threading.Thread(target=print)


class Reading(Walk):
    """Has a file open."""

    def __init__(self):
        self.file = open(__file__)  # noqa: SIM115

    def close(self):
        self.file.close()


class Vectors(Walk):
    """Has a vector environment."""

    def __init__(self):
        self.envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")


class Unpickled(Walk):
    """Has an object that can be copied and not be pickled."""

    class Lock:
        def __init__(self):
            self.lock = threading.Lock()

        def __deepcopy__(self, memo):
            return type(self)()

    def __init__(self):
        self.lock = self.Lock()


def raises():
    raise OSError("no power")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def once(path, what, number, count):
    """Does something at the third step of environment 1, once; pays the number of the step."""
    if (number, count) == (1, 3) and not path.exists():
        path.touch()
        what()
    return float(count)


class Fragile(Acting):
    """Does something when it is copied and a file is there, which it removes first."""

    class Part:
        def __init__(self, path, what):
            self.path, self.what = path, what

        def __deepcopy__(self, memo):
            if self.path.exists():
                self.path.unlink()
                self.what()
            return type(self)(self.path, self.what)

    def __init__(self, path, what):
        super().__init__()
        self.part = self.Part(path, what)
