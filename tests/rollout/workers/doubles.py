"""Fleets without Ray: one that a test scripts, and one whose workers live in this process."""

import time

import numpy as np

from trpo_tf.rollout.workers.fleet import BEGIN, Answer, Death, Reply
from trpo_tf.rollout.workers.fragments import Fragment
from trpo_tf.rollout.workers.worker import Worker
from trpo_tf.types import Rollout, Trajectory


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class ScriptedFleet:
    """Workers that do what a test says. Every call is kept; `wait` gives what was put into `events`."""

    def __init__(self):
        self.events, self.serials, self.pending, self.killed = [], {}, {}, []
        self.started, self.closed, self.told = [], False, []

    def start(self, slot, serial):
        self.started.append((slot, serial))
        self.serials[slot] = serial
        self.pending[slot] = (BEGIN, "begin", ())

    def send(self, slot, ticket, method, *args):
        assert slot not in self.pending, "one call at a time"
        self.pending[slot] = (ticket, method, args)

    def tell(self, slot, method, *args):
        self.told.append((slot, method, args))

    def share(self, value):
        return value

    def wait(self, seconds):
        found, self.events = self.events, []
        return found

    def kill(self, slot):
        self.killed.append((slot, self.serials[slot]))
        self.pending.pop(slot, None)

    def close(self):
        self.closed = True

    def answer(self, slot, value=None, **reply):
        """The slot's worker answers."""
        ticket, _, _ = self.pending.pop(slot)
        self.events.append(Answer(slot, self.serials[slot], ticket, Reply(value, **reply)))
        return self.events[-1]

    def die(self, slot, why="killed"):
        """The slot's worker is gone."""
        self.pending.pop(slot, None)
        self.events.append(Death(slot, self.serials[slot], why))


class LocalFleet:
    """Workers in this process, asked in a random order; `dies` decides who dies, at which of its calls.

    Args:
      plan: of the workers.
      dies: from (slot, number of the call of any worker, method) to "", "before" or "after" the call is done.
      seed: of the order.
    """

    def __init__(self, plan, dies=lambda slot, count, method: "", seed=0):
        self._plan, self._dies, self._rng = plan, dies, np.random.default_rng(seed)
        self._workers, self._calls = {}, {}
        self.count = self.deaths = 0

    def start(self, slot, serial):
        self._workers[slot] = serial, Worker(slot, serial)
        self.send(slot, BEGIN, "begin", self._plan)

    def send(self, slot, ticket, method, *args):
        self._calls[slot] = ticket, method, args

    def tell(self, slot, method, *args):
        getattr(self._workers[slot][1], method)(*args)

    def share(self, value):
        return value

    def wait(self, seconds):
        if not self._calls:
            time.sleep(min(seconds, 0.002))
            return []
        slot = self._rng.choice(sorted(self._calls))
        ticket, method, args = self._calls.pop(slot)
        serial, worker = self._workers[slot]
        self.count += 1
        when = self._dies(slot, self.count, method)
        reply = None if when == "before" else worker.answer(method, *args)
        if when:
            self.deaths += 1
            return [Death(slot, serial, f"{method} killed it")]
        return [Answer(slot, serial, ticket, reply)]

    def kill(self, slot):
        self._calls.pop(slot, None)

    def close(self):
        self._calls.clear()


def fragment(identity, version, time_steps=1, envs=1, mask=1.0, obs=None):
    """A fragment whose observation is its identity, of an actor with one observation of 3 numbers and 1 action."""
    rows = time_steps, envs
    number = np.zeros(rows, np.float32)
    seen = np.broadcast_to(np.array(identity if obs is None else obs, np.float64), (time_steps + 1, envs, 3)).copy()
    action = np.zeros((*rows, 1), np.float32)
    flags = np.zeros(rows, bool), np.zeros(rows, bool)
    trajectory = Trajectory({"observation": seen}, action, number, number, *flags, np.full(rows, mask, np.float32))
    params = np.zeros((*rows, 2), np.float32)
    return Fragment(
        identity, Rollout(trajectory, params, np.full(rows, version, np.int32), number, [], [], [], 0), 0, 0
    )


class Specs:
    """What `Shapes` asks of an actor."""

    action_size, params_size = 1, 2

    def __init__(self):
        self.specs = {"observation": ((3,), np.dtype(np.float64))}
