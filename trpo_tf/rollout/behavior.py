"""Which policy acts, and when: the learner's own; one some updates behind; or one that acts while the learner works."""

import collections
import threading
from concurrent.futures import Future

import numpy as np
import tensorflow as tf

from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.envs import Episodes
from trpo_tf.types import Trajectory, pack, unpack


class Behavior:
    """Collects with a policy as it was `lag` updates ago, or ahead of the learner with the one of now.

    Args:
      collector: of `acting`.
      policy: the learner's.
      acting: the policy that acts; `policy` itself where there is neither a lag nor a pipeline.
      lag: updates that it stays behind, once there have been as many.
    """

    def __init__(self, collector: Collector, policy: Policy, acting: Policy, lag: int):
        self.collector = collector
        self._policy, self._acting = policy, acting
        self._past: collections.deque[tuple[int, list[np.ndarray]]] = collections.deque(maxlen=lag + 1)
        self._ahead: Future | None = None
        self.invalid_rows = 0  # of what `collect` gave so far

    def collect(self, update: int) -> tuple[Trajectory, Episodes]:
        """The next trajectory and the whole episodes that ended in it: what `start` began, or one from here.

        Raises:
          EnvironmentFailure: of the collector.
        """
        self._keep(update)
        ahead, self._ahead = self._ahead, None
        trajectory, episodes, self.invalid_rows = ahead.result() if ahead else self._collect(self._step_up())
        return trajectory, episodes

    def start(self) -> None:
        """Begins the trajectory after the one that `collect` gave, in a thread of its own, with the policy of then."""
        future, version = Future(), self._step_up()
        threading.Thread(target=self._run, args=(future, version), name="collect").start()
        self._ahead = future

    def wait(self) -> None:
        """Lets a collection under way end."""
        if self._ahead:
            self._ahead.exception()

    def close(self) -> None:
        """Waits, and frees the environments."""
        self.wait()
        self.collector.close()

    def arrays(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside the collector's state, by name."""
        self.wait()
        arrays = {}
        for k, (version, values) in enumerate(self._past if self._acting is not self._policy else ()):
            arrays[f"behavior/{k}/version"] = np.array(version)
            arrays |= {f"behavior/{k}/{n}": value for n, value in enumerate(values)}
        if self._ahead and not self._ahead.exception():
            trajectory, episodes, invalid_rows = self._ahead.result()
            arrays["ahead/invalid_rows"] = np.array(invalid_rows)
            arrays |= pack(trajectory, "ahead/trajectory")
            arrays["ahead/returns"], arrays["ahead/lengths"] = (np.array(x, np.float64) for x in episodes)
        return arrays

    def restore(self, arrays: dict[str, np.ndarray], invalid_rows: int) -> None:
        """Takes back what `arrays` gave, and the count; other entries are left alone."""
        self._past.clear()
        self.invalid_rows = self.collector.invalid_rows = invalid_rows
        while f"behavior/{len(self._past)}/version" in arrays:
            prefix = f"behavior/{len(self._past)}/"
            values = [arrays[f"{prefix}{n}"] for n in range(len(_acting_variables(self._policy)))]
            self._past.append((int(arrays[f"{prefix}version"]), values))
        trajectory = unpack(arrays, "ahead/trajectory")
        if trajectory is not None:
            returns, lengths = arrays["ahead/returns"].tolist(), arrays["ahead/lengths"].astype(int).tolist()
            self.collector.invalid_rows = int(arrays["ahead/invalid_rows"])
            self._ahead = Future()
            self._ahead.set_result((trajectory, Episodes(returns, lengths), self.collector.invalid_rows))

    def _run(self, future: Future, version: int) -> None:
        try:
            future.set_result(self._collect(version))
        except BaseException as error:
            future.set_exception(error)

    def _collect(self, version: int) -> tuple[Trajectory, Episodes, int]:
        return *self.collector.collect(version), self.collector.invalid_rows

    def _keep(self, update: int) -> None:
        """Keeps the policy of now, once; where it is the one that acts, its version."""
        if self._past and self._past[-1][0] == update:
            return
        apart = self._acting is not self._policy
        self._past.append((update, [v.numpy() for v in _acting_variables(self._policy)] if apart else []))

    def _step_up(self) -> int:
        """Makes the oldest policy kept the one that acts, and returns its version."""
        version, values = self._past[0]
        if self._acting is not self._policy:
            for variable, value in zip(_acting_variables(self._acting), values, strict=True):
                variable.assign(value)
        return version


def _acting_variables(policy: Policy) -> list[tf.Variable]:
    """All that acting depends on."""
    models = [policy.network.model, *([policy.value_network.model] if "value_state" in policy.states else [])]
    moments = sorted(policy.normalizer.variables, key=lambda variable: variable.name)
    return [variable.value for model in models for variable in model.trainable_variables] + moments
