"""Noise whose numbers are correlated over time, and each of which is standard normal all the same."""

import numpy as np


def colored(white: np.ndarray, color: float) -> np.ndarray:
    """Noise of T time steps with a power spectrum of 1 / f^color.

    A filter gives each of the frequencies 1 / 2T, 2 / 2T, ..., 1/2 its weight, and the mean over time that of the
    lowest. The filtered sequence is periodic, so it is made twice as long as needed, and its second half is dropped:
    else the last number would be a neighbour of the first. Sums of normal numbers are normal, and the weights are
    scaled so that the variance stays 1.

    Reference: Timmer and König 1995, "On generating power law noise"; Hollenstein et al. 2024 (arXiv:2312.11091) for
    policy gradients.

    Args:
      white: standard normal, independent, [2T, ...].
      color: 0 is white noise, 1 pink, 2 red.

    Returns:
      [T, ...] float32.
    """
    time = len(white) // 2
    frequency = np.fft.rfftfreq(2 * time)
    frequency[0] = frequency[1]
    weight = frequency ** (-0.5 * color)
    # All but the lowest and the highest frequency stand for two, f and -f.
    power = (2.0 * (weight**2).sum() - weight[0] ** 2 - weight[-1] ** 2) / (2 * time)
    spectrum = np.fft.rfft(white, axis=0) * (weight / np.sqrt(power)).reshape(-1, *[1] * (white.ndim - 1))
    return np.fft.irfft(spectrum, 2 * time, axis=0)[:time].astype(np.float32)
