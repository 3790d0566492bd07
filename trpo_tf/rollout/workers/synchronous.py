"""Environments stepped by workers as one process would step them, to the bit, whichever of the workers dies."""

import collections
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.errors import EnvironmentFailure, Interrupted, UsageError
from trpo_tf.messages import warn
from trpo_tf.rollout.stepper import Losses, Past, Steps
from trpo_tf.rollout.vector_env import Episodes
from trpo_tf.rollout.workers.crew import Crew
from trpo_tf.rollout.workers.fleet import Answer, Reply
from trpo_tf.rollout.workers.fragments import joined_obs, merged

_PATIENCE = 8.0  # seconds that a run which is to end waits for workers; what they do is lost with it
_Request = tuple[str, tuple[Any, ...]]  # method and arguments


class WorkersStepper:
    """Steps environments in workers, each in its columns. Interface: see Stepper.

    A worker that dies is begun anew with the same seeds, goes through the recorded actions of its environments, and is
    asked again.

    Args:
      make_crew: begins the workers.
      workers: W. envs: B, of each. time_steps: T.
      max_restarts: environments that may be made anew.
      stopping: whether the run is to end.
    """

    def __init__(
        self,
        make_crew: Callable[[], Crew],
        workers: int,
        envs: int,
        time_steps: int,
        max_restarts: int,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._make_crew, self._count, self._envs, self._stopping = make_crew, workers, envs, stopping
        self._time, self._max_restarts = time_steps, max_restarts
        self.num_envs = workers * envs
        self._crew: Crew | None = None
        self._version, self._weights = -1, None
        self._fresh: dict[str, np.ndarray] | None = None  # weights that no worker was sent yet
        self._placed: dict[int, int] = {}  # serial of the worker whose environments are where the books say, by slot
        self._told = False

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Acts with these weights from now on."""
        self._version, self._fresh = self._version + 1, weights

    def build(self, update: int, restarts: int) -> tuple[dict[str, np.ndarray], Losses]:
        """As Stepper says."""
        replies = self._all([("build", (update, restarts))] * self._count, None)
        return joined_obs([obs for obs, _ in replies], 0), self._losses([x for _, x in replies], (restarts, 0))

    def replay(self, past: Past) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """As Stepper says."""
        replies = self._all([("replay", (self._columns(past, slot),)) for slot in range(self._count)], None)
        others = [(step, slot * self._envs + env) for slot, (_, found) in enumerate(replies) for step, env in found]
        return joined_obs([obs for obs, _ in replies], 0), sorted(others)

    def step(
        self, obs: dict[str, np.ndarray], bad: np.ndarray, noise: np.ndarray, before: tuple[int, int], past: Past
    ) -> tuple[Steps, Losses, Episodes]:
        """As Stepper says."""
        if self._fresh is not None:
            self._weights, self._fresh = self._ready_crew().share(self._fresh), None
        requests: list[_Request] = []
        for slot in range(self._count):
            own = slice(slot * self._envs, (slot + 1) * self._envs)
            seen = {name: np.ascontiguousarray(x[own]) for name, x in obs.items()}
            drawn = np.ascontiguousarray(noise[:, own])
            requests.append(("step", (self._version, self._weights, seen, bad[own], drawn, before)))
        replies = self._all(requests, past)
        steps, losses, episodes = zip(*replies, strict=True)
        return _joined(steps), self._losses(losses, before), Episodes(*merged(list(episodes)))

    def metrics(self) -> dict[str, Any]:
        """As Stepper says."""
        crew = self._ready_crew()
        return {"workers/alive": crew.alive, "workers/deaths": crew.deaths}

    def close(self) -> None:
        """As Stepper says."""
        crew, self._crew = self._crew, None
        self._placed.clear()
        if crew is not None:
            crew.close()

    def _ready_crew(self) -> Crew:
        if self._crew is None:
            self._crew = self._make_crew()
        return self._crew

    def _columns(self, past: Past, slot: int) -> Past:
        return past.columns(slot * self._envs, self._envs)

    def _all(self, requests: list[_Request], past: Past | None) -> list[Any]:
        """As `_answers`; where it raises, nobody waits any more for what workers were asked."""
        crew = self._ready_crew()
        try:
            return self._answers(crew, requests, past)
        except BaseException:
            crew.abandon()
            raise

    def _answers(self, crew: Crew, requests: list[_Request], past: Past | None) -> list[Any]:
        """What every slot answers to its request, in order.

        past: what environments must have gone through before; None: the request sees to that.

        Raises:
          EnvironmentFailure, UsageError: a worker raised it. The environments are anywhere.
          Interrupted: the run is to end, and workers do not answer.
        """
        placed = dict(self._placed)
        self._placed.clear()  # until all have answered
        found: dict[int, Any] = {}
        due = {slot: self._due(slot, request, past, placed) for slot, request in enumerate(requests)}
        patience: float | None = None
        while len(found) < len(requests):
            for slot in crew.ready():
                if slot not in found:
                    method, args = due[slot][0]
                    crew.ask(slot, method, *args, allowance=self._allowance(method, args))
            for event in crew.poll(0.2):
                if not isinstance(event, Answer):
                    placed.pop(event.slot, None)
                    if event.slot not in found:
                        due[event.slot] = self._due(event.slot, requests[event.slot], past, placed)
                    continue
                value = self._value(crew, event)
                due[event.slot].popleft()
                if due[event.slot]:
                    self._compare(value, requests[event.slot])
                else:
                    found[event.slot] = value
                placed[event.slot] = event.serial
            if self._stopping():
                patience = time.monotonic() + _PATIENCE if patience is None else patience
                if time.monotonic() > patience:
                    raise Interrupted(
                        "the run ends without the rollout under way, which workers did not finish in time"
                    )
        self._placed = {slot: serial for slot, serial in placed.items() if serial == crew.serial_of(slot)}
        return [found[slot] for slot in range(len(requests))]

    def _due(self, slot: int, request: _Request, past: Past | None, placed: dict[int, int]) -> Any:
        """What the slot is to be asked, in order."""
        assert self._crew is not None
        first = past is not None and placed.get(slot) != self._crew.serial_of(slot)
        replay = [("replay", (self._columns(past, slot),))] if first and past is not None else []
        return collections.deque([*replay, request])

    def _allowance(self, method: str, args: tuple[Any, ...]) -> float:
        """Multiple of the time that a fragment may take."""
        return 1.0 + args[0].time_steps / self._time if method == "replay" else 1.0

    @staticmethod
    def _value(crew: Crew, event: Answer) -> Any:
        """What an answer holds, or what it raises."""
        reply: Reply = event.reply
        if reply.trouble is None:
            crew.accept(event.slot)
            return reply.value
        raise (UsageError if reply.trouble.kind == "usage" else EnvironmentFailure)(reply.trouble.message)

    def _compare(self, replayed: Any, request: _Request) -> None:
        """Warns, once, where a new worker's environments are not where the old one's were."""
        obs, others = replayed
        seen = request[1][2]
        if not self._told and (others or any(obs[name].tobytes() != seen[name].tobytes() for name in obs)):
            self._told = True
            warn("the environments of a new worker did not repeat themselves: training goes on, but not to the bit")

    def _losses(self, parts: Any, before: tuple[int, int]) -> Losses:
        """Those of all columns.

        Raises:
          EnvironmentFailure: environments were made anew too often.
        """
        restarts, dropped = (start + sum(x[k] - start for x in parts) for k, start in enumerate(before))
        failed = [(step, slot * self._envs + env) for slot, x in enumerate(parts) for step, env in x.failed]
        if restarts > self._max_restarts:
            raise EnvironmentFailure(f"environments failed {restarts} times; --max_env_restarts={self._max_restarts}")
        return Losses(restarts, dropped, sorted(failed))


def _joined(parts: tuple[Steps, ...]) -> Steps:
    """Those of all columns; they have no branches."""
    obs = joined_obs([part.obs for part in parts], 1)
    names = set(Steps._fields) - {"obs", "branches"}
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts], 1) for name in names}
    return Steps(obs=obs, **arrays)
