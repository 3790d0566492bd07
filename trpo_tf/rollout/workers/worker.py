"""What runs in a worker's process. NumPy only, unless the policy's network needs TensorFlow."""

import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from trpo_tf import seeds
from trpo_tf.errors import EnvironmentFailure, UsageError, described
from trpo_tf.messages import kept
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.stepper import LocalStepper, Losses, Past, Steps
from trpo_tf.rollout.vector_env import Episodes
from trpo_tf.rollout.workers.fleet import Reply, Trouble
from trpo_tf.rollout.workers.fragments import Fragment
from trpo_tf.rollout.workers.ledger import Identity

_LARGEST_SEED = 2**31 - 2**17  # see seeds.derive_seed


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """What the workers of a run are made of; it is sent to their processes.

    Attributes:
      environments: makes those of one worker.
      registered: the id of the environment as the run's process knows it; None where that is no id of gymnasium.
      make_actor: makes an ArrayActor, or a TensorActor of its own.
      workers: W. envs: B, of each.
      time_steps: T. gamma, max_invalid: as Collector takes them.
      seed: of the run.
    """

    environments: Environments
    registered: EnvSpec | None
    make_actor: Callable[[], Any]
    workers: int
    envs: int
    time_steps: int
    gamma: float
    max_invalid: int
    seed: int


class Worker:
    """One start of a worker in a slot.

    Args:
      slot: below the number of workers.
      serial: counts the starts of workers over the whole run.
      search: where modules are found in the run's process; what is missing here is added.
    """

    def __init__(self, slot: int, serial: int, search: tuple[str, ...] = ()):
        sys.path += [path for path in search if path not in sys.path and os.path.isdir(path)]
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the learner's
        self._slot, self._serial = slot, serial
        self._plan: WorkerPlan
        self._actor: Any = None
        self._version = -1  # of the weights that the actor has
        self._stepper: LocalStepper | None = None
        self._collector: Collector | None = None
        self._renewed = Renewed()

    def answer(self, method: str, *args: Any) -> Reply:
        """Calls a method; what it raises, and what it warns of, is part of the reply."""
        with kept() as said:
            try:
                return Reply(getattr(self, method)(*args), tuple(said))
            except KeyboardInterrupt:
                raise
            except UsageError as error:
                trouble = Trouble("usage", error.message)
            except EnvironmentFailure as error:
                trouble = Trouble("environment", error.message)
            except BaseException as error:
                trouble = Trouble("", f"a rollout worker failed: {described(error)}")
        return Reply(None, tuple(said), trouble)

    def begin(self, plan: WorkerPlan) -> dict[str, Any]:
        """Takes over what it is made of; nothing of the environment is called yet. Returns where it is."""
        if plan.registered is not None:
            gym.registry[plan.registered.id] = plan.registered
        self._plan, self._actor = plan, plan.make_actor()
        self._renewed.actor = self._actor
        return {"pid": os.getpid(), "host": socket.gethostname(), "tensorflow": "tensorflow" in sys.modules}

    def stay(self) -> None:
        """Never returns."""
        threading.Event().wait()

    # Synchronous: the slot's columns of what one process would do.

    def build(self, update: int, restarts: int) -> tuple[dict[str, np.ndarray], Losses]:
        """As Stepper.build."""
        return self._columns().build(update, restarts)

    def replay(self, past: Past) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """As Stepper.replay."""
        return self._columns().replay(past)

    def step(
        self,
        version: int,
        weights: dict[str, np.ndarray],
        obs: dict[str, np.ndarray],
        bad: np.ndarray,
        noise: np.ndarray,
        before: tuple[int, int],
    ) -> tuple[Steps, Losses, Episodes]:
        """As Stepper.step, with the weights of a version; where the environments are, the caller knows."""
        self._act_with(version, weights)
        return self._columns().step(obs, bad, noise, before, Past(0, [], []))

    def _columns(self) -> LocalStepper:
        if self._stepper is None:
            plan, first = self._plan, self._slot * self._plan.envs
            place = first, plan.workers * plan.envs

            def make_envs(update: int):
                return plan.environments.training(first + seeds.derive_seed(plan.seed, seeds.TRAIN_ENVS, update), place)

            self._stepper = LocalStepper(make_envs, Placed(self._actor, *place))
        return self._stepper

    # Asynchronous: fragments of this worker's own.

    def take_weights(self, version: int, weights: dict[str, np.ndarray], publication: int) -> None:
        """The policy's from the next time step on, unless newer ones are there.

        Another thread may call this while a fragment is collected. publication: counts what was published.
        """
        self._renewed.offer(version, weights, publication)

    def fragment(self, identity: Identity, version: int, weights: dict[str, np.ndarray], publication: int) -> Fragment:
        """The next T time steps, each with the newest weights that are there, these or others."""
        self.take_weights(version, weights, publication)
        collector = self._own()
        restarts, dropped = (collector.restarts, collector.dropped) if identity.fragment else (0, 0)
        rollout = collector.collect(self._noise(identity), lambda params, _: np.zeros(len(params), np.float32))
        collector.forget()
        rollout = rollout._replace(version=self._renewed.pop_versions(self._plan.envs))
        return Fragment(identity, rollout, rollout.restarts - restarts, rollout.dropped - dropped)

    def _noise(self, identity: Identity) -> np.ndarray:
        """What a fragment needs: a function of the run's seed, the serial and the fragment's number."""
        plan, key = self._plan, [self._plan.seed << 32 | self._serial, identity.fragment]
        sampler, generator = self._actor.sampler, np.random.Generator(np.random.Philox(key=key))
        return sampler.noise_over_time(partial(sampler.noise, generator), (plan.time_steps, plan.envs))

    def _own(self) -> Collector:
        if self._collector is None:
            plan = self._plan
            first = seeds.derive_seed(plan.seed, seeds.TRAIN_ENVS, 0) + self._serial * plan.envs

            def make_envs(_: int):
                place = self._slot * plan.envs, plan.workers * plan.envs
                return plan.environments.training(first % _LARGEST_SEED, place)

            stepper = LocalStepper(make_envs, self._renewed)
            self._collector = Collector(stepper, self._actor, plan.gamma, plan.max_invalid)
        return self._collector

    def _act_with(self, version: int, weights: dict[str, np.ndarray] | None) -> None:
        if version != self._version:
            assert weights is not None, "the worker has other weights"
            self._actor.set_weights(weights)
            self._version = version


class Renewed:
    """An actor that takes over the newest weights at every time step, and notes their version.

    Attributes:
      actor: an ArrayActor or TensorActor.
    """

    actor: Any = None

    def __init__(self) -> None:
        self._newest: tuple[int, dict[str, np.ndarray], int] = -1, {}, -1  # version, weights, publication
        self._lock = threading.Lock()
        self._has = -1  # the publication whose weights the actor has
        self._versions: list[int] = []

    def offer(self, version: int, weights: dict[str, np.ndarray], publication: int) -> None:
        """Weights that are taken if none of a later publication are there; any thread may call."""
        with self._lock:
            if publication > self._newest[2]:
                self._newest = version, weights, publication

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)

    def __call__(self, obs: dict[str, np.ndarray], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
        """As the actor's."""
        version, weights, publication = self._newest
        if publication != self._has:
            self.actor.set_weights(weights)
            self._has = publication
        self._versions.append(version)
        return self.actor(obs, noise)

    def pop_versions(self, envs: int) -> np.ndarray:
        """[T, envs] int32, of the time steps since the last call."""
        versions, self._versions = np.array(self._versions, np.int32), []
        return np.repeat(versions[:, None], envs, 1)


class Placed:
    """An actor for some environments of many, to the bit as for all of them at once.

    A product of matrices rounds by the shapes of both. So the rows of these environments stand at their own place
    among as many rows as there are environments; what stands in the other rows does not matter.

    Args:
      actor: an ArrayActor or TensorActor.
      first: the number of the first of these environments. total: how many there are in all.
    """

    def __init__(self, actor: Any, first: int, total: int):
        self._actor, self._first, self._total = actor, first, total
        self._rows: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name)

    def __call__(self, obs: dict[str, np.ndarray], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
        """As the actor's. obs: [B, ...] each. noise: [B, noise_size]."""
        own = slice(self._first, self._first + len(noise))
        given = {name: self._placed(name, x, own) for name, x in obs.items()}
        params, raw_action, states = self._actor(given, self._placed("", noise, own))
        return params[own], raw_action[own], [state[own] for state in states]

    def _placed(self, name: str, x: np.ndarray, own: slice) -> np.ndarray:
        rows = self._rows.get(name)
        if rows is None:  # filled with what an environment gave, which every encoder takes
            rows = self._rows[name] = np.repeat(x[:1], self._total, 0)
        rows[own] = x
        return rows
