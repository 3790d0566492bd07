"""The vine: branches from states of a trajectory, in environments that are put back to where they were.

NumPy only, as all of collecting.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.rollout.backends.restarts import count_restarts
from trpo_tf.rollout.finite import clean, unwarned
from trpo_tf.rollout.stepper import LocalStepper, Losses, Past, Steps
from trpo_tf.rollout.vector_env import Episodes, VectorEnv
from trpo_tf.types import Branches


class VinePlan(NamedTuple):
    """Which branches are tried."""

    states: int  # S
    actions: int  # K
    steps: int  # H
    all_actions: bool  # raw actions 0, ..., K - 1 in each state, instead of K draws of the policy
    common_noise: bool  # the branches of a state meet the same noise
    seed: int  # of everything random


class VineStepper(LocalStepper):
    """Steps environments as LocalStepper does, and then tries branches from states that it went through.

    The rollout set is drawn evenly from the states of the trajectory. The environments are saved before the step of a
    chosen state; when the trajectory is there, each branch begins in whichever environment is free, put back to that
    state. At last every environment is put back to where the trajectory left it, so that trajectories are those of
    LocalStepper to the bit.

    With common noise, the branches of a state draw the same noise for their second action and all later ones, and the
    environment's generator goes on as it was saved. Only the first actions are drawn apart.

    Reference: Schulman et al. 2015, section 5.2; common random numbers: Ng and Jordan 2000.

    Args:
      make_envs, actor: see LocalStepper. The actor keeps no recurrent state.
      plan: see VinePlan.
    """

    def __init__(self, make_envs: Callable[[int], VectorEnv], actor: Any, plan: VinePlan):
        super().__init__(make_envs, actor)
        self._plan = plan
        self._due: dict[int, list[tuple[int, int]]] = {}  # by time step: environment, and number of the state
        self._saved: list[Any] = []  # by number of the state

    def step(
        self, obs: dict[str, np.ndarray], bad: np.ndarray, noise: np.ndarray, before: tuple[int, int], past: Past
    ) -> tuple[Steps, Losses, Episodes]:
        """As Stepper says; the steps have branches."""
        plan, (time, width) = self._plan, noise.shape[:2]
        seed = np.random.SeedSequence([plan.seed, past.built_at, past.time_steps])
        draws = np.random.Generator(np.random.Philox(seed))
        rows = np.sort(draws.choice(time * width, plan.states, replace=False))
        self._due, self._saved = {}, [None] * plan.states
        for state, row in enumerate(rows):
            self._due.setdefault(row // width, []).append((row % width, state))
        steps, losses, episodes = super().step(obs, bad, noise, before, past)
        with self._actor.single_threaded():
            branches, restarts = self._grow(rows.astype(np.int32), steps, draws, losses.restarts)
        return steps._replace(branches=branches), losses._replace(restarts=restarts), episodes

    def _before(self, t: int) -> None:
        envs = self._envs
        assert envs is not None
        for env, state in self._due.get(t, ()):
            self._saved[state] = envs.save(env)

    def _grow(self, rows: np.ndarray, steps: Steps, draws: np.random.Generator, restarts: int) -> tuple[Branches, int]:
        """The branches, and environments made anew so far."""
        plan, envs = self._plan, self._envs
        assert envs is not None
        here = [envs.save(env) for env in range(envs.num_envs)]
        weight = steps.mask.reshape(-1)[rows].copy()
        weight[[saved is None for saved in self._saved]] = 0
        if any(saved is None for saved in here):  # an environment failed just now, and would begin anew amid branches
            weight[:] = 0
        grown = _Branches.empty(plan, rows, weight, steps, self._actor, draws)
        waiting = [(state, k) for state in np.flatnonzero(weight) for k in range(plan.actions)]
        for first in range(0, len(waiting), envs.num_envs):
            restarts = self._branch(grown, np.array(waiting[first : first + envs.num_envs]), restarts)
        for env, saved in enumerate(here):
            if waiting:
                envs.restore(env, saved)
        restarts = count_restarts(envs.pop_failures(), restarts, envs.max_restarts)
        envs.pop_episodes()
        self._saved = []
        return grown.branches, restarts

    def _branch(self, grown: "_Branches", which: np.ndarray, restarts: int) -> int:
        """Tries the branches `which`, [C, 2] of state and action, C <= B; returns environments made anew so far."""
        envs, actor, plan = self._envs, self._actor, self._plan
        assert envs is not None
        own = slice(len(which))
        everywhere = which[np.arange(envs.num_envs) % len(which)]  # environments without a branch do what others do
        for env, (state, k) in enumerate(everywhere):
            envs.restore(env, self._saved[state], None if plan.common_noise else int(grown.seeds[state, k]))
        at = tuple(everywhere.T)
        obs = {name: x[at[0]] for name, x in grown.first_obs.items()}
        going = np.arange(envs.num_envs) < len(which)
        at_own = which[:, 0], which[:, 1]
        for step in range(plan.steps):
            _, raw_action, _ = actor(obs, grown.noise_of(at, step))
            if not step:
                if plan.all_actions:
                    raw_action = at[1][:, None].astype(raw_action.dtype)
                grown.branches.raw_action[at_own] = raw_action[own]
            given = envs.step(actor.to_env(raw_action))
            with unwarned():
                seen, bad = clean(given.obs, actor.leaves)
            obs = {name: x.reshape(obs[name].shape) for name, x in seen.items()}
            failed = [failure for failure in envs.pop_failures() if failure.env < len(which)]
            restarts = count_restarts(failed, restarts, envs.max_restarts)
            bad |= ~np.isfinite(given.reward)
            bad[[failure.env for failure in failed]] = True
            grown.add(at_own, step, given, obs, going, bad)
            going &= ~(bad | given.terminated | given.truncated)
            if not going.any():
                break
        return restarts


class _Branches(NamedTuple):
    """Branches under way, and what they are made of."""

    branches: Branches
    first_obs: dict[str, np.ndarray]  # [S, ...]
    first_noise: np.ndarray  # [S, K, noise_size], of the first action
    noise: np.ndarray  # [S, K or 1, H - 1, noise_size], of those after it
    seeds: np.ndarray  # [S, K]

    @classmethod
    def empty(
        cls, plan: VinePlan, rows: np.ndarray, weight: np.ndarray, steps: Steps, actor: Any, draws: np.random.Generator
    ) -> "_Branches":
        """Those of a plan, to be filled."""
        shape = plan.states, plan.actions
        obs = {name: x.reshape(-1, *x.shape[2:])[rows] for name, x in steps.obs.items()}
        apart = 1 if plan.common_noise else plan.actions
        branches = Branches(
            row=rows,
            weight=weight,
            # where nothing is tried, what the trajectory did there
            raw_action=steps.raw_action.reshape(-1, actor.action_size)[rows][:, None].repeat(plan.actions, 1),
            behavior_logp=None,
            reward=np.zeros((*shape, plan.steps), np.float32),
            mask=np.zeros((*shape, plan.steps), np.float32),
            terminated=np.zeros(shape, bool),
            end_obs={name: np.repeat(x[:, None], plan.actions, 1) for name, x in obs.items()},
        )
        first = actor.sampler.noise(draws, shape)
        later = actor.sampler.noise(draws, (plan.states, apart, plan.steps - 1))
        return cls(branches, obs, first, later, draws.integers(2**31, size=shape))

    def noise_of(self, at: tuple[np.ndarray, np.ndarray], step: int) -> np.ndarray:
        """[B, noise_size] of branches at (states [B], actions [B])."""
        if not step:
            return self.first_noise[at]
        return self.noise[at[0], at[1] % self.noise.shape[1], step - 1]

    def add(
        self, at: tuple[np.ndarray, np.ndarray], step: int, given: Any, obs: dict, going: np.ndarray, bad: np.ndarray
    ) -> None:
        """Takes a time step of C branches, the first C of B environments; `going` and `bad` are [B]."""
        branches, own = self.branches, slice(len(at[0]))
        made, spoilt = (going & ~bad)[own], (going & bad)[own]
        branches.weight[at[0][spoilt]] = 0
        states, actions = (x[made] for x in at)
        branches.mask[states, actions, step] = 1
        branches.reward[states, actions, step] = given.reward[own][made]
        branches.terminated[states, actions] = given.terminated[own][made]
        for name, x in obs.items():
            branches.end_obs[name][states, actions] = x[own][made]
