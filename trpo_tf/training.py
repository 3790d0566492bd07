"""The loop of training: updates, callbacks after each, signals; and the run of the training command."""

import contextlib
import functools
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.callbacks import Checkpoint, CsvLogger, Evaluate, Export, Screen, TensorBoardLogger
from trpo_tf.config import ComputeConfig
from trpo_tf.errors import Interrupted, described
from trpo_tf.messages import warn
from trpo_tf.rollout.backends.base import usable_cores
from trpo_tf.rollout.evaluation import Evaluation
from trpo_tf.run.callback import Callback
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
      stopping: asked before every update, and in evaluations; True interrupts the training.

    Returns:
      Whether the training is over; False where it was interrupted.

    Raises:
      UsageError: workers cannot be had as asked for; no callback was called.
      EnvironmentFailure: environments failed. Before, every callback's `finish(agent, False)` was called, so Checkpoint
        has saved the state after the last whole update.
      BaseException: whatever else an update or a callback raised, SystemExit too; likewise. Only a KeyboardInterrupt
        leaves at once.
    """
    session, done = agent.session, False
    error: BaseException | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, session, "stopping", session.stopping)
        session.stopping = stopping
        session.check()
        stack.callback(gc.unfreeze)
        for callback in reversed(callbacks):
            stack.callback(_close, callback)
            callback.start(agent)
        for callback in callbacks:
            callback.secure(agent)
        first = session.update
        try:
            updates = session.updates(until)
            while not (done or error is not None or stopping()) and (row := next(updates, None)) is not None:
                done, error = _call_all(agent, row, callbacks)
                if session.update == first + 1:
                    # TensorFlow's graphs are many objects; walking them at every collection costs a tenth of the time.
                    gc.collect()
                    gc.freeze()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = raised
        done = error is None and (done or session.env_steps >= until)
        error = _finish_all(agent, callbacks, done, error)
        if isinstance(error, Interrupted):
            warn(error.message)
            return False
        if error is not None:
            raise error
    return done


def _call_all(agent: Any, row: Row, callbacks: list[Callback]) -> tuple[bool, BaseException | None]:
    """Calls every callback; whether one of them ends the training, and the first exception of one."""
    done, error = False, None
    for callback in callbacks:
        try:
            answer = callback(agent, row)
            done = done or (answer is not None and not answer)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = _first(error, raised)
    return done, error


def _finish_all(agent: Any, callbacks: list[Callback], done: bool, error: BaseException | None) -> BaseException | None:
    """Lets every callback finish; the first exception, `error` if there was one before. Later ones are a warning."""
    secure = [(callback, functools.partial(callback.secure, agent)) for callback in callbacks]
    finish = [(callback, functools.partial(callback.finish, agent, done)) for callback in callbacks]
    for callback, call in [*secure, *finish]:
        try:
            call()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            if error is not None and _first(error, raised) is error:
                warn(f"{type(callback).__name__} could not finish: {described(raised)}")
            error = _first(error, raised)
    return error


def _first(before: BaseException | None, error: BaseException) -> BaseException:
    """Which of two exceptions is to be raised; that an evaluation was given up is none."""
    return error if before is None or isinstance(before, Interrupted) else before


def _close(callback: Callback) -> None:
    try:
        callback.close()
    except Exception as error:  # which would hide what was raised before
        warn(f"{type(callback).__name__} could not be closed: {described(error)}")


def run(make_agent: Callable[[], Any]) -> Result:
    """The run of the training command: all that the agent's configuration asks for, into a run directory.

    The first SIGINT, SIGTERM or SIGHUP lets the update under way finish and saves a checkpoint; a second one ends the
    process.

    Args:
      make_agent: makes a TRPO, or takes one up from a checkpoint; its configuration has a run_dir.

    Raises:
      UsageError: nothing was written.
      EnvironmentFailure: the environments raised or keep giving NaN; a checkpoint was saved.
    """
    with signals(leave_at_once=True) as stopping:
        agent = make_agent()
        config = agent.config.run
        assert config.run_dir
        path = Path(config.run_dir)
        final = config.final_eval_episodes, path / "evaluation.json"
        evaluate = Evaluate(config.eval_every, config.eval_episodes, path / "best", *final)
        name, backend = agent.config.environment.env, agent.session.environments.backend_reason
        told = f"{name} ({backend}){agent.config.workers.described()}, seed {config.seed}"
        screen = Screen(greeting=f"{told}, {agent.session.learner.per_update} per update, in {path}")
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
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; what the process ignores, as under nohup, it ignores on.

    leave_at_once: a second signal ends the process at once; else it has the effect that it had before, which for SIGINT
    is a KeyboardInterrupt.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    previous = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def handle(received: int, _: Any) -> None:
        event.set()
        if not leave_at_once:
            for number, handler in previous.items():
                signal.signal(number, handler)
            return
        for number in previous:
            signal.signal(number, (lambda *_: None) if number == received else _end_by)
        signal.raise_signal(received)  # Python now handles what came meanwhile; with SIG_DFL it would drop it
        for number in previous:
            signal.signal(number, signal.SIG_DFL)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_by(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
