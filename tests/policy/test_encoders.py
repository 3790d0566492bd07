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
        "a": ((20, 2), np.dtype(np.float64)), "b": ((20,), np.dtype(np.int64)),
    }  # fmt: skip
    assert ((first["a"] >= 2) & (first["a"] <= 3)).all()
    assert set(first["b"]) == {4, 5, 6}
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64), (np.longdouble, np.float64),
        (np.int8, np.float32), (np.uint8, np.float32), (np.int16, np.float32), (np.uint16, np.float32),
        (np.int32, np.float64), (np.uint32, np.float64), (np.int64, np.float64), (np.uint64, np.float64),
        (bool, np.int8),
    ],
)  # fmt: skip
def test_numbers_that_float32_does_not_hold_are_stored_as_float64(dtype, stored):
    encoder = encoders.Encoder(gym.spaces.Box(0, 1, (2,), dtype))
    leaf = encoder.leaves["observation"]
    assert leaf.dtype == stored
    obs = np.array([[0, 1], [1, 1]]).astype(stored)
    for features in (encoder(plain(tf.constant(obs))), encoder.arrays(plain(obs))):
        assert features["vector"].dtype == (np.float64 if stored == np.float64 else np.float32)


def test_a_vector_is_float64_where_one_part_is():
    spaces = {
        "time": gym.spaces.Box(0, 2e9, (1,), np.int64),
        "x": gym.spaces.Box(-1, 1, (1,)),
        "y": gym.spaces.Discrete(2),
    }
    encoder = encoders.Encoder(gym.spaces.Dict(spaces))
    obs = {"time": np.array([[1_700_000_001.0]]), "x": np.array([[0.5]], np.float32), "y": np.array([1])}
    for features in (encoder(obs), encoder.arrays(obs)):
        assert features["vector"].dtype == np.float64
        np.testing.assert_array_equal(features["vector"], [[1_700_000_001.0, 0.5, 0, 1]])
    assert encoder.arrays.dtype == np.float64


def test_a_mask_of_wide_numbers_is_no_reason_for_float64():
    space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (1,)), "action_mask": gym.spaces.Box(0, 1, (3,), np.int64)})
    encoder = encoders.Encoder(space, 3)
    assert encoder.leaves["action_mask"].dtype == np.float32
    assert encoder.arrays.dtype == np.float32
