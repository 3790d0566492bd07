"""Settings of the two sampling schemes of Schulman et al. 2015, section 5."""

import dataclasses

from trpo_tf.config.setting import Record, setting


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Record):
    """Single path or vine. A vine's trunk is what single path would be; its branches are environment steps, too."""

    sampling: str = setting(
        "single_path",
        "single_path; vine: several actions are tried in each of some states, which takes environments that can be put "
        "back to where they were (Schulman et al. 2015, section 5.2)",
        choices=("single_path", "vine"),
        structural=True,
    )
    vine_states: int = setting(
        64, "--sampling=vine: states per update from which branches start", low=1, structural=True,
        search=("log", 16, 1024),
    )  # fmt: skip
    vine_actions: int = setting(
        8,
        "--sampling=vine: actions tried in each of them; of a Discrete space that has no more, each one once",
        low=2,
        structural=True,
        search=("log", 2, 16),
    )
    vine_steps: int = setting(
        4, "--sampling=vine: time steps of a branch, after which the value network speaks", low=1, structural=True,
        search=("log", 1, 256),
    )  # fmt: skip
    vine_common_noise: bool = setting(
        True, "--sampling=vine: branches of one state meet the same noise of policy and environment", structural=True
    )

    @property
    def vine(self) -> bool:
        """Whether branches are tried."""
        return self.sampling == "vine"
