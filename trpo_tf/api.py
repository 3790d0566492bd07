"""The project in four calls: train, evaluate, export, load_policy."""

from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf import trainer
from trpo_tf.config import Config, EvaluateConfig, ExportConfig, UsageError
from trpo_tf.policy.actor import Actor
from trpo_tf.rollout.envs import Envs, derive_seed
from trpo_tf.rollout.evaluation import Evaluation, env_count
from trpo_tf.rollout.evaluation import evaluate as run_episodes
from trpo_tf.run.saved_model import LoadedPolicy

_SEED_STEP = 1 << 16  # more than the environments of an evaluation


def train(config: Config) -> trainer.Result:
    """Trains a policy; see trainer.train."""
    return trainer.train(config)


class TRPO:
    """Training with Keras models of your own: TRPO(env="Hopper-v5", policy_network=model).train().

    Args:
      config: or its fields as keyword arguments.
      policy_network: from the observation's features to the numbers of the action's distribution: for a Box of A
        actions A means, for Discrete K logits; anything else is refused with the number that is needed. The features
        are the normalised vector [N, D], or, where there are images, a dict of `vector` and each image by its name.
      value_network: from the same to [N, 1].
    """

    def __init__(self, config: Config | None = None, policy_network=None, value_network=None, **settings: Any):
        self.config = config or Config(**settings)
        self._networks = policy_network, value_network

    def train(self) -> trainer.Result:
        """Trains; see trainer.train."""
        return trainer.train(self.config, *self._networks)


def load_policy(saved_model_dir) -> LoadedPolicy:
    """A SavedModel for inference: `.action(obs)`, `.sample(obs, seed)`, `.predict(obs, signature)`, `.metadata`."""
    return LoadedPolicy(saved_model_dir)


def evaluate(config: EvaluateConfig | None = None, progress=lambda done: None, **settings: Any) -> Evaluation:
    """Runs whole episodes with a run's checkpoint or with a SavedModel.

    Args:
      config: or its fields as keyword arguments, such as evaluate(saved_model="runs/x/saved_model", episodes=20).
      progress: called with the number of episodes done.

    Returns:
      Evaluation: returns and lengths, and their `summary()`.

    Raises:
      UsageError: a setting is wrong, or the policy does not fit the environment.
      NoCheckpointError: the run has no valid checkpoint.
    """
    config = config or EvaluateConfig(**settings)
    if config.render and config.video:
        raise UsageError("--render and --video exclude each other: name one")
    trained_on, flags, spaces, act = (_saved_model_actor if config.saved_model else _checkpoint_actor)(config)
    env_id = config.env or trained_on
    known = flags if env_id == trained_on else {}
    made = {name: known.get(name, "") for name in ("env_options", "wrappers")}
    backend = known.get("env_backend", "auto") if config.env_backend == "auto" else config.env_backend
    watched = config.render or config.video
    envs = Envs(
        env_id,
        1 if watched else env_count(config.episodes),
        derive_seed(config.seed),
        "gymnasium" if watched else backend,
        allow_module=config.allow_env_module,
        **made,
        render_mode="human" if config.render else "rgb_array" if config.video else None,
        video_dir=config.video,
    )
    for name, theirs in spaces.items():
        ours = str(getattr(envs, name))
        if theirs is not None and theirs != ours and config.env and not watched:
            raise UsageError(f"--env={config.env}: its {name} is {ours}, the policy's is {theirs}")
    return run_episodes(act, envs, config.episodes, progress)


def _saved_model_actor(config: EvaluateConfig):
    try:
        policy = LoadedPolicy(config.saved_model)
    except OSError as error:
        raise UsageError(f"--saved_model={config.saved_model}: {error}") from error
    trained_on = policy.metadata.get("env")
    if not (config.env or trained_on):
        raise UsageError("--env is missing: the SavedModel does not name its environment")
    spaces = {name: policy.metadata.get(name) for name in ("observation_space", "action_space")}
    seeds = _row_seeds(config.seed)
    act = policy.player((lambda rows: next(seeds)(rows)) if config.stochastic else None)
    return trained_on, policy.metadata.get("flags", {}), spaces, act


def _checkpoint_actor(config: EvaluateConfig):
    agent, seeds = _load(config), _row_seeds(config.seed)

    def noise(rows):
        return agent.policy.family.noise([rows], next(seeds)(1)[0]).numpy()

    act = Actor(agent.policy).player(noise if config.stochastic else None)
    return agent.config.env, agent.flags(), agent.spaces, act


def _load(config: EvaluateConfig | ExportConfig) -> trainer.Agent:
    if not Path(config.run_dir).is_dir():
        raise UsageError(f"--run_dir={config.run_dir}: no such directory")
    return trainer.load_agent(Path(config.run_dir), config.best, config.allow_env_module)


def _row_seeds(seed: int):
    """Functions from a number of rows to seeds [N, 2], fresh ones every time."""
    count = 0
    while True:
        first = count * _SEED_STEP
        yield lambda rows, first=first: np.stack([np.full(rows, seed), (first + np.arange(rows)) % 2**31], 1).astype(
            np.int32
        )
        count += 1


def export(config: ExportConfig | None = None, **settings: Any) -> Path:
    """Saves a run's newest or best checkpoint as the next numbered SavedModel.

    Args:
      config: or its fields as keyword arguments, such as export(run_dir="runs/x", best=True).

    Returns:
      The version's directory.
    """
    config = config or ExportConfig(**settings)
    return _load(config).export(Path(config.export_dir or Path(config.run_dir) / "saved_model"))
