"""An environment of your own, given as a callable: no registration, no id.

python docs/examples/own_environment.py
"""

import gymnasium as gym
import numpy as np

import trpo_tf


class Thermostat(gym.Env):
    """Keep a room at 20 degrees: the action heats or cools, the wall leaks, and the outside changes."""

    observation_space = gym.spaces.Box(-50.0, 50.0, (2,), np.float32)  # inside, outside
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)  # 5 degrees a step at most

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.inside, self.outside = self.np_random.uniform(10, 30), self.np_random.uniform(-5, 15)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.inside += 5.0 * float(action[0]) - 0.3 * (self.inside - self.outside)
        self.outside += self.np_random.normal(0, 0.2)
        self.steps += 1
        reward = -abs(self.inside - 20.0) / 10.0
        return self._obs(), reward, False, self.steps == 50, {}

    def _obs(self):
        return np.array([self.inside, self.outside], np.float32)


def main(total_steps: int = 60_000) -> float:
    """Trains, and returns the mean return of 20 deterministic episodes; 0 is the best there could be."""
    agent = trpo_tf.TRPO(Thermostat, gamma=0.95, steps_per_update=1024, max_kl=0.05)
    agent.learn(total_steps)
    evaluation = agent.evaluate(episodes=20)
    print(evaluation)
    agent.close()
    return float(evaluation.returns.mean())


if __name__ == "__main__":
    main()
