"""Returns of a policy over whole episodes, in environments of its own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.acting.encoders import Encoder
from trpo_tf.errors import Interrupted
from trpo_tf.rollout.backends.restarts import count_restarts
from trpo_tf.rollout.finite import clean, finite_or_0, unwarned
from trpo_tf.rollout.vector_env import VectorEnv

LONGEST = 30_000  # steps; an episode without a time limit must end some day
_SHORTEST = 1_000  # steps that an episode is left in any case
_GRACE = 10.0  # seconds that an evaluation has to end when the run is to end


class Evaluation(NamedTuple):
    """Undiscounted returns [E] and lengths [E] of whole episodes.

    A reward that is not finite counts as 0, as in training.

    cut: how many episodes were cut at `longest` steps. invalid: transitions with a reward or observation not finite.
    """

    returns: np.ndarray
    lengths: np.ndarray
    cut: int = 0
    longest: int = LONGEST
    invalid: int = 0

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation, minimum and maximum of returns and lengths; JSON can carry it.

        A statistic that is not finite is None.
        """
        result: dict[str, Any] = {"episodes": len(self.returns), "cut": self.cut, "invalid": self.invalid}
        for name, values in (("return", self.returns), ("length", self.lengths)):
            for statistic in ("mean", "std", "min", "max"):
                value = float(getattr(values, statistic)())
                result[f"{name}_{statistic}"] = value if np.isfinite(value) else None
        return result

    def warnings(self) -> list[str]:
        """Lines on what a reader of the numbers has to know."""
        lines = []
        if self.cut:
            lines.append(
                f"{self.cut} of {len(self.returns)} evaluation episodes were cut after {self.longest:,} steps; they "
                "count with their return so far"
            )
        if self.invalid:
            lines.append(
                f"{self.invalid} transitions of the evaluation had NaN, infinity or a number beyond its type; such "
                "rewards and observations count as 0"
            )
        return lines

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
    stopping: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Runs episodes with a policy that does not learn.

    Every environment runs a fixed number of episodes, so that short ones are not counted more often. An episode that
    reaches envs.longest steps counts with its return so far. An episode in which the environment fails does not count:
    another one is run in an environment made anew.

    Args:
      act: from obs, [B, ...] each, and is_first [B] bool, where an episode begins with them, to actions [B, ...] as
        the environment takes them.
      envs: fresh environments; at most `episodes` of them. Closed afterwards, whatever happens.
      episodes: E.
      progress: called with the number of episodes done, now and then.
      stopping: whether the run is to end; 10 seconds later the evaluation is given up.

    Raises:
      EnvironmentFailure: environments failed more often than they may be made anew.
      Interrupted: see stopping.
    """
    try:
        return _run(act, envs, episodes, progress, stopping)
    finally:
        envs.close()


def _run(act, envs: VectorEnv, episodes: int, progress: Callable[[int], None], stopping) -> Evaluation:
    count = envs.num_envs
    quota = episodes // count + (np.arange(count) < episodes % count)
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    total, length, asked, restarts = np.zeros(count), np.zeros(count, np.int64), 0.0, 0
    leaves = Encoder(envs.observation_space).leaves
    obs, bad_obs = clean(envs.reset(), leaves)
    is_first, invalid = np.ones(count, bool), int(bad_obs.sum())
    while (wanted := np.array([*map(len, returns)]) < quota).any():
        if stopping():
            asked = asked or time.monotonic()
            if time.monotonic() - asked > _GRACE:
                raise Interrupted(f"evaluation given up after {sum(map(len, returns))} of {episodes} episodes")
        step = envs.step(act(obs, is_first))
        if envs.failures:
            restarts = count_restarts(envs.pop_failures(), restarts, envs.max_restarts)
        (obs, bad_obs), is_first = clean(step.obs, leaves), step.mask == 0
        invalid += int(((bad_obs | ~np.isfinite(step.reward)) & wanted).sum())
        with unwarned():
            total += finite_or_0(step.reward)
        length += step.mask > 0
        for b in np.flatnonzero(step.terminated | step.truncated):
            if wanted[b] and step.mask[b]:
                returns[b].append(total[b])
                lengths[b].append(length[b])
                progress(sum(map(len, returns)))
            total[b], length[b] = 0.0, 0
    every = np.concatenate(lengths)
    return Evaluation(np.concatenate(returns), every, int((every >= envs.longest).sum()), envs.longest, invalid)


def env_count(episodes: int, most: int) -> int:
    """How many environments to run that many episodes in."""
    return min(episodes, most)


def longest_episode(env_steps: int, episodes: int) -> int:
    """Steps after which an episode without a time limit is cut in an evaluation of a policy trained for env_steps.

    An evaluation may not take much longer than the training did, nor judge by a few steps.
    """
    return int(np.clip(env_steps // episodes, _SHORTEST, LONGEST))
