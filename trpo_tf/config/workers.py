"""The settings of rollout workers on Ray."""

import dataclasses

from trpo_tf.config.setting import Record, setting
from trpo_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class WorkersConfig(Record):
    """Processes on Ray that collect."""

    workers: int = setting(
        0, "processes on Ray that collect, each in num_envs / workers environments; 0: this process", low=0, high=4096
    )
    workers_mode: str = setting(
        "asynchronous",
        "asynchronous: nobody waits, transitions are a few updates old, which is corrected; synchronous: as without "
        "workers, to the bit",
        choices=("asynchronous", "synchronous"),
    )
    ray_address: str = setting("", "host:port of a Ray cluster to join; empty: workers on this machine")
    worker_cpus: float = setting(1, "threads of a worker, and cores that it takes of a cluster", low=0, high=1024)
    fragment_timeout: float = setting(
        300, "seconds that a worker may take to answer before it is replaced; 0: any time", low=0
    )
    allow_insecure_ray: bool = setting(
        False, "join a Ray cluster that asks for no token: whoever reaches it can run code on all of its hosts"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "://" in self.ray_address or (self.ray_address and ":" not in self.ray_address):
            raise UsageError(f"--ray_address={self.ray_address}: must be host:port")
        if self.ray_address and not self.workers:
            raise UsageError(f"--ray_address={self.ray_address}: goes with --workers, 1 or more")

    def described(self) -> str:
        """What is said of workers where a run begins; empty where there are none."""
        where = f" at {self.ray_address}" if self.ray_address else ""
        return f", {self.workers} {self.workers_mode} workers{where}" if self.workers else ""

    @property
    def asynchronous(self) -> bool:
        """Whether rollouts come from workers that nobody waits for."""
        return self.workers > 0 and self.workers_mode == "asynchronous"
