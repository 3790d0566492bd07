"""Settings of the algorithm: what turns an objective into new parameters.

MGR18 is Mania, Guy, Recht 2018, "Simple random search provides a competitive approach to reinforcement learning".
"""

import dataclasses
from typing import Any

from trpo_tf.config.setting import Record, setting
from trpo_tf.errors import UsageError

_SEARCHES = ("ars", "cma")  # learn from returns of whole episodes, without derivatives


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig(Record):
    """TRPO, or what it is set against."""

    algorithm: str = setting(
        "trpo",
        "trpo: natural gradient, trust region, line search; npg: natural policy gradient, steps of a fixed length "
        "(Kakade 2001); vpg: policy gradient, first order; ars: augmented random search (MGR18); cma: CMA-ES, of the "
        "package cma. The last two search without derivatives: an update has one whole episode of each candidate",
        choices=("trpo", "npg", "vpg", *_SEARCHES),
        structural=True,
    )
    npg_step_size: float = setting(
        0.5,
        "--algorithm=npg: a step in multiples of F^-1 g, where g is the gradient of the surrogate",
        above=0,
        search=("log", 1e-3, 10),
    )
    vpg_learning_rate: float = setting(
        3e-3,
        "--algorithm=vpg: Adam's learning rate, or a step in multiples of g, the gradient of the surrogate",
        above=0,
        search=("log", 1e-5, 1),
    )
    vpg_optimizer: str = setting(
        "adam", "--algorithm=vpg: adam, or sgd, which is gradient ascent", choices=("adam", "sgd"), structural=True
    )
    ars_directions: int = setting(
        8, "--algorithm=ars: directions of an update, each with two episodes", low=1, high=65536
    )
    ars_top: int = setting(
        0,
        "--algorithm=ars: directions with the best episodes that a step is made of; 0: half of them, rounded up; all "
        "of them: V2 (MGR18)",
        low=0,
    )
    ars_noise: float = setting(
        0.03,
        "--algorithm=ars: standard deviation of candidates around the policy, of each weight (MGR18)",
        above=0,
        search=("log", 0.003, 0.3),
    )
    ars_step_size: float = setting(
        0.02,
        "--algorithm=ars: step in multiples of the mean over directions of (difference of their two returns / standard "
        "deviation of returns) x direction (MGR18)",
        above=0,
        search=("log", 0.002, 0.2),
    )
    cma_population: int = setting(
        0, "--algorithm=cma: candidates of an update; 0: 4 + 3 ln D for D weights", low=0, high=65536, structural=True
    )
    cma_sigma: float = setting(
        0.05,
        "--algorithm=cma: standard deviation of candidates at the beginning, of each weight",
        above=0,
        search=("log", 0.01, 1),
    )
    cma_full_up_to: int = setting(
        200, "--algorithm=cma: weights up to which covariances are adapted, beyond only variances", low=0,
        structural=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ars_top > self.ars_directions:
            raise UsageError(f"--ars_top={self.ars_top}: must be <= --ars_directions={self.ars_directions}")
        if self.cma_population in (1, 2):
            raise UsageError(f"--cma_population={self.cma_population}: must be >= 3, or 0")


def check_algorithm(config: Any) -> None:
    """Looks whether the other settings of a Config go with its algorithm.

    Raises:
      UsageError: names the setting that does not.
    """
    name = config.algorithm.algorithm
    trusted = {"--radius=adaptive": config.radius.radius, "--objective=penalty": config.trust_region.objective}
    for flag, value in trusted.items():
        if name != "trpo" and flag.endswith(value):
            raise UsageError(f"{flag}: is of --algorithm=trpo; {name} has no trust region")
    if name not in _SEARCHES:
        return
    stale, distribution = config.off_policy, "gaussian_with_state_std"
    refused = {
        f"--workers={config.workers.workers}": config.workers.workers > 0,
        f"--sampling={config.sampling.sampling}": config.sampling.vine,
        "--pipeline": stale.pipeline,
        f"--behavior_lag={stale.behavior_lag}": stale.behavior_lag > 0,
        f"--reuse={stale.reuse}": stale.reuse > 1,
        f"--network={config.policy.network}": config.policy.network != "mlp",
        f"--action_distribution={distribution}": config.policy.action_distribution == distribution,
    }
    for flag, given in refused.items():
        if given:
            raise UsageError(f"{flag}: does not go with --algorithm={name}, which searches for deterministic policies")
