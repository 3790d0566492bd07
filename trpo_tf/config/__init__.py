"""Every setting once: its meaning, default, range and source, in one frozen record per room. Flags are generated."""

from trpo_tf.config.commands import EvaluateConfig, ExportConfig, PlotConfig, ServeConfig
from trpo_tf.config.off_policy import OffPolicyConfig
from trpo_tf.config.rooms import (
    AdvantageConfig,
    ComputeConfig,
    EnvironmentConfig,
    PolicyConfig,
    RadiusConfig,
    RunConfig,
    TrustRegionConfig,
    ValueConfig,
)
from trpo_tf.config.setting import from_text
from trpo_tf.config.training import (
    GROUPS,
    Config,
    check_address,
    from_dict,
    make_config,
    nearest,
    of_checkpoint,
    of_file,
    portable,
    refuse_commands_own,
    settings,
    show_settings,
    structural,
    to_dict,
)
from trpo_tf.config.workers import WorkersConfig

__all__ = [
    "GROUPS", "AdvantageConfig", "ComputeConfig", "Config", "EnvironmentConfig", "EvaluateConfig", "ExportConfig",
    "OffPolicyConfig", "PlotConfig", "PolicyConfig", "RadiusConfig", "RunConfig", "ServeConfig", "TrustRegionConfig",
    "ValueConfig", "WorkersConfig", "check_address", "from_dict", "from_text", "make_config", "nearest",
    "of_checkpoint", "of_file", "portable", "refuse_commands_own", "settings", "show_settings", "structural",
    "to_dict",
]  # fmt: skip
