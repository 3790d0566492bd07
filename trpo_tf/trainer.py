"""The training run: collect, update, evaluate, keep."""

import contextlib
import gc
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.config import STRUCTURE, Config, UsageError, from_dict, to_dict
from trpo_tf.learner.trpo import TRPO
from trpo_tf.policy.actor import Actor
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.behavior import Behavior
from trpo_tf.rollout.collector import Collector, EnvironmentFailure
from trpo_tf.rollout.envs import Envs, derive_seed, usable_cores
from trpo_tf.rollout.evaluation import Evaluation, env_count, evaluate
from trpo_tf.run import checkpoint, metrics, saved_model
from trpo_tf.run.checkpoint import Checkpoint
from trpo_tf.run.directory import RunDirectory, versions

# Purposes of derived seeds; a number is never used for two.
_WEIGHTS, _TRAIN_ENVS, _ACTIONS, _LEARNER, _EVAL_ENVS = range(5)
_WINDOW = 20  # episodes in the running mean of returns


class Result(NamedTuple):
    """What a training run leaves."""

    run_dir: Path
    evaluation: Evaluation | None  # None when it was preempted, or not asked for
    saved_model: Path | None
    preempted: bool  # stopped by a signal, with a checkpoint to resume from


class Agent:
    """Policy, learner and collector of one configuration, and their state as arrays.

    Raises:
      UsageError: the environment does not exist or its spaces are not supported.
    """

    def __init__(self, config: Config, policy_network=None, value_network=None):
        self.config = config
        probe = make_envs(config, 1, 0)
        self.backend = probe.backend
        weights = derive_seed(config.seed, _WEIGHTS)
        networks = policy_network, value_network
        self.own_networks = [model is not None for model in networks]
        spaces = probe.observation_space, probe.action_space
        self.policy = Policy(*spaces, config, weights, *networks)
        if config.lag and any(self.own_networks):
            raise UsageError(
                "--pipeline and --behavior_lag go with the networks of the flags, not with your own models"
            )
        self._acting = Policy(*spaces, config, weights) if config.lag else self.policy
        # One step, so that an environment that cannot work fails before anything is written.
        probe.step(Actor(self.policy).player()(probe.reset(), np.ones(1, bool)))
        self.spaces = {"observation_space": str(probe.observation_space), "action_space": str(probe.action_space)}
        probe.close()
        self.learner = TRPO(self.policy, config, derive_seed(config.seed, _LEARNER))
        self.collector = self.behavior = None
        self.update = 0
        self.env_steps = 0
        self.episodes = 0
        self.best_return = -np.inf
        self.evaluation: dict | None = None  # the newest one, with the number of its update
        self.returns: deque[float] = deque(maxlen=_WINDOW)
        self.lengths: deque[float] = deque(maxlen=_WINDOW)

    def start(self) -> None:
        """Makes the training environments."""
        config = self.config
        self.collector = Collector(
            lambda update: make_envs(config, config.num_envs, derive_seed(config.seed, _TRAIN_ENVS, update), True),
            self._acting,
            config.time_steps,
            derive_seed(config.seed, _ACTIONS),
            config.max_invalid_rows,
        )
        self.behavior = Behavior(self.collector, self.policy, self._acting, config.behavior_lag)

    def step(self) -> tuple[metrics.Metrics, Future]:
        """One trajectory and one update. Returns the metrics, and those of the value fit once it has ended."""
        start = time.perf_counter()
        if "value_state" in self.policy.states:
            self.learner.wait()  # the value network acts, too: its states are stored
        trajectory, episodes = self.behavior.collect(self.update)
        steps = int(trajectory.mask.sum())
        boundary = (self.update + 1) % self.config.checkpoint_every == 0  # environments are rebuilt there
        if self.config.pipeline and not boundary and self.env_steps + steps < self.config.total_steps:
            self.behavior.start()
        collected = time.perf_counter()
        progress = min(1.0, self.env_steps / self.config.total_steps)
        learned, fit = self.learner.update(trajectory, self.update, progress)
        end = time.perf_counter()
        self.update += 1
        self.env_steps += steps
        self.episodes += len(episodes.returns)
        self.returns.extend(episodes.returns)
        self.lengths.extend(episodes.lengths)
        row = {
            "update": self.update,
            "env_steps": self.env_steps,
            "env/episode_return": float(np.mean(self.returns)) if self.returns else None,
            "env/episode_length": float(np.mean(self.lengths)) if self.lengths else None,
            "env/episodes": self.episodes,
            "env/invalid_rows": self.behavior.invalid_rows,
            "eval/episode_return": None,
            "eval/episode_return_std": None,
            **learned,
            "time/collect_seconds": collected - start,
            "time/update_seconds": end - collected,
            "time/env_steps_per_second": steps / (end - start),
        }
        return row, fit

    def rebuild_envs(self) -> None:
        """Starts fresh training environments, at a boundary that an undisturbed and a resumed run share."""
        self.collector.rebuild(self.update)
        self.learner.reward_scaler.reset()

    def evaluate(self, episodes: int) -> Evaluation:
        """Deterministic episodes in environments of their own, seeded by the update's number; kept as `evaluation`."""
        envs = make_envs(self.config, env_count(episodes), derive_seed(self.config.seed, _EVAL_ENVS, self.update))
        result = evaluate(Actor(self.policy).player(), envs, episodes)
        self.evaluation = {"update": self.update} | result.summary()
        return result

    def flags(self) -> dict:
        """The configuration, the same for a run and its resumption."""
        return to_dict(self.config) | {"resume": False}

    def variables(self) -> dict[str, tf.Variable]:
        """Every variable of policy and learner, by name, when no value fit is under way."""
        self.learner.wait()
        keras = self.policy.network.model.named_variables() | self.policy.value_network.model.named_variables()
        learner = self.learner
        parts = self.policy.normalizer, learner.reward_scaler, learner.adam, learner.radius
        own = [variable for part in parts for variable in part.variables]
        return {name: v.value for name, v in keras.items()} | {v.name: v for v in own}

    def checkpoint(self) -> Checkpoint:
        """The whole state, for `restore` of an agent of the same configuration."""
        ahead = self.behavior.arrays()  # before the collector's: it may be at work
        arrays = ahead | {f"variable/{name}": variable.numpy() for name, variable in self.variables().items()}
        arrays |= {
            "collector/actions": self.collector.recorded_actions(),
            **{f"collector/obs/{name}": x for name, x in self.collector.obs.items()},
            "window/returns": np.array(self.returns, np.float64),
            "window/lengths": np.array(self.lengths, np.float64),
        }
        arrays |= self.learner.replay.arrays()
        meta = {
            "update": self.update,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "best_return": None if np.isinf(self.best_return) else self.best_return,
            "act_count": self.collector.act_count,
            "invalid_rows": self.behavior.invalid_rows,
            "built_at": self.collector.built_at,
            "evaluation": self.evaluation,
            "backend": self.backend,
            "own_networks": self.own_networks,
            "config": to_dict(self.config),
            "versions": versions(),
        }
        return Checkpoint(arrays, meta)

    def restore(self, saved: Checkpoint, envs: bool = True) -> None:
        """Puts policy and learner, and with `envs` the environments too, where `saved` was taken.

        Raises:
          UsageError: the checkpoint is of another configuration; names both values.
        """
        for name in STRUCTURE:
            theirs, ours = to_dict(from_dict(saved.meta["config"]))[name], to_dict(self.config)[name]
            if theirs != ours:
                raise UsageError(f"--{name}={ours}: the checkpoint has {theirs}")
        if saved.meta["own_networks"] != self.own_networks:
            raise UsageError(
                "the run has Keras models of its own, which checkpoints do not hold: evaluate its SavedModel, or go on "
                "with trpo_tf.TRPO(policy_network=..., value_network=..., resume=True)"
                if any(saved.meta["own_networks"])
                else "the checkpoint is of the networks of the flags, not of models of your own"
            )
        if envs and saved.meta["backend"] != self.backend:
            raise UsageError(f"environments of {self.backend} here, of {saved.meta['backend']} in the checkpoint")
        arrays, meta = saved
        for name, variable in self.variables().items():
            value = arrays.get(f"variable/{name}")
            if value is None or value.shape != tuple(variable.shape):
                found = "nothing" if value is None else f"shape {value.shape}"
                raise UsageError(f"checkpoint: {name} has shape {tuple(variable.shape)} here, {found} in the file")
            variable.assign(value)
        self.update, self.env_steps, self.episodes = meta["update"], meta["env_steps"], meta["episodes"]
        self.best_return = -np.inf if meta["best_return"] is None else meta["best_return"]
        self.evaluation = meta["evaluation"]
        self.learner.replay.restore(arrays)
        self.returns.extend(arrays["window/returns"].tolist())
        self.lengths.extend(arrays["window/lengths"].tolist())
        if envs:
            self.collector.act_count = meta["act_count"]
            self.behavior.restore(arrays, meta["invalid_rows"])
            memory = {name: arrays[f"collector/obs/{name}"] for name in self.policy.specs}
            if not self.collector.replay(meta["built_at"], arrays["collector/actions"], memory):
                metrics.warn("the environments did not repeat themselves: the run goes on, but not to the bit")

    def export(self, export_dir: Path) -> Path:
        """Saves the policy as the next numbered SavedModel, with the evaluation of this update if there was one."""
        known = self.evaluation is not None and self.evaluation["update"] == self.update
        metadata = {
            "env": self.config.env,
            **self.spaces,
            "algorithm": "TRPO",
            "flags": self.flags(),
            "seed": self.config.seed,
            "update": self.update,
            "env_steps": self.env_steps,
            "evaluation": self.evaluation if known else None,
            "versions": versions(),
        }
        self.learner.wait()
        scale = float(self.learner.reward_scaler.scale().numpy())
        return saved_model.save(self.policy, scale, metadata, export_dir)


def make_envs(config: Config, num_envs: int, seed: int, training: bool = False) -> Envs:
    """Environments of a configuration; only those for training have their first episodes cut."""
    return Envs(
        config.env,
        num_envs,
        seed,
        config.env_backend,
        config.env_threads,
        config.stagger and training,
        config.allow_env_module,
        config.env_options,
        config.wrappers,
    )


def use_threads(config: Config) -> None:
    """Gives TensorFlow the threads that config.update_threads asks for, unless it runs already in this process."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(config.update_threads or max(1, len(usable_cores()) - 1))
    except RuntimeError:
        if config.update_threads:
            metrics.warn(f"--update_threads={config.update_threads} comes too late: TensorFlow runs in this process")


def load_agent(run_dir: Path, best: bool = False, allow_env_module: bool = False) -> Agent:
    """The agent of a run's newest or best checkpoint, without training environments.

    Whether an environment may import a module is never taken from the file.

    Raises:
      NoCheckpointError: there is no valid one.
    """
    saved = checkpoint.newest(Path(run_dir) / ("best" if best else "checkpoints"), metrics.warn)
    agent = Agent(from_dict(saved.meta["config"] | {"allow_env_module": allow_env_module}))
    agent.restore(saved, envs=False)
    return agent


def train(config: Config, policy_network=None, value_network=None) -> Result:
    """Trains a policy, from the start or from the newest checkpoint of config.run_dir.

    policy_network, value_network: Keras models instead of those of the flags; see policy.policy.Policy.

    The first SIGINT or SIGTERM lets the update under way finish and saves a checkpoint; a second one ends the process.

    Returns:
      Result; its `preempted` says whether a signal ended it.

    Raises:
      UsageError: nothing was written.
      NoCheckpointError: config.resume without a valid checkpoint.
      EnvironmentFailure: the environments raised or keep giving NaN; a checkpoint was saved.
    """
    if config.resume and not config.run_dir:
        raise UsageError("--resume needs --run_dir, the run to go on with")
    use_threads(config)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(_signals())
        agent = Agent(config, policy_network, value_network)
        saved = None
        if config.resume:
            saved = checkpoint.newest(Path(config.run_dir) / "checkpoints", metrics.warn)
        directory = RunDirectory(config)
        stack.callback(directory.close)
        agent.start()
        stack.callback(agent.behavior.close)
        if saved is not None:
            agent.restore(saved)
        directory.describe(config)
        screen = metrics.Screen(config.total_steps, agent.env_steps)
        stack.callback(screen.close)
        places = [metrics.Csv(directory.path / "progress.csv", agent.update), screen]
        if config.tensorboard:
            with metrics.forgiving("TensorBoard"):
                places.append(metrics.TensorBoard(directory.path / "tensorboard"))
        stack.callback(gc.unfreeze)
        metering = metrics.Metering(*places)
        stack.callback(metering.flush)
        return _loop(agent, directory, metering, screen, stopping)


def _loop(agent: Agent, directory: RunDirectory, metering, screen, stopping: threading.Event) -> Result:
    config = agent.config
    export_dir = Path(config.export_dir or directory.path / "saved_model")
    rows = config.time_steps * config.num_envs
    screen.say(f"{config.env}, seed {config.seed}, {rows} rows per update, in {directory.path}")
    saver, start = _Saver(directory.checkpoints, config.keep_checkpoints), time.perf_counter()
    if agent.update == 0:
        saver.save(agent)
    first = agent.update + 1
    while agent.env_steps < config.total_steps and not stopping.is_set():
        try:
            row, fit = agent.step()
        except EnvironmentFailure:
            saver.save(agent)
            raise
        boundary = agent.update % config.checkpoint_every == 0
        if config.eval_every and agent.update % config.eval_every == 0:
            summary = _evaluate_best(agent, directory, config.eval_episodes).summary()
            row["eval/episode_return"], row["eval/episode_return_std"] = summary["return_mean"], summary["return_std"]
        if boundary:
            agent.rebuild_envs()
        metering.write(row | {"time/elapsed_seconds": time.perf_counter() - start}, fit)
        if boundary:
            metering.flush()
            saver.save(agent)
        if config.export_every and agent.update % config.export_every == 0:
            with metrics.forgiving("export"):
                agent.export(export_dir)
        if agent.update == first:
            gc.collect()
            gc.freeze()  # TensorFlow's graphs are many objects; walking them again and again costs a tenth of the time
    metering.flush()
    if agent.env_steps < config.total_steps:
        saver.save(agent, last=True)
        screen.say(f"stopped after {agent.env_steps:,} steps; go on with --resume --run_dir={directory.path}")
        return Result(directory.path, None, None, True)
    return _finish(agent, directory, saver, export_dir, screen)


def _evaluate_best(agent: Agent, directory: RunDirectory, episodes: int) -> Evaluation:
    """Evaluates, and keeps the checkpoint when it is the best so far."""
    evaluation = agent.evaluate(episodes)
    mean = evaluation.summary()["return_mean"]
    if mean > agent.best_return:
        before, agent.best_return = agent.best_return, mean
        if not _Saver(directory.best, 1).save(agent):
            agent.best_return = before
    return evaluation


def _finish(agent: Agent, directory: RunDirectory, saver: "_Saver", export_dir: Path, screen) -> Result:
    """The evaluation, the last checkpoint and the SavedModel; a run that has them already gets no second SavedModel."""
    evaluation, exported = None, None
    if agent.config.final_eval_episodes:
        evaluation = _evaluate_best(agent, directory, agent.config.final_eval_episodes)
        screen.evaluation(evaluation.summary())
        with metrics.forgiving("evaluation.json"):
            checkpoint.write_file(directory.path / "evaluation.json", metrics.to_json(evaluation.summary()))
    saver.save(agent, last=True)
    if agent.config.export:
        exported = saved_model.find(export_dir, {"update": agent.update, "flags": agent.flags()})
        exported = exported or agent.export(export_dir)
        screen.say(f"SavedModel: {exported}")
    return Result(directory.path, evaluation, exported, False)


class _Saver:
    """Saves checkpoints; a full disk is a warning until the last one."""

    def __init__(self, directory: Path, keep: int):
        self._directory, self._keep = directory, keep

    def save(self, agent: Agent, last: bool = False) -> bool:
        """Saves the agent, and says whether it could.

        Raises:
          OSError: the last checkpoint could not be saved.
        """
        try:
            checkpoint.save(self._directory, agent.checkpoint(), self._keep)
        except OSError as error:
            if last:
                raise
            metrics.warn(f"checkpoint not saved, training goes on: {error}")
            return False
        return True


@contextlib.contextmanager
def _signals():
    """An event that the first SIGINT or SIGTERM sets; the second has its usual effect."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(*_):
        event.set()
        for number in previous:
            signal.signal(number, signal.SIG_DFL)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
