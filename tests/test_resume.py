"""What a run that goes on relies on: everything is saved before it can be lost, and nothing is taken on trust."""

import errno
import os
import signal

import pytest
import tensorflow as tf

import trpo_tf
from tests.conftest import TINY
from trpo_tf import faults, training
from trpo_tf.callbacks import Callback, Checkpoint, Evaluate, Export
from trpo_tf.config import of_file
from trpo_tf.errors import Error, UsageError
from trpo_tf.run import checkpoint, directory
from trpo_tf.serving import saved_model

pytestmark = pytest.mark.usefixtures("eagerly")
SMALL = {name: value for name, value in TINY.items() if "eval" not in name}


def agent(**changes):
    settings = SMALL | changes
    return trpo_tf.TRPO(settings.pop("env"), **settings)


def newest(run):
    return checkpoint.newest(run / "checkpoints").meta["update"]


def test_all_updates_are_saved_before_the_last_evaluation(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(faults, "hook", lambda name: name == "evaluate" and saved.append(newest(tmp_path)))
    mine = agent()
    mine.learn(3 * 64, [Checkpoint(tmp_path, every=100), Evaluate(every=0, episodes=1, final_episodes=1)])
    assert saved == [mine.update]


def test_a_callback_that_cannot_start_leaves_no_checkpoint(tmp_path):
    class Refuses(Callback):
        order = 0

        def start(self, agent):
            raise UsageError("--mine: not so")

    with pytest.raises(UsageError, match="not so"):
        agent().learn(64, [Refuses(), Checkpoint(tmp_path)])
    mine = agent()
    mine.learn(64, [Checkpoint(tmp_path)])
    assert newest(tmp_path) == mine.update


@pytest.mark.slow
def test_a_run_that_went_on_after_it_was_read_is_not_set_back(tmp_path):
    agent().learn(2 * 64, [Checkpoint(tmp_path)])
    slow, quick = (trpo_tf.TRPO.resume(tmp_path) for _ in range(2))
    quick.learn(5 * 64, [Checkpoint(tmp_path)])
    with pytest.raises(UsageError, match=f"went on to update {quick.update} meanwhile"):
        slow.learn(4 * 64, [Checkpoint(tmp_path)])
    assert newest(tmp_path) == quick.update


def test_a_first_save_that_was_killed_is_no_trace_of_a_run(tmp_path):
    started = tmp_path / "checkpoints" / "update_000000000"
    started.mkdir(parents=True)
    (started / "state.0123456789abcdef.safetensors").write_bytes(b"half")
    mine = agent()
    mine.learn(64, [Checkpoint(tmp_path)])
    assert newest(tmp_path) == mine.update


@pytest.mark.parametrize("name", ["manifest.json", "mine.txt"])
def test_anything_else_beside_it_is_one(tmp_path, name):
    started = tmp_path / "checkpoints" / "update_000000000"
    started.mkdir(parents=True)
    (started / name).write_bytes(b"half")
    with pytest.raises(UsageError, match="holds a run"):
        agent().learn(64, [Checkpoint(tmp_path)])


def test_a_moment_without_file_descriptors_is_no_damage(tmp_path, monkeypatch):
    agent().learn(64, [Checkpoint(tmp_path)])

    def refuse(path, most):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_file", refuse)
        with pytest.raises(Error, match="cannot be read now: Too many open files"):
            newest(tmp_path)
    assert newest(tmp_path) > 0


def test_another_version_of_a_package_is_named(tmp_path, monkeypatch, capsys):
    agent().learn(64, [Checkpoint(tmp_path)])
    before = directory.versions()
    monkeypatch.setattr("trpo_tf.session.versions", lambda: before | {"numpy": "9.9"})
    trpo_tf.TRPO.resume(tmp_path)
    assert f"the checkpoint is of numpy {before['numpy']}, not 9.9" in capsys.readouterr().err


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(self, **settings):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    agent().learn(64, [Checkpoint(tmp_path)])
    assert "its file system has no locks" in capsys.readouterr().err
    assert newest(tmp_path) > 0


def test_the_best_return_is_that_of_the_policy_that_is_kept(tmp_path):
    first = Evaluate(every=1, episodes=1, keep_best=tmp_path / "best")
    mine = agent()
    mine.learn(2 * 64, [Checkpoint(tmp_path), first])
    again = Evaluate(every=0, keep_best=tmp_path / "best")
    mine.learn(3 * 64, [Checkpoint(tmp_path), again])
    assert again.best_return == first.best_return


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_a_run_to_end(number):
    before = signal.signal(number, signal.SIG_DFL)  # whoever started this process may ignore it
    try:
        with training.signals() as stopping:
            os.kill(os.getpid(), number)
            assert stopping.is_set()
    finally:
        signal.signal(number, before)


def test_two_signals_that_are_handled_at_once_are_two(monkeypatch):
    """As where both come while TensorFlow computes."""
    both, ended = (signal.SIGINT, signal.SIGTERM), []
    monkeypatch.setattr(training, "_end_by", lambda number, _: ended.append(number))
    before = [signal.signal(number, signal.SIG_DFL) for number in both]
    try:
        with training.signals(leave_at_once=True) as stopping:
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for number in both:
                signal.raise_signal(number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
            assert stopping.is_set()
            assert ended == [signal.SIGTERM]
            assert {signal.getsignal(number) for number in both} == {signal.SIG_DFL}, "also within a long call of C"
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_process_ignores_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with training.signals() as stopping:
            os.kill(os.getpid(), number)
            assert not stopping.is_set()
    finally:
        signal.signal(number, before)


def test_an_export_is_not_repeated_by_a_run_that_was_set_back(tmp_path):
    mine = agent()
    export = Export(tmp_path)
    export.finish(mine, True)
    for damage in ("", "{", "[1]", '{"update": 7}'):
        if damage:
            (tmp_path / str(max(saved_model.versions(tmp_path)) + 1) / "assets.extra").mkdir(parents=True)
            newest_version = max(saved_model.versions(tmp_path))
            (tmp_path / str(newest_version) / saved_model.METADATA).write_text(damage)
        export.finish(mine, True)
        assert export.exported == tmp_path / "1"


def test_an_export_that_the_disk_refuses_does_not_end_training(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(saved_model, "save", refuse)
    mine = agent()
    mine.learn(2 * 64, [Export(tmp_path, every=1, at_end=False)])
    assert mine.env_steps >= 2 * 64
    assert "export failed, training goes on: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"env_options": "xml_file='/etc/passwd'"}, {"wrappers": "RecordVideo('~/here')"}])
def test_a_file_names_no_path_that_is_followed(options):
    [name] = options
    with pytest.raises(UsageError, match=f"{name}=.*: a file names a path; pass allow_env_module if you trust it"):
        of_file(options, {})
    assert of_file(options, {"allow_env_module": True}) == options
    assert of_file(options, {name: "size=3"}) == options
    assert of_file({"env_options": "size=3", "run_dir": "/there"}, {}) == {"env_options": "size=3"}
