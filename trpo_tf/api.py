"""The library: an agent that learns, acts, is evaluated, saved, taken up again and exported."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from trpo_tf import faults, seeds, state, training
from trpo_tf.acting import spaces
from trpo_tf.acting.observations import batched, recurrent
from trpo_tf.acting.stateful import stateful_act
from trpo_tf.config import (
    Config,
    check_address,
    make_config,
    of_checkpoint,
    portable,
    refuse_commands_own,
    show_settings,
    to_dict,
)
from trpo_tf.errors import UsageError
from trpo_tf.history import History, Recorder
from trpo_tf.messages import warn
from trpo_tf.paths import absolute
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.rollout.environments import Environments, env_name
from trpo_tf.rollout.evaluation import Evaluation, evaluate
from trpo_tf.run import checkpoint
from trpo_tf.run.callback import Callback, as_callbacks, by_name
from trpo_tf.run.directory import versions
from trpo_tf.run.metrics.row import Row
from trpo_tf.serving import saved_model
from trpo_tf.serving.loaded_policy import LoadedPolicy
from trpo_tf.session import Session

CallbackLike = Callback | Callable[["TRPO", Row], bool | None]
Env: TypeAlias = Any  # str | Callable[[], gym.Env] | gym.vector.VectorEnv | an EnvPool


class TRPO:
    """An agent: policy and value networks, and what trains them.

    agent = TRPO("Hopper-v5", max_kl=0.03, seed=0); agent.learn(300_000); action, _ = agent.predict(obs)

    Args:
      env: an environment id, a callable that makes a gymnasium.Env, a gymnasium vector environment, or an EnvPool.
      policy_network: a Keras model instead of the configured network: from the observation's features to the outputs
        for the action distribution. For a Box of A actions these are A means, for Discrete K logits; anything else is
        refused with the number that is needed. The features are the normalised vector [N, D], or, where there are
        images, a dict of `vector` and each image by its name.
      value_network: a Keras model from the same features to [N, 1].
      eval_env: an id or a callable; environments of evaluations, needed where env is a vector environment.
      config: all settings in one record, instead of keyword arguments.
      settings: as the training command's flags, by name; help(TRPO) lists them. Those that only the command minds,
        because in Python callbacks do what they ask for, are refused.

    Raises:
      UsageError: a setting is out of its range, or the environment does not exist or is not supported.
    """

    def __init__(
        self,
        env: Env,
        *,
        policy_network: Any = None,
        value_network: Any = None,
        eval_env: str | Callable[[], gym.Env] | None = None,
        config: Config | None = None,
        **settings: Any,
    ):
        if config is None:
            if not isinstance(env, str) and hasattr(env, "num_envs"):
                settings = {"num_envs": env.num_envs} | settings
            refuse_commands_own(settings)
            config = make_config(env=env_name(env), **settings)
        elif settings:
            raise UsageError(f"config has all settings; not {', '.join(sorted(settings))} besides")
        training.use_threads(config.compute)
        config = config if config.environment.env == env_name(env) else config.replace(env=env_name(env))
        environments = Environments(config.environment, None if isinstance(env, str) else env, eval_env)
        self.session = Session(config, environments, policy_network, value_network)
        self.resumed_from: Path | None = None
        self._callbacks: list[Callback] = []
        self._callback_state: state.State = {}
        self._actor = make_actor(self.session.policy, live=True)
        self._acting_version, self._noise = -1, self._draws(config.run.seed)

    @property
    def config(self) -> Config:
        """All settings."""
        return self.session.config

    @property
    def update(self) -> int:
        """Updates so far."""
        return self.session.update

    @property
    def env_steps(self) -> int:
        """Environment steps (valid transitions) so far."""
        return self.session.env_steps

    @property
    def total_steps(self) -> int:
        """Environment steps that the training is to have in all."""
        return self.session.total_steps

    @property
    def observation_space(self) -> gym.Space:
        """Of a single environment."""
        return self.session.spaces[0]

    @property
    def action_space(self) -> gym.Space:
        """Of a single environment."""
        return self.session.spaces[1]

    def learn(self, total_steps: int | None = None, callbacks: Sequence[CallbackLike] = ()) -> History:
        """Trains. Ctrl-C lets the update under way finish and returns; a second one is a KeyboardInterrupt.

        Args:
          total_steps: environment steps in all, counted from the agent's first; None: as configured.
          callbacks: called after every update, (agent, row) -> None, or False to end the training.

        Returns:
          The rows of metrics, one per update.

        Raises:
          UsageError: the agent has taken so many steps already.
          EnvironmentFailure: an environment raised, or keeps giving NaN or infinity.
        """
        if total_steps is not None and self.env_steps >= total_steps:
            raise UsageError(
                f"--total_steps={total_steps}: the agent has taken {self.env_steps} steps already, and total_steps "
                "counts from its first"
            )
        history = History()
        with training.signals() as stopping:
            self.train([*callbacks, Recorder(history)], total_steps or self.config.run.total_steps, stopping.is_set)
        return history

    def train(
        self, callbacks: Sequence[CallbackLike], total_steps: int, stopping: Callable[[], bool] = lambda: False
    ) -> bool:
        """As `learn`, without a history; whether the training is over, False where `stopping` interrupted it."""
        self._callbacks = as_callbacks(callbacks)
        for name, callback in by_name(self._callbacks):
            saved = state.part(name, self._callback_state)
            if saved:
                with checkpoint.taken_over(self.resumed_from):
                    callback.restore(saved)
        self._callback_state = {}
        self.session.total_steps = total_steps
        return training.learn(self, total_steps, self._callbacks, stopping)

    def iterate(self, until: int | None = None) -> Iterator[Row]:
        """The updates of `learn` as an iterator, without callbacks: the metrics of each, until so many steps in all."""
        return self.session.updates(until or self.config.run.total_steps)

    def predict(
        self,
        obs: Any,
        state: dict[str, np.ndarray] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, dict[str, np.ndarray] | None]:
        """Acts on an observation, or on a batch of them.

        Args:
          obs: as the environment gives it, [...] or [N, ...]; with an action_mask that it gives in `info`.
          state: what the last call returned; None where an episode begins, and without a recurrent core.
          episode_start: [N] bool, where an episode begins; by default everywhere without a state, else nowhere.
          deterministic: the distribution's mode instead of a draw.

        Returns:
          The action as the environment's step takes it, [...] or [N, ...], and the recurrent state, None without one.

        Raises:
          UsageError: obs, state or episode_start do not fit; names what is needed.
        """
        self._refresh_actor()
        actor = self._actor
        given, single = batched(self.observation_space, actor.leaves, obs)
        if actor.states:
            given |= recurrent(actor.states, len(next(iter(given.values()))), state, episode_start)
        if deterministic:
            action, after = actor.mode(given)
        else:
            _, action, after = actor(given, self._noise(len(next(iter(given.values())))))
        taken = actor.to_env(action)
        if single:
            parts = iter([x[0] for x in spaces.named(taken, "action").values()])
            taken = spaces.rebuild(taken, lambda _: next(parts))
        return taken, dict(zip(sorted(actor.states), after, strict=True)) if actor.states else None

    def _refresh_actor(self) -> None:
        if self._acting_version != self.update:
            self._actor.set_weights(self.session.policy.get_weights())
            self._acting_version = self.update

    def _draws(self, seed: int) -> Callable[[int], np.ndarray]:
        """From a number of rows to what so many draws need, [rows, noise_size]; new numbers at every call."""
        key, count = seeds.derive_seed(seed, seeds.SAMPLING), itertools.count()
        noise = self.session.policy.distribution.noise
        return lambda rows: noise([rows], np.array([key, next(count)], np.int32)).numpy()

    def evaluate(self, episodes: int = 20, deterministic: bool = True, seed: int | None = None) -> Evaluation:
        """Runs whole episodes in environments of their own.

        Args:
          episodes: how many.
          deterministic: the distribution's mode instead of draws.
          seed: of the environments; None: one that depends on the agent's seed and update.
        """
        if deterministic and seed is None:
            return self.session.evaluate(episodes)
        path = (self.config.run.seed, seeds.EVAL_ENVS, self.update) if seed is None else (seed, seeds.EVAL_ENVS)
        envs = self.session.evaluation_envs(episodes, seeds.derive_seed(*path))
        self._refresh_actor()
        noise = self._noise if seed is None else self._draws(seed)
        result = evaluate(stateful_act(self._actor, None if deterministic else noise), envs, episodes)
        for line in result.warnings():
            warn(line)
        return result

    def save(self, path: str | os.PathLike) -> None:
        """Saves all but the environments to a directory, for `load`; a save that is there is replaced.

        Raises:
          UsageError: the directory holds something else.
        """
        target = Path(absolute("path", path))
        if target.exists() and not (checkpoint.is_one(target) or (target.is_dir() and not any(target.iterdir()))):
            raise UsageError(f"{target}: is there already, and is no saved agent")
        checkpoint.write(target, self.session.checkpoint(source=False))

    @classmethod
    def load(cls, path: str | os.PathLike, env: Env | None = None, **changes: Any) -> "TRPO":
        """An agent with the networks, normaliser and optimiser of a saved one; its training starts anew.

        Args:
          path: what `save` wrote.
          env: another environment of the same spaces; None: the one it was trained on, which must have an id.
          changes: settings that differ, and policy_network, value_network and eval_env. Workers of a Ray cluster are
            not taken over.

        Raises:
          UsageError: the spaces or networks differ; names what.
        """
        saved = checkpoint.load_saved(Path(absolute("path", path)))
        agent = cls._of(saved, env, changes)
        with checkpoint.taken_over(saved.path):
            agent.session.restore_policy(saved)
            agent.session.learner.restore(state.part("learner", saved.arrays), replay=False)
        return agent

    @classmethod
    def resume(cls, run_dir: str | os.PathLike, env: Env | None = None, **changes: Any) -> "TRPO":
        """The agent of a run's newest checkpoint: with the same callbacks, `learn` goes on to the bit.

        Args:
          run_dir: of the Checkpoint callback, or of the training command.
          env: as it was; None where it has an id.
          changes: settings that differ, total_steps for example, and policy_network, value_network and eval_env.

        Raises:
          NoCheckpointError: there is no valid checkpoint.
          UsageError: a setting differs that the checkpoint depends on; names both values.
        """
        path = Path(absolute("run_dir", run_dir))
        saved = checkpoint.newest(path / "checkpoints", warn)
        check_address(saved.meta["config"], changes)
        agent = cls._of(saved, env, {"run_dir": path, "resume": True} | changes)
        with checkpoint.taken_over(saved.path):
            agent.session.restore(saved)
        agent._callback_state = state.part("callbacks", saved.arrays)
        agent.resumed_from = path
        return agent

    @classmethod
    def of_checkpoint(cls, saved: checkpoint.Checkpoint, env: Env | None = None, **changes: Any) -> "TRPO":
        """The agent of a checkpoint without training environments, to be evaluated or exported."""
        agent = cls._of(saved, env, changes)
        with checkpoint.taken_over(saved.path):
            agent.session.restore(saved, source=False)
        return agent

    @classmethod
    def _of(cls, saved: checkpoint.Checkpoint, env: Env | None, changes: dict[str, Any]) -> "TRPO":
        """A new agent of a checkpoint's configuration; the file decides on no place, and on no import of a module."""
        models = {name: changes.pop(name, None) for name in ("policy_network", "value_network", "eval_env")}
        changes |= {} if env is None else {"env": env_name(env)}
        with checkpoint.taken_over(saved.path):
            config = of_checkpoint(saved.meta["config"], changes)
        return cls(config.environment.env if env is None else env, config=config, **models)

    def export(self, directory: str | os.PathLike) -> Path:
        """Saves the policy as the next numbered SavedModel below a directory; returns the version's directory."""
        faults.point("export")
        scale = self.session.reward_scale()
        return saved_model.save(self.session.policy, scale, self.metadata(), Path(absolute("directory", directory)))

    def metadata(self) -> dict[str, Any]:
        """What an exported policy says of its origin."""
        evaluation = self.session.evaluation
        known = evaluation is not None and evaluation["update"] == self.update
        observation_space, action_space = map(str, self.session.spaces)
        return {
            "env": self.config.environment.env,
            "backend": self.session.environments.backend,
            "observation_space": observation_space,
            "action_space": action_space,
            "algorithm": self.config.algorithm.algorithm.upper(),
            "flags": portable(to_dict(self.config)),
            "seed": self.config.run.seed,
            "update": self.update,
            "env_steps": self.env_steps,
            "evaluation": evaluation if known else None,
            "versions": versions(),
        }

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The whole state, that of the callbacks of the training under way included."""
        saved = self.session.checkpoint()
        for name, callback in by_name(self._callbacks):
            saved.arrays.update(state.prefixed(f"callbacks/{name}", state.numbers(name, callback.state())))
        return saved

    def flush(self) -> None:
        """Lets the loggers of the training under way write what waits."""
        for callback in self._callbacks:
            callback.flush()

    def close(self) -> None:
        """Frees the environments."""
        self.session.close()


def load_policy(saved_model_dir: str | os.PathLike) -> LoadedPolicy:
    """A SavedModel for inference: `.action(obs)`, `.sample(obs, seed)`, `.predict(obs, signature)`, `.metadata`."""
    return LoadedPolicy(absolute("saved_model_dir", saved_model_dir))


show_settings(TRPO, after="settings")
