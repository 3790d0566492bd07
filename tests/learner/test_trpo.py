"""The update as a whole: the step in closed form, the KL's direction, the transaction, no retracing."""

import time

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import advantages, trpo
from trpo_tf.policy import distributions
from trpo_tf.trainer import Agent
from trpo_tf.types import Batch


def bandit(probs, actions, advantage, dtype=tf.float64, **changes):
    """One policy step of a one-state softmax policy whose parameters are its logits. Returns theta, metrics."""
    family = distributions.Family(gym.spaces.Discrete(len(probs)), Config(env="x"))
    theta = tf.constant(np.log(probs), dtype)
    rows = len(actions)
    batch = Batch(
        obs=tf.zeros([rows, 1], dtype),
        action=tf.constant(np.array(actions)[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(np.array(probs)[actions]), dtype),
        advantage=tf.constant(advantage, dtype),
        returns=tf.zeros(rows),
        values=tf.zeros(rows),
        mask=tf.ones(rows, dtype),
    )
    config = Config(**({"env": "x", "cg_damping": 0.0, "cg_tolerance": 1e-20} | changes))

    def network(logits, obs):
        return tf.zeros([tf.shape(obs)[0], 1], dtype) + logits

    limits = tf.constant(config.max_kl, tf.float64), tf.constant(config.max_step, tf.float64)
    theta_new, metrics = trpo.policy_step(network, family, theta, batch, None, *limits, config)
    return theta.numpy(), theta_new.numpy(), metrics


def test_softmax_step_is_the_natural_gradient_in_closed_form():
    probs = np.array([0.5, 0.3, 0.2])
    reward = np.array([1.0, -0.5, 0.25])
    counts = (probs * 100).astype(int)  # every action as often as it is likely: the sample mean is the expectation
    actions = np.repeat(np.arange(3), counts)
    max_kl = 1e-6
    theta, theta_new, metrics = bandit(probs, actions, reward[actions], max_kl=max_kl)
    # F = diag(p) - p p^T, grad = p (r - p.r): the natural gradient is r - p.r, up to a constant that F annihilates,
    # and its length under F is the standard deviation of the reward.
    centered = reward - probs @ reward
    expected = np.sqrt(2 * max_kl / (probs @ centered**2)) * centered
    step = theta_new - theta
    taken, fraction = step - step.mean(), float(metrics["policy/step_fraction"])
    np.testing.assert_allclose(taken, fraction * (expected - expected.mean()), rtol=1e-6, atol=1e-15)
    assert fraction in (1.0, 0.8)


def test_small_advantages_make_a_small_step():
    """max_step natural gradients, not sqrt(2 max_kl / x.Fx) of them: the closed form above, not normalised."""
    probs, reward = np.array([0.5, 0.3, 0.2]), np.array([1.0, -0.5, 0.25])
    actions = np.repeat(np.arange(3), (probs * 100).astype(int))
    theta, theta_new, metrics = bandit(probs, actions, reward[actions], max_kl=10.0, max_step=0.01)
    natural = reward - probs @ reward
    step = theta_new - theta
    np.testing.assert_allclose(step - step.mean(), 0.01 * (natural - natural.mean()), rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(float(metrics["policy/kl"]), 0.5 * 0.01**2 * (probs @ natural**2), rtol=0.02)
    assert float(metrics["policy/step_fraction"]) == 1.0


def test_kl_is_old_before_new():
    family = distributions.Family(gym.spaces.Discrete(2), Config(env="x"))
    old, new = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    kl = trpo.mean_kl(family, np.log(old)[None], np.log(new)[None], tf.ones(1))
    forward, backward = old @ np.log(old / new), new @ np.log(new / old)
    assert abs(forward - backward) > 0.1
    np.testing.assert_allclose(float(kl), forward, rtol=1e-12)


def test_surrogate_uses_the_behavior_policy_and_the_mask():
    family = distributions.Family(gym.spaces.Discrete(2), Config(env="x"))
    probs, behavior = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), np.array([0.6, 0.4, 0.5])
    advantage, mask = np.array([2.0, -1.0, 1e6]), np.array([1.0, 1.0, 0.0])
    batch = Batch(None, tf.constant([[0.0], [1.0], [0.0]]), np.log(behavior), tf.constant(advantage), None, None, mask)
    expected = (0.9 / 0.6 * 2.0 + 0.8 / 0.4 * -1.0) / 2
    weights = advantages.mean_weights(mask)
    np.testing.assert_allclose(float(trpo.surrogate(family, np.log(probs), batch, weights)), expected)


def test_accepted_steps_respect_the_trust_region_over_many_batches():
    rng = np.random.default_rng(0)
    for max_kl in (0.001, 0.05, 0.5):
        probs = rng.dirichlet(np.ones(4))
        actions = rng.integers(0, 4, 50)
        _, theta_new, metrics = bandit(probs, actions, rng.normal(size=50), max_kl=max_kl, cg_damping=0.01)
        new = np.exp(theta_new) / np.exp(theta_new).sum()
        kl = probs @ np.log(probs / new)
        assert 0 < kl <= max_kl
        np.testing.assert_allclose(float(metrics["policy/kl"]), kl, rtol=1e-9)
        assert float(metrics["policy/improvement"]) > 0


@pytest.mark.parametrize(
    ("advantage", "reason"), [([0.0] * 4, 4), ([np.nan, 1.0, 0.0, 0.0], 4), ([1e30, 1e30, 1e30, -1e30], None)]
)
def test_theta_is_untouched_where_there_is_nothing_to_learn(advantage, reason):
    theta, theta_new, metrics = bandit([0.4, 0.6], [0, 1, 1, 0], advantage)
    assert np.isfinite(theta_new).all()
    if reason is not None:
        assert theta.tobytes() == theta_new.tobytes()
        assert int(metrics["policy/reason"]) == reason


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0, 1e6])
def test_the_step_has_its_length_whatever_the_damping(damping):
    """x.F x is a difference of large numbers where the damping is; the KL still comes out as asked for."""
    probs, reward = np.array([0.5, 0.3, 0.2]), np.array([1.0, -0.5, 0.25])
    actions = np.repeat(np.arange(3), (probs * 100).astype(int))
    settings = {"max_kl": 1e-4, "max_step": 1e30, "backtrack_ratio": 0.999, "dtype": tf.float32}
    _, _, metrics = bandit(probs, actions, reward[actions], cg_damping=damping, **settings)
    np.testing.assert_allclose(float(metrics["policy/kl"]), 1e-4, rtol=0.02)


@pytest.mark.parametrize("log_std", [-104.0, 90.0])
def test_extreme_log_std_never_breaks_the_parameters(log_std):
    family = distributions.Family(gym.spaces.Box(-1, 1, (1,)), Config(env="x"))
    theta = tf.constant([0.3, log_std], tf.float32)
    batch = Batch(
        tf.zeros([4, 1]), tf.constant([[0.3], [0.4], [0.2], [0.3]]), tf.zeros(4), tf.constant([1.0, -1.0, 2.0, 0.5]),
        tf.zeros(4), tf.zeros(4), tf.ones(4),
    )  # fmt: skip

    def network(theta, obs):
        return tf.zeros([4, 2]) + theta

    limits = tf.constant([0.01, 3.0], tf.float64)
    theta_new, _ = trpo.policy_step(network, family, theta, batch, None, *limits, Config(env="x"))
    assert np.isfinite(theta_new.numpy()).all()


@pytest.fixture(scope="module")
def ten_updates():
    """An agent on a real environment, and the metrics of ten updates."""
    agent = Agent(
        Config(
            env="Pendulum-v1", num_envs=4, steps_per_update=256, hidden_sizes=(16,), value_epochs=2, fisher_fraction=0.5
        )
    )
    agent.start()
    rows = []
    collect = agent.collector.collect

    def compared(*args):
        """KL from the policy that acted to the learner's, on the trajectory just made."""
        trajectory, episodes = collect(*args)
        obs, network = {"observation": trajectory.obs["observation"][:-1].reshape(-1, 3)}, agent.policy.network
        acted = agent.collector._actor(
            obs, np.zeros((trajectory.mask.size, agent.policy.family.noise_size), np.float32)
        )[0]
        params = tf.constant(acted), agent.policy.params(network.theta(), agent.policy.preprocess(obs))
        weights = advantages.mean_weights(trajectory.mask.reshape(-1))
        rows.append({"kl_before": float(trpo.mean_kl(agent.policy.family, *params, weights))})
        return trajectory, episodes

    agent.collector.collect = compared
    for _ in range(10):
        learned, fit = agent.step()
        rows[-1] |= learned | fit.result()
    agent.collector.close()
    return agent, rows


def test_ratio_is_one_and_kl_within_bounds_on_fresh_data(ten_updates):
    agent, rows = ten_updates
    for row in rows:
        assert row["policy/max_ratio_error"] < 1e-4
        assert 0 < row["policy/kl"] <= agent.config.max_kl
        assert row["policy/reason"] == "accepted"
        assert row["policy/improvement"] > 0


def test_kl_is_zero_before_the_step(ten_updates):
    _, rows = ten_updates
    assert [row["kl_before"] for row in rows] == [pytest.approx(0.0, abs=1e-9)] * 10


@pytest.mark.parametrize("chunk", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_a_value_fit_beside_what_follows_changes_no_bit(tiny, chunk):
    def run(seconds):
        agent = Agent(tiny(fisher_chunk=chunk))
        agent.start()
        fit = agent.learner._timed_fit

        def slow(*args):
            time.sleep(seconds)
            return fit(*args)

        agent.learner._timed_fit = slow
        for _ in range(4):
            _, ended = agent.step()
            if not seconds:
                agent.learner.wait()
        assert ended.done() == (not seconds or bool(chunk))  # otherwise this compares nothing
        agent.collector.close()
        variables = {name: variable.numpy().tobytes() for name, variable in agent.variables().items()}
        return variables, ended.result()["value/loss"]

    assert run(0) == run(0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"network": "gru", "sequence_length": 16},
        {"network": "lstm", "sequence_length": 4, "share_torso": True},
        {"action_distribution": "beta", "layer_norm": True, "env": "Pendulum-v1"},
    ],
)
def test_other_networks_and_distributions_are_compiled_too(tiny, settings):
    agent = Agent(tiny(**settings))
    assert agent.policy.compiled
    agent.start()
    for _ in range(3):
        row, fit = agent.step()
        assert row["policy/reason"] == "accepted"
        assert row["policy/max_ratio_error"] < 1e-4
        fit.result()
    agent.collector.close()


@pytest.mark.usefixtures("uncompiled")
def test_a_value_fit_that_fails_ends_the_next_update(tiny):
    agent = Agent(tiny())
    agent.start()
    agent.learner._timed_fit = lambda *_: 1 / 0
    agent.step()
    with pytest.raises(ZeroDivisionError):
        agent.step()
    agent.collector.close()


def test_nothing_retraces_after_the_first_update(ten_updates):
    agent, _ = ten_updates
    learner = agent.learner
    compiled = (learner._prepare, learner._policy_step, learner._order, learner._fit_values, learner._commit)
    for function in (*compiled, agent.policy.log_prob):
        assert function.experimental_get_tracing_count() == 1


def test_nothing_retraces_with_older_data_and_a_radius_that_follows(tiny):
    agent = Agent(tiny(reuse=2, reuse_weights="optimal", pipeline=True, radius="adaptive", objective="penalty"))
    agent.start()
    for _ in range(5):
        agent.step()
    learner = agent.learner
    learner.wait()
    agent.behavior.close()
    for function in (learner._prepare, learner._policy_step, learner._order, learner._fit_values, learner._commit):
        assert function.experimental_get_tracing_count() == 1


def test_fisher_products_use_the_share_of_rows_asked_for():
    assert [trpo._fisher_count(rows, 0) for rows in (1, 2048, 4096, 5000, 16384, 100_000)] == [
        1, 2048, 4096, 4096, 4096, 20_000,
    ]  # fmt: skip
    assert [trpo._fisher_count(rows, 0.1) for rows in (1, 2048)] == [1, 205]
    assert trpo._fisher_count(77, 1.0) == 77


@pytest.mark.usefixtures("uncompiled")
def test_large_batches_have_smaller_fisher_products(tiny, monkeypatch):
    given, step = [], trpo.policy_step
    monkeypatch.setattr(trpo, "policy_step", lambda *args: given.append(args[4]) or step(*args))
    agent = Agent(tiny(steps_per_update=4200))
    agent.start()
    assert agent.step()[0]["policy/reason"] == "accepted"
    agent.collector.close()
    assert given[0].shape == [4096]


@pytest.mark.usefixtures("uncompiled")
def test_an_update_with_nothing_valid_leaves_both_networks_to_the_bit(tiny):
    agent = Agent(tiny())
    agent.start()
    trajectory, _ = agent.collector.collect()
    before = {name: v.numpy().copy() for name, v in agent.variables().items() if "dense" in name or "head" in name}
    assert before
    agent.learner.update(trajectory._replace(mask=np.zeros_like(trajectory.mask)), 0, 0.0)
    for name, value in before.items():
        assert agent.variables()[name].numpy().tobytes() == value.tobytes(), name
    agent.collector.close()


@pytest.mark.parametrize("scale_reward", [True, False])
@pytest.mark.usefixtures("uncompiled")
def test_max_step_counts_natural_gradients_of_the_return_in_its_deviations(tiny, scale_reward):
    config = tiny(max_step=1e-5, gamma=0.9, scale_reward=scale_reward)
    agent = Agent(config)
    agent.start()
    trajectory, _ = agent.collector.collect()
    rows = config.time_steps * config.num_envs
    obs = {name: x.reshape(-1, x.shape[-1]) for name, x in trajectory.obs.items()}
    values = agent.policy.values(agent.policy.preprocess(obs))
    metrics, _ = agent.learner.update(trajectory, 0, 0.0)
    std = float(agent.learner.reward_scaler.std())
    reward = tf.constant(trajectory.reward / (std if scale_reward else 1.0), tf.float32)
    flags = (trajectory.terminated, trajectory.truncated, trajectory.mask)
    advantage = advantages.generalized_advantage(
        reward, tf.reshape(values, [-1, config.num_envs]), *flags, 0.9, config.gae_lambda
    ).numpy()[trajectory.mask > 0]
    assert 0 < len(advantage) <= rows
    unit = 1.0 if scale_reward else std
    np.testing.assert_allclose(metrics["policy/step_size"], 1e-5 * advantage.std() / unit / 0.1, rtol=1e-4)
    assert metrics["policy/kl"] < 1e-4
    agent.collector.close()


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
    ],
)
@pytest.mark.usefixtures("uncompiled")
def test_chunks_change_nothing_but_rounding(tiny, env, settings):

    def run(chunk):
        agent = Agent(tiny(env=env, steps_per_update=60, fisher_chunk=chunk, **settings))
        agent.start()
        trajectory, _ = agent.collector.collect()
        mask = trajectory.mask.copy()
        mask[3:6, 1] = 0
        results = []
        for update in range(2):
            metrics, fit = agent.learner.update(trajectory._replace(mask=mask), update, 0.0)
            results += [value for value in (metrics | fit.result()).values() if isinstance(value, float)][:-1]
        agent.collector.close()
        return np.array(results), {name: variable.numpy() for name, variable in agent.variables().items()}

    whole, variables = run(0)
    for chunk in (7, 30, 60):  # 60 rows: with a rest, without, and all at once, with features made where they are used
        results, ours = run(chunk)
        np.testing.assert_allclose(results, whole, rtol=2e-3, atol=1e-5)
        for name, value in variables.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_reverse_product_gives_the_same_step():
    probs, actions = [0.5, 0.3, 0.2], [0, 1, 2, 0, 0]
    advantage = [1.0, -1.0, 0.5, 0.2, 0.9]
    forward = bandit(probs, actions, advantage, cg_damping=0.01)[1]
    reverse = bandit(probs, actions, advantage, cg_damping=0.01, fisher_product="reverse")[1]
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_keras_and_flat_views_of_a_network_agree():
    agent_network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, "tanh")])
    from trpo_tf.policy.networks import FlatNetwork

    network = FlatNetwork(agent_network)
    theta = tf.random.stateless_normal([network.size], [1, 1])
    network.assign(theta)
    assert network.theta().numpy().tobytes() == theta.numpy().tobytes()
    x = tf.random.stateless_normal([5, 3], [2, 2])
    np.testing.assert_array_equal(agent_network(x), network(theta, x))
