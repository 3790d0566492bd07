"""Numbers of a learning curve, and statistics over runs with several seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

WINDOW = 20  # episodes of env/episode_return
SIDE = 5  # updates on each side of the one that is asked about
POINTS = 50  # of a curve in the results
RESAMPLES = 2000
DEFINITION = (
    f"The training return after an update is the mean of the last {WINDOW} whole episodes of drawn actions. Before an "
    f"update are {SIDE} such means, the last of which is of the update itself. After it are {SIDE}, from the first one "
    "on that shares no episode with the update's own. The return fell if the average after is lower than the average "
    f"before by more than the standard error of their difference, sqrt((s_before^2 + s_after^2) / {SIDE}). Updates "
    "that lack either side are not counted. Independent noise without a trend falls in 17 % of the updates; means that "
    "share episodes with each other do more often."
)


def area(steps: Sequence[float], returns: Sequence[float], total: float) -> float:
    """The mean of a learning curve over environment steps 0 to total.

    The curve is piecewise linear, and constant before its first and after its last point.

    Args:
      steps: [K], rising. returns: [K]. total: > 0.
    """
    x = np.unique([0.0, *(s for s in steps if s < total), total])
    return float(np.trapezoid(np.interp(x, steps, returns), x) / total)


def on_grid(steps: Sequence[float], returns: Sequence[float], total: float, points: int = POINTS) -> np.ndarray:
    """A curve [K], at total / points, 2 total / points, ..., total; constant outside of its ends."""
    return np.interp(np.linspace(total / points, total, points), steps, returns)


def falls(episodes: Sequence[float], returns: Sequence[float]) -> tuple[int, int]:
    """How often the return fell, and of how many updates; see DEFINITION.

    Args:
      episodes: [K], whole episodes so far, one per update, not falling.
      returns: [K], the mean return of the last WINDOW episodes.
    """
    episodes, returns = np.asarray(episodes), np.asarray(returns, float)
    fell = counted = 0
    for k in range(SIDE - 1, len(returns)):
        first = max(k + 1, int(np.searchsorted(episodes, episodes[k] + WINDOW)))
        if first + SIDE > len(returns):
            break
        before, after = returns[k - SIDE + 1 : k + 1], returns[first : first + SIDE]
        error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / SIDE)
        fell += bool(after.mean() < before.mean() - error)
        counted += 1
    return fell, counted


def interquartile_mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of all samples together, without their lowest and highest quarters.

    A quarter is rounded down. Source: Agarwal et al. 2021, arXiv:2108.13264.
    """
    return stats.trim_mean(np.concatenate(samples, axis), 0.25, axis)


def interval(*samples: ArrayLike, statistic: Callable = np.mean, resamples: int = RESAMPLES) -> tuple[Any, Any]:
    """Bounds of the 95 % percentile bootstrap over the first axis, each sample by itself (stratified), seeded.

    Args:
      samples: each [K, ...], a row per run. Where one has less than two, nobody knows, and bounds are NaN.
      statistic: takes samples and axis, as np.mean.
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    if min(len(array) for array in arrays) < 2:
        unknown = np.full(np.shape(arrays[0])[1:], np.nan)
        return unknown, unknown
    found = stats.bootstrap(arrays, statistic, axis=0, n_resamples=resamples, method="percentile", rng=0)
    return found.confidence_interval


def with_interval(*samples: ArrayLike, statistic: Callable = np.mean, digits: int = 0) -> str:
    """A statistic of samples [K], with its interval where there is one."""
    value = f"{statistic(*map(np.asarray, samples), axis=0):.{digits}f}"
    low, high = interval(*samples, statistic=statistic)
    return value if np.isnan(low) else f"{value} ({low:.{digits}f} to {high:.{digits}f})"
