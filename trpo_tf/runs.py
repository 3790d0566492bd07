"""What the commands do: a training run, an evaluation, an export, each of one configuration record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf import seeds, training
from trpo_tf.acting.stateful import stateful_act
from trpo_tf.api import TRPO
from trpo_tf.config import Config, EnvironmentConfig, EvaluateConfig, ExportConfig, of_file, to_dict
from trpo_tf.errors import UsageError, reason
from trpo_tf.messages import warn
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.evaluation import Evaluation, env_count, evaluate
from trpo_tf.run import checkpoint
from trpo_tf.serving.loaded_policy import LoadedPolicy

_SEED_STEP = 1 << 16  # more than the environments of an evaluation


def run_training(config: Config, **models: Any) -> training.Result:
    """Trains, from the start or from the newest checkpoint of config.run.run_dir, into that directory.

    models: policy_network and value_network, as TRPO takes them.

    Raises:
      UsageError: nothing was written.
      NoCheckpointError: resume without a valid checkpoint.
      EnvironmentFailure: the environments raised or keep giving NaN; a checkpoint was saved.
    """
    run_dir = config.run.run_dir
    if not config.run.resume:
        return training.run(lambda: TRPO(config.environment.env, config=config, **models))
    changes = {name: value for name, value in to_dict(config).items() if name != "run_dir"}
    return training.run(lambda: TRPO.resume(run_dir, **changes, **models))


def run_evaluation(config: EvaluateConfig, progress: Callable[[int], None] = lambda done: None) -> Evaluation:
    """Runs whole episodes with a run's checkpoint or with a SavedModel.

    Args:
      config: what to evaluate, and how.
      progress: called with the number of episodes done.

    Raises:
      UsageError: a setting is wrong, or the policy does not fit the environment.
      NoCheckpointError: the run has no valid checkpoint.
    """
    trained_on, flags, spaces, act = (_saved_model_act if config.saved_model else _checkpoint_act)(config)
    watched = config.render or bool(config.video)
    most = flags.get("eval_envs") or flags.get("num_envs") or EnvironmentConfig.num_envs
    envs = _environments(config, trained_on, flags, watched).evaluation(
        1 if watched else env_count(config.episodes, most),
        seeds.derive_seed(config.seed),
        "human" if config.render else "rgb_array" if config.video else None,
        config.video,
    )
    for name, theirs in spaces.items():
        ours = str(getattr(envs, name))
        if theirs is not None and theirs != ours and config.env and not watched:
            raise UsageError(f"--env={config.env}: its {name} is {ours}, the policy's is {theirs}")
    result = evaluate(act, envs, config.episodes, progress)
    for line in result.warnings():
        warn(line)
    return result


def _environments(config: EvaluateConfig, trained_on: str, flags: dict[str, Any], watched: bool) -> Environments:
    env = config.env or trained_on
    known = of_file(
        flags if env == trained_on else {}, {"env": config.env, "allow_env_module": config.allow_env_module}
    )
    made = {name: known.get(name, "") for name in ("env_options", "wrappers")}
    backend = known.get("env_backend", "auto") if config.env_backend == "auto" else config.env_backend
    return Environments(
        EnvironmentConfig(
            env=env,
            env_backend="gymnasium" if watched else backend,
            allow_env_module=config.allow_env_module,
            **made,
        )
    )


def _saved_model_act(config: EvaluateConfig):
    try:
        policy = LoadedPolicy(config.saved_model)
    except OSError as error:
        raise UsageError(f"--saved_model={config.saved_model}: {reason(error)}") from error
    trained_on = policy.metadata.get("env")
    if not (config.env or trained_on):
        raise UsageError("--env is missing: the SavedModel does not name its environment")
    spaces = {name: policy.metadata.get(name) for name in ("observation_space", "action_space")}
    draws = _row_seeds(config.seed)
    act = policy.stateful_act((lambda rows: next(draws)(rows)) if config.stochastic else None)
    flags = policy.metadata.get("flags", {})
    if policy.metadata.get("backend") == "gymnasium":  # EnvPool may have another environment of this id
        flags = flags | {"env_backend": "gymnasium"}
    return trained_on, flags, spaces, act


def _checkpoint_act(config: EvaluateConfig):
    agent, draws = _load(config), _row_seeds(config.seed)
    policy = agent.session.policy

    def noise(rows: int) -> np.ndarray:
        return policy.distribution.noise([rows], next(draws)(1)[0]).numpy()

    actor = make_actor(policy, live=True)
    actor.set_weights(policy.get_weights())
    metadata = agent.metadata()
    spaces = {name: metadata[name] for name in ("observation_space", "action_space")}
    act = stateful_act(actor, noise if config.stochastic else None)
    return metadata["env"], metadata["flags"], spaces, act


def run_export(config: ExportConfig) -> Path:
    """Saves a run's newest or best checkpoint as the next numbered SavedModel; returns the version's directory."""
    return _load(config).export(config.export_dir)


def _load(config: EvaluateConfig | ExportConfig) -> TRPO:
    saved = checkpoint.newest(Path(config.run_dir) / ("best" if config.best else "checkpoints"), warn)
    return TRPO.of_checkpoint(saved, allow_env_module=config.allow_env_module)


def _row_seeds(seed: int):
    """Functions from a number of rows to seeds [N, 2], fresh ones every time."""
    count = 0
    while True:
        first = count * _SEED_STEP
        yield lambda rows, first=first: np.stack([np.full(rows, seed), (first + np.arange(rows)) % 2**31], 1).astype(
            np.int32
        )
        count += 1
