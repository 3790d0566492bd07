"""Observations handed to `predict`: what fits becomes arrays, and what does not is one line."""

import gymnasium as gym
import numpy as np
import pytest

from tests.conftest import SMALL
from trpo_tf import TRPO, UsageError
from trpo_tf.acting.encoders import Encoder
from trpo_tf.acting.observations import batched

BOX, PAIR = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Tuple((gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))))
DICT = gym.spaces.Dict(
    {"x": BOX, "self": gym.spaces.MultiBinary(2), "image": gym.spaces.Box(0, 255, (16, 16), np.uint8)}
)
IMAGE = np.zeros((16, 16), np.uint8)


def of(space, obs):
    return batched(space, Encoder(space).leaves, obs)


@pytest.mark.parametrize(
    ("space", "obs", "shapes", "single"),
    [
        (BOX, [0.1, 0.2, 0.3], {"observation": (1, 3)}, True),
        (BOX, (0.1, 0, 1), {"observation": (1, 3)}, True),  # a tuple is an array here, too
        (BOX, np.zeros((5, 3)), {"observation": (5, 3)}, False),
        (PAIR, (2, [0.5, 0.5]), {"observation_0": (1,), "observation_1": (1, 2)}, True),
        (PAIR, [np.array([2, 3]), np.zeros((2, 2))], {"observation_0": (2,), "observation_1": (2, 2)}, False),
        (
            DICT,
            {"self": [True, False], "x": np.ones(3), "image": IMAGE},
            {"image": (1, 16, 16), "observation_self": (1, 2), "x": (1, 3)},
            True,
        ),
    ],
)
def test_what_fits(space, obs, shapes, single):
    given, alone = of(space, obs)
    assert {name: x.shape for name, x in given.items()} == shapes
    assert alone == single
    assert {name: x.dtype for name, x in given.items()} == {k: leaf.dtype for k, leaf in Encoder(space).leaves.items()}


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (BOX, None, "observation is None; an array of numbers is needed"),
        (BOX, "north", "observation is a str; an array of numbers is needed"),
        (BOX, {"x": [1, 2, 3]}, "observation is a dict; an array of numbers is needed"),
        (BOX, [[1, 2], [3]], "observation is a list of 2; an array of numbers is needed"),
        (BOX, np.array([None] * 3), "observation is an array of object; an array of numbers is needed"),
        (BOX, [1j, 0, 0], "observation is a list of 3; an array of numbers is needed"),
        (BOX, [1, 2], r"observation has shape \(2,\); \(3,\) is needed"),
        (BOX, np.zeros((2, 4)), r"observation has shape \(2, 4\); \(3,\) or \(N, 3\) is needed"),
        (BOX, np.zeros((1, 2, 3)), r"observation has shape \(1, 2, 3\); \(3,\) or \(N, 3\) is needed"),
        (BOX, np.zeros((0, 3)), r"observation has shape \(0, 3\); \(3,\) or \(N, 3\) is needed"),
        (BOX, 1.0, r"observation has shape \(\); \(3,\) or \(N, 3\) is needed"),
        (PAIR, (1,), "observation is a tuple of 1; a tuple of 2 parts is needed"),
        (PAIR, np.zeros(2), "observation is an array of float64; a tuple of 2 parts is needed"),
        (PAIR, (1.5, [0, 0]), "observation_0 has numbers that are no int64"),
        (PAIR, ([1, 2, 3], np.zeros((2, 2))), r"observation_1 has shape \(2, 2\); \(2,\) or \(N, 2\) is needed, N the"),
        (DICT, {"x": np.ones(3)}, "observation is the keys x; a dict with the keys image, self, x is needed"),
        (
            DICT,
            {"self": [1, 0], "x": np.ones(3), "image": IMAGE, "more": 1},
            "observation is the keys image, more, self, x; a dict with the keys image, self, x is needed",
        ),
        (DICT, {"self": [1, 0], "x": None, "image": IMAGE}, r"observation\['x'\] is None"),
        (DICT, {"self": [1, 0], "x": np.ones(3), "image": IMAGE + 300.0}, "image has numbers that are no uint8"),
        (DICT, [1, 2, 3], "observation is a list of 3; a dict with the keys image, self, x is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(space, obs, message):
    with pytest.raises(UsageError, match=message) as raised:
        of(space, obs)
    assert "\n" not in str(raised.value)


def test_predict_says_what_state_it_needs():
    agent = TRPO("CartPole-v1", **SMALL, network="gru", sequence_length=4)
    obs = np.zeros((2, 4), np.float32)
    with pytest.raises(UsageError, match=r"observation has shape \(3,\); \(4,\) is needed"):
        agent.predict(np.zeros(3))
    action, state = agent.predict(obs)
    assert action.shape == (2,)
    agent.predict(obs, state, np.array([True, False]))
    for wrong in ({}, [1], {"policy_state": np.zeros((1, 8)), "value_state": np.zeros((2, 8))}):
        with pytest.raises(UsageError, match=r"state is not what predict returned for 2 observations: .*\(2, 8\)"):
            agent.predict(obs, wrong)
    with pytest.raises(UsageError, match=r"episode_start is of shape \(3,\); \(2,\) is needed"):
        agent.predict(obs, state, np.zeros(3, bool))
    agent.close()
