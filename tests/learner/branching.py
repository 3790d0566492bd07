"""Vines on finite MDPs, where all that they estimate is known."""

import contextlib
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from tests.learner.mdp import Mdp
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.config import EnvironmentConfig, PolicyConfig
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.stepper import LocalStepper, Past
from trpo_tf.rollout.vine import VinePlan, VineStepper


class MdpEnv(gym.Env):
    """An Mdp that never ends; obs is the state, one-hot."""

    def __init__(self, mdp):
        self.p, self.r, self.start = mdp.p.cumsum(-1), mdp.r, mdp.start.cumsum()
        self.observation_space = gym.spaces.Box(0, 1, self.start.shape, np.float32)
        self.action_space = gym.spaces.Discrete(self.r.shape[1])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.draw(self.start)
        return self.obs(), {}

    def step(self, action):
        reward = float(self.r[self.state, action])
        self.state = self.draw(self.p[self.state, action])
        return self.obs(), reward, False, False, {}

    def draw(self, summed):
        return int(np.searchsorted(summed, self.np_random.random()))

    def obs(self):
        return np.eye(len(self.start), dtype=np.float32)[self.state]


class Leaf(NamedTuple):
    """What is said of an observation."""

    shape: tuple
    dtype: np.dtype


class TableActor:
    """Acts with a policy [S, A] in states that are one-hot."""

    states, action_size = {}, 1

    def __init__(self, policy):
        self.logits = np.log(policy).astype(np.float32)
        self.params_size = self.noise_size = policy.shape[1]
        self.sampler = ActionSampler(gym.spaces.Discrete(policy.shape[1]), PolicyConfig())
        self.leaves = self.specs = {"observation": Leaf((len(policy),), np.dtype(np.float32))}
        self.noise, self.to_env = self.sampler.noise, self.sampler.to_env

    def __call__(self, obs, noise):
        params = self.logits[obs["observation"].argmax(1)]
        return params, self.sampler.draw(params, noise), []

    def single_threaded(self):
        return contextlib.nullcontext()


def windy(seed, gust):
    """An Mdp of 4 places and 3 winds: places follow the actions, winds do not, and they pay -gust, 0 or gust."""
    places, winds = Mdp(seed), np.full((3, 3), 1 / 3)
    mdp = Mdp(seed, states=12)
    mdp.p = np.einsum("pat,wu->wpaut", places.p, winds).reshape(12, 3, 12)
    mdp.r = (gust * np.array([-1, 0, 1])[:, None, None] + places.r).reshape(12, 3)
    mdp.start = np.outer(winds[0], places.start).reshape(-1)
    return mdp


class Sampling:
    """Rollouts of a policy [S, A] in an Mdp, T time steps of B environments, one after the other."""

    def __init__(self, mdp, policy, time, envs):
        self.mdp, self.policy, self.time, self.envs = mdp, policy, time, envs
        self.value, self.advantage, _, _ = mdp.solve(policy)
        config = EnvironmentConfig(env="given", num_envs=envs, stagger=False)
        self._environments, self._actor = Environments(config, lambda: MdpEnv(mdp)), TableActor(policy)

    def visited(self):
        """How likely each state is to be chosen evenly from a rollout, [S]."""
        step, state, total = np.einsum("sa,sat->st", self.policy, self.mdp.p), self.mdp.start, 0
        for _ in range(self.time):
            total, state = total + state, state @ step
        return total / self.time

    def rollouts(self, count, plan=None):
        """`count` rollouts' Steps, of a vine where there is a plan."""
        for seed in range(count):
            args = (lambda _, seed=seed: self._environments.training(1000 * seed)), self._actor
            stepper = LocalStepper(*args) if plan is None else VineStepper(*args, plan._replace(seed=seed))
            obs, _ = stepper.build(0, 0)
            noise = self._actor.sampler.noise(np.random.default_rng(seed), (self.time, self.envs))
            yield stepper.step(obs, np.zeros(self.envs, bool), noise, (0, 0), Past(0, [], []))[0]
            stepper.close()


def plan(states, actions=3, steps=1, all_actions=True, common_noise=True):
    """A VinePlan."""
    return VinePlan(states, actions, steps, all_actions, common_noise, 0)
