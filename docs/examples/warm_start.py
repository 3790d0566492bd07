"""A policy trained in one environment goes on learning in a changed one: networks and normaliser are taken over.

python docs/examples/warm_start.py
"""

import tempfile

import gymnasium as gym

import trpo_tf


def long_pole() -> gym.Env:
    """CartPole-v1 with a pole of three times the length."""
    env = gym.make("CartPole-v1")
    env.unwrapped.length *= 3
    env.unwrapped.polemass_length *= 3
    return env


def main(total_steps: int = 40_000, further_steps: int = 4_000) -> tuple[float, float]:
    """Returns the mean returns in the changed environment after `further_steps`, warm and from the start."""
    with tempfile.TemporaryDirectory() as directory:
        first = trpo_tf.TRPO("CartPole-v1", steps_per_update=1024)
        first.learn(total_steps)
        first.save(f"{directory}/agent")
        first.close()
        warm = trpo_tf.TRPO.load(f"{directory}/agent", env=long_pole)
    cold = trpo_tf.TRPO(long_pole, steps_per_update=1024)
    returns = []
    for name, agent in (("warm", warm), ("cold", cold)):
        agent.learn(further_steps)
        evaluation = agent.evaluate(episodes=20)
        print(f"{name}: {evaluation}")
        returns.append(float(evaluation.returns.mean()))
        agent.close()
    return returns[0], returns[1]


if __name__ == "__main__":
    main()
