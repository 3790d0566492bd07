"""Settings of the algorithm: what turns an objective into new parameters."""

import dataclasses

from trpo_tf.config.setting import Record, setting


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig(Record):
    """TRPO, or what it is set against."""

    algorithm: str = setting(
        "trpo",
        "trpo: natural gradient, trust region, line search; npg: natural policy gradient, steps of a fixed length "
        "(Kakade 2001); vpg: policy gradient, first order",
        choices=("trpo", "npg", "vpg"),
        structural=True,
    )
    npg_step_size: float = setting(
        0.05,
        "--algorithm=npg: a step in multiples of F^-1 g, where g is the gradient of the surrogate",
        above=0,
        search=("log", 1e-3, 10),
    )
    vpg_learning_rate: float = setting(
        3e-4,
        "--algorithm=vpg: Adam's learning rate, or a step in multiples of g, the gradient of the surrogate",
        above=0,
        search=("log", 1e-5, 1),
    )
    vpg_optimizer: str = setting(
        "adam", "--algorithm=vpg: adam, or sgd, which is gradient ascent", choices=("adam", "sgd"), structural=True
    )
