"""The loop of training: updates, callbacks after each, signals; and the run of the training command."""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.callbacks import Checkpoint, CsvLogger, Evaluate, Export, Screen, TensorBoardLogger
from trpo_tf.config import ComputeConfig
from trpo_tf.errors import EnvironmentFailure, first_line
from trpo_tf.messages import warn
from trpo_tf.rollout.backends.base import usable_cores
from trpo_tf.rollout.evaluation import Evaluation
from trpo_tf.run.callback import Callback
from trpo_tf.run.directory import default_name
from trpo_tf.run.metrics.row import Row


class Result(NamedTuple):
    """What a run of the training command leaves."""

    run_dir: Path
    evaluation: Evaluation | None  # None when it was preempted, or not asked for
    saved_model: Path | None
    preempted: bool  # stopped by a signal, with a checkpoint to resume from


def learn(agent: Any, until: int, callbacks: list[Callback], stopping: Callable[[], bool] = lambda: False) -> bool:
    """Takes updates until so many environment steps are done in all, with callbacks after each.

    Args:
      agent: a TRPO.
      until: environment steps.
      callbacks: in the order they are called; the agent knows them.
      stopping: asked before every update; True interrupts the training.

    Returns:
      Whether the training is over; False where it was interrupted.

    Raises:
      EnvironmentFailure: every callback's `finish(agent, False)` was called before, so Checkpoint has saved.
      Exception: of a callback; likewise.
    """
    session, done, error = agent.session, False, None
    with contextlib.ExitStack() as stack:
        stack.callback(gc.unfreeze)
        for callback in reversed(callbacks):
            stack.callback(callback.close)
            callback.start(agent)
        first = session.update
        try:
            updates = session.updates(until)
            while not (done or error or stopping()) and (row := next(updates, None)) is not None:
                done, error = _call_all(agent, row, callbacks)
                if session.update == first + 1:
                    # TensorFlow's graphs are many objects; walking them at every collection costs a tenth of the time.
                    gc.collect()
                    gc.freeze()
        except EnvironmentFailure as failure:
            error = failure
        done = error is None and (done or session.env_steps >= until)
        error = _finish_all(agent, callbacks, done, error)
        if error is not None:
            raise error
    return done


def _call_all(agent: Any, row: Row, callbacks: list[Callback]) -> tuple[bool, Exception | None]:
    """Calls every callback; whether one of them ends the training, and the first exception of one."""
    done, error = False, None
    for callback in callbacks:
        try:
            answer = callback(agent, row)
            done = done or (answer is not None and not answer)
        except Exception as raised:
            error = error or raised
    return done, error


def _finish_all(agent: Any, callbacks: list[Callback], done: bool, error: Exception | None) -> Exception | None:
    """Lets every callback finish; the first exception, `error` if there was one before. Later ones are a warning."""
    for callback in callbacks:
        try:
            callback.finish(agent, done)
        except Exception as raised:
            if error is not None:
                warn(f"{type(callback).__name__} could not finish: {first_line(raised)}")
            error = error or raised
    return error


def run(make_agent: Callable[[], Any]) -> Result:
    """The run of the training command: all that the agent's configuration asks for, into a run directory.

    The first SIGINT or SIGTERM lets the update under way finish and saves a checkpoint; a second one ends the process.

    Args:
      make_agent: makes a TRPO, or takes one up from a checkpoint.

    Raises:
      UsageError: nothing was written.
      EnvironmentFailure: the environments raised or keep giving NaN; a checkpoint was saved.
    """
    with signals(leave_at_once=True) as stopping:
        agent = make_agent()
        config, rows = agent.config.run, agent.config.time_steps * agent.config.environment.num_envs
        path = Path(config.run_dir or default_name(agent.config))
        final = config.final_eval_episodes, path / "evaluation.json"
        evaluate = Evaluate(config.eval_every, config.eval_episodes, path / "best", *final)
        name = agent.config.environment.env
        screen = Screen(greeting=f"{name}, seed {config.seed}, {rows} transitions per update, in {path}")
        loggers = [CsvLogger(path / "progress.csv"), *[TensorBoardLogger(path / "tensorboard")] * config.tensorboard]
        export = Export(config.export_dir or path / "saved_model", config.export_every, config.export)
        saver = Checkpoint(path, config.checkpoint_every, config.keep_checkpoints)
        done = agent.train([evaluate, *loggers, screen, saver, export], config.total_steps, stopping.is_set)
    if not done:
        screen.say(f"stopped after {agent.env_steps:,} steps; go on with --resume --run_dir={path}")
        return Result(path, None, None, True)
    if evaluate.final:
        screen.evaluation(evaluate.final.summary())
    if export.exported:
        screen.say(f"SavedModel: {export.exported}")
    return Result(path, evaluate.final, export.exported, False)


def use_threads(config: ComputeConfig) -> None:
    """Gives TensorFlow the threads that config.update_threads asks for, unless it runs already in this process."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(config.update_threads or max(1, len(usable_cores()) - 1))
    except RuntimeError:
        if config.update_threads:
            warn(f"--update_threads={config.update_threads} comes too late: TensorFlow runs in this process")


@contextlib.contextmanager
def signals(leave_at_once: bool = False) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets.

    leave_at_once: a second signal ends the process at once; else it has the effect that it had before, which for SIGINT
    is a KeyboardInterrupt.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(*_: Any) -> None:
        event.set()
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if leave_at_once else handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
