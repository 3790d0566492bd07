"""Draws in NumPy, by hand: what raw actions are, what masks take away, what the environment takes."""

import gymnasium as gym
import numpy as np
import pytest

from tests.spaces_table import HYBRID
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.config import PolicyConfig


def make(space, **changes):
    return ActionSampler(space, PolicyConfig(**changes))


def f32(*rows):
    return np.array(rows, np.float32)


def test_a_gaussian_is_mean_plus_std_times_noise():
    sampler = make(gym.spaces.Box(-1, 1, (2,)), action_distribution="gaussian")
    params = f32([0.5, -3.0, np.log(2), np.log(0.5)])
    np.testing.assert_allclose(sampler.draw(params, f32([1.0, -1.0])), [[2.5, -3.5]], rtol=1e-6)
    np.testing.assert_array_equal(sampler.mode(params), [[0.5, -3.0]])
    np.testing.assert_array_equal(sampler.to_env(f32([0.5, -3.0])), [[0.5, -1.0]])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([-3, -1], [3, 1], [3 * np.tanh(0.5), -np.tanh(2.0)]),
        ([-1, -np.inf], [1, 1], [0.5, -2.0]),
        ([-1, -1], [1, 1e300], [0.5, -1.0]),
    ],
    ids=["bounded", "below", "beyond float32"],
)
def test_actions_are_squashed_by_default_where_each_is_bounded(low, high, expected):
    space = gym.spaces.Box(*(np.array(bound, np.float64) for bound in (low, high)), dtype=np.float64)
    np.testing.assert_allclose(make(space).to_env(f32([0.5, -2.0])), [expected], rtol=1e-6)
    both = make(gym.spaces.Tuple((space, gym.spaces.Box(-np.inf, np.inf, (1,)))))
    first, second = both.to_env(f32([0.5, -2.0, 7.0]))
    np.testing.assert_allclose(first, [expected], rtol=1e-6)
    np.testing.assert_array_equal(second, [[7]])


def test_free_parameters_stand_behind_the_outputs_of_their_part():
    sampler = make(gym.spaces.Tuple((gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (1,)))))
    assert (sampler.outputs, sampler.size, len(sampler.free)) == (4, 6, 2)
    np.testing.assert_array_equal(sampler.params(f32([1, 2, 3, 4]), np.array([8, 9])), [[1, 8, 2, 3, 4, 9]])
    dependent = make(gym.spaces.Box(-1, 1, (1,)), action_distribution="gaussian_with_state_std", init_log_std=-1.0)
    np.testing.assert_array_equal(dependent.params(f32([1, 2]), dependent.free), [[1, 2]])
    np.testing.assert_array_equal(dependent.bias, [0, -1])


def test_a_choice_is_the_largest_sum_of_logit_and_noise():
    sampler = make(gym.spaces.MultiDiscrete([2, 3], start=[5, -1]))
    logits = f32([0.0, 1.0, 3.0, 2.0, 1.0])
    np.testing.assert_array_equal(sampler.mode(logits), [[1, 0]])
    raw_action = sampler.draw(logits, f32([2.0, 0.0, 0.0, 0.5, 2.5]))
    np.testing.assert_array_equal(raw_action, [[0, 2]])
    assert raw_action.dtype == np.float32
    np.testing.assert_array_equal(sampler.to_env(raw_action), [[5, 1]])
    masked = sampler.masked(logits, np.array([[1, 0, 0, 1, 1]]))
    np.testing.assert_array_equal(sampler.mode(masked), [[0, 1]])
    nothing_left = sampler.masked(logits, np.array([[0, 0, 0, 0, 1]]))
    np.testing.assert_array_equal(sampler.mode(nothing_left), [[1, 2]])


def test_a_bit_is_one_where_logit_and_noise_are_positive():
    sampler = make(gym.spaces.MultiBinary(3))
    np.testing.assert_array_equal(sampler.draw(f32([1.0, -1.0, 0.0]), f32([-2.0, 2.0, 0.0])), [[0, 1, 0]])
    np.testing.assert_array_equal(sampler.mode(f32([1.0, -1.0, 0.0])), [[1, 0, 0]])


def test_parts_are_taken_apart_and_put_together_in_the_structure_of_the_space():
    sampler = make(HYBRID, action_distribution="gaussian")
    params = f32([0.25, 9.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0])
    raw_action = sampler.mode(params)
    np.testing.assert_array_equal(raw_action, [[0.25, 9.0, 1, 1, 0]])
    action = sampler.to_env(raw_action)
    assert list(action) == ["Move to", "grip", "tools"]
    np.testing.assert_array_equal(action["Move to"], [[0.25, 1.0]])
    assert action["grip"].tolist() == [1]
    assert action["tools"].tolist() == [[1, 0]]
    masked = sampler.masked(params, np.array([[1, 0, 1, 0, 0, 1, 1]]))
    np.testing.assert_array_equal(masked[0, :4], params[0, :4])
    np.testing.assert_array_equal(sampler.mode(masked), [[0.25, 9.0, 0, 0, 1]])


def test_numpy_cannot_draw_from_a_beta_but_knows_the_way_to_the_environment():
    sampler = make(gym.spaces.Box(-1, 3, (2,)), action_distribution="beta")
    assert not sampler.in_numpy
    assert (sampler.size, sampler.outputs, sampler.noise_size) == (4, 4, 2)
    np.testing.assert_allclose(sampler.to_env(f32([0.25, 1.0])), [[0.0, 3.0]])
    with pytest.raises(AttributeError):
        sampler.mode(f32([0.0] * 4))
