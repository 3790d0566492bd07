"""Returns of a policy over whole episodes, in environments of its own."""

from typing import Any, NamedTuple

import numpy as np

from trpo_tf.rollout.envs import Envs

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


def evaluate(act, envs: Envs, episodes: int, progress=lambda done: None) -> Evaluation:
    """Runs episodes with a policy that does not learn.

    Every environment runs a fixed number of episodes, so that short ones are not counted more often. An episode of
    30,000 steps is counted as it stands; one that goes on for ever would never be.

    Args:
      act: from obs, [B, ...] each, and is_first [B] bool, where an episode begins with them, to actions [B, ...] as
        the environment takes them.
      envs: fresh environments; at most `episodes` of them. Closed afterwards.
      episodes: E.
      progress: called with the number of episodes done, now and then.
    """
    count = envs.num_envs
    quota = episodes // count + (np.arange(count) < episodes % count)
    returns, lengths = [[] for _ in range(count)], [[] for _ in range(count)]
    total, length = np.zeros(count), np.zeros(count, np.int64)
    obs, is_first = envs.reset(), np.ones(count, bool)
    while any(len(done) < wanted for done, wanted in zip(returns, quota, strict=True)):
        rows = envs.step(act(obs, is_first))
        obs, is_first = rows.obs, rows.mask == 0
        total += rows.reward
        length += rows.mask > 0
        for b in np.flatnonzero(rows.terminated | rows.truncated | (length >= _LONGEST)):
            if len(returns[b]) < quota[b]:
                returns[b].append(total[b])
                lengths[b].append(length[b])
                progress(sum(map(len, returns)))
            total[b], length[b] = 0.0, 0
    envs.close()
    return Evaluation(np.concatenate(returns), np.concatenate(lengths))


def env_count(episodes: int) -> int:
    """How many environments to run that many episodes in."""
    return min(episodes, _MOST_ENVS)
