"""Every hyperparameter once: its meaning, default, range and source. Flags are generated from these records.

Sources: TRPO is Schulman et al. 2015 (arXiv:1502.05477); GAE is Schulman et al. 2016 (arXiv:1506.02438); E20 is
Engstrom et al. 2020 (arXiv:2005.12729); A20 is Andrychowicz et al. 2020 (arXiv:2006.05990); rl-zoo are the tuned
recipes of RL Baselines3 Zoo for TRPO; "measured" is benchmarks/returns.py.
"""

import dataclasses
import math
import os
import typing
from typing import Any


class UsageError(ValueError):
    """A request that cannot be carried out as stated; the message names the flag, the value and what is allowed."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _field(default, group: str, text: str, low=None, high=None, choices=None, above=None, below=None):
    """A hyperparameter. low and high are inclusive bounds, above and below exclusive ones."""
    return dataclasses.field(
        default=default,
        metadata={
            "group": group,
            "help": text,
            "low": low,
            "high": high,
            "above": above,
            "below": below,
            "choices": choices,
        },
    )


_RUN, _ENV, _POLICY = "the run", "environments", "policy and value networks"
_ADV, _TRPO, _STALE, _VALUE = "advantages", "trust region", "older data", "value fit"


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. Raises UsageError when a value is out of its range."""

    env: str = _field("", _RUN, "environment id of Gymnasium or EnvPool, such as Hopper-v5")
    total_steps: int = _field(1_000_000, _RUN, "environment steps (valid transitions) to train for", low=1)
    seed: int = _field(0, _RUN, "seed of everything random", low=0, high=2**31 - 1)
    run_dir: str = _field("", _RUN, "directory of the run; empty: runs/<env>-s<seed>-<time>")
    resume: bool = _field(False, _RUN, "go on from the newest valid checkpoint in --run_dir")
    checkpoint_every: int = _field(
        50, _RUN, "updates between checkpoints (environments are rebuilt there, so it is part of the result)", low=1
    )
    keep_checkpoints: int = _field(2, _RUN, "newest checkpoints kept", low=1)
    eval_every: int = _field(100, _RUN, "updates between deterministic evaluations; 0: only at the end", low=0)
    eval_episodes: int = _field(10, _RUN, "episodes of a periodic evaluation", low=1)
    final_eval_episodes: int = _field(20, _RUN, "episodes of the evaluation at the end; 0: none", low=0)
    export: bool = _field(True, _RUN, "save a SavedModel at the end")
    export_every: int = _field(0, _RUN, "updates between SavedModels on the way; 0: none", low=0)
    export_dir: str = _field("", _RUN, "where numbered SavedModels go; empty: <run_dir>/saved_model")
    tensorboard: bool = _field(True, _RUN, "write TensorBoard summaries beside progress.csv")
    update_threads: int = _field(
        0, _RUN, "TensorFlow's threads per operation; 0: one per core but one, which fits the values", low=0, high=1024
    )

    env_backend: str = _field(
        "auto", _ENV, "auto: EnvPool where it has the id, else gymnasium", choices=("auto", "envpool", "gymnasium")
    )
    allow_env_module: bool = _field(False, _ENV, "let --env=module:Id import that module")
    num_envs: int = _field(16, _ENV, "environments stepped together (measured)", low=1, high=65536)
    steps_per_update: int = _field(
        2048,
        _ENV,
        "rows per update, rounded up to a multiple of --num_envs (A20: small ones win)",
        low=1,
    )
    env_options: str = _field(
        "", _ENV, "what its constructor takes, as name=value,name=value in Python's notation: continuous=True"
    )
    wrappers: str = _field(
        "", _ENV, "of gymnasium.wrappers, innermost first: AtariPreprocessing(frame_skip=4);FrameStackObservation(4)"
    )
    env_threads: int = _field(0, _ENV, "EnvPool's threads; 0: one per core, bound to it if it can be", low=0, high=1024)
    stagger: bool = _field(True, _ENV, "cut first episodes at different lengths, so that a batch holds all phases")
    rescale_action: bool = _field(False, _ENV, "map [-1, 1] to a bounded Box instead of clipping to its bounds")
    max_invalid_rows: int = _field(1000, _ENV, "rows with NaN or infinity to mask before giving up", low=0)

    network: str = _field(
        "mlp",
        _POLICY,
        "gru, lstm: the last hidden layer remembers, reset where episodes begin",
        choices=("mlp", "gru", "lstm"),
    )
    hidden_sizes: tuple[int, ...] = _field((64, 64), _POLICY, "units of each hidden layer, both networks (E20)", low=1)
    sequence_length: int = _field(16, _POLICY, "steps that gradients go back through a gru or lstm", low=1)
    image_encoder: str = _field(
        "trpo",
        _POLICY,
        "images: two convolutions of 16 and 20 units (TRPO), 32-64-64 and 512 (nature), or flat like other numbers",
        choices=("trpo", "nature", "flat"),
    )
    layer_norm: bool = _field(False, _POLICY, "normalise each hidden layer before its activation")
    share_torso: bool = _field(
        False, _POLICY, "the value is read off the policy's last hidden layer, which only the policy step changes"
    )
    action_distribution: str = _field(
        "gaussian",
        _POLICY,
        "of Box actions: a std that no observation changes, or one that each does; tanh of a Gaussian; Beta",
        choices=("gaussian", "gaussian_with_state_std", "squashed_gaussian", "beta"),
    )
    activation: str = _field(
        "tanh", _POLICY, "hidden activation (A20: tanh)", choices=("tanh", "relu", "elu", "gelu", "silu")
    )
    init_log_std: float = _field(-0.5, _POLICY, "initial log standard deviation (A20: about -0.7)", low=-10, high=5)
    normalize_obs: bool = _field(True, _POLICY, "standardise observations by running moments, clipped at 10 (E20)")

    gamma: float = _field(0.995, _ADV, "discount (TRPO: 0.99; 0.995 measured on Hopper-v5)", low=0, high=1)
    gae_lambda: float = _field(0.95, _ADV, "exponential weight of GAE (GAE, section 6)", low=0, high=1)
    scale_reward: bool = _field(True, _ADV, "divide rewards by the running std of the discounted return, clip 10 (E20)")

    max_kl: float = _field(0.03, _TRPO, "largest mean KL(old || new) of an update (measured; TRPO: 0.01)", above=0)
    max_step: float = _field(
        0.1,
        _TRPO,
        "longest step, in natural gradients of the return that has standard deviation 1 (measured)",
        above=0,
    )
    cg_iterations: int = _field(10, _TRPO, "conjugate gradient iterations at most (TRPO, appendix C.1: 10)", low=1)
    cg_damping: float = _field(0.1, _TRPO, "multiple of the identity added to the Fisher matrix (rl-zoo)", low=0)
    cg_tolerance: float = _field(1e-10, _TRPO, "stop when |r|^2 <= tolerance * |grad|^2 (rl-zoo, made relative)", low=0)
    fisher_fraction: float = _field(
        0,
        _TRPO,
        "share of rows in Fisher products (TRPO, appendix C); 0: 4096 rows or a fifth, whichever is more",
        low=0,
        high=1,
    )
    fisher_chunk: int = _field(
        0, _TRPO, "rows per piece of what an update does with a whole batch, to bound memory; 0: all at once", low=0
    )
    fisher_product: str = _field(
        "forward",
        _TRPO,
        "forward: Gauss-Newton by forward mode; reverse: double back-propagation of the KL",
        choices=("forward", "reverse"),
    )
    backtrack_ratio: float = _field(0.8, _TRPO, "factor between line-search candidates (rl-zoo)", above=0, below=1)
    max_backtracks: int = _field(10, _TRPO, "line-search candidates after the full step (rl-zoo)", low=0)

    radius: str = _field(
        "fixed", _TRPO, "adaptive: max_kl grows while steps gain what they promise", choices=("fixed", "adaptive")
    )
    min_kl: float = _field(1e-4, _TRPO, "--radius=adaptive: smallest max_kl", above=0)
    max_kl_bound: float = _field(0.1, _TRPO, "--radius=adaptive: largest max_kl", above=0)
    objective: str = _field(
        "constraint",
        _TRPO,
        "penalty: maximise surrogate - C KL instead, C such that the KL stays around --max_kl (TRPO, section 3)",
        choices=("constraint", "penalty"),
    )

    reuse: int = _field(
        1, _STALE, "batches of the newest policies in an update, corrected by importance sampling", low=1, high=64
    )
    reuse_weights: str = _field(
        "uniform", _STALE, "optimal: less of older batches, and more of them", choices=("uniform", "optimal")
    )
    pipeline: bool = _field(
        False,
        _STALE,
        "collect while the update runs, with a policy one update older, but for the first update after a checkpoint; "
        "steps are 1.4 times shorter",
    )
    behavior_lag: int = _field(0, _STALE, "updates that the acting policy stays behind, to study it", low=0, high=64)
    correct_stale: bool = _field(True, _STALE, "importance sampling and V-trace; without, older rows count as new ones")
    vtrace_rho: float = _field(
        1.0, _STALE, "largest ratio in targets and surrogate; 1 narrows the policy (Espeholt et al. 2018)", above=0
    )
    vtrace_c: float = _field(
        1.0,
        _STALE,
        "largest ratio in traces, which are made up to a third longer for what that takes (Espeholt et al. 2018)",
        above=0,
    )
    max_staleness: int = _field(64, _STALE, "updates after which batches are not kept, and rows are masked", low=0)
    min_effective_sample_size: float = _field(
        0.25, _STALE, "share of the rows below which there is no policy step", low=0, high=1
    )

    value_epochs: int = _field(
        10,
        _VALUE,
        "passes of the value fit over the new rows (measured; rl-zoo: 20)",
        low=0,
    )
    value_minibatch_size: int = _field(128, _VALUE, "rows per Adam step; what is over is left out (rl-zoo)", low=1)
    value_learning_rate: float = _field(2e-3, _VALUE, "Adam's learning rate (measured; A20: 3e-4 to 1e-3)", above=0)
    value_learning_rate_decay: bool = _field(True, _VALUE, "let it fall linearly to 0 over --total_steps (E20)")

    def __post_init__(self):
        validate(self)
        if not self.env:
            raise UsageError("--env is missing; name an environment, such as --env=Hopper-v5")
        if self.network != "mlp" and not self.hidden_sizes:
            raise UsageError(f"--network={self.network}: the memory is the last of --hidden_sizes, and there is none")
        if self.max_staleness < self.lag:
            raise UsageError(
                f"--max_staleness={self.max_staleness}: must be >= {self.lag}, the age of every row with "
                f"--behavior_lag={self.behavior_lag}{' and --pipeline' if self.pipeline else ''}"
            )
        if self.reuse > 1 and self.max_staleness == self.lag:
            raise UsageError(
                f"--max_staleness={self.max_staleness}: leaves --reuse={self.reuse} no batch to use again; must be >= "
                f"{self.lag + 1}"
            )
        if self.pipeline and self.checkpoint_every == 1:
            raise UsageError("--checkpoint_every=1: --pipeline collects ahead between checkpoints only; must be >= 2")
        if self.radius == "adaptive":
            if self.num_envs < 2:
                raise UsageError(
                    f"--num_envs={self.num_envs}: --radius=adaptive compares halves of the environments, 2 or more"
                )
            if self.min_kl > self.max_kl_bound:
                raise UsageError(f"--min_kl={self.min_kl}: must be <= --max_kl_bound={self.max_kl_bound}")
            if not self.min_kl <= self.max_kl <= self.max_kl_bound:
                raise UsageError(
                    f"--max_kl={self.max_kl}: with --radius=adaptive between --min_kl={self.min_kl} and "
                    f"--max_kl_bound={self.max_kl_bound}"
                )

    @property
    def time_steps(self) -> int:
        """T, the time steps per environment and update: whole sequences."""
        return math.ceil(self.steps_per_update / self.num_envs / self.length) * self.length

    @property
    def off_policy(self) -> bool:
        """Whether rows of older policies are learned from."""
        return self.reuse > 1 or self.lag > 0

    @property
    def lag(self) -> int:
        """Updates that the policy which acts is behind the one that learns from it."""
        return self.behavior_lag + self.pipeline

    @property
    def length(self) -> int:
        """Rows of a sequence that the networks see together; 1 without memory."""
        return 1 if self.network == "mlp" else self.sequence_length


_WHAT, _HOW = "what to run", "how"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation, of a run's checkpoint or of a SavedModel."""

    run_dir: str = _field("", _WHAT, "evaluate the newest checkpoint of this run")
    best: bool = _field(False, _WHAT, "with --run_dir: the best checkpoint instead of the newest")
    saved_model: str = _field("", _WHAT, "evaluate this SavedModel (a version, or the newest version below it)")
    env: str = _field("", _WHAT, "environment id; empty: the one it was trained on")
    episodes: int = _field(20, _HOW, "episodes to run", low=1)
    seed: int = _field(1000, _HOW, "seed of environments and sampling", low=0, high=2**31 - 1)
    stochastic: bool = _field(False, _HOW, "sample actions instead of taking the mode")
    env_backend: str = _field("auto", _HOW, "as in training", choices=("auto", "envpool", "gymnasium"))
    allow_env_module: bool = _field(False, _HOW, "let --env=module:Id import that module")
    render: bool = _field(False, _HOW, "show the episodes in a window")
    video: str = _field("", _HOW, "record the episodes as videos into this directory")
    json: str = _field("", _HOW, "write the result as JSON to this file; -: to stdout, without the table")

    def __post_init__(self):
        validate(self)
        if bool(self.run_dir) == bool(self.saved_model):
            raise UsageError("name what to evaluate: either --run_dir or --saved_model")
        if self.best and not self.run_dir:
            raise UsageError("--best goes with --run_dir; a SavedModel is a single policy")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """One export of a checkpoint as a SavedModel."""

    run_dir: str = _field("", _WHAT, "run whose checkpoint is exported")
    best: bool = _field(False, _WHAT, "the best checkpoint instead of the newest")
    export_dir: str = _field("", _WHAT, "where the numbered SavedModel goes; empty: <run_dir>/saved_model")
    allow_env_module: bool = _field(False, _WHAT, "let a run on module:Id import that module")

    def __post_init__(self):
        validate(self)
        if not self.run_dir:
            raise UsageError("--run_dir is missing; name the run to export")


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """One server for development."""

    model_dir: str = _field("", _WHAT, "directory of the numbered SavedModels, such as <run_dir>/saved_model")
    model_name: str = _field("policy", _WHAT, "name that requests ask for")
    host: str = _field("127.0.0.1", _HOW, "address to listen on; there is no authentication, so keep it to yourself")
    rest_port: int = _field(8501, _HOW, "port of the REST interface; 0: any that is free", low=0, high=65535)
    grpc_port: int = _field(8500, _HOW, "port of the gRPC interface; 0: any that is free", low=0, high=65535)
    poll_seconds: float = _field(1.0, _HOW, "seconds between looks for a new version", above=0)

    def __post_init__(self):
        validate(self)
        if not self.model_dir:
            raise UsageError("--model_dir is missing; name the directory of the numbered SavedModels")
        if not os.path.isdir(self.model_dir):
            raise UsageError(f"--model_dir={self.model_dir}: no such directory")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """One picture of learning curves."""

    run_dirs: tuple[str, ...] = _field((), _WHAT, "runs to draw, separated by commas")
    metric: tuple[str, ...] = _field(
        ("env/episode_return", "policy/kl", "policy/entropy", "value/explained_variance"), _HOW, "columns to draw"
    )
    output: str = _field("curves.png", _HOW, "file to write: .png, .svg or .pdf")

    def __post_init__(self):
        validate(self)
        if not self.run_dirs:
            raise UsageError("--run_dirs is missing; name one or more runs, separated by commas")


def validate(config: Any) -> None:
    """Checks every field of a configuration against its type, range and choices; paths become texts, lists tuples.

    Raises:
      UsageError: names the flag, its value and what is allowed.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is str and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if typing.get_origin(field.type) is tuple:
            if not isinstance(value, (tuple, list)):
                raise UsageError(f"--{field.name}={value!r}: a tuple is needed")
            value = tuple(value)
        object.__setattr__(config, field.name, value)
        for item in value if isinstance(value, tuple) else (value,):
            _check(field, item)


def _check(field: dataclasses.Field, value: Any) -> None:
    meta = field.metadata
    kind = typing.get_args(field.type)[0] if typing.get_origin(field.type) is tuple else field.type
    if kind in (str, bool) and not isinstance(value, kind):
        raise UsageError(f"--{field.name}={value!r}: {'a text' if kind is str else 'True or False'} is needed")
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"--{field.name}={value}: not one of {', '.join(meta['choices'])}")
    if kind in (str, bool):
        return
    numeric = (int, float) if field.type is float else int
    if isinstance(value, bool) or not isinstance(value, numeric):
        raise UsageError(f"--{field.name}={value!r}: {'a number' if field.type is float else 'an integer'} is needed")
    if not math.isfinite(value):
        raise UsageError(f"--{field.name}={value}: not finite")
    bounds = (
        (meta["low"], ">=", lambda a, b: a >= b),
        (meta["high"], "<=", lambda a, b: a <= b),
        (meta["above"], ">", lambda a, b: a > b),
        (meta["below"], "<", lambda a, b: a < b),
    )
    for bound, sign, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise UsageError(f"--{field.name}={value}: must be {sign} {bound}")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON can carry it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration that `to_dict` wrote.

    Raises:
      UsageError: a value is out of its range, or a field is unknown to this version.
    """
    unknown = set(values) - {field.name for field in dataclasses.fields(Config)}
    if unknown:
        raise UsageError(f"settings of another version of trpo_tf: {', '.join(sorted(unknown))}")
    return Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


# What a checkpoint's arrays depend on: a resumed run must agree on these.
STRUCTURE = (
    "env", "seed", "env_backend", "num_envs", "steps_per_update", "checkpoint_every", "stagger", "rescale_action",
    "hidden_sizes", "activation", "normalize_obs", "scale_reward", "network", "sequence_length", "image_encoder",
    "layer_norm", "share_torso", "action_distribution", "env_options", "wrappers", "reuse",
    "reuse_weights", "max_staleness", "pipeline", "behavior_lag", "radius", "objective",
)  # fmt: skip
