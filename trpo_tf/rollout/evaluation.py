"""Returns of a policy over whole episodes, in environments of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.rollout.vector_env import VectorEnv

_MOST_ENVS = 64
_LONGEST = 30_000  # steps; an episode without a time limit must end some day


class Evaluation(NamedTuple):
    """Undiscounted returns [E] and lengths [E] of whole episodes."""

    returns: np.ndarray
    lengths: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation, minimum and maximum of returns and lengths; JSON can carry it."""
        result: dict[str, Any] = {"episodes": len(self.returns)}
        for name, values in (("return", self.returns), ("length", self.lengths)):
            for statistic in ("mean", "std", "min", "max"):
                result[f"{name}_{statistic}"] = float(getattr(values, statistic)())
        return result

    def __str__(self) -> str:
        parts = (
            f"{name} {values.mean():.2f} +- {values.std():.2f} ({values.min():.2f} to {values.max():.2f})"
            for name, values in (("return", self.returns), ("length", self.lengths))
        )
        return f"{len(self.returns)} episodes: {', '.join(parts)}"


def evaluate(
    act: Callable[[dict[str, np.ndarray], np.ndarray], Any],
    envs: VectorEnv,
    episodes: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Runs episodes with a policy that does not learn.

    Every environment runs a fixed number of episodes, so that short ones are not counted more often. An episode that
    reaches 30,000 steps counts with its return so far; it is not reset.

    Args:
      act: from obs, [B, ...] each, and is_first [B] bool, where an episode begins with them, to actions [B, ...] as
        the environment takes them.
      envs: fresh environments; at most `episodes` of them. Closed afterwards, whatever happens.
      episodes: E.
      progress: called with the number of episodes done, now and then.

    Raises:
      EnvironmentFailure: an environment raised.
    """
    try:
        return _run(act, envs, episodes, progress)
    finally:
        envs.close()


def _run(act, envs: VectorEnv, episodes: int, progress: Callable[[int], None]) -> Evaluation:
    count = envs.num_envs
    quota = episodes // count + (np.arange(count) < episodes % count)
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    total, length = np.zeros(count), np.zeros(count, np.int64)
    obs, is_first = envs.reset(), np.ones(count, bool)
    while any(len(done) < wanted for done, wanted in zip(returns, quota, strict=True)):
        step = envs.step(act(obs, is_first))
        obs, is_first = step.obs, step.mask == 0
        total += step.reward
        length += step.mask > 0
        for b in np.flatnonzero(step.terminated | step.truncated | (length >= _LONGEST)):
            if len(returns[b]) < quota[b]:
                returns[b].append(total[b])
                lengths[b].append(length[b])
                progress(sum(map(len, returns)))
            total[b], length[b] = 0.0, 0
    return Evaluation(np.concatenate(returns), np.concatenate(lengths))


def env_count(episodes: int) -> int:
    """How many environments to run that many episodes in."""
    return min(episodes, _MOST_ENVS)
