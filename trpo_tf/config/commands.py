"""The settings of the commands beside training."""

import dataclasses
import os

from trpo_tf.config.setting import Record, setting
from trpo_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Record):
    """One evaluation, of a run's checkpoint or of a SavedModel."""

    run_dir: str = setting("", "evaluate the newest checkpoint of this run", path="read")
    best: bool = setting(False, "with --run_dir: the best checkpoint instead of the newest")
    saved_model: str = setting("", "evaluate this SavedModel (a version, or the newest version below it)", path="read")
    env: str = setting("", "environment id; empty: the one it was trained on")
    episodes: int = setting(20, "episodes to run", low=1)
    seed: int = setting(1000, "seed of environments and sampling", low=0, high=2**31 - 1)
    stochastic: bool = setting(False, "sample actions instead of taking the mode")
    env_backend: str = setting(
        "auto", "auto: that of the training, else EnvPool where it has the id", choices=("auto", "envpool", "gymnasium")
    )
    allow_env_module: bool = setting(
        False, "let --env=module:Id import that module; trust modules and paths that a checkpoint or SavedModel names"
    )
    render: bool = setting(False, "show the episodes in a window")
    video: str = setting("", "record the episodes as videos into this directory", path="directory")
    json: str = setting("", "write the result as JSON to this file; -: to stdout, without the table", path="file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.run_dir) == bool(self.saved_model):
            raise UsageError("name what to evaluate: either --run_dir or --saved_model")
        if self.best and not self.run_dir:
            raise UsageError("--best goes with --run_dir; a SavedModel is a single policy")
        if self.render and self.video:
            raise UsageError("--render and --video exclude each other: name one")


@dataclasses.dataclass(frozen=True)
class ExportConfig(Record):
    """One export of a checkpoint as a SavedModel."""

    run_dir: str = setting("", "run whose checkpoint is exported", path="read")
    best: bool = setting(False, "the best checkpoint instead of the newest")
    export_dir: str = setting("", "where the numbered SavedModel goes; empty: <run_dir>/saved_model", path="directory")
    allow_env_module: bool = setting(
        False, "let --env=module:Id import that module; trust modules and paths that a checkpoint or SavedModel names"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run_dir:
            raise UsageError("--run_dir is missing; name the run to export")
        object.__setattr__(self, "export_dir", self.export_dir or os.path.join(self.run_dir, "saved_model"))


@dataclasses.dataclass(frozen=True)
class ServeConfig(Record):
    """One server for development."""

    model_dir: str = setting("", "directory of the numbered SavedModels, such as <run_dir>/saved_model", path="read")
    model_name: str = setting("policy", "name that requests ask for")
    host: str = setting("127.0.0.1", "address to listen on; there is no authentication, so keep it to yourself")
    rest_port: int = setting(8501, "port of the REST interface; 0: any that is free", low=0, high=65535)
    grpc_port: int = setting(8500, "port of the gRPC interface; 0: any that is free", low=0, high=65535)
    poll_seconds: float = setting(1.0, "seconds between looks for a new version", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_dir:
            raise UsageError("--model_dir is missing; name the directory of the numbered SavedModels")


@dataclasses.dataclass(frozen=True)
class PlotConfig(Record):
    """One picture of learning curves."""

    run_dirs: tuple[str, ...] = setting((), "runs to draw, separated by commas", path="read")
    metric: tuple[str, ...] = setting(
        ("env/episode_return", "policy/kl", "policy/entropy", "value/explained_variance"), "columns to draw"
    )
    output: str = setting("curves.png", "file to write: .png, .svg or .pdf", path="file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run_dirs:
            raise UsageError("--run_dirs is missing; name one or more runs, separated by commas")
        if not self.metric:
            raise UsageError("--metric is missing; name one or more columns, separated by commas")
