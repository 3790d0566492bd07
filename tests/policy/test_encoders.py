"""Features of observations, by hand; of arrays the same as of tensors."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import OBSERVATIONS, sampled
from trpo_tf.policy import encoders


def plain(x):
    return {"observation": x}


def test_discrete_observations_are_one_hot():
    encoder = encoders.Encoder(gym.spaces.Discrete(3, start=5))
    np.testing.assert_array_equal(encoder(plain(tf.constant([5, 7, 8])))["vector"], [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert encoder.valid(plain(tf.constant([4, 5, 7, 8]))).numpy().tolist() == [False, True, True, False]


def test_several_numbers_are_several_one_hot_vectors():
    encoder = encoders.Encoder(gym.spaces.MultiDiscrete([2, 3], start=[0, 10]))
    obs = plain(np.array([[1, 12], [0, 10], [2, 11]]))
    expected = [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    np.testing.assert_array_equal(encoder(obs)["vector"], expected)
    assert encoder.valid(obs).numpy().tolist() == [True, True, False]


def test_box_observations_are_flattened():
    encoder = encoders.Encoder(gym.spaces.Box(0, 255, (2, 3), np.uint8))
    assert encoder(plain(tf.zeros([4, 2, 3], tf.uint8)))["vector"].shape == (4, 6)
    assert encoder.valid(plain(tf.constant([[[1.0] * 3, [np.nan] * 3]]))).numpy().tolist() == [False]


@pytest.mark.parametrize("name", list(OBSERVATIONS))
def test_features_of_arrays_equal_those_of_tensors(name):
    encoder, obs = encoders.Encoder(OBSERVATIONS[name]), sampled(OBSERVATIONS[name])
    ours, arrays = encoder(obs), encoder.arrays(obs)
    assert ours.keys() == arrays.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, arrays[key])
        assert value.dtype.as_numpy_dtype == arrays[key].dtype
    assert encoder.valid(obs).numpy().all()


def test_a_sample_is_of_the_space_and_the_same_every_time():
    space = gym.spaces.Dict({"a": gym.spaces.Box(2, 3, (2,), np.float64), "b": gym.spaces.Discrete(3, start=4)})
    encoder = encoders.Encoder(space)
    first, second = encoder.sample(20), encoder.sample(20)
    assert {name: (x.shape, x.dtype) for name, x in first.items()} == {
        "a": ((20, 2), np.dtype(np.float32)), "b": ((20,), np.dtype(np.int64)),
    }  # fmt: skip
    assert ((first["a"] >= 2) & (first["a"] <= 3)).all()
    assert set(first["b"]) == {4, 5, 6}
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])
