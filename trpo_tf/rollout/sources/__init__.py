"""Where rollouts come from: sources of one kind, which a session asks for one rollout after the other."""

from typing import Any, Protocol

import numpy as np

Weights = dict[str, np.ndarray]  # by name: all that acting depends on


class RolloutSource(Protocol):
    """A source of rollouts.

    Per update, a session calls `publish`, `next`, perhaps `work_ahead`, `learned`, and perhaps `renew`.
    """

    def publish(self, version: int, weights: Weights) -> None:
        """Makes the policy with `version` updates behind it known. Every version is published once, in order."""

    def next(self) -> Any:
        """The next Rollout, or what else the learner learns from; see algorithms.Algorithm.

        Raises:
          EnvironmentFailure: `state()` is as before, and the next call begins there.
        """
        ...

    def work_ahead(self) -> None:
        """Another rollout will be asked for before `renew`: a source that can begins it now, if it has not yet."""

    def learned(self, env_steps: int) -> dict[str, Any]:
        """An update has learned from the last rollout, and the run has so many transitions now. Returns metrics."""
        ...

    def renew(self, update: int) -> None:
        """Fresh environments, seeded for this update: a boundary that an undisturbed and a resumed run share."""

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a source of the same kind needs to go on to the bit."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """Takes back what `state` gave; whether the environments repeated themselves."""
        ...

    def close(self) -> None:
        """Waits for what is under way, and frees the environments."""
