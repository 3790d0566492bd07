"""Callbacks: evaluation, early stopping, checkpoints, exports, and what a user adds."""

import json

import numpy as np
import pytest

import trpo_tf
from tests.conftest import SMALL
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.rollout.backends.envpool import EnvPoolBackend
from trpo_tf.run import checkpoint
from trpo_tf.run.metrics.csv import read_csv

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture
def agent():
    made = trpo_tf.TRPO("CartPole-v1", **SMALL)
    yield made
    made.close()


class Noted(trpo_tf.Callback):
    """Writes down what is called, in one list for all of them."""

    def __init__(self, name, notes, order=trpo_tf.Callback.order):
        self.name, self.notes, self.order = name, notes, order

    def start(self, agent):
        self.notes.append(f"{self.name} start")

    def __call__(self, agent, row):
        self.notes.append(f"{self.name} {row['update']}")

    def finish(self, agent, done):
        self.notes.append(f"{self.name} finish {done}")

    def close(self):
        self.notes.append(f"{self.name} close")


def test_callbacks_are_called_by_their_order_and_started_the_other_way_round(agent):
    notes = []
    agent.learn(60, [Noted("last", notes, order=2), Noted("first", notes)])
    assert notes == [
        "last start", "first start", "first 1", "last 1", "first finish True", "last finish True",
        "first close", "last close",
    ]  # fmt: skip


def test_false_ends_the_training_after_every_callback_was_called(agent):
    notes = []
    agent.learn(10_000, [lambda agent, row: row["update"] < 3, Noted("other", notes)])
    assert agent.update == 3
    assert notes[-3:] == ["other 3", "other finish True", "other close"]


def test_a_callback_that_fails_is_its_own_error_and_everything_is_closed(agent):
    notes = []
    with pytest.raises(ZeroDivisionError):
        agent.learn(10_000, [lambda agent, row: 1 / 0, Noted("other", notes)])
    assert notes[-1] == "other close"


def test_training_stops_at_a_value(agent):
    agent.learn(10_000, [trpo_tf.StopAt("update", 2)])
    assert agent.update == 2
    agent.learn(20_000, [trpo_tf.StopAt("value/learning_rate", 1.0, below=True)])
    assert agent.update == 3
    agent.learn(agent.env_steps + 60, [trpo_tf.StopAt("eval/episode_return", 0)])
    assert agent.update == 4


def test_a_users_metric_from_the_seventh_update_on_is_in_every_log(agent, tmp_path):
    def add(agent, row):
        if row["update"] >= 7:
            row["mine/speed"] = 10.0 * row["update"]

    history = agent.learn(560, [trpo_tf.CsvLogger(tmp_path / "progress.csv"), add])
    rows = read_csv(tmp_path / "progress.csv")
    assert len(rows) == len(history) > 8
    assert [row["mine/speed"] for row in rows[:8]] == [""] * 6 + ["70.0", "80.0"]
    assert history[6]["mine/speed"] == 70.0


def test_evaluations_are_logged_and_the_best_is_kept(agent, tmp_path, monkeypatch):
    from trpo_tf.session import Session

    evaluate, returns = Session.evaluate, iter([5.0, 9.0, 7.0, 8.0])
    monkeypatch.setattr(
        Session, "evaluate", lambda self, n: evaluate(self, n)._replace(returns=np.full(n, next(returns)))
    )
    callback = trpo_tf.Evaluate(2, 2, tmp_path / "best", final_episodes=3, json_path=tmp_path / "evaluation.json")
    history = agent.learn(380, [callback])
    assert [row.get("eval/episode_return") for row in history[:6]] == [None, 5.0, None, 9.0, None, 7.0]
    assert checkpoint.newest(tmp_path / "best").meta["update"] == 4
    assert callback.best_return == 9.0
    assert callback.final.returns.tolist() == [8.0] * 3
    assert json.loads((tmp_path / "evaluation.json").read_text())["return_mean"] == 8.0


def test_a_mean_that_is_not_finite_is_never_the_best_and_null_in_json(agent, tmp_path, monkeypatch):
    from trpo_tf.session import Session

    evaluate, returns = Session.evaluate, iter([np.nan, -np.inf, np.inf, 2.0, np.nan])
    monkeypatch.setattr(
        Session, "evaluate", lambda self, n: evaluate(self, n)._replace(returns=np.full(n, next(returns)))
    )
    callback = trpo_tf.Evaluate(1, 2, tmp_path / "best", final_episodes=2, json_path=tmp_path / "a" / "evaluation.json")
    with np.errstate(invalid="ignore"):
        agent.learn(10_000, [callback, trpo_tf.StopAt("update", 4)])
    assert checkpoint.newest(tmp_path / "best").meta["update"] == 4
    assert callback.best_return == 2.0
    saved = json.loads((tmp_path / "a" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert saved["return_mean"] is None


def test_a_best_policy_that_is_damaged_is_named_and_replaced(agent, tmp_path, capsys):
    path = checkpoint.save(tmp_path / "best", agent.checkpoint(), 1)
    (path / "manifest.json").write_text("{}")
    agent.resumed_from = tmp_path
    callback = trpo_tf.Evaluate(1, 2, tmp_path / "best")
    callback.start(agent)
    assert callback.best_return == -np.inf
    said = capsys.readouterr().err
    assert "damaged checkpoint passed over" in said
    assert str(path) in said


def test_the_best_of_another_run_is_refused_and_stays(agent, tmp_path):
    checkpoint.save(tmp_path / "best", agent.checkpoint()._replace(path=None), 1)
    callback = trpo_tf.Evaluate(1, 2, tmp_path / "best")
    with pytest.raises(trpo_tf.UsageError, match="best: has the best policy of another run"):
        agent.learn(60, [callback])
    assert checkpoint.newest(tmp_path / "best").meta["update"] == 0
    own = trpo_tf.Evaluate(1, 2, tmp_path / "own" / "best")
    agent.learn(60, [own])
    agent.learn(120, [own])  # its own
    assert agent.update == 2


def test_checkpoints_hold_the_state_of_callbacks(agent, tmp_path):
    class Counter(trpo_tf.Callback):
        count = 0

        def __call__(self, agent, row):
            self.count += 1

        def state(self):
            return {"count": np.array(self.count)}

        def restore(self, state):
            self.count = int(state["count"])

    agent.learn(120, [Counter(), trpo_tf.Checkpoint(tmp_path / "run")])
    again, counter = trpo_tf.TRPO.resume(tmp_path / "run"), Counter()
    again.learn(240, [counter])
    again.close()
    assert counter.count == again.update > agent.update


def test_a_directory_with_a_run_is_refused_unless_it_is_gone_on_with(agent, tmp_path):
    agent.learn(60, [trpo_tf.Checkpoint(tmp_path / "run")])
    other = trpo_tf.TRPO("CartPole-v1", **SMALL)
    with pytest.raises(trpo_tf.UsageError, match="holds a run"):
        other.learn(60, [trpo_tf.Checkpoint(tmp_path / "run")])
    other.close()
    again = trpo_tf.TRPO.resume(tmp_path / "run")
    again.learn(120, [trpo_tf.Checkpoint(tmp_path / "run")])
    again.close()


def test_a_checkpoint_finds_the_row_of_its_update_written(agent, tmp_path):
    seen = []

    class Look(trpo_tf.Checkpoint):
        def save(self, agent):
            if agent.update:
                seen.append((agent.update, len(read_csv(tmp_path / "progress.csv"))))
            return super().save(agent)

    agent.learn(300, [Look(tmp_path / "run", every=2), trpo_tf.CsvLogger(tmp_path / "progress.csv")])
    assert seen
    assert all(update == rows for update, rows in seen)


def test_an_environment_that_fails_leaves_a_checkpoint_and_the_log_of_whole_updates(agent, tmp_path, monkeypatch):
    real, calls = EnvPoolBackend.step, [0]

    def failing(envs, action):
        calls[0] += 1
        if calls[0] == 16 * 2 + 5:
            raise ValueError("broken sensor")
        return real(envs, action)

    monkeypatch.setattr(EnvPoolBackend, "step", failing)
    callbacks = [trpo_tf.CsvLogger(tmp_path / "progress.csv"), trpo_tf.Checkpoint(tmp_path / "run", every=100)]
    with pytest.raises(EnvironmentFailure, match="broken sensor"):
        agent.learn(480, callbacks)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == 2
    assert len(read_csv(tmp_path / "progress.csv")) == 2


def test_exports_on_the_way_and_at_the_end_once(agent, tmp_path):
    agent.learn(180, [trpo_tf.Export(tmp_path / "models", every=2)])
    numbers = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert len(numbers) == agent.update // 2 + agent.update % 2
    export = trpo_tf.Export(tmp_path / "models")
    agent.train([export], 60)
    assert export.exported.name == numbers[-1]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == numbers


def test_a_callback_that_fails_loses_no_work(agent, tmp_path):
    """The row is in the log, a checkpoint of the update is saved, and the first error is raised."""

    def failing(agent, row):
        if row["update"] == 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        agent.learn(
            10_000,
            [failing, trpo_tf.CsvLogger(tmp_path / "progress.csv"), trpo_tf.Checkpoint(tmp_path / "run", every=100)],
        )
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == 3
    assert [row["update"] for row in read_csv(tmp_path / "progress.csv")] == ["1", "2", "3"]


def test_a_final_evaluation_that_fails_leaves_the_checkpoint_and_the_export(agent, tmp_path, monkeypatch):
    from trpo_tf.session import Session

    def failing(session, episodes):
        raise EnvironmentFailure("environment failed: it broke")

    monkeypatch.setattr(Session, "evaluate", failing)
    callbacks = [trpo_tf.Evaluate(0, final_episodes=2), trpo_tf.Checkpoint(tmp_path / "run", every=100)]
    with pytest.raises(EnvironmentFailure, match="it broke"):
        agent.learn(120, [*callbacks, trpo_tf.Export(tmp_path / "models")])
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").meta["update"] == agent.update
    assert (tmp_path / "models" / "1").is_dir()


@pytest.mark.slow
def test_environments_that_cannot_be_rebuilt_leave_a_checkpoint_that_goes_on_to_the_bit(tmp_path, monkeypatch):
    """The rebuild at a boundary fails: its row is logged, and the resumed run rebuilds there."""
    from trpo_tf.rollout.sources.local import LocalSource

    real = LocalSource.renew

    def weights(agent):
        return {name: x.tobytes() for name, x in agent.session.policy.get_weights().items()}

    def failing(source, update):
        raise EnvironmentFailure("environment failed: no licence")

    def callbacks(name):
        return [trpo_tf.CsvLogger(tmp_path / f"{name}.csv"), trpo_tf.Checkpoint(tmp_path / name)]

    whole, part = (trpo_tf.TRPO("CartPole-v1", **SMALL) for _ in range(2))
    whole.learn(400, callbacks("whole"))
    monkeypatch.setattr(LocalSource, "renew", failing)
    with pytest.raises(EnvironmentFailure, match="no licence"):
        part.learn(400, callbacks("part"))
    monkeypatch.setattr(LocalSource, "renew", real)
    again = trpo_tf.TRPO.resume(tmp_path / "part")
    again.learn(400, callbacks("part"))
    assert weights(whole) == weights(again)
    assert [row["update"] for row in read_csv(tmp_path / "part.csv")] == [
        row["update"] for row in read_csv(tmp_path / "whole.csv")
    ]
    for one in (whole, part, again):
        one.close()


def test_stopping_takes_numpy_values_and_passes_over_nan(agent):
    def add(agent, row):
        row["mine"] = np.float32(np.nan if agent.update < 3 else 2.0)

    agent.learn(10_000, [trpo_tf.StopAt("mine", 1.0), add])
    assert agent.update == 3
    agent.learn(20_000, [lambda agent, row: np.bool_(False)])
    assert agent.update == 4


@pytest.mark.slow
def test_learning_again_goes_on_in_the_same_directory(agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = trpo_tf.Checkpoint("run")
    agent.learn(60, [saver])
    agent.learn(120, [saver])
    again = trpo_tf.TRPO.resume(tmp_path / "run")
    assert (again.update, again.config.run.total_steps) == (agent.update, 120)
    again.learn(180, [trpo_tf.Checkpoint("run")])
    again.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: trpo_tf.Checkpoint("x", keep=0),
        lambda: trpo_tf.Checkpoint("x", every=0),
        lambda: trpo_tf.Evaluate(episodes=0),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(trpo_tf.UsageError, match="must be >= 1"):
        make()
