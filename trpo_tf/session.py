"""The state of a run and its step: an iterator of updates."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trpo_tf import faults, seeds, state
from trpo_tf.acting.stateful import stateful_act
from trpo_tf.algorithms import ALGORITHMS
from trpo_tf.config import Config, from_dict, structural, to_dict
from trpo_tf.errors import Error, UsageError
from trpo_tf.messages import warn
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.evaluation import Evaluation, env_count, evaluate, longest_episode
from trpo_tf.rollout.sources import RolloutSource
from trpo_tf.rollout.vector_env import VectorEnv
from trpo_tf.run.checkpoint import Checkpoint
from trpo_tf.run.directory import versions
from trpo_tf.run.metrics.row import Row
from trpo_tf.sources import Acting, check
from trpo_tf.types import unpack

_WINDOW = 20  # episodes in the running mean of returns


class Session:
    """A policy, a learner and a source of rollouts, and how far they are.

    Args:
      config: of the run.
      environments: makes the environments.
      policy_network, value_network: Keras models instead of those of the configuration; see policy.policy.Policy.
      source: rollouts from elsewhere; by default environments in this process, as configured.

    Raises:
      UsageError: the environment does not exist, or its spaces are not supported.
    """

    def __init__(
        self,
        config: Config,
        environments: Environments,
        policy_network: Any = None,
        value_network: Any = None,
        source: RolloutSource | None = None,
    ):
        self.config, self.environments = config, environments
        self.own_networks = [model is not None for model in (policy_network, value_network)]
        if config.off_policy.lag and any(self.own_networks) and not config.workers.workers:
            raise UsageError(
                "--pipeline and --behavior_lag go with the networks of the flags, not with your own models"
            )
        probe = environments.probe()
        self.spaces = probe.observation_space, probe.action_space
        weights_seed = seeds.derive_seed(config.run.seed, seeds.WEIGHTS)
        forward_mode = config.trust_region.fisher_product == "forward"
        self.policy = Policy(*self.spaces, config.policy, weights_seed, policy_network, value_network, forward_mode)
        with contextlib.closing(probe):
            if not environments.given:  # one step: an environment that cannot work fails before anything is written
                probe.step(stateful_act(make_actor(self.policy, live=True))(probe.reset(), np.ones(1, bool)))
        self._algorithm = ALGORITHMS[config.algorithm.algorithm]
        learner_seed = seeds.derive_seed(config.run.seed, seeds.LEARNER)
        self.learner = self._algorithm.make_learner(self.policy, config, learner_seed)
        self.source = source
        self.total_steps = config.run.total_steps
        self.update = self.env_steps = self.episodes = self.invalid = 0
        self._rollout: Any = None  # collected, and not learned from
        self._renewal_due = self._warned = False
        self.evaluation: dict[str, Any] | None = None  # the newest one, with the number of its update
        self._returns: deque[float] = deque(maxlen=_WINDOW)
        self._lengths: deque[int] = deque(maxlen=_WINDOW)
        self._began = 0.0
        self.stopping: Callable[[], bool] = lambda: False  # whether the training under way is to end

    def start(self) -> None:
        """Makes the training environments, where none are there."""
        if self.source is None:
            self.source = self._algorithm.make_source(self._acting())
        self._began = self._began or time.perf_counter()

    def _acting(self) -> Acting:
        own, stopping = self.own_networks[0], lambda: self.stopping()
        return Acting(self.config, self.environments, self.policy, self.spaces, own, stopping)

    def check(self) -> None:
        """Tries what a training needs besides environments, before anything is written.

        Raises:
          UsageError: workers cannot have these environments, or this policy, or there is no Ray for them.
        """
        if self.source is None:
            check(self._acting())

    def updates(self, until: int) -> Iterator[Row]:
        """Takes updates until so many environment steps are done in all; yields the metrics of each.

        Raises:
          Exception: whatever went wrong, the session is as after the last update.
        """
        self.total_steps = until
        while self.env_steps < until:
            yield self.step()

    def step(self) -> Row:
        """One rollout and one update. env_steps / total_steps is the progress that the learning rate decays with."""
        self.start()
        assert self.source is not None
        self._renew()
        start = time.perf_counter()
        if "value_state" in self.policy.states:
            self.learner.wait()  # the value network acts, too: its states are stored
        self.source.publish(self.update, self.learner.weights())
        faults.point("collect")
        rollout = self._rollout = self._rollout or self.source.next()  # the one before, where its update failed
        steps = rollout.steps
        boundary = (self.update + 1) % self.config.run.checkpoint_every == 0  # environments are rebuilt there
        if not boundary and self.env_steps + steps < self.total_steps:
            self.source.work_ahead()
        collected = time.perf_counter()
        faults.point("learn")
        learned, fit = self.learner.update(rollout, self.update, min(1.0, self.env_steps / self.total_steps))
        end = time.perf_counter()
        self._rollout = None
        self.update += 1
        self.env_steps += steps
        self.episodes += len(rollout.episode_returns)
        self.invalid += rollout.invalid
        self._returns.extend(rollout.episode_returns)
        self._lengths.extend(rollout.episode_lengths)
        of_source = self.source.learned(self.env_steps)
        self._renewal_due = boundary
        with contextlib.suppress(Error):  # tried again, and raised, at the next step: this row is whole
            self._renew()
        times = {
            "time/collect_seconds": collected - start,
            "time/update_seconds": end - collected,
            "time/env_steps_per_second": steps / (end - start),
            "time/elapsed_seconds": time.perf_counter() - self._began,
        }
        return Row(self._counts(rollout) | of_source | learned | times, fit)

    def _renew(self) -> None:
        """Fresh environments, where a boundary asks for them."""
        if self._renewal_due:
            faults.point("renew")
            assert self.source is not None
            self.source.renew(self.update)
            self._renewal_due = False

    def _counts(self, rollout: Any) -> dict[str, Any]:
        return {
            "update": self.update,
            "env_steps": self.env_steps,
            "env/episode_return": float(np.mean(self._returns)) if self._returns else None,
            "env/episode_length": float(np.mean(self._lengths)) if self._lengths else None,
            "env/episodes": self.episodes,
            "env/invalid_rows": self.invalid,
            "env/restarts": rollout.restarts,
            "env/dropped_rows": rollout.dropped,
        }

    def evaluate(self, episodes: int) -> Evaluation:
        """Deterministic episodes in environments of their own, seeded by the update's number; kept as `evaluation`."""
        faults.point("evaluate")
        seed = seeds.derive_seed(self.config.run.seed, seeds.EVAL_ENVS, self.update)
        envs = self.evaluation_envs(episodes, seed)
        actor = make_actor(self.policy, live=True)
        actor.set_weights(self.policy.get_weights())
        result = evaluate(stateful_act(actor), envs, episodes, stopping=self.stopping)
        for line in result.warnings():
            if not self._warned:
                warn(line)
        self._warned = self._warned or bool(result.warnings())
        self.evaluation = {"update": self.update} | result.summary()
        return result

    def evaluation_envs(self, episodes: int, seed: int) -> VectorEnv:
        """Fresh environments to evaluate in, as many as configured at most."""
        most = self.config.run.eval_envs or self.config.environment.num_envs
        longest = longest_episode(self.env_steps, episodes)
        return self.environments.evaluation(env_count(episodes, most), seed, longest=longest)

    def reward_scale(self) -> float:
        """What a unit of the value network is in the environment's units of reward."""
        return self.learner.reward_scale()

    def checkpoint(self, source: bool = True) -> Checkpoint:
        """The whole state, for `restore` of a session of the same configuration; `source`: that of the source, too."""
        origin = {}
        if source:
            self.start()
            assert self.source is not None
            origin = self.source.state()  # first: a rollout may be under way
        self.learner.wait()  # for the value network, which is read with the policy
        counters = {"env_steps": self.env_steps, "episodes": self.episodes, "invalid": self.invalid}
        counters["renewal_due"] = int(self._renewal_due)
        window = {"returns": np.array(self._returns, np.float64), "lengths": np.array(self._lengths, np.float64)}
        pending = {} if self._rollout is None else state.prefixed("rollout", self._rollout.arrays())
        parts = {
            "policy": state.read(self.policy.variables_by_name()),
            "learner": self.learner.state(),
            "source": origin,
            "session": {name: np.array(value) for name, value in counters.items()} | window | pending,
        }
        arrays = {name: x for prefix, part in parts.items() for name, x in state.prefixed(prefix, part).items()}
        meta = {
            "update": self.update,
            "evaluation": self.evaluation,
            "backend": self.environments.backend,
            "own_networks": self.own_networks,
            "config": to_dict(self.config) | {"total_steps": self.total_steps},
            "versions": versions(),
        }
        return Checkpoint(arrays, meta)

    def restore(self, saved: Checkpoint, source: bool = True) -> None:
        """Puts the session where `saved` was taken; without `source`, all but the environments.

        Raises:
          UsageError: the checkpoint is of another configuration; names both values.
        """
        self._check(saved, source)
        self.restore_policy(saved)
        self.learner.restore(state.part("learner", saved.arrays))
        counters = state.part("session", saved.arrays)
        self.update, self.evaluation = saved.meta["update"], saved.meta["evaluation"]
        self.env_steps, self.episodes = int(counters["env_steps"]), int(counters["episodes"])
        self.invalid, self._renewal_due = int(counters["invalid"]), bool(counters["renewal_due"])
        self._returns = deque(counters["returns"].tolist(), _WINDOW)
        self._lengths = deque(counters["lengths"].astype(int).tolist(), _WINDOW)
        self._rollout = unpack(counters, "rollout") if source else None
        if source:
            self.start()
            assert self.source is not None
            if changed := _changed(saved.meta["versions"]):
                warn(f"the checkpoint is of {changed}: the run goes on, but perhaps not to the bit")
            if not self.source.restore(state.part("source", saved.arrays)):
                warn("the environments did not repeat themselves: the run goes on, but not to the bit")

    def restore_policy(self, saved: Checkpoint) -> None:
        """Takes over policy, value network and normaliser."""
        self.learner.wait()  # a value fit under way would end after this
        state.assign(self.policy.variables_by_name(), state.part("policy", saved.arrays))

    def _check(self, saved: Checkpoint, source: bool) -> None:
        theirs, ours = to_dict(from_dict(saved.meta["config"])), to_dict(self.config)
        for name in structural():
            if theirs[name] != ours[name]:
                raise UsageError(f"--{name}={ours[name]}: the checkpoint has {theirs[name]}")
        if saved.meta["own_networks"] != self.own_networks:
            raise UsageError(
                "the run has Keras models of its own, which checkpoints do not hold: evaluate its SavedModel, or go on "
                "with trpo_tf.TRPO.resume(run_dir, policy_network=..., value_network=...)"
                if any(saved.meta["own_networks"])
                else "the checkpoint is of the networks of the flags, not of models of your own"
            )
        backend = self.environments.backend
        if saved.meta["backend"] != backend:
            said = f"environments of {backend} here, of {saved.meta['backend']} in the checkpoint"
            if source:
                raise UsageError(said)
            warn(said)

    def close(self) -> None:
        """Waits for a rollout under way, and frees the environments."""
        if self.source is not None:
            self.source.close()


def _changed(before: dict[str, str]) -> str:
    """Packages of other versions than now."""
    now = versions()
    return ", ".join(
        f"{name} {before[name]}, not {now[name]}" for name in now if before.get(name) not in (None, now[name])
    )
