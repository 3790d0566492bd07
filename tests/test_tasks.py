"""Tasks of every kind of action are solved to their known optimum."""

import pytest

from tests.tasks import STEPS
from trpo_tf.api import TRPO

# Name: the share of the optimum that is asked for, and the settings.
TASKS = {
    "MaskedInObservation": (0.9, {}),
    "MaskedInInfo": (0.9, {}),
    "Choices": (0.99, {}),
    "Bits": (0.99, {}),
    "Hybrid": (0.95, {"total_steps": 80_000}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_the_task_is_solved(name):
    share, changes = TASKS[name]
    agent = TRPO(
        f"tests.tasks:{name}-v0",
        allow_env_module=True,
        num_envs=32,
        steps_per_update=1024,
        gamma=0.0,
        gae_lambda=0.0,
        max_step=1e9,
        hidden_sizes=(32,),
        **{"total_steps": 40_000, "max_kl": 0.05} | changes,
    )
    agent.learn()
    agent.close()
    assert agent.evaluate(200).returns.mean() > share * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [102, 105])
def test_correlated_noise_finds_a_goal_that_takes_long_swings(seed):
    """Standing still returns 0, the goal 100 less the price of actions. With these seeds white noise ends at 0."""
    settings = {"num_envs": 8, "gamma": 0.99, "init_log_std": 0.0, "total_steps": 60_000, "seed": seed}
    agent = TRPO("MountainCarContinuous-v0", noise_color=1.0, **settings)
    agent.learn()
    agent.close()
    assert agent.evaluate(20).returns.min() > 90
