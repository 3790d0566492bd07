"""What runs in a worker's process. NumPy only, unless the policy's network needs TensorFlow."""

import dataclasses
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

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
from trpo_tf.rollout.workers.fragments import Fragment, one_after_another
from trpo_tf.rollout.workers.ledger import Identity
from trpo_tf.types import Rollout

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
      pieces: the time steps of each piece of a fragment; empty: in one.
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
    pieces: tuple[int, ...] = ()


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
        self._under_way: _UnderWay | None = None

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
        return {"pid": os.getpid(), "host": socket.gethostname(), "tensorflow": "tensorflow" in sys.modules}

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

    def fragment(self, identity: Identity, version: int, weights: dict[str, np.ndarray] | None) -> Identity | Fragment:
        """The next piece of a fragment, drawn by the policy with these weights.

        A fragment is asked for piece by piece, each time with the newest weights: what is collected during an update is
        one update old, what is collected after it is not. weights: None where the worker has those of this version.

        Returns:
          The fragment with its last piece, before that its identity.
        """
        self._act_with(version, weights)
        collector = self._own()
        if self._under_way is None or self._under_way.identity != identity:
            self._under_way = _UnderWay(identity, self._noise(identity), collector.restarts, collector.dropped, [])
        current = self._under_way
        noise = current.noise[len(current.pieces)]
        current.pieces.append(collector.collect(noise, lambda params, _: np.zeros(len(params), np.float32), version))
        collector.forget()
        if len(current.pieces) < len(current.noise):
            return identity
        self._under_way = None
        restarts, dropped = (current.restarts, current.dropped) if identity.fragment else (0, 0)
        rollout = one_after_another(current.pieces)
        return Fragment(identity, rollout, rollout.restarts - restarts, rollout.dropped - dropped)

    def _noise(self, identity: Identity) -> list[np.ndarray]:
        """What each piece of a fragment needs: a function of the run's seed, the serial and the fragment's number."""
        plan, key = self._plan, [self._plan.seed << 32 | self._serial, identity.fragment]
        noise = self._actor.noise(np.random.Generator(np.random.Philox(key=key)), (plan.time_steps, plan.envs))
        return np.split(noise, np.cumsum(plan.pieces)[:-1])

    def _own(self) -> Collector:
        if self._collector is None:
            plan = self._plan
            first = seeds.derive_seed(plan.seed, seeds.TRAIN_ENVS, 0) + self._serial * plan.envs

            def make_envs(_: int):
                place = self._slot * plan.envs, plan.workers * plan.envs
                return plan.environments.training(first % _LARGEST_SEED, place)

            stepper = LocalStepper(make_envs, self._actor)
            self._collector = Collector(stepper, self._actor, plan.gamma, plan.max_invalid)
        return self._collector

    def _act_with(self, version: int, weights: dict[str, np.ndarray] | None) -> None:
        if version != self._version:
            assert weights is not None, "the worker has other weights"
            self._actor.set_weights(weights)
            self._version = version


class _UnderWay(NamedTuple):
    """A fragment that is being collected."""

    identity: Identity
    noise: list[np.ndarray]  # of all its pieces
    restarts: int  # environments made anew before it
    dropped: int  # transitions masked with them
    pieces: list[Rollout]  # so far


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
