"""The seams: another source and another backend are a class each. (Step rules, estimates: tests/learner; callbacks:
tests/test_callbacks.py.)
"""

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.config import make_config
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.vector_env import VectorEnv
from trpo_tf.session import Session
from trpo_tf.types import Rollout, Trajectory


class Target:
    """All environments in one array; the reward is how near an action is to the observation."""

    name = env_name = "target"
    failures = ()
    max_episode_steps = 10
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, num_envs, seed):
        self.num_envs, self._random = num_envs, np.random.default_rng(seed)
        self._steps, self._ended = np.zeros(num_envs, int), np.zeros(num_envs, bool)

    def reset(self):
        return self._draw()

    def repeat(self, on):
        pass

    def reset_at(self, ids):
        self._steps[ids], self._ended[ids] = 0, False
        return {"observation": self._draw()["observation"][ids]}

    def step(self, action):
        reward = np.where(self._ended, 0.0, -np.abs(action - self._obs)[:, 0])
        self._steps = np.where(self._ended, 0, self._steps + 1)
        self._ended = self._steps == self.max_episode_steps
        nothing = np.zeros(self.num_envs, bool)
        return self._draw(), reward, nothing, self._ended.copy()

    def _draw(self):
        self._obs = self._random.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        return {"observation": self._obs}

    def close(self):
        pass


class Targets(Environments):
    """The environments of a session, of that backend."""

    def training(self, seed):
        return VectorEnv(Target(self._config.num_envs, seed), self._config.stagger)

    def probe(self):
        return VectorEnv(Target(1, 0))

    def evaluation(self, num_envs, seed, render_mode=None, video_dir="", longest=1000):
        return VectorEnv(Target(num_envs, seed), longest=longest)


class Mixed:
    """A source whose columns were drawn by different versions: column b by the policy of b mod 3 updates ago.

    A source of one version makes each rollout; the columns are put together, in another order every time.
    """

    def __init__(self, make_source, num_envs):
        self._sources = [make_source() for _ in range(3)]
        self._past, self._order = [], np.random.default_rng(0)
        self._num_envs = num_envs

    def publish(self, version, weights):
        self._past = [*self._past, (version, weights)][-3:]

    def next(self):
        rollouts = []
        for age, source in enumerate(self._sources):
            source.publish(*self._past[max(0, len(self._past) - 1 - age)])
            rollouts.append(source.next())
        order = self._order.permutation(self._num_envs)

        def mixed(*arrays):
            return np.stack([arrays[b % 3][:, b] for b in order], 1)

        first = rollouts[0].trajectory
        obs = {name: mixed(*(r.trajectory.obs[name] for r in rollouts)) for name in first.obs}
        rest = [mixed(*x) for x in zip(*(r.trajectory[1:] for r in rollouts), strict=True)]
        arrays = [
            mixed(*(getattr(r, name) for r in rollouts)) for name in ("behavior_params", "version", "discounted_return")
        ]
        names = "episode_returns", "episode_lengths", "episode_ends"
        episodes = [[x for r in rollouts for x in getattr(r, name)] for name in names]
        return Rollout(Trajectory(obs, *rest), *arrays, *episodes, 0)

    def work_ahead(self):
        pass

    def learned(self, env_steps):
        return {}

    def renew(self, update):
        for source in self._sources:
            source.renew(update)

    def state(self):
        return {}

    def restore(self, state):
        return True

    def close(self):
        for source in self._sources:
            source.close()


def target_config(**changes):
    settings = {"num_envs": 6, "steps_per_update": 384, "hidden_sizes": (16,), "gamma": 0.0, "gae_lambda": 0.0}
    return make_config(env="target", xla="off", max_kl=0.1, max_step=1e9, checkpoint_every=1000, **settings | changes)


def targets(config):
    """Environments of that backend; CartPole stands in where the constructor looks an id up."""
    return Targets(make_config(env="CartPole-v1", num_envs=config.environment.num_envs).environment)


def source_of(session):
    session.start()
    return session.source


def test_another_backend_trains_and_is_evaluated_in():
    config = target_config()
    session = Session(config, targets(config))
    before = session.evaluate(20).returns.mean()
    rows = list(session.updates(384 * 30))
    assert all(row["policy/max_ratio_error"] < 1e-3 for row in rows)  # the std falls to 0.003: rounding grows
    assert session.evaluate(20).returns.mean() > before / 3 > -2.0
    session.close()


@pytest.mark.slow
def test_another_source_gives_batches_of_mixed_versions():
    """Three versions in one batch, in any order: each transition is corrected by its own, and the policy learns."""
    config = target_config(behavior_lag=2)
    session = Session(config, targets(config))
    session.source = Mixed(lambda: source_of(Session(target_config(), targets(config))), 6)
    rows = list(session.updates(384 * 30))
    shares = [[row[f"stale/share_of_staleness_{k}"] for k in range(3)] for row in rows]
    np.testing.assert_allclose(shares[5:], np.full((len(rows) - 5, 3), 1 / 3), atol=0.03)
    assert rows[-1]["stale/mean_ratio_error"] > 1e-3
    assert session.evaluate(20).returns.mean() > -2.5
    session.close()
