"""Trust Region Policy Optimization on TensorFlow 2 and Keras 3."""

from typing import Any

from trpo_tf.config import Config, EvaluateConfig, ExportConfig, UsageError

__version__ = "0.1.0"
__all__ = [
    "TRPO", "Config", "EvaluateConfig", "ExportConfig", "UsageError", "evaluate", "export", "load_policy", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Late, so that a wrong flag is reported before TensorFlow is imported.
    if name in ("TRPO", "evaluate", "export", "load_policy", "train"):
        from trpo_tf import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
