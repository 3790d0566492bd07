"""The update as a whole: fresh data, the value fit beside it, chunks, the transaction, compilation, no retracing."""

import contextlib
import time

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import make_config
from trpo_tf.errors import ActingDiffersError
from trpo_tf.learner import fisher, step_rule
from trpo_tf.learner.learner import Learner
from trpo_tf.learner.objective import mean_kl
from trpo_tf.learner.statistics import mean_weights
from trpo_tf.policy.networks import FlatNetwork
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.environments import Environments
from trpo_tf.session import Session


def borders(session):
    """The functions of an update that are traced."""
    learner = session.learner
    return learner._prepare, learner._policy_step, learner._order, learner._fit_values, learner._commit


@pytest.fixture(scope="module")
def ten_updates():
    """A session on a real environment, compiled, and the metrics of ten updates."""
    changes = {"hidden_sizes": (16,), "value_epochs": 2, "fisher_fraction": 0.5}
    config = make_config(env="Pendulum-v1", num_envs=4, steps_per_update=256, **changes)
    session, rows, before = Session(config, Environments(config.environment)), [], []
    session.start()
    roll_out, policy = session.source.next, session.policy

    def compared():
        """KL from the policy that acted to the learner's, on the rollout just made."""
        rollout = roll_out()
        trajectory = rollout.trajectory
        obs = {"observation": trajectory.obs["observation"][:-1].reshape(-1, 3)}
        acted = tf.constant(rollout.behavior_params.reshape(-1, policy.distribution.size))
        params = policy.params(policy.network.theta(), policy.preprocess(obs))
        weights = mean_weights(trajectory.mask.reshape(-1))
        before.append(float(mean_kl(policy.distribution, acted, params, weights)))
        return rollout

    session.source.next = compared
    for _ in range(10):
        rows.append(dict(session.step()))
    session.close()
    return session, rows, before


def test_ratio_is_one_and_kl_within_bounds_on_fresh_data(ten_updates):
    session, rows, _ = ten_updates
    for row in rows:
        assert row["policy/max_ratio_error"] < 1e-4
        assert 0 < row["policy/kl"] <= session.config.trust_region.max_kl
        assert row["policy/reason"] == "accepted"
        assert row["policy/improvement"] > 0
        assert 0 < row["policy/max_kl_used"] <= session.config.trust_region.max_kl * 1.000001
        assert 0 < row["cg/relative_residual"] < 1


def test_kl_is_zero_before_the_step(ten_updates):
    _, _, before = ten_updates
    assert before == [pytest.approx(0.0, abs=1e-9)] * 10


def test_nothing_retraces_after_the_first_update(ten_updates):
    session, _, _ = ten_updates
    for function in (*borders(session), session.policy.log_prob):
        assert function.experimental_get_tracing_count() == 1


def test_nothing_retraces_with_older_data_and_a_radius_that_follows(make_session, stepped):
    """Compiled, as the functions of stale transitions, of the radius and of the penalty are nowhere else."""
    settings = {"reuse": 2, "reuse_weights": "optimal", "pipeline": True, "radius": "adaptive", "objective": "penalty"}
    session = make_session(xla="on", checkpoint_every=50, **settings)
    stepped(session, 5)
    for function in borders(session):
        assert function.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    ("xla", "images", "compiled"),
    [("auto", False, True), ("auto", True, False), ("on", True, True), ("off", False, False)],
)
def test_what_is_compiled(tiny, xla, images, compiled):
    space = gym.spaces.Box(0, 255, (20, 24, 3), np.uint8) if images else gym.spaces.Box(-1, 1, (4,))
    config = tiny(xla=xla)
    learner = Learner(Policy(space, gym.spaces.Discrete(2), config.policy, 0), config, 0)
    for function in (learner._prepare, learner._policy_step, learner._fit_values, learner._commit):
        assert function._jit_compile == compiled


@pytest.mark.parametrize("chunk", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_a_value_fit_beside_what_follows_changes_no_bit(make_session, arrays, chunk):
    def run(seconds):
        session = make_session(chunk_size=chunk)
        fit = session.learner._timed_fit

        def slow(*args):
            time.sleep(seconds)
            return fit(*args)

        session.learner._timed_fit = slow
        for _ in range(4):
            row = session.step()
            if not seconds:
                session.learner.wait()
        assert row.complete == (not seconds or bool(chunk))  # otherwise this compares nothing
        return {name: x.tobytes() for name, x in arrays(session).items()}, row["value/loss"]

    assert run(0) == run(0.3)


def test_what_is_restored_while_values_are_fitted_stays(make_session, arrays):
    session = make_session()
    session.step()
    saved = session.checkpoint(source=False)
    fit = session.learner._timed_fit

    def slow(*args):
        time.sleep(0.5)
        return fit(*args)

    session.learner._timed_fit = slow
    assert not session.step().complete
    session.restore(saved, source=False)
    session.learner.wait()
    for name, value in arrays(session).items():
        assert value.tobytes() == saved.arrays[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"network": "gru", "sequence_length": 16},
        {"network": "lstm", "sequence_length": 4, "share_torso": True},
        {"action_distribution": "beta", "layer_norm": "both", "env": "Pendulum-v1"},
    ],
)
def test_other_networks_and_distributions_are_compiled_too(make_session, stepped, settings):
    session = make_session(xla="auto", **settings)
    assert session.learner._policy_step._jit_compile
    for row in stepped(session, 3):
        assert row["policy/reason"] == "accepted"
        assert row["policy/max_ratio_error"] < 1e-4


def test_a_value_fit_that_fails_ends_the_next_update(make_session):
    session = make_session()
    session.learner._timed_fit = lambda *_: 1 / 0
    session.step()
    with pytest.raises(ZeroDivisionError):
        session.step()


def test_fisher_products_use_the_fraction_of_transitions_asked_for():
    assert [fisher.count(rows, 0) for rows in (1, 2048, 4096, 5000, 16384, 100_000)] == [
        1, 2048, 4096, 4096, 4096, 20_000,
    ]  # fmt: skip
    assert [fisher.count(rows, 0.1) for rows in (1, 2048)] == [1, 205]
    assert fisher.count(77, 1.0) == 77


def test_large_batches_have_smaller_fisher_products(make_session, monkeypatch):
    given, step = [], step_rule.policy_step
    monkeypatch.setattr(step_rule, "policy_step", lambda *args: given.append(args[0]) or step(*args))
    session = make_session(steps_per_update=4200)
    assert session.step()["policy/reason"] == "accepted"
    assert given[0].transitions == 4200
    assert given[0].fisher_rows.shape == given[0].fisher_weights.shape == [4096]


def test_an_update_with_nothing_valid_leaves_both_networks_to_the_bit(make_session, rolled_out, arrays):
    session = make_session()
    rollout = rolled_out(session)
    before = {name: x for name, x in arrays(session).items() if "dense" in name or "head" in name}
    assert before
    nothing = rollout.trajectory._replace(mask=np.zeros_like(rollout.trajectory.mask))
    session.learner.update(rollout._replace(trajectory=nothing), 0, 0.0)
    after = arrays(session)
    for name, value in before.items():
        assert after[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        pytest.param("Pendulum-v1", {}, marks=pytest.mark.slow),
        ("CartPole-v1", {"fisher_fraction": 0.4}),
        pytest.param(
            "Pendulum-v1",
            {"network": "gru", "sequence_length": 4, "share_torso": True, "fisher_fraction": 0.4},
            marks=pytest.mark.slow,
        ),
        pytest.param("CartPole-v1", {"network": "lstm", "sequence_length": 4}, marks=pytest.mark.slow),
        pytest.param(
            "Pendulum-v1",
            {"sampling": "vine", "vine_states": 20, "vine_actions": 3, "fisher_fraction": 0.4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_chunks_change_nothing_but_rounding(make_session, rolled_out, arrays, env, settings):
    def run(chunk):
        session = make_session(env=env, steps_per_update=60, chunk_size=chunk, **settings)
        rollout = rolled_out(session)
        mask = rollout.trajectory.mask.copy()
        mask[3:6, 1] = 0
        rollout = rollout._replace(trajectory=rollout.trajectory._replace(mask=mask))
        results = {}
        for update in range(2):
            metrics, fit = session.learner.update(rollout, update, 0.0)
            numbers = (metrics | fit.result()).items()
            results |= {f"{name} {update}": x for name, x in numbers if isinstance(x, float)}
            del results[f"time/value_fit_seconds {update}"]
        return results, arrays(session)

    whole, variables = run(0)
    assert len(whole) > 20
    for chunk in (7, 30, 60):  # 60 rows: with a rest, without, and all at once, with features made where they are used
        results, ours = run(chunk)
        assert results.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(results[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
        for name, value in variables.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"network": "gru", "sequence_length": 4}])
def test_values_are_fitted_to_new_transitions_and_to_all_of_them(tiny, settings):
    """2 rollouts of 4 environments, the new one first; a Batch has the rows of a sequence together."""
    config = tiny(reuse=2, value_epochs=3, value_minibatch_size=8, **settings)
    policy = Policy(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), config.policy, 0)
    learner, time_steps = Learner(policy, config, 0), config.time_steps
    row = np.arange(time_steps)[:, None] * 8 + np.arange(8)
    if settings:
        row = np.arange(time_steps)[:, None] // 4 * 32 + np.arange(8) * 4 + np.arange(time_steps)[:, None] % 4
    assert sorted(row.ravel()) == list(range(8 * time_steps))
    rows, times = np.unique(learner._order(tf.constant([0, 1])), return_counts=True)
    np.testing.assert_array_equal(rows, np.sort(row[:, :4].ravel()))
    assert (times == 3).all()


def acted_otherwise(rollout, by=0.2):
    """The rollout with log-probabilities of another policy, and with them the ratio e^-by."""
    trajectory = rollout.trajectory
    return rollout._replace(trajectory=trajectory._replace(behavior_logp=trajectory.behavior_logp + np.float32(by)))


def test_a_policy_that_acts_otherwise_than_it_learns_is_refused_in_the_first_update(make_session, rolled_out):
    """The line says so, and how far apart they are: the ratio is e^-0.2, 0.181 from 1."""
    session = make_session()
    with pytest.raises(ActingDiffersError, match=r"acts is not the policy that learns.* 0\.181 from 1") as raised:
        session.learner.update(acted_otherwise(rolled_out(session)), 0, 0.0)
    assert "\n" not in str(raised.value)
    session.learner.wait()


def test_only_the_first_update_on_fresh_transitions_is_compared(make_session, rolled_out):
    """Versions are the update's number where transitions are fresh: in update 0 all but one are."""
    session = make_session()
    other = acted_otherwise(rolled_out(session))
    stale = other.version.copy()
    stale[3, 2] -= 1
    metrics, _ = session.learner.update(other._replace(version=stale), 0, 0.0)
    assert metrics["policy/max_ratio_error"] > 0.1
    for _ in range(2):  # an update that is refused was none
        with pytest.raises(ActingDiffersError):
            session.learner.update(other._replace(version=other.version + 1), 1, 0.0)
    session.learner.update(rolled_out(session), 0, 0.0)
    metrics, _ = session.learner.update(other._replace(version=other.version + 2), 2, 0.0)
    assert metrics["policy/max_ratio_error"] > 0.1
    session.learner.wait()


def test_ratios_that_are_not_finite_are_refused_and_rounding_is_not(tiny):
    config = tiny()
    for error, refused in ((np.nan, True), (np.inf, True), (0.051, True), (0.049, False)):
        learner = Learner(Policy(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), config.policy, 0), config, 0)
        with pytest.raises(ActingDiffersError) if refused else contextlib.nullcontext():
            learner._compare_with_acting(True, error)


def test_keras_and_flat_views_of_a_network_agree():
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, "tanh")])
    network = FlatNetwork(model)
    theta = tf.random.stateless_normal([network.size], [1, 1])
    network.assign(theta)
    assert network.theta().numpy().tobytes() == theta.numpy().tobytes()
    x = tf.random.stateless_normal([5, 3], [2, 2])
    np.testing.assert_array_equal(model(x), network(theta, x))
