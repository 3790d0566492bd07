"""The settings of learning from transitions of older policies."""

import dataclasses

from trpo_tf.config.setting import Record, setting
from trpo_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(Record):
    """Learning from transitions of older policies."""

    reuse: int = setting(
        1,
        "batches of the newest policies in an update, corrected by importance sampling",
        low=1,
        high=64,
        structural=True,
    )
    reuse_weights: str = setting(
        "uniform",
        "uniform: every batch counts the same; optimal: larger weights for newer batches, and more batches, at the "
        "same effective number",
        choices=("uniform", "optimal"),
        structural=True,
    )
    pipeline: bool = setting(
        False,
        "collect while the update runs, with a policy one update older; the first update after a checkpoint collects "
        "anew. Against staleness, steps are 1.4 times shorter",
        structural=True,
    )
    behavior_lag: int = setting(
        0, "updates that the acting policy stays behind, to study it", low=0, high=64, structural=True
    )
    correct_stale: bool = setting(True, "importance sampling and V-trace; without, stale transitions count as new ones")
    vtrace_rho: float = setting(
        1.0, "truncation of the ratio in targets and surrogate; at 1 the std shrinks (Espeholt et al. 2018)", above=0
    )
    vtrace_c: float = setting(
        1.0,
        "truncation of the ratio in traces; a trace is divided by its mean (Espeholt et al. 2018)",
        above=0,
    )
    max_staleness: int = setting(
        64,
        "a transition that is more updates old than this is masked, and its batch no longer kept",
        low=0,
        structural=True,
    )
    min_effective_sample_size: float = setting(
        0.25, "effective sample size, as a fraction of the transitions, below which no policy step is taken",
        low=0, high=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_staleness < self.lag:
            raise UsageError(
                f"--max_staleness={self.max_staleness}: must be >= {self.lag}, the staleness of every transition with "
                f"--behavior_lag={self.behavior_lag}{' and --pipeline' if self.pipeline else ''}"
            )
        if self.reuse > 1 and self.max_staleness == self.lag:
            raise UsageError(
                f"--max_staleness={self.max_staleness}: leaves --reuse={self.reuse} no batch to use again; must be >= "
                f"{self.lag + 1}"
            )

    @property
    def lag(self) -> int:
        """Updates that the policy which acts is behind the one that learns from it."""
        return self.behavior_lag + self.pipeline

    @property
    def enabled(self) -> bool:
        """Whether transitions of older policies are learned from."""
        return self.reuse > 1 or self.lag > 0
