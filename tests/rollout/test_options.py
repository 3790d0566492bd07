"""What is written of options and wrappers: read, never executed; errors in one line."""

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout import counting  # noqa: F401, registers its environments
from tests.rollout.helpers import vector_env
from tests.tasks import MaskedInInfo  # noqa: F401, registers its environments
from trpo_tf.errors import UsageError
from trpo_tf.rollout import options
from trpo_tf.rollout.backends import resolve


def test_options_are_python_literals():
    assert options.keywords("env_options", "a=1,b='x,y',c=[1, 2],d=None") == {
        "a": 1,
        "b": "x,y",
        "c": [1, 2],
        "d": None,
    }
    assert options.keywords("env_options", "") == {}


@pytest.mark.parametrize("text", ["a", "a=b", "1", "a=__import__('os')", "**{}", "a=1)", "a=1;b=2", "a=(lambda: 1)()"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match=r"^env_options="):
        options.keywords("env_options", text)


def test_wrappers_are_gymnasiums_innermost_first():
    first, second = options.wrappers("wrappers", "TimeLimit(7); FrameStackObservation(stack_size=3)")
    env = second(first(gym.make("CartPole-v1")))
    assert isinstance(env, gym.wrappers.FrameStackObservation)
    assert isinstance(env.env, gym.wrappers.TimeLimit)
    assert env.observation_space.shape == (3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NoSuch", "gymnasium.wrappers has no NoSuch"),
        ("TimeLimit(x)", "not understood"),
        ("os.system('x')", "not understood"),
        ("vector", "gymnasium.wrappers has no vector"),
        ("JaxToTorch", "^wrappers=JaxToTorch: JaxToTorch: "),
    ],
)
def test_wrappers_that_are_not_there_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        options.wrappers("wrappers", text)


def test_arguments_that_a_wrapper_does_not_take_are_named():
    with pytest.raises(UsageError, match=r"^wrappers=TimeLimit\(no=1\): TimeLimit: "):
        vector_env("CartPole-v1", 1, 0, wrappers="TimeLimit(no=1)")


def test_wrapped_environments_are_gymnasiums_and_keep_the_contract():
    envs = vector_env("CartPole-v1", 2, 0, wrappers="FrameStackObservation(2)")
    assert envs.backend == "gymnasium"
    assert envs.reset()["observation"].shape == (2, 2, 4)
    assert envs.step(np.zeros(2, np.int64)).obs["observation"].shape == (2, 2, 4)
    with pytest.raises(UsageError, match="env_backend=gymnasium"):
        vector_env("CartPole-v1", 2, 0, "envpool", wrappers="FrameStackObservation(2)")


@pytest.mark.parametrize("backend", ["gymnasium", "auto"])
def test_options_reach_the_constructor_and_wrong_ones_are_named(backend):
    envs = vector_env("Hopper-v5", 1, 0, backend, env_options="healthy_reward=100.0")
    envs.reset()
    assert envs.step(np.zeros((1, 3), np.float32)).reward[0] > 99
    for wrong in ("no_such=1", "num_envs=3", "batch_size=1"):
        with pytest.raises(UsageError, match=f"^env_options={wrong}: "):
            vector_env("Hopper-v5", 1, 0, backend, env_options=wrong)


def test_a_mask_in_info_becomes_a_part_of_the_observation():
    envs = vector_env("MaskedInInfo-v0", 3, 0)
    assert set(envs.observation_space.spaces) == {"observation", "action_mask"}
    obs = envs.reset()
    assert obs["observation"].shape == obs["action_mask"].shape == (3, 4)
    action = 3 + obs["action_mask"].argmax(1)
    step = envs.step(action)
    assert (step.reward >= 0).all(), "a choice that is not allowed costs 10"
    assert step.obs["action_mask"].any(1).all()


def test_atari_needs_its_package(monkeypatch):
    monkeypatch.setattr(resolve.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UsageError, match=r"pip install 'trpo_tf\[atari\]'"):
        vector_env("ALE/Pong-v5", 1, 0)
