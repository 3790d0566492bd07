"""Trust Region Policy Optimization on TensorFlow 2 and Keras 3."""

from typing import TYPE_CHECKING, Any

from trpo_tf.config import Config, make_config
from trpo_tf.errors import ActingDiffersError, EnvironmentFailure, Error, NoCheckpointError, UsageError

if TYPE_CHECKING:
    from trpo_tf.api import TRPO, load_policy
    from trpo_tf.callbacks import (
        Callback,
        Checkpoint,
        CsvLogger,
        Evaluate,
        Export,
        Row,
        Screen,
        StopAt,
        TensorBoardLogger,
    )
    from trpo_tf.history import History

__version__ = "0.1.0"
__all__ = [
    "TRPO", "ActingDiffersError", "Callback", "Checkpoint", "Config", "CsvLogger", "EnvironmentFailure", "Error",
    "Evaluate", "Export", "History", "NoCheckpointError", "Row", "Screen", "StopAt", "TensorBoardLogger", "UsageError",
    "load_policy", "make_config",
]  # fmt: skip

# Late, so that a wrong flag is reported before TensorFlow is imported. No name here may be that of a command's module:
# importing trpo_tf.train would put the module in its place.
_LATE = {
    "api": ("TRPO", "load_policy"),
    "callbacks": (
        "Callback", "Checkpoint", "CsvLogger", "Evaluate", "Export", "Row", "Screen", "StopAt", "TensorBoardLogger",
    ),
    "history": ("History",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _LATE.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"trpo_tf.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
