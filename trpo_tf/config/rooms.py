"""The settings of each room, each setting once: its default, range, meaning and source.

Sources: TRPO is Schulman et al. 2015 (arXiv:1502.05477); GAE is Schulman et al. 2016 (arXiv:1506.02438); E20 is
Engstrom et al. 2020 (arXiv:2005.12729); A20 is Andrychowicz et al. 2020 (arXiv:2006.05990); rl-zoo are the tuned
recipes of RL Baselines3 Zoo for TRPO; "measured" is benchmarks/returns.py.
"""

import dataclasses

from trpo_tf import paths
from trpo_tf.config.setting import Record, setting
from trpo_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class RunConfig(Record):
    """What a run does and what it leaves."""

    total_steps: int = setting(1_000_000, "environment steps (valid transitions) to train for", low=1)
    seed: int = setting(0, "seed of everything random", low=0, high=2**31 - 1, structural=True)
    run_dir: str = setting(
        "",
        "directory of the run; empty: runs/<env>-s<seed>-<time>",
        path="directory",
        python="the callback Checkpoint(run_dir)",
    )
    resume: bool = setting(False, "go on from the newest valid checkpoint in --run_dir", python="TRPO.resume(run_dir)")
    checkpoint_every: int = setting(
        50,
        "updates between checkpoints; environments are rebuilt there, so it is part of the result",
        low=1,
        structural=True,
    )
    keep_checkpoints: int = setting(2, "newest checkpoints kept", low=1, python="the callback Checkpoint(keep=...)")
    eval_every: int = setting(
        100,
        "updates between deterministic evaluations; 0: only at the end",
        low=0,
        python="the callback Evaluate(every=...)",
    )
    eval_episodes: int = setting(
        10, "episodes of a periodic evaluation", low=1, python="the callback Evaluate(episodes=...)"
    )
    eval_envs: int = setting(
        0, "environments of an evaluation; 0: one per episode, but no more than --num_envs", low=0, high=65536
    )
    final_eval_episodes: int = setting(
        20, "episodes of the evaluation at the end; 0: none", low=0, python="the callback Evaluate(final_episodes=...)"
    )
    export: bool = setting(True, "save a SavedModel at the end", python="agent.export(directory)")
    export_every: int = setting(
        0, "updates between SavedModels on the way; 0: none", low=0, python="the callback Export(every=...)"
    )
    export_dir: str = setting(
        "",
        "where numbered SavedModels go; empty: <run_dir>/saved_model",
        path="directory",
        python="the callback Export(directory)",
    )
    tensorboard: bool = setting(
        True, "write TensorBoard summaries beside progress.csv", python="the callback TensorBoardLogger(directory)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run_dir:
            paths.check_name("run_dir", self.run_dir)
        elif self.resume:
            raise UsageError("--resume needs --run_dir, the run to go on with")


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig(Record):
    """The environments, and how many transitions of them an update has."""

    env: str = setting("", "environment id of Gymnasium or EnvPool, such as Hopper-v5", structural=True)
    env_backend: str = setting(
        "auto",
        "auto: EnvPool where it has the id and you did not register it yourself, else gymnasium",
        choices=("auto", "envpool", "gymnasium"),
        structural=True,
    )
    allow_env_module: bool = setting(
        False, "let --env=module:Id import that module; trust modules and paths that a checkpoint or SavedModel names"
    )
    num_envs: int = setting(16, "environments stepped together (measured)", low=1, high=65536, structural=True)
    steps_per_update: int = setting(
        2048,
        "transitions per update, rounded up to a multiple of --num_envs (A20: small ones win)",
        low=1,
        structural=True,
        search=("log", 512, 16384),
    )
    env_options: str = setting(
        "",
        "arguments of the environment's constructor, name=value,name=value as in Python: continuous=True",
        structural=True,
    )
    wrappers: str = setting(
        "",
        "wrappers put around each environment, of gymnasium.wrappers, innermost first: "
        "AtariPreprocessing(frame_skip=4);FrameStackObservation(4)",
        structural=True,
    )
    env_threads: int = setting(0, "EnvPool's threads; 0: one per core, bound to it if it can be", low=0, high=1024)
    env_processes: bool = setting(False, "step each gymnasium environment in a process of its own: for slow ones")
    stagger: bool = setting(
        True, "cut first episodes at different lengths, so that a batch holds all phases", structural=True
    )
    max_invalid_rows: int = setting(1000, "transitions with NaN or infinity to mask before giving up", low=0)
    max_env_restarts: int = setting(
        100, "environments that raised, died or hung to make anew before giving up; 0: give up at the first", low=0
    )
    env_timeout: float = setting(
        300,
        "seconds for a constructor, step or reset of an environment; then it is named, and with --env_processes made "
        "anew; "
        "0: wait for ever",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class PolicyConfig(Record):
    """Policy and value networks, the action distribution and the normaliser of observations."""

    network: str = setting(
        "mlp",
        "mlp: dense layers; gru, lstm: the last hidden layer is recurrent, its state reset where episodes begin",
        choices=("mlp", "gru", "lstm"),
        structural=True,
    )
    hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "units of each hidden layer, both networks (E20)", low=1, structural=True
    )
    sequence_length: int = setting(16, "steps that gradients go back through a gru or lstm", low=1, structural=True)
    image_encoder: str = setting(
        "trpo",
        "images: two convolutions of 16 and 20 units (TRPO), 32-64-64 and 512 (nature), or flat like other numbers",
        choices=("trpo", "nature", "flat"),
        structural=True,
    )
    layer_norm: str = setting(
        "value",
        "whose hidden layers are normalised before their activation: value, the value network's; both; or none "
        "(measured)",
        choices=("value", "both", "none"),
        structural=True,
    )
    share_torso: bool = setting(
        False,
        "the value is read off the policy's last hidden layer, which only the policy step changes",
        structural=True,
    )
    action_distribution: str = setting(
        "auto",
        "of Box actions: gaussian has one std for all observations, gaussian_with_state_std one by the network; "
        "squashed_gaussian is tanh of a Gaussian, mapped to the bounds; auto: squashed_gaussian where each action is "
        "bounded, else gaussian (measured)",
        choices=("auto", "gaussian", "gaussian_with_state_std", "squashed_gaussian", "beta"),
        structural=True,
    )
    noise_color: float = setting(
        0,
        "exponent of the spectrum of the noise in Gaussian actions over the time steps of an update: 0 white, 1 pink, "
        "2 red; correlated noise goes further (Hollenstein et al. 2024, arXiv:2312.11091)",
        low=0,
        high=4,
        structural=True,
        search=("linear", 0, 1),
    )
    activation: str = setting(
        "tanh", "hidden activation (A20: tanh)", choices=("tanh", "relu", "elu", "gelu", "silu"), structural=True
    )
    init_log_std: float = setting(
        -0.5, "initial log standard deviation (A20: about -0.7)", low=-10, high=5, search=("linear", -2, 0)
    )
    normalize_obs: bool = setting(
        True,
        "standardise observations by running moments, clipped at 10 (E20); numbers of an image share a deviation",
        structural=True,
    )
    rescale_action: bool = setting(
        False,
        "gaussian, gaussian_with_state_std: map [-1, 1] to a bounded Box instead of clipping to its bounds; the others "
        "always do",
        structural=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network != "mlp" and not self.hidden_sizes:
            raise UsageError(f"--network={self.network}: the last of --hidden_sizes is recurrent, and there is none")

    @property
    def length(self) -> int:
        """L, the time steps of a sequence that the networks see together; 1 without a recurrent core."""
        return 1 if self.network == "mlp" else self.sequence_length


@dataclasses.dataclass(frozen=True)
class AdvantageConfig(Record):
    """Rewards, returns and advantages."""

    gamma: float = setting(
        0.995, "discount (TRPO: 0.99; 0.995 measured on Hopper-v5)", low=0, high=1, search=("linear", 0.95, 0.9999)
    )
    gae_lambda: float = setting(
        0.95, "exponential weight of GAE (GAE, section 6)", low=0, high=1, search=("linear", 0.6, 1)
    )
    scale_reward: bool = setting(
        True, "divide rewards by the running std of the discounted return, clip 10 (E20)", structural=True
    )


@dataclasses.dataclass(frozen=True)
class TrustRegionConfig(Record):
    """The policy step of appendix C."""

    max_kl: float = setting(
        0.03, "largest mean KL(old || new) of an update (measured; TRPO: 0.01)", above=0, search=("log", 0.003, 0.1)
    )
    max_step: float = setting(
        0.1,
        "a step is at most max_step times F^-1 g, where g is the gradient of the return divided by its standard "
        "deviation "
        "(measured)",
        above=0,
        search=("log", 0.03, 1),
    )
    cg_iterations: int = setting(
        10, "conjugate gradient iterations at most (TRPO, appendix C.1: 10)", low=1, search=("log", 3, 30)
    )
    cg_damping: float = setting(
        0.1, "multiple of the identity added to the Fisher matrix (rl-zoo)", low=0, search=("log", 1e-3, 1)
    )
    cg_tolerance: float = setting(1e-10, "stop when |r|^2 <= tolerance * |grad|^2 (rl-zoo, made relative)", low=0)
    fisher_fraction: float = setting(
        0,
        "fraction of the transitions in Fisher products (TRPO, appendix C); 0: 4096 or a fifth, whichever is more",
        low=0,
        high=1,
    )
    fisher_product: str = setting(
        "forward",
        "forward: Gauss-Newton by forward mode; reverse: double back-propagation of the KL",
        choices=("forward", "reverse"),
    )
    backtrack_ratio: float = setting(0.8, "factor between line-search candidates (rl-zoo)", above=0, below=1)
    max_backtracks: int = setting(10, "line-search candidates after the full step (rl-zoo)", low=0)
    objective: str = setting(
        "constraint",
        "constraint: maximise the surrogate within --max_kl (TRPO, appendix C); penalty: maximise surrogate - C KL, "
        "C such "
        "that the KL stays around --max_kl (TRPO, section 3)",
        choices=("constraint", "penalty"),
        structural=True,
    )


@dataclasses.dataclass(frozen=True)
class RadiusConfig(Record):
    """A trust region that grows and shrinks."""

    radius: str = setting(
        "fixed",
        "fixed: --max_kl in every update; adaptive: max_kl grows while measured gains reach the predicted ones, else "
        "shrinks",
        choices=("fixed", "adaptive"),
        structural=True,
    )
    min_kl: float = setting(1e-4, "--radius=adaptive: smallest max_kl", above=0)
    max_kl_bound: float = setting(0.1, "--radius=adaptive: largest max_kl", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius == "adaptive" and self.min_kl > self.max_kl_bound:
            raise UsageError(f"--min_kl={self.min_kl}: must be <= --max_kl_bound={self.max_kl_bound}")


@dataclasses.dataclass(frozen=True)
class ValueConfig(Record):
    """The regression of the value network."""

    value_epochs: int = setting(
        10, "passes of the value fit over the new transitions (measured; rl-zoo: 20)", low=0, search=("log", 3, 30)
    )
    value_minibatch_size: int = setting(
        128, "transitions per Adam step; what does not fill one is left out (rl-zoo)", low=1
    )
    value_learning_rate: float = setting(
        2e-3, "Adam's learning rate (measured; A20: 3e-4 to 1e-3)", above=0, search=("log", 3e-4, 1e-2)
    )
    value_learning_rate_decay: bool = setting(True, "let the learning rate fall linearly to 0 over --total_steps (E20)")


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Record):
    """Threads, memory and compilation; none of them is part of what is learned, but for rounding."""

    update_threads: int = setting(
        0,
        "TensorFlow's threads per operation; 0: all cores but one, which is left to the value fit",
        low=0,
        high=1024,
    )
    chunk_size: int = setting(
        0,
        "transitions that the networks see at once where an update passes over its batch, to bound memory; 0: all",
        low=0,
    )
    xla: str = setting(
        "auto",
        "on, off: compile the update by XLA or not; auto: on, unless there are images, whose convolutions it slows "
        "on a CPU",
        choices=("auto", "on", "off"),
    )
