"""Workers as actors of Ray."""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.workers.fleet import BEGIN, Answer, Death, Reply
from trpo_tf.rollout.workers.ray_cluster import RayCluster
from trpo_tf.rollout.workers.worker import Worker, WorkerPlan


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
        self._cluster = RayCluster(config, store)
        self._ray = ray = self._cluster.ray
        cpus = config.worker_cpus if config.ray_address else 0  # on this machine, there may be more than it has cores
        options = {"num_cpus": cpus, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
        self._actor = ray.remote(scheduling_strategy="SPREAD", **options)(Worker)
        self._search = tuple(os.path.abspath(path) for path in sys.path)
        self._workers: dict[int, tuple[int, Any, dict[str, Any]]] = {}  # serial, handle and where it is, by slot
        self._calls: dict[Any, tuple[int, int, int]] = {}  # slot, serial and ticket, by reference
        try:
            self._plan = ray.put(plan)
        except Exception as error:
            self._cluster.close()
            raise UsageError(
                f"--workers={config.workers}: the environment cannot be sent to workers: {first_line(error)}"
            ) from error

    def start(self, slot: int, serial: int) -> None:
        """As Fleet says."""
        handle = self._actor.remote(slot, serial, self._search)
        self._workers[slot] = serial, handle, {}
        self.send(slot, BEGIN, "begin", self._plan)

    def send(self, slot: int, ticket: int, method: str, *args: Any) -> None:
        """As Fleet says."""
        serial, handle, _ = self._workers[slot]
        self._calls[handle.answer.remote(method, *args)] = slot, serial, ticket

    def share(self, value: Any) -> Any:
        """As Fleet says."""
        return self._ray.put(value)

    def wait(self, seconds: float) -> list[Answer | Death]:
        """As Fleet says.

        Raises:
          RuntimeError: Ray has ended, or the process is about to.
        """
        if not self._ray.is_initialized():
            raise RuntimeError("Ray was shut down while workers were needed")
        if not self._calls:
            time.sleep(seconds)
            return []
        calls = list(self._calls)
        if not self._ray.wait(calls, timeout=seconds)[0]:
            return []
        there, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return [self._event(call) for call in there]

    def _event(self, call: Any) -> Answer | Death:
        slot, serial, ticket = self._calls.pop(call)
        try:
            reply: Reply = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self.kill(slot)
            return Death(slot, serial, f"a rollout worker is gone: {_said(error)}")
        if ticket == BEGIN and reply.trouble is None:
            self._workers[slot] = (*self._workers[slot][:2], reply.value)
        return Answer(slot, serial, ticket, reply)

    def kill(self, slot: int) -> None:
        """As Fleet says."""
        _, handle, where = self._workers.pop(slot, (0, None, {}))
        self._calls = {call: about for call, about in self._calls.items() if about[0] != slot}
        if handle is None:
            return
        with suppress(Exception):
            self._ray.kill(handle)
        if where.get("host") == socket.gethostname():
            with suppress(OSError, AttributeError):  # Windows stops no process
                os.kill(where["pid"], signal.SIGCONT)  # stopped, it would not hear Ray

    def close(self) -> None:
        """As Fleet says."""
        for slot in list(self._workers):
            self.kill(slot)
        self._cluster.close()


def _said(error: Exception) -> str:
    """What Ray says of an error, without the lines that name ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines[1:] if line.startswith(("The actor died", "Worker exit", "The node"))]
    return " ".join([first_line(error), *details[:1]])
