"""Workers as actors of Ray."""

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import EnvironmentFailure, UsageError, described, first_line, one_line
from trpo_tf.rollout.workers.fleet import BEGIN, Answer, Death, Reply
from trpo_tf.rollout.workers.ray_cluster import RayCluster
from trpo_tf.rollout.workers.worker import Worker, WorkerPlan

_BESIDE, _STAYING = "beside", "staying"  # threads of an actor: what answers `tell`, and what stays in a call
_STAY = -1  # the ticket of that call, which ends with the worker, whatever else it does or does not do


class RayFleet:
    """Interface: see Fleet.

    Ray begins no worker anew, and repeats no call: it would with the arguments of before, and so with seeds that were
    used.

    Args:
      config: of the workers.
      plan: what they are made of.
      store: bytes that fragments and weights need at once.

    Raises:
      UsageError: Ray cannot be used, or the plan cannot be sent.
    """

    def __init__(self, config: WorkersConfig, plan: WorkerPlan, store: int):
        self._workers: dict[int, tuple[int, Any, dict[str, Any]]] = {}  # serial, handle and where it is, by slot
        self._calls: dict[Any, tuple[int, int, int]] = {}  # slot, serial and ticket, by reference
        self._unasked: list[Answer | Death] = []  # workers that could not be asked, for the next `wait`
        self._told: dict[int, Any] = {}  # references of what workers were told last, by slot
        self._search = tuple(os.path.abspath(path) for path in sys.path)
        self._cluster = RayCluster(config, store)
        self._ray = ray = self._cluster.ray
        with ExitStack() as undo:
            undo.callback(self._cluster.close)
            cpus = 0 if self._cluster.local else config.worker_cpus  # there may be more than this machine has cores
            options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
            if config.asynchronous:  # else all calls are made in the main thread
                options["concurrency_groups"] = {_BESIDE: 1, _STAYING: 1}
            self._beside = config.asynchronous
            self._actor = ray.remote(scheduling_strategy="SPREAD", **options)(Worker)
            try:
                self._plan = ray.put(plan)
            except Exception as error:
                raise UsageError(
                    f"--workers={config.workers}: the environment cannot be sent to workers: {first_line(error)}"
                ) from error
            undo.pop_all()

    def start(self, slot: int, serial: int) -> None:
        """As Fleet says."""
        self._workers[slot] = serial, None, {}
        self._told.pop(slot, None)
        self.send(slot, BEGIN, "begin", self._plan)

    def send(self, slot: int, ticket: int, method: str, *args: Any) -> None:
        """As Fleet says."""
        serial, handle, where = self._workers[slot]
        try:
            with self._cluster.calls:
                self._check()
                if handle is None:
                    handle = self._actor.remote(slot, serial, self._search)
                    self._workers[slot] = serial, handle, where
                self._calls[handle.answer.remote(method, *args)] = slot, serial, ticket
        except Exception as error:
            self.kill(slot)
            self._unasked.append(Death(slot, serial, f"a rollout worker cannot be asked: {_said(error)}"))

    def tell(self, slot: int, method: str, *args: Any) -> None:
        """As Fleet says."""
        _, handle, _ = self._workers.get(slot, (0, None, {}))
        with suppress(Exception):  # the next `wait` finds out, and says, that the worker or Ray is gone
            last = self._told.get(slot)
            if handle is not None and (last is None or self._ray.wait([last], timeout=0)[0]):  # else values pile up
                self._told[slot] = getattr(handle, method).options(concurrency_group=_BESIDE).remote(*args)

    def share(self, value: Any) -> Any:
        """As Fleet says.

        Raises:
          EnvironmentFailure: Ray has ended, or fails.
        """
        self._check()
        try:
            return self._ray.put(value)
        except Exception as error:
            raise _failure(error) from error

    def wait(self, seconds: float) -> list[Answer | Death]:
        """As Fleet says.

        Raises:
          EnvironmentFailure: Ray has ended, or fails.
        """
        with self._cluster.calls:
            self._check()
            if self._unasked:
                found, self._unasked = self._unasked, []
                return found
            calls = list(self._calls)
            try:
                there = calls and self._ray.wait(calls, timeout=seconds)[0]
                if there:
                    there, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
            except Exception as error:
                self._check()
                raise _failure(error) from error
            found = [self._event(call) for call in there if call in self._calls]  # a death takes the rest
        if not calls:
            time.sleep(seconds)
        return found

    def _check(self) -> None:
        """Raises where the Ray that the workers are on has ended."""
        if not self._cluster.lives():
            raise EnvironmentFailure(
                "Ray was shut down while rollout workers were needed; leave ray.shutdown() until the run is closed"
            )

    def _event(self, call: Any) -> Answer | Death:
        slot, serial, ticket = self._calls.pop(call)
        try:
            reply: Reply = self._ray.get(call)
            if ticket == BEGIN and reply.trouble is None:
                _, handle, _ = self._workers[slot]
                self._workers[slot] = serial, handle, reply.value
                if self._beside:
                    self._calls[handle.stay.options(concurrency_group=_STAYING).remote()] = slot, serial, _STAY
        except Exception as error:  # of Ray, or of what the reply was made of
            self.kill(slot)
            return Death(slot, serial, f"a rollout worker is gone: {_said(error)}")
        return Answer(slot, serial, ticket, reply)

    def kill(self, slot: int) -> None:
        """As Fleet says."""
        _, handle, where = self._workers.pop(slot, (0, None, {}))
        self._calls = {call: about for call, about in self._calls.items() if about[0] != slot}
        if handle is None:
            return
        with suppress(Exception), self._cluster.calls:
            self._check()  # another Ray may have an actor of the same name
            self._ray.kill(handle)
        if where.get("host") == socket.gethostname():
            with suppress(OSError, AttributeError):  # Windows stops no process
                os.kill(where["pid"], signal.SIGCONT)  # stopped, it would not hear Ray

    def close(self) -> None:
        """As Fleet says."""
        for slot in list(self._workers):
            self.kill(slot)
        self._cluster.close()


def _failure(error: Exception) -> EnvironmentFailure:
    return EnvironmentFailure(f"Ray failed while rollout workers were needed: {_said(error)}")


def _said(error: Exception) -> str:
    """What an error says, without the lines of Ray that name ids."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):  # Ray's own first line names the call only
        return described(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if "creation task" in lines[0]:  # what it raised stands last
        return one_line(lines[-1])
    details = [line for line in lines[1:] if line.startswith(("The actor died", "Worker exit", "The node"))]
    return " ".join([first_line(error), *details[:1]])
