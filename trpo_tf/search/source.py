"""Generations of whole episodes: each candidate has one, in whichever environment is free."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf import seeds
from trpo_tf.acting.spec import ActingSpec
from trpo_tf.errors import Interrupted
from trpo_tf.rollout.backends.restarts import count_restarts
from trpo_tf.rollout.finite import all_finite, check_invalid, clean, finite_or_0, unwarned
from trpo_tf.rollout.sources import Weights
from trpo_tf.rollout.vector_env import EnvStep, VectorEnv
from trpo_tf.search.method import Generation
from trpo_tf.search.moments import StreamMoments
from trpo_tf.search.population_actor import PopulationActor
from trpo_tf.sources import Acting

_PATIENCE = 10.0  # seconds that a generation has to end when the run is to end
_COUNTERS = ("invalid", "restarts", "dropped")


def make_source(acting: Acting) -> "GenerationSource":
    """The source for a policy that NumPy can act for."""
    config, spec = acting.config, acting.policy.acting_spec()
    assert spec is not None  # the learner has looked

    def make_envs(update: int) -> VectorEnv:
        seed = seeds.derive_seed(config.run.seed, seeds.TRAIN_ENVS, update)
        return acting.environments.training(seed, whole_episodes=True)

    return GenerationSource(spec, make_envs, config.environment.max_invalid_rows, acting.stopping)


class GenerationSource:
    """One Generation for each version of the policy. Interface: see RolloutSource.

    Environments are made anew for every version and seeded by it. So a generation depends on its version and its
    candidates only, and environments have no state that is to be saved.

    Args:
      spec: of the policy.
      make_envs: from the number of the update to fresh environments, none of whose first episodes is cut short.
      max_invalid: transitions with NaN or infinity, which count as 0, before EnvironmentFailure is raised.
      stopping: whether the run is to end.
    """

    def __init__(
        self,
        spec: ActingSpec,
        make_envs: Callable[[int], VectorEnv],
        max_invalid: int,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._actor, self._make_envs = PopulationActor(spec), make_envs
        self._max_invalid, self._stopping = max_invalid, stopping
        self._version, self._weights = 0, Weights()
        self._totals = dict.fromkeys(_COUNTERS, 0)  # of all generations so far

    def publish(self, version: int, weights: Weights) -> None:
        """As RolloutSource says; the weights of layers are [P, ...], one for each candidate."""
        self._version, self._weights = version, weights

    def next(self) -> Generation:
        """As RolloutSource says.

        Raises:
          EnvironmentFailure: environments failed too often, or they keep giving NaN or infinity.
          Interrupted: the run is to end, and the episodes do not.
        """
        envs = self._make_envs(self._version)
        try:
            with self._actor.single_threaded():
                self._actor.set_weights(self._weights, envs.num_envs)
                run = _Run(self._actor, envs, self._totals, self._max_invalid)
                found = run.generation(self._stopping)
        finally:
            envs.close()
        self._totals = run.totals
        return found

    def work_ahead(self) -> None:
        """Nothing: a generation is made when it is asked for."""

    def learned(self, env_steps: int) -> dict[str, Any]:
        """As RolloutSource says: no metrics."""
        return {}

    def renew(self, update: int) -> None:
        """Nothing: environments are fresh in any case."""

    def state(self) -> dict[str, np.ndarray]:
        """As RolloutSource says."""
        return {name: np.array(value) for name, value in self._totals.items()}

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """As RolloutSource says."""
        self._totals = {name: int(state[name]) for name in _COUNTERS}
        return True

    def close(self) -> None:
        """Nothing: between generations there are no environments."""


class _Run:
    """One generation under way.

    Args:
      actor: with the weights of the candidates.
      envs: fresh ones.
      totals: by name, see _COUNTERS; `totals` are the same with this generation.
    """

    def __init__(self, actor: PopulationActor, envs: VectorEnv, totals: dict[str, int], max_invalid: int):
        self._actor, self._envs, self._max_invalid = actor, envs, max_invalid
        self.totals = dict(totals)
        count = actor.candidates
        self._returns, self._lengths, self._left = np.zeros(count), np.zeros(count, np.int64), count
        self._following = min(count, envs.num_envs)  # the candidate whose turn is next
        self._candidate = np.arange(envs.num_envs)  # [B], whose episode it is; where it is >= P, nobody's
        self._counted = self._candidate < count  # [B], whether it is somebody's
        self._total, self._length = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)  # of it so far
        self._moments = StreamMoments(actor.width)

    def generation(self, stopping: Callable[[], bool]) -> Generation:
        """Steps the environments until every candidate has had its episode."""
        actor, envs, before = self._actor, self._envs, self.totals["invalid"]
        patience = None
        obs, bad = clean(envs.reset(), actor.leaves)
        self._count_failures()
        while self._left:
            if stopping():
                patience = patience or time.monotonic() + _PATIENCE
                if time.monotonic() > patience:
                    raise Interrupted(f"the run ends without the generation under way; {self._left} episodes were left")
            features = actor.encode(obs)
            step = envs.step(actor.act(features))
            valid = (step.mask > 0) & self._counted
            if actor.normalizes:
                self._moments.add(features["vector"], valid & ~bad)
            obs, bad = clean(step.obs, actor.leaves)
            self._count(step, valid, bad)
        invalid = self.totals["invalid"] - before
        lost = self.totals["restarts"], self.totals["dropped"]
        return Generation(self._returns, self._lengths, self._moments.get(), invalid, *lost)

    def _count(self, step: EnvStep, valid: np.ndarray, bad: np.ndarray) -> None:
        """Adds a time step to the books. valid: [B] bool, a candidate's transition. bad: [B], of what follows."""
        with unwarned():
            if bad.any() or not all_finite(step.reward):
                self.totals["invalid"] += int(((bad | ~np.isfinite(step.reward)) & valid).sum())
                check_invalid(self.totals["invalid"], self._max_invalid)
            self._total += finite_or_0(step.reward)
        self._length += valid
        if self._envs.failures:
            self._count_failures()
        over = step.terminated | step.truncated
        if over.any():
            for env in np.flatnonzero(over & self._counted).tolist():
                self._end(env, bool(step.mask[env]))
            self._total[over], self._length[over] = 0.0, 0

    def _end(self, env: int, whole: bool) -> None:
        """The episode in this environment is over; where it is not whole, its candidate begins again."""
        candidate = self._candidate[env]
        if not whole:
            self.totals["dropped"] += int(self._length[env])
            return
        self._returns[candidate], self._lengths[candidate] = self._total[env], self._length[env]
        self._left -= 1
        self._candidate[env] = self._following
        self._counted[env] = self._following < len(self._returns)
        if self._counted[env]:
            self._actor.assign(env, self._following)
            self._following += 1

    def _count_failures(self) -> None:
        failures, before = self._envs.pop_failures(), self.totals["restarts"]
        self.totals["restarts"] = count_restarts(failures, before, self._envs.max_restarts)
