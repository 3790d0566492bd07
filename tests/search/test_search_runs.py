"""Sessions and runs that search: what becomes of the policy, exact resumption, refusals, and that they learn."""

import csv

import gymnasium as gym
import numpy as np
import pytest

import trpo_tf
from tests.conftest import SMALL
from trpo_tf.algorithms import ALGORITHMS
from trpo_tf.config import make_config
from trpo_tf.errors import UsageError
from trpo_tf.policy.policy import Policy
from trpo_tf.run.checkpoint import Checkpoint
from trpo_tf.run.metrics.declaration import find

SEARCHES = {"ars": {"algorithm": "ars", "ars_directions": 3}, "cma": {"algorithm": "cma", "cma_population": 6}}
BOX = gym.spaces.Box(-1, 1, (3,), np.float32)


@pytest.fixture(params=SEARCHES)
def searching(request):
    """The settings of each search in turn."""
    return SEARCHES[request.param]


def arrays(session):
    return {name: x.tobytes() for name, x in session.checkpoint().arrays.items()}


def copied(saved):
    return Checkpoint({name: x.copy() for name, x in saved.arrays.items()}, saved.meta)


def test_the_policy_becomes_the_mean_and_the_normaliser_what_was_seen(make_session, searching):
    session = make_session(**searching)
    before = session.policy.get_weights()
    session.source.publish(0, session.learner.weights())
    generation = session.source.next()
    row = session.step()
    after, mean = session.policy.get_weights(), session.learner._search.mean.astype(np.float32)
    spec = session.policy.acting_spec()
    names = [name for layer in spec.layers for name in layer[:2]]
    np.testing.assert_array_equal(np.concatenate([after[name].reshape(-1) for name in names]), mean)
    change = np.concatenate([(after[name] - before[name]).reshape(-1) for name in names])
    assert row["search/step_norm"] == pytest.approx(np.linalg.norm(change), rel=1e-4)
    assert row["search/return_best"] == generation.returns.max()
    assert row["search/return_mean"] == pytest.approx(generation.returns.mean())
    assert row["env_steps"] == generation.lengths.sum() == generation.returns.sum()
    assert row["env/episodes"] == 6
    assert session.learner.per_update == "6 episodes"
    for name, value in zip(("count", "mean", "m2"), generation.moments, strict=True):
        np.testing.assert_array_equal(after[f"normalizer/{name}"], value)


def test_the_normaliser_remembers_all_generations(make_session, searching):
    session = make_session(**searching)
    for _ in range(3):
        session.step()
    assert session.policy.get_weights()["normalizer/count"] == session.env_steps


def test_every_update_meets_other_episodes(make_session, searching):
    session, found = make_session(**searching), []
    for version in (0, 1, 0):
        session.source.publish(version, session.learner.weights())
        found.append(session.source.next().returns.tolist())
    assert found[0] == found[2] != found[1]


def test_the_std_of_actions_stays(searching):
    config = make_config(env="x", **searching)
    policy = Policy(BOX, BOX, config.policy, 0)
    learner = ALGORITHMS[config.algorithm.algorithm].make_learner(policy, config, 0)
    free = policy.acting_spec().free
    weights = learner.weights()
    assert weights[free].shape == (3,)
    assert {name for name, x in weights.items() if x.shape != policy.get_weights()[name].shape} == {
        name for layer in policy.acting_spec().layers for name in layer[:2]
    }


def test_all_that_is_logged_is_declared(make_session, searching):
    session = make_session(**searching)
    names = list(session.step())
    assert {"search/return_mean", "search/sigma", "time/env_steps_per_second"} <= set(names)
    assert [name for name in names if find(name) is None] == []


def test_a_restored_session_goes_on_to_the_bit(make_session, searching):
    whole, other = make_session(**searching), make_session(**searching)
    for _ in range(4):  # and over a boundary
        whole.step()
    saved = whole.checkpoint()
    rows = [whole.step() for _ in range(2)]
    other.restore(copied(saved))
    for expected in rows:
        row = other.step()
        assert {k: v for k, v in row.items() if "time/" not in k} == {
            k: v for k, v in expected.items() if "time/" not in k
        }
    assert arrays(whole) == arrays(other)


def test_a_generation_whose_update_failed_is_learned_from_when_it_goes_on(make_session, monkeypatch, searching):
    whole, broken, resumed = (make_session(**searching) for _ in range(3))
    for _ in range(3):
        whole.step()
    broken.step()
    with monkeypatch.context() as patch:
        patch.setattr(broken.learner, "update", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            broken.step()
    resumed.restore(copied(broken.checkpoint()))
    for session in (broken, resumed):
        for _ in range(2):
            session.step()
        assert arrays(session) == arrays(whole)


def test_a_run_leaves_what_any_run_leaves_and_goes_on(tmp_path, searching):
    def callbacks(run):
        keep = trpo_tf.Evaluate(every=2, episodes=2, keep_best=run / "best")
        return [trpo_tf.Checkpoint(run, every=100), trpo_tf.CsvLogger(run / "progress.csv"), keep]

    settings = SMALL | searching
    whole = trpo_tf.TRPO("CartPole-v1", **settings)
    whole.learn(900, callbacks(tmp_path / "whole"))
    trpo_tf.TRPO("CartPole-v1", **settings).learn(300, callbacks(tmp_path / "parts"))
    resumed = trpo_tf.TRPO.resume(tmp_path / "parts")
    resumed.learn(900, callbacks(tmp_path / "parts"))
    assert arrays(whole.session) == arrays(resumed.session)
    for run in ("whole", "parts"):
        with open(tmp_path / run / "progress.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["update"] for row in rows] == [str(k + 1) for k in range(whole.update)]
        assert float(rows[1]["eval/episode_return"]) > 0
    whole.save(tmp_path / "saved")
    loaded, obs = trpo_tf.TRPO.load(tmp_path / "saved"), np.random.default_rng(0).normal(size=(50, 4))
    served = trpo_tf.load_policy(whole.export(tmp_path / "models"))
    expected = whole.predict(obs.astype(np.float32), deterministic=True)[0]
    np.testing.assert_array_equal(served.predict(obs.astype(np.float32))["action"], expected)
    np.testing.assert_array_equal(loaded.predict(obs.astype(np.float32), deterministic=True)[0], expected)
    assert loaded.session.learner._search.ask().tobytes() == whole.session.learner._search.ask().tobytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 2},
        {"pipeline": True},
        {"behavior_lag": 1},
        {"reuse": 2},
        {"radius": "adaptive"},
        {"objective": "penalty"},
        {"network": "gru"},
        {"action_distribution": "gaussian_with_state_std"},
    ],
)
def test_what_does_not_go_with_a_search_is_refused(settings, searching):
    [(name, _)] = settings.items()
    with pytest.raises(UsageError, match=f"^{name}.*(does not go with|is of) algorithm=") as error:
        make_config(env="x", **settings, **searching)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("observations", "settings"),
    [
        (gym.spaces.Box(0, 255, (20, 20, 3), np.uint8), {}),
        (BOX, {"activation": "gelu"}),
        (BOX, {"action_distribution": "beta"}),
    ],
)
def test_policies_that_numpy_does_not_compute_are_refused(observations, settings):
    config = make_config(env="x", algorithm="ars", **settings)
    policy = Policy(observations, BOX, config.policy, 0)
    with pytest.raises(UsageError, match="searches policies of dense layers"):
        ALGORITHMS["ars"].make_learner(policy, config, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ars_directions": 4, "ars_top": 5}, "ars_top=5: must be <= ars_directions=4"),
        ({"cma_population": 2}, "cma_population=2: must be >= 3, or 0"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        make_config(env="x", **settings)


def test_a_linear_policy_has_no_hidden_layer():
    agent = trpo_tf.TRPO("CartPole-v1", **(SMALL | {"hidden_sizes": ()}), algorithm="ars", ars_directions=2)
    assert len(agent.session.learner._search.mean) == 4 * 2 + 2
    agent.learn(1)
    assert agent.update == 1


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_it_learns_to_balance_a_pole(algorithm):
    """Within 100,000 steps, with the default settings: 475 is the return that counts as solved."""
    agent = trpo_tf.TRPO("CartPole-v1", algorithm=algorithm, seed=0)
    agent.learn(100_000)
    assert agent.evaluate(episodes=20).returns.mean() >= 475
