"""Callbacks for `TRPO.learn` and the training command: evaluation, early stopping, checkpoints, exports, loggers."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.errors import NoCheckpointError, UsageError, reason
from trpo_tf.files import to_json, write_file
from trpo_tf.messages import warn, warn_on_failure
from trpo_tf.paths import absolute
from trpo_tf.rollout.evaluation import Evaluation
from trpo_tf.run import checkpoint
from trpo_tf.run.callback import LAST, SECOND, Callback
from trpo_tf.run.directory import RunDirectory
from trpo_tf.run.metrics.csv import CsvLogger
from trpo_tf.run.metrics.row import Row
from trpo_tf.run.metrics.screen import Screen
from trpo_tf.run.metrics.tensorboard import TensorBoardLogger
from trpo_tf.serving import saved_model
from trpo_tf.serving.signatures import check_exportable

__all__ = [
    "Callback", "Checkpoint", "CsvLogger", "Evaluate", "Export", "Row", "Screen", "StopAt", "TensorBoardLogger",
]  # fmt: skip


class Evaluate(Callback):
    """Runs deterministic episodes now and then; logs eval/episode_return and eval/episode_return_std.

    Args:
      every: updates between evaluations; 0: none on the way.
      episodes: of each.
      keep_best: directory where the checkpoint with the best mean return is kept; None: nowhere.
      final_episodes: episodes of an evaluation when the training is over; 0: none.
      json_path: where that evaluation's summary is written as JSON; None: nowhere.

    Attributes:
      final: the Evaluation after the training; None before it, and with final_episodes=0.
      best_return: the best mean return so far, -infinity before the first.
    """

    def __init__(
        self,
        every: int = 100,
        episodes: int = 10,
        keep_best: str | os.PathLike | None = None,
        final_episodes: int = 0,
        json_path: str | os.PathLike | None = None,
    ):
        self._every, self._episodes, self._final_episodes = every, episodes, final_episodes
        _at_least(0, every=every, final_episodes=final_episodes)
        _at_least(1, episodes=episodes)
        self._keep_best = None if keep_best is None else Path(absolute("keep_best", keep_best))
        self._json_path = None if json_path is None else Path(absolute("json_path", json_path))
        self.best_return = -np.inf
        self.final: Evaluation | None = None
        self._restored = False

    def start(self, agent: Any) -> None:
        """As Callback says.

        Raises:
          UsageError: there is nothing to evaluate in, or keep_best has the policy of another run.
        """
        self._take_up_best(agent.resumed_from)
        if self._every or self._final_episodes:
            agent.session.environments.check_evaluation()

    def _take_up_best(self, run_dir: Path | None) -> None:
        """Goes on from the best return that keep_best holds, unless a checkpoint said which it is.

        run_dir: of the run that goes on, or that Checkpoint has begun, which found it empty.
        """
        best = self._keep_best
        if best is None or self._restored or self.best_return > -np.inf or not checkpoint.found(best):
            return
        if run_dir is None or run_dir.resolve() != best.parent.resolve():
            raise UsageError(f"keep_best={best}: has the best policy of another run; name another place")
        with contextlib.suppress(NoCheckpointError):  # damaged, as `warn` says: the next evaluation is the best one
            evaluation = checkpoint.newest(best, warn).meta["evaluation"] or {}
            if isinstance(mean := evaluation.get("return_mean"), float):
                self.best_return = mean

    def __call__(self, agent: Any, row: Row) -> None:
        """As Callback says."""
        if self._every and agent.update % self._every == 0:
            summary = self._evaluate(agent, self._episodes).summary()
            row["eval/episode_return"], row["eval/episode_return_std"] = summary["return_mean"], summary["return_std"]

    def finish(self, agent: Any, done: bool) -> None:
        """As Callback says."""
        if done and self._final_episodes:
            self.final = self._evaluate(agent, self._final_episodes)
            if self._json_path is not None:
                with warn_on_failure(self._json_path.name, (OSError,)):
                    self._json_path.parent.mkdir(parents=True, exist_ok=True)
                    summary = {"update": agent.update} | self.final.summary()
                    write_file(self._json_path, f"{to_json(summary, indent=1)}\n".encode())

    def _evaluate(self, agent: Any, episodes: int) -> Evaluation:
        evaluation = agent.session.evaluate(episodes)
        mean = evaluation.summary()["return_mean"]
        if mean is not None and self.best_return < mean < np.inf:
            before, self.best_return = self.best_return, mean
            if self._keep_best is not None and not _save(self._keep_best, agent, 1):
                self.best_return = before
        return evaluation

    def state(self) -> dict[str, np.ndarray]:
        """As Callback says."""
        return {"best_return": np.array(self.best_return)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As Callback says."""
        self.best_return, self._restored = float(state["best_return"]), True


class StopAt(Callback):
    """Ends the training when a metric reaches a value.

    Args:
      metric: its name; updates where it is not there or None are passed over.
      value: what to reach.
      below: stop at or below the value instead of at or above it.
    """

    order = SECOND  # after what puts metrics into the row

    def __init__(self, metric: str, value: float, below: bool = False):
        self._metric, self._value, self._below = metric, value, below

    def __call__(self, agent: Any, row: Row) -> bool:
        """As Callback says."""
        found = row.get(self._metric)
        if found is None:
            return True
        return not bool(found <= self._value if self._below else found >= self._value)


class Checkpoint(Callback):
    """Saves checkpoints from which `TRPO.resume` goes on to the bit; owns the run's directory.

    Args:
      run_dir: checkpoints go to its sub-directory checkpoints, beside flags.txt and versions.json.
      every: updates between checkpoints; None: the agent's checkpoint_every.
      keep: newest checkpoints kept.

    Raises:
      UsageError: when training starts, if the directory is in use, cannot be written, or holds another run.
    """

    order = LAST

    def __init__(self, run_dir: str | os.PathLike, every: int | None = None, keep: int = 2):
        self.run_dir, self._every, self._keep = Path(absolute("run_dir", run_dir)), every, keep
        _at_least(1, every=every, keep=keep)
        self._directory: RunDirectory | None = None
        self._saved: int | None = None  # the update that was saved last

    def start(self, agent: Any) -> None:
        """As Callback says."""
        resumed = agent.resumed_from is not None and agent.resumed_from.resolve() == self.run_dir.resolve()
        self._directory = RunDirectory(self.run_dir, resumed)
        agent.resumed_from = self.run_dir  # `learn` again goes on there
        with warn_on_failure("flags.txt", (OSError,)):
            self._directory.describe(agent.config)
        self._saved = agent.update if agent.update else None
        if resumed:
            self._check_newest(agent.update)

    def _check_newest(self, update: int) -> None:
        """Another process may have gone on with the run, after the agent was taken up and before the lock was held."""
        paths = checkpoint.found(self.run_dir / "checkpoints")
        if not paths or checkpoint.number(paths[0]) <= update:
            return
        newest = checkpoint.newest(self.run_dir / "checkpoints").meta["update"]
        if newest > update:
            raise UsageError(f"--run_dir={self.run_dir}: went on to update {newest} meanwhile; resume it from there")

    def secure(self, agent: Any) -> None:
        """As Callback says; what is saved already is not saved again."""
        if self._saved != agent.update:
            agent.flush()
            self.save(agent)

    def __call__(self, agent: Any, row: Row) -> None:
        """As Callback says."""
        if agent.update % (self._every or agent.config.run.checkpoint_every) == 0:
            agent.flush()
            self.save(agent)

    def finish(self, agent: Any, done: bool) -> None:
        """Saves the last checkpoint.

        Raises:
          OSError: it could not be saved.
        """
        agent.flush()
        checkpoint.save(self.run_dir / "checkpoints", agent.checkpoint(), self._keep)

    def save(self, agent: Any) -> bool:
        """Saves now, and says whether it could; a full disk is a warning."""
        saved = _save(self.run_dir / "checkpoints", agent, self._keep)
        self._saved = agent.update if saved else None
        return saved

    def close(self) -> None:
        """As Callback says."""
        if self._directory is not None:
            self._directory.close()


class Export(Callback):
    """Exports the policy as the next numbered SavedModel, now and then or at the end.

    Args:
      directory: of the numbered versions.
      every: updates between exports; 0: none on the way.
      at_end: export when the training is over, unless the newest version is of the same update and configuration.

    Attributes:
      exported: the version that `finish` wrote, or the existing one of the same update and settings; None before.
    """

    order = LAST

    def __init__(self, directory: str | os.PathLike, every: int = 0, at_end: bool = True):
        self._directory, self._every, self._at_end = Path(absolute("directory", directory)), every, at_end
        self.exported: Path | None = None

    def start(self, agent: Any) -> None:
        """As Callback says.

        Raises:
          UsageError: TensorFlow loads no SavedModel from the directory, or a name of the policy cannot be exported.
        """
        if self._every or self._at_end:
            saved_model.check_directory(self._directory)
            check_exportable(agent.session.policy)

    def __call__(self, agent: Any, row: Row) -> None:
        """As Callback says."""
        if self._every and agent.update % self._every == 0:
            with warn_on_failure("export", (OSError, tf.errors.OpError)):
                self._export(agent)

    def finish(self, agent: Any, done: bool) -> None:
        """As Callback says."""
        if done and self._at_end:
            self.exported = self._export(agent)

    def _export(self, agent: Any) -> Path:
        """The version of this update; where a run that was killed has exported it, that one."""
        known = {name: agent.metadata()[name] for name in ("update", "flags")}
        return saved_model.find(self._directory, known) or agent.export(self._directory)


def _at_least(low: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < low:
            raise UsageError(f"{name}={value}: must be >= {low}")


def _save(directory: Path, agent: Any, keep: int) -> bool:
    try:
        checkpoint.save(directory, agent.checkpoint(), keep)
    except OSError as error:
        warn(f"{directory}: checkpoint not saved, training goes on: {reason(error)}")
        return False
    return True
