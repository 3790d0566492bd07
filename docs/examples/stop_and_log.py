"""A callback that logs a metric of its own, and one that stops: any callable (agent, row) is a callback.

python docs/examples/stop_and_log.py
"""

import trpo_tf


def log_radius_use(agent, row):
    """Adds a metric: how much of the trust region a step used. It appears in progress.csv like all the others."""
    row["mine/radius_use"] = row["policy/kl"] / agent.config.trust_region.max_kl


def main(directory: str = "runs/stop_and_log", total_steps: int = 200_000) -> trpo_tf.History:
    """Trains CartPole-v1 until an evaluation reaches 475, the return at which it counts as solved."""
    agent = trpo_tf.TRPO("CartPole-v1", steps_per_update=1024)
    history = agent.learn(
        total_steps,
        callbacks=[
            log_radius_use,
            trpo_tf.Evaluate(every=10, episodes=10),
            trpo_tf.StopAt("eval/episode_return", 475),
            trpo_tf.Checkpoint(directory),
            trpo_tf.CsvLogger(f"{directory}/progress.csv"),
        ],
    )
    print(f"stopped after {agent.env_steps:,} steps, {history[-1]['mine/radius_use']:.0%} of the radius used at last")
    agent.close()
    return history


if __name__ == "__main__":
    main()
