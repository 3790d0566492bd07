"""Whole runs: repeatable, resumable to the bit, stopped by signals, learning."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

import trpo_tf
from tests.conftest import TINY
from tests.rollout.flaky import Flaky
from trpo_tf import faults, training
from trpo_tf.config import EvaluateConfig, make_config
from trpo_tf.errors import EnvironmentFailure, NoCheckpointError, UsageError
from trpo_tf.rollout import evaluation
from trpo_tf.run import checkpoint
from trpo_tf.run.metrics.csv import read_csv
from trpo_tf.runs import run_evaluation, run_training
from trpo_tf.session import Session

_TIMES = "time/"
SLOW = pytest.mark.slow


def state(run_dir):
    """Every array and counter of the newest checkpoint, as bytes, and the metrics without times."""
    saved = checkpoint.newest(run_dir / "checkpoints")
    meta = {k: v for k, v in saved.meta.items() if k not in ("config", "versions")}
    rows = [{k: v for k, v in row.items() if not k.startswith(_TIMES)} for row in read_csv(run_dir / "progress.csv")]
    return {name: array.tobytes() for name, array in saved.arrays.items()}, meta, rows


def assert_same(a, b):
    (arrays_a, meta_a, rows_a), (arrays_b, meta_b, rows_b) = state(a), state(b)
    assert meta_a == meta_b
    assert rows_a == rows_b
    assert arrays_a.keys() == arrays_b.keys()
    for name in arrays_a:
        assert arrays_a[name] == arrays_b[name], name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 8 updates: checkpoints at 3 and 6, where environments are rebuilt, and at the end."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run_training(make_config(**TINY, total_steps=480, run_dir=str(run_dir)))
    assert not result.preempted
    return run_dir


def test_a_run_leaves_what_it_promises(undisturbed):
    assert {path.name for path in undisturbed.iterdir()} == {
        "best", "checkpoints", "evaluation.json", "flags.txt", "lock", "lock.pid", "progress.csv", "saved_model",
        "tensorboard", "versions.json",
    }  # fmt: skip
    rows = read_csv(undisturbed / "progress.csv")
    assert [int(row["update"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == 8
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert [bool(row["eval/episode_return"]) for row in rows] == [u % 4 == 0 for u in range(1, 9)]
    policy = trpo_tf.load_policy(undisturbed / "saved_model")
    assert policy.action(np.zeros(4)) in (0, 1)
    assert policy.metadata["flags"]["env"] == "CartPole-v1"
    saved = json.loads((undisturbed / "evaluation.json").read_text())
    assert policy.metadata["evaluation"] == saved | {"update": 8}
    evaluation = run_evaluation(EvaluateConfig(saved_model=str(undisturbed / "saved_model"), episodes=3))
    assert len(evaluation.returns) == 3
    assert (evaluation.returns == evaluation.lengths).all()


def test_the_same_seed_gives_the_same_run_and_another_does_not(undisturbed, tmp_path, tiny):
    run_training(tiny(total_steps=480, run_dir=str(tmp_path / "again")))
    assert_same(undisturbed, tmp_path / "again")
    run_training(tiny(total_steps=60, seed=1, run_dir=str(tmp_path / "other")))
    first = [read_csv(path / "progress.csv")[0]["policy/kl"] for path in (undisturbed, tmp_path / "other")]
    assert first[0] != first[1]


@pytest.mark.parametrize("stop_after", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 7))])
def test_a_stopped_run_goes_on_to_the_bit(undisturbed, tmp_path, tiny, monkeypatch, stop_after):
    """SIGTERM during an update at, before and after a boundary where environments are rebuilt."""
    step = Session.step

    def interrupted(agent):
        if agent.update == stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(agent)

    monkeypatch.setattr(Session, "step", interrupted)
    result = run_training(tiny(total_steps=480, run_dir=str(tmp_path / "run")))
    assert result.preempted
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == stop_after
    monkeypatch.setattr(Session, "step", step)
    result = run_training(tiny(total_steps=480, run_dir=str(tmp_path / "run"), resume=True))
    assert not result.preempted
    assert_same(undisturbed, tmp_path / "run")


OTHERS = {
    "memory": {"env": "tests.tasks:PositionCartPole-v0", "network": "gru", "sequence_length": 4, "pipeline": True},
    "hybrid": {
        "env": "tests.tasks:Hybrid-v0",
        "action_distribution": "squashed_gaussian",
        "reuse": 2,
        "reuse_weights": "optimal",
        "behavior_lag": 2,
        "radius": "adaptive",
        "objective": "penalty",
    },
    "masked": {"env": "tests.tasks:MaskedInInfo-v0", "network": "lstm", "share_torso": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "hybrid", "masked"])
def test_runs_of_other_spaces_and_networks_go_on_to_the_bit(tmp_path, tiny, kind, monkeypatch, capsys):
    """Two updates after a boundary: the actions since then are replayed, the states are in the checkpoint."""
    settings = {"total_steps": 400, "allow_env_module": True, "eval_every": 0} | OTHERS[kind]
    run_training(tiny(**settings, run_dir=str(tmp_path / "whole")))
    step = Session.step

    def interrupted(agent):
        if agent.update == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(agent)

    monkeypatch.setattr(Session, "step", interrupted)
    assert run_training(tiny(**settings, run_dir=str(tmp_path / "run"))).preempted
    monkeypatch.setattr(Session, "step", step)
    assert not run_training(tiny(**settings, run_dir=str(tmp_path / "run"), resume=True)).preempted
    assert "repeat themselves" not in capsys.readouterr().err
    assert_same(tmp_path / "whole", tmp_path / "run")


# Where the second time is meant the first one is before the run has anything to lose.
_SECOND = {"save_arrays": 2, "save_manifest": 2, "save_rename": 2, "saved": 2, "write_row": 5, "evaluate": 2}


@pytest.mark.parametrize("point", [p if p == "save_rename" else pytest.param(p, marks=SLOW) for p in faults.POINTS])
def test_a_kill_at_any_named_point_is_resumed_to_the_bit(undisturbed, tmp_path, point):
    """SIGKILL in the fifth update, at a boundary, in an evaluation, while a row or a checkpoint is written."""
    count = _SECOND.get(point, 1 if point in ("renew", "export") else 5)
    code = f"""
import os, signal
from trpo_tf import faults
from trpo_tf.config import make_config
from trpo_tf.runs import run_training
reached = []
def kill(name):
    reached.append(name)
    if reached.count({point!r}) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
faults.hook = kill
run_training(make_config(**{TINY!r}, total_steps=480, run_dir="run"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        saved = checkpoint.newest(tmp_path / "run" / "checkpoints").meta["config"]
        assert not run_training(make_config(**saved | {"resume": True})).preempted
    assert_same(undisturbed, tmp_path / "run")


def test_every_named_point_is_reached_and_no_other(tmp_path, monkeypatch):
    reached = set()
    monkeypatch.setattr(faults, "hook", reached.add)
    run_training(make_config(**TINY, total_steps=300, run_dir=str(tmp_path / "run")))
    assert reached == set(faults.POINTS)


@pytest.mark.slow
def test_sigterm_exits_42_and_a_second_signal_leaves_at_once(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "trpo_tf.train", "--env=Pendulum-v1", "--total_steps=100000000", "--xla=off"]

    def start(name, *flags):
        command = [*line, f"--run_dir={name}", *flags]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        progress = tmp_path / name / "progress.csv"
        while time.monotonic() < deadline and not (progress.exists() and read_csv(progress)):
            time.sleep(0.1)
        return process

    process = start("saved")
    try:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 42
        assert f"go on with --resume --run_dir={tmp_path / 'saved'}" in process.stdout.read()
        rows = read_csv(tmp_path / "saved" / "progress.csv")
        assert checkpoint.newest(tmp_path / "saved" / "checkpoints").meta["update"] == int(rows[-1]["update"])
    finally:
        process.kill()
    # Updates of seconds, so that the second signal comes within one.
    process = start("left", "--steps_per_update=60000")
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


def test_a_finished_run_resumed_stays_as_it_is(undisturbed):
    before = state(undisturbed)
    run_training(make_config(**TINY, total_steps=480, run_dir=str(undisturbed), resume=True))
    assert state(undisturbed) == before
    assert [path.name for path in (undisturbed / "saved_model").iterdir()] == ["1"]


def test_an_environment_that_fails_ends_the_run_with_a_checkpoint_of_a_whole_update(tmp_path, tiny, monkeypatch):
    from trpo_tf.rollout.backends.envpool import EnvPoolBackend

    real, calls = EnvPoolBackend.step, [0]

    def failing(envs, action):
        calls[0] += 1
        if calls[0] == 1 + 16 * 2 + 5:  # in the third update; one step tries the environment out
            raise ValueError("broken sensor")
        return real(envs, action)

    monkeypatch.setattr(EnvPoolBackend, "step", failing)
    with pytest.raises(EnvironmentFailure, match="ValueError: broken sensor"):
        run_training(tiny(total_steps=480, run_dir=str(tmp_path / "run"), checkpoint_every=100))
    monkeypatch.setattr(EnvPoolBackend, "step", real)
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved.meta["update"] == 2
    assert int(saved.arrays["source/act_count"]) == 32
    assert len(saved.arrays["source/actions"]) == 32
    result = run_training(tiny(total_steps=480, run_dir=str(tmp_path / "run"), checkpoint_every=100, resume=True))
    run_training(tiny(total_steps=480, run_dir=str(tmp_path / "whole"), checkpoint_every=100))
    assert_same(result.run_dir, tmp_path / "whole")


@pytest.mark.slow
def test_an_exported_version_on_the_way_and_an_environment_of_the_old_api(tmp_path, tiny):
    from tests.rollout import counting  # noqa: F401, registers its environments

    with pytest.raises(UsageError, match="older API"):
        run_training(tiny(env="Old-v0", run_dir=str(tmp_path / "old")))
    assert not (tmp_path / "old").exists()
    run_training(tiny(total_steps=240, export_every=2, run_dir=str(tmp_path / "run")))
    assert sorted(path.name for path in (tmp_path / "run" / "saved_model").iterdir()) == ["1", "2"]


def test_tensorflow_leaves_a_core_to_the_value_fit_unless_told_or_begun(tiny, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", given.append)
    for cores, threads in ((8, 0), (1, 0), (8, 3)):
        monkeypatch.setattr(training, "usable_cores", lambda cores=cores: set(range(cores)))
        training.use_threads(tiny(update_threads=threads).compute)
    assert given == [7, 1, 3]

    def begun(threads):
        raise RuntimeError("Intra op parallelism cannot be modified after initialization.")

    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", begun)
    training.use_threads(tiny().compute)
    assert capsys.readouterr().err == ""
    training.use_threads(tiny(update_threads=3).compute)
    assert "--update_threads=3" in capsys.readouterr().err


def test_the_final_evaluation_counts_for_the_best(tmp_path, tiny):
    result = run_training(tiny(total_steps=1, run_dir=tmp_path / "run", eval_every=1000, export=False))
    best = checkpoint.newest(tmp_path / "run" / "best", pytest.fail)
    assert best.meta["update"] == 1
    assert float(best.arrays["callbacks/Evaluate/0/best_return"]) == result.evaluation.returns.mean()


def test_resuming_refuses_another_configuration_and_nothing_to_resume(undisturbed, tmp_path, tiny):
    with pytest.raises(UsageError, match="num_envs=2: the checkpoint has 4"):
        run_training(tiny(num_envs=2, run_dir=str(undisturbed), resume=True))
    with pytest.raises(UsageError, match="max_staleness=3: the checkpoint has 64"):
        run_training(tiny(max_staleness=3, run_dir=str(undisturbed), resume=True))
    with pytest.raises(NoCheckpointError, match="no valid checkpoint"):
        run_training(tiny(run_dir=str(tmp_path / "nothing"), resume=True))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_full_disk_is_a_warning_until_the_last_checkpoint(tmp_path, tiny, monkeypatch, capsys):
    real, calls = checkpoint.save, []

    def sometimes(*args):
        calls.append(1)
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    run_training(tiny(total_steps=480, run_dir=str(tmp_path / "a")))
    assert capsys.readouterr().err.count("checkpoint not saved, training goes on") == 2
    monkeypatch.setattr(checkpoint, "save", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        run_training(tiny(total_steps=60, run_dir=str(tmp_path / "b")))


@pytest.mark.slow
def test_cartpole_is_solved(tmp_path):
    config = make_config(env="CartPole-v1", total_steps=100_000, steps_per_update=1024, run_dir=str(tmp_path / "run"))
    assert run_training(config).evaluation.summary()["return_mean"] == 500


@pytest.mark.slow
def test_hopper_learns(tmp_path):
    config = make_config(env="Hopper-v5", total_steps=200_000, run_dir=str(tmp_path / "run"))
    assert run_training(config).evaluation.summary()["return_mean"] > 800


@pytest.mark.slow
def test_random_kills_are_resumed_to_the_bit(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    flags = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    line = [sys.executable, "-m", "trpo_tf.train", *flags, "--total_steps=60000"]
    subprocess.run([*line, "--run_dir=whole"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    rng, kills = np.random.default_rng(0), 0
    process = subprocess.Popen([*line, "--run_dir=killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(8):
        try:
            process.wait(rng.uniform(12, 22))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        again = [sys.executable, "-m", "trpo_tf.train", "--resume", "--run_dir=killed"]
        process = subprocess.Popen(again, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    assert process.wait(300) == 0
    assert kills >= 1
    assert_same(tmp_path / "whole", tmp_path / "killed")


def flaky_run(
    run_dir, tiny, fault=lambda *_: None, eval_fault=lambda *_: None, resume=False, callbacks=None, **settings
):
    """A run of the training command whose environments do what they are told."""
    env, eval_env = (functools.partial(Flaky, one) for one in (fault, eval_fault))
    config = tiny(**{"env": "given", "num_envs": 2, "checkpoint_every": 50, "tensorboard": False} | settings)

    def make_agent():
        if resume:
            return trpo_tf.TRPO.resume(run_dir, env=env, eval_env=eval_env)
        return trpo_tf.TRPO(env, eval_env=eval_env, config=config.replace(run_dir=str(run_dir)))

    return training.run(make_agent)


def failing(when=lambda: True, error=LookupError):
    def fault(env, call, count):
        if call == "step" and when():
            raise error("no answer")

    return fault


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [SystemExit, *(pytest.param(x, marks=SLOW) for x in (LookupError, GeneratorExit, gym.error.Error))]
)
def test_an_evaluation_that_fails_costs_no_update_and_the_run_goes_on(tmp_path, tiny, error):
    run, settings = tmp_path / "run", {"total_steps": 480, "export": False, "final_eval_episodes": 0}
    with pytest.raises(EnvironmentFailure, match=f"{error.__name__}: no answer .*Flaky, .*max_env_restarts=100"):
        flaky_run(run, tiny, eval_fault=failing(error=error), **settings)
    assert [row["update"] for row in read_csv(run / "progress.csv")] == ["1", "2", "3", "4"]
    assert checkpoint.newest(run / "checkpoints").meta["update"] == 4
    flaky_run(run, tiny, resume=True)
    flaky_run(tmp_path / "whole", tiny, **settings)
    (arrays, _, rows), (others, _, whole) = state(run), state(tmp_path / "whole")
    assert {k: x for k, x in arrays.items() if "best" not in k} == {k: x for k, x in others.items() if "best" not in k}
    assert [row["policy/kl"] for row in rows] == [row["policy/kl"] for row in whole]


@pytest.mark.slow
def test_a_last_evaluation_that_fails_leaves_a_saved_model_and_is_tried_again(tmp_path, tiny):
    run, broken, settings = tmp_path / "run", [True], {"total_steps": 200, "eval_every": 0, "max_env_restarts": 2}
    for resume in (False, True):
        with pytest.raises(EnvironmentFailure, match=r"no answer .*max_env_restarts=2"):
            flaky_run(run, tiny, eval_fault=failing(lambda: broken[0]), resume=resume, **settings)
        assert [path.name for path in (run / "saved_model").iterdir()] == ["1"]
        assert [row["update"] for row in read_csv(run / "progress.csv")] == ["1", "2", "3", "4"]
        assert checkpoint.newest(run / "checkpoints").meta["update"] == 4
    broken[0] = False
    result = flaky_run(run, tiny, resume=True)
    assert len(result.evaluation.returns) == 2
    assert json.loads((run / "evaluation.json").read_text())["episodes"] == 2
    assert len(read_csv(run / "progress.csv")) == 4


class OwnBase(BaseException):
    """One that `except Exception` does not catch."""


RAISED = [OwnBase("mine"), SystemExit(0), MemoryError(), StopIteration("x"), GeneratorExit()]
WHO = ["callback", "learner", "finish"]  # each with another error by default


@pytest.mark.parametrize(
    ("who", "error"),
    [
        pytest.param(who, error, marks=[SLOW] * (i != j), id=f"{who}-{type(error).__name__}")
        for i, who in enumerate(WHO)
        for j, error in enumerate(RAISED)
    ],
)
def test_whatever_raises_everything_is_finished_and_saved_before(tmp_path, tiny, monkeypatch, error, who):
    agent = trpo_tf.TRPO(functools.partial(Flaky), config=tiny(env="given", num_envs=2))
    finished = []

    class Last(trpo_tf.callbacks.Callback):
        def finish(self, agent, done):
            finished.append(done)
            if who == "finish":
                raise error

        def close(self):
            raise OSError("not so important")

    def act(agent, row):
        if agent.update == 2 and who == "callback":
            raise error

    update = agent.session.learner.update

    def learn(rollout, number, progress):
        if number == 2 and who == "learner":
            raise error
        return update(rollout, number, progress)

    monkeypatch.setattr(agent.session.learner, "update", learn)
    callbacks = [Last(), act, trpo_tf.Checkpoint(tmp_path / "run", every=100)]
    expected = RuntimeError if who == "learner" and isinstance(error, StopIteration) else type(error)  # PEP 479
    with pytest.raises(expected) as raised:
        agent.learn(150, callbacks)
    assert error in (raised.value, raised.value.__cause__)
    assert finished == [who == "finish"]
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == (3 if who == "finish" else 2)
    agent.close()


@pytest.mark.slow
def test_an_agent_whose_environment_failed_learns_again_as_a_resumed_one(tmp_path, tiny):
    settings = {"env": "given", "num_envs": 2, "checkpoint_every": 50, "max_env_restarts": 0, "eval_every": 0}
    broken = [False]

    def agent(fault=lambda *_: None):
        return trpo_tf.TRPO(functools.partial(Flaky, fault), config=tiny(**settings))

    def break_it(agent, row):
        broken[0] = agent.update == 3

    failed, whole = agent(failing(lambda: broken[0] and not np.random.default_rng().integers(9))), agent()
    with pytest.raises(EnvironmentFailure, match="no answer"):
        failed.learn(500, [break_it, trpo_tf.Checkpoint(tmp_path / "run", every=100)])
    broken[0] = False
    assert failed.update == 3
    resumed = trpo_tf.TRPO.resume(tmp_path / "run", env=Flaky)
    for one in (failed, resumed, whole):
        one.learn(500)
    arrays = [{name: x.tobytes() for name, x in one.checkpoint().arrays.items()} for one in (failed, resumed, whole)]
    assert arrays[0] == arrays[1] == arrays[2]


@pytest.mark.slow
def test_a_long_evaluation_is_given_up_when_the_run_is_to_end(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "_GRACE", 0.2)
    steps = [0]

    def slow(env, call, count):
        if call == "step":
            steps[0] += 1
            time.sleep(0.02)
            if steps[0] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {"total_steps": 200, "eval_every": 2, "eval_episodes": 50, "export": False, "final_eval_episodes": 3}
    began = time.monotonic()
    assert flaky_run(tmp_path / "run", tiny, eval_fault=slow, **settings).preempted
    assert time.monotonic() - began < 30
    assert "evaluation given up after 0 of 50 episodes" in capsys.readouterr().err
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == 2
    steps[0] = 100
    assert not flaky_run(tmp_path / "run", tiny, resume=True).preempted
    assert [row["update"] for row in read_csv(tmp_path / "run" / "progress.csv")] == ["1", "2", "3", "4"]
