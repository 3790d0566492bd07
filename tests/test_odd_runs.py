"""Whole runs in odd environments: how many instances are open, how long evaluations are, what leaves for serving."""

import functools

import gymnasium as gym
import numpy as np
import pytest

import trpo_tf
from tests.conftest import TINY
from tests.rollout.odd import LINE, Odd
from trpo_tf import runs
from trpo_tf.config import EvaluateConfig
from trpo_tf.rollout.environments import Environments

SEEDS = np.arange(1000, dtype=np.int32).reshape(500, 2)
SMALL = {name: value for name, value in TINY.items() if name not in ("env", "eval_episodes", "final_eval_episodes")}


def agent(env, **changes):
    changes = {name: value for name, value in (SMALL | changes).items() if name != "eval_every"}
    return trpo_tf.TRPO(env, **changes)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"num_envs": 4, "eval_envs": 1}, 5),
        pytest.param({"num_envs": 1}, 2, marks=pytest.mark.slow),
        pytest.param({"num_envs": 1, "eval_envs": 2}, 3, marks=pytest.mark.slow),
    ],
)
def test_no_more_instances_are_open_than_train_and_evaluate(settings, most):
    Odd.opened = Odd.most_open = 0
    one = agent(Odd, steps_per_update=16, checkpoint_every=2, **settings)
    one.learn(3 * 16, [trpo_tf.Evaluate(every=1, episodes=3, final_episodes=4)])
    one.evaluate(3, deterministic=False)
    assert Odd.most_open == most
    one.close()
    assert Odd.opened == 0


@pytest.mark.slow
def test_an_evaluation_of_a_run_opens_no_more_than_its_training(tmp_path, monkeypatch):
    one, counts = agent("Odd-v0", num_envs=2), []
    one.learn(64, [trpo_tf.Checkpoint(tmp_path)])
    one.export(tmp_path / "saved_model")
    one.close()
    evaluation = Environments.evaluation
    monkeypatch.setattr(
        Environments,
        "evaluation",
        lambda self, n, *rest, **named: counts.append(n) or evaluation(self, n, *rest, **named),
    )
    for source in ({"run_dir": str(tmp_path)}, {"saved_model": str(tmp_path / "saved_model")}):
        assert runs.run_evaluation(EvaluateConfig(episodes=5, **source)).lengths.tolist() == [4] * 5
    assert counts == [2, 2]


def test_episodes_without_end_are_cut_in_evaluations_which_is_said_once(capsys):
    endless = agent(functools.partial(Odd, terminated=lambda count: False), num_envs=1)
    for _ in range(2):
        result = endless.session.evaluate(2)
        assert (result.lengths.tolist(), result.returns.tolist(), result.cut) == ([1000] * 2, [1000.0] * 2, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if "cut" in line]
    assert said == [
        "trpo_tf: 2 of 2 evaluation episodes were cut after 1,000 steps; they count with their return so far"
    ]
    endless.close()


def test_a_mask_from_info_is_asked_for_in_words_when_it_is_missing():
    masked = agent(functools.partial(Odd, action=gym.spaces.Discrete(3), info={"action_mask": np.array([0, 1, 0])}))
    with pytest.raises(trpo_tf.UsageError, match="a dict with the keys action_mask, observation is needed"):
        masked.predict(np.zeros(2))
    action, _ = masked.predict({"observation": np.zeros(2), "action_mask": np.array([0, 0, 1])})
    assert action == 2
    masked.close()


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-2, 3, (2,), np.int16),
        pytest.param(gym.spaces.Box(0.1, 0.7, (2,), np.float64), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_actions_of_other_types_are_learned_and_served(space, tmp_path):
    one = agent(functools.partial(Odd, action=space), init_log_std=1.0)
    one.learn(128)
    version = one.export(tmp_path)
    served = trpo_tf.load_policy(version).sample(np.zeros((500, 2), np.float32), SEEDS)
    assert served.dtype == (np.float32 if space.dtype == np.float64 else np.int16)
    assert (served >= space.low).all()
    assert (served <= space.high).all()
    for deterministic in (True, False):
        assert space.contains(one.predict(np.zeros(2), deterministic=deterministic)[0])
    one.close()


if "Odd-v0" not in gym.registry:
    gym.register("Odd-v0", lambda render_mode=None: Odd(LINE), disable_env_checker=True)
