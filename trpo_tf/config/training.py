"""A training run's configuration: one record per room, and the same as flat settings by name."""

import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Any

from trpo_tf.config import rooms
from trpo_tf.config.algorithm import AlgorithmConfig, check_algorithm
from trpo_tf.config.off_policy import OffPolicyConfig
from trpo_tf.config.sampling import SamplingConfig
from trpo_tf.config.workers import WorkersConfig
from trpo_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. `make_config` makes one of flat settings.

    Raises:
      UsageError: settings of different rooms contradict each other.
    """

    run: rooms.RunConfig = dataclasses.field(default=rooms.RunConfig())
    environment: rooms.EnvironmentConfig = dataclasses.field(default=rooms.EnvironmentConfig())
    sampling: SamplingConfig = dataclasses.field(default=SamplingConfig())
    policy: rooms.PolicyConfig = dataclasses.field(default=rooms.PolicyConfig())
    advantage: rooms.AdvantageConfig = dataclasses.field(default=rooms.AdvantageConfig())
    algorithm: AlgorithmConfig = dataclasses.field(default=AlgorithmConfig())
    trust_region: rooms.TrustRegionConfig = dataclasses.field(default=rooms.TrustRegionConfig())
    radius: rooms.RadiusConfig = dataclasses.field(default=rooms.RadiusConfig())
    off_policy: OffPolicyConfig = dataclasses.field(default=OffPolicyConfig())
    workers: WorkersConfig = dataclasses.field(default=WorkersConfig())
    value: rooms.ValueConfig = dataclasses.field(default=rooms.ValueConfig())
    compute: rooms.ComputeConfig = dataclasses.field(default=rooms.ComputeConfig())

    def __post_init__(self) -> None:
        if not self.environment.env:
            raise UsageError("--env is missing; name an environment, such as --env=Hopper-v5")
        if self.off_policy.pipeline and self.run.checkpoint_every == 1:
            raise UsageError("--checkpoint_every=1: --pipeline collects ahead between checkpoints only; must be >= 2")
        self._check_workers()
        if self.sampling.vine:
            self._check_vine()
        check_algorithm(self)
        if self.radius.radius == "adaptive":
            if self.environment.num_envs < 2:
                raise UsageError(
                    f"--num_envs={self.environment.num_envs}: --radius=adaptive compares halves of the environments, "
                    "2 or more"
                )
            low, high, max_kl = self.radius.min_kl, self.radius.max_kl_bound, self.trust_region.max_kl
            if not low <= max_kl <= high:
                raise UsageError(
                    f"--max_kl={max_kl}: with --radius=adaptive between --min_kl={low} and --max_kl_bound={high}"
                )

    def _check_workers(self) -> None:
        workers, envs = self.workers.workers, self.environment.num_envs
        if workers and envs % workers:
            near = -(-envs // workers) * workers
            raise UsageError(
                f"--workers={workers}: must divide --num_envs={envs}, since all step as many; or --num_envs={near}"
            )
        least = self.off_policy.behavior_lag + 2 + (self.off_policy.reuse > 1)
        if self.workers.asynchronous and self.off_policy.max_staleness < least:
            raise UsageError(
                f"--max_staleness={self.off_policy.max_staleness}: must be >= {least}; transitions of asynchronous "
                "workers are up to 2 updates older than without"
            )
        if workers and self.environment.env_processes:
            raise UsageError("--env_processes: workers are processes already; use more --workers")

    def _check_vine(self) -> None:
        """Raises UsageError for what does not go with a vine; takes gymnasium's environments, which it needs."""
        others = {
            "--workers": self.workers.workers,
            "--pipeline, --behavior_lag and --reuse": self.off_policy.enabled,
            "--radius=adaptive": self.radius.radius == "adaptive",
            f"--network={self.policy.network}": self.policy.length > 1,
            "--noise_color, since branches draw white noise": self.policy.noise_color,
        }
        for flag, given in others.items():
            if given:
                raise UsageError(f"--sampling=vine: does not go with {flag}; leave one of them out")
        rows = self.time_steps * self.environment.num_envs
        if self.sampling.vine_states > rows:
            raise UsageError(f"--vine_states={self.sampling.vine_states}: must be <= {rows}, the states of an update")
        if self.environment.env_backend == "auto":
            ours = dataclasses.replace(self.environment, env_backend="gymnasium")
            object.__setattr__(self, "environment", ours)

    @property
    def stale(self) -> bool:
        """Whether transitions of older policies are learned from."""
        return self.off_policy.enabled or self.workers.asynchronous

    @property
    def time_steps(self) -> int:
        """T, the time steps per environment and update: whole sequences."""
        length, envs = self.policy.length, self.environment.num_envs
        return math.ceil(self.environment.steps_per_update / envs / length) * length

    def replace(self, **settings: Any) -> "Config":
        """The configuration with other values of these flat settings."""
        return make_config(**(to_dict(self) | settings))


_OWN = {"resume", "ray_address", "allow_insecure_ray"}  # what joins a cluster runs what its members send

GROUPS = {
    "run": "the run",
    "environment": "environments",
    "sampling": "single path and vine",
    "policy": "policy and value networks",
    "advantage": "advantages",
    "algorithm": "algorithm",
    "trust_region": "trust region",
    "radius": "adaptive radius",
    "off_policy": "stale data",
    "workers": "rollout workers on Ray",
    "value": "value fit",
    "compute": "computing",
}


def settings() -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting of a training run with its room, an attribute of Config."""
    for room in dataclasses.fields(Config):
        for field in dataclasses.fields(type(room.default)):  # type: ignore[arg-type]
            yield room.name, field


def make_config(**given: Any) -> Config:
    """A Config of flat settings, such as make_config(env="Hopper-v5", max_kl=0.02).

    Raises:
      UsageError: a value is out of its range, or there is no such setting.
    """
    room_of = {field.name: room for room, field in settings()}
    unknown = sorted(set(given) - set(room_of))
    if unknown:
        raise UsageError(f"no such setting: {', '.join(unknown)}{nearest(unknown[0], list(room_of))}")
    by_room: dict[str, dict[str, Any]] = {room.name: {} for room in dataclasses.fields(Config)}
    for name, value in given.items():
        by_room[room_of[name]][name] = value
    kinds: dict[str, Any] = {room.name: type(room.default) for room in dataclasses.fields(Config)}
    return Config(**{name: kinds[name](**values) for name, values in by_room.items()})


def nearest(name: str, known: list[str], before: str = "") -> str:
    """A hint at the nearest name, `before` put before it; empty where none is near."""
    import difflib

    near = difflib.get_close_matches(name[:80], known, n=1)
    return f"; perhaps {before}{near[0]}" if near else ""


def to_dict(config: Config) -> dict[str, Any]:
    """The flat settings as JSON can carry them."""
    flat = {field.name: getattr(getattr(config, room), field.name) for room, field in settings()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration that `to_dict` wrote.

    Raises:
      UsageError: a value is out of its range, or a setting is unknown to this version.
    """
    unknown = set(values) - {field.name for _, field in settings()}
    if unknown:
        raise UsageError(f"settings of another version of trpo_tf: {', '.join(sorted(unknown))}")
    return make_config(**values)


def refuse_commands_own(given: dict[str, Any]) -> None:
    """Refuses settings that only the training command minds; their defaults are let pass.

    Raises:
      UsageError: names what Python has instead.
    """
    for _, field in settings():
        name, instead = field.name, field.metadata["python"]
        if instead and given.get(name, field.default) != field.default:
            raise UsageError(f"--{name}={given[name]}: is for the training command; in Python {instead} does it")


def portable(values: dict[str, Any]) -> dict[str, Any]:
    """Flat settings without those of one run: that it goes on, the places on its machine, and whom it trusts."""
    own = {field.name for _, field in settings() if field.metadata["path"]} | _OWN
    return {name: value for name, value in values.items() if name not in own}


def of_file(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Flat settings that a file holds, without places: those come from who runs a command, never from a file.

    Args:
      values: see above.
      given: settings besides, which the file does not decide on; with allow_env_module, it is trusted.

    Raises:
      UsageError: an environment would be made by a module, or with a path, that the file names.
    """
    if ":" in str(values.get("env", "")) and not (given.get("env") or given.get("allow_env_module")):
        hint = "pass env=, where it was a function, or --allow_env_module, if you trust the module"
        raise UsageError(f"--env={values['env']}: is the name of a function, or an id that imports a module: {hint}")
    for name in ("env_options", "wrappers"):
        named = any(mark in str(values.get(name, "")) for mark in "/\\~")
        if named and name not in given and not given.get("allow_env_module"):
            raise UsageError(f"--{name}={values[name]}: a file names a path; pass --allow_env_module if you trust it")
    if values.get("ray_address") and not {"ray_address", "workers"} & given.keys():
        values = values | {"workers": 0}  # those of a cluster, which is never taken from a file
    return portable(values)


def of_checkpoint(values: dict[str, Any], given: dict[str, Any]) -> Config:
    """The configuration of a run that takes up a checkpoint's; which modules it imports, its user decides anew.

    Args:
      values: the checkpoint's flat settings.
      given: settings that take their place.

    Raises:
      UsageError: as `of_file`, `from_dict` and `make_config`.
    """
    return from_dict(of_file(values, given)).replace(**{"allow_env_module": False} | given)


def check_address(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Asks for the Ray cluster of a run that goes on: its address is never taken from a file.

    Args:
      values: the checkpoint's flat settings. given: settings that take their place.

    Raises:
      UsageError: the run had a cluster, and none is given.
    """
    there = values.get("ray_address")
    if there and "ray_address" not in given and given.get("workers") != 0:
        raise UsageError(
            f"--ray_address is missing: the run's workers were at {there}; pass it again, or another one, or "
            "--ray_address= for workers on this machine"
        )


def structural() -> list[str]:
    """The settings that a resumed run must share with its checkpoint."""
    return [field.name for _, field in settings() if field.metadata["structural"]]


def show_settings(cls: type, after: str) -> None:
    """Puts every setting but env into the signature and docstring of a class that takes settings as **`after`.

    help() and editors that ask at run time show them, each written once.
    """
    own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name not in ("self", after)]  # type: ignore[misc]
    lines = []
    for _, field in settings():
        if field.name != "env":
            kind = inspect.Parameter.KEYWORD_ONLY
            own.append(inspect.Parameter(field.name, kind, default=field.default, annotation=field.type))
            lines.append(f"      {field.name}: {field.metadata['help']}")
    cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    cls.__doc__ = f"{cls.__doc__}\n    Settings:\n" + "\n".join(lines) + "\n"
