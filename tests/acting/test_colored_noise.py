"""Noise that is correlated over time: its spectrum, its marginals, and which actions have it."""

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.colored_noise import colored
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError

BOX, DISCRETE = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3)


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("color", [0.5, 1.0, 2.0])
def test_the_power_falls_with_the_frequency(color):
    noise = colored(white(4096, 400), color)
    windowed = noise * np.hanning(2048)[:, None]  # no leakage of strong frequencies into weak ones
    power = (np.abs(np.fft.rfft(windowed, axis=0)) ** 2).mean(1)
    f = np.fft.rfftfreq(2048)
    slope, _ = np.polyfit(np.log(f[8:-8]), np.log(power[8:-8]), 1)
    assert slope == pytest.approx(-color, abs=0.03)


@pytest.mark.parametrize("color", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("time", [1, 2, 7, 128])
def test_every_number_is_standard_normal(color, time):
    noise = colored(white(2 * time, 200_000 // time), color)
    assert noise.shape == (time, 200_000 // time)
    assert noise.dtype == np.float32
    columns = noise.shape[1]
    for at in {0, time // 2, time - 1}:
        x = noise[at].astype(float)
        assert abs(x.mean()) < 5 / np.sqrt(columns)
        assert abs((x**2).mean() - 1) < 5 * np.sqrt(2 / columns)
        assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / columns)


def test_environments_and_actions_do_not_share_noise():
    noise = colored(white(512, 500, 2), 1.0)
    assert abs(np.mean(noise[:, :250] * noise[:, 250:])) < 0.05
    assert abs(np.mean(noise[..., 0] * noise[..., 1])) < 0.05
    assert np.mean(noise[1:] * noise[:-1]) > 0.5


def test_without_a_color_noise_is_what_it_was():
    sampler = ActionSampler(BOX, PolicyConfig())
    asked = []
    noise = white(5, 3, 2)
    assert sampler.noise_over_time(lambda shape: asked.append(shape) or noise, (5, 3)) is noise
    assert asked == [(5, 3)]


@pytest.mark.parametrize("distribution", ["gaussian", "gaussian_with_state_std", "squashed_gaussian"])
def test_only_gaussian_parts_have_a_color(distribution):
    space = gym.spaces.Tuple((DISCRETE, BOX))
    sampler = ActionSampler(space, PolicyConfig(noise_color=1.0, action_distribution=distribution))
    both = white(64, 40, 5)
    noise = sampler.noise_over_time(lambda shape: both[: shape[0], : shape[1]], (32, 40))
    np.testing.assert_array_equal(noise[..., :3], both[:32, :, :3])
    np.testing.assert_array_equal(noise[..., 3:], colored(both[..., 3:], 1.0))


@pytest.mark.parametrize(("space", "distribution"), [(DISCRETE, "gaussian"), (BOX, "beta")])
def test_where_nothing_is_gaussian_a_color_is_refused(space, distribution):
    with pytest.raises(UsageError, match=r"^noise_color=1: only Gaussian actions have such noise, and action space"):
        ActionSampler(space, PolicyConfig(noise_color=1.0, action_distribution=distribution))
