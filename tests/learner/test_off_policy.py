"""V-trace against GAE, against its definition as a sum, and against exact values of a finite MDP."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.learner.mdp import Mdp, policies
from trpo_tf.config import Config, UsageError
from trpo_tf.learner import advantages, off_policy
from trpo_tf.learner.trpo import TRPO, surrogate
from trpo_tf.policy.distributions import Family
from trpo_tf.policy.policy import Policy
from trpo_tf.trainer import Agent
from trpo_tf.types import Batch, Trajectory


def trajectory(seed=0, time=9, envs=4):
    """Random arrays of a trajectory: reward, values, ratio, terminated, truncated, mask."""
    rng = np.random.default_rng(seed)
    ended = rng.choice(3, size=(time, envs), p=[0.7, 0.15, 0.15])
    mask = (rng.random((time, envs)) < 0.9).astype(np.float64)
    reward, values = rng.normal(size=(time, envs)), rng.normal(size=(time + 1, envs))
    return reward, values, rng.lognormal(0, 0.5, (time, envs)), ended == 1, ended == 2, mask


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_where_nothing_is_stale_it_is_gae(gamma, gae_lambda):
    reward, values, _, *flags = trajectory()
    expected = advantages.generalized_advantage(reward, values, *flags, gamma, gae_lambda).numpy()
    found, targets = off_policy.vtrace(reward, values, np.ones_like(reward), *flags, gamma, gae_lambda, 1.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(targets, expected + values[:-1], rtol=1e-12, atol=1e-12)


def test_it_is_the_sum_of_its_definition():
    """v_s = V(x_s) + sum_t gamma^(t-s) (prod_i c_i) rho_t delta_t, equation 1 of the paper, episode by episode."""
    gamma, gae_lambda, rho_max, c_max = 0.9, 0.8, 1.2, 0.7
    reward, values, ratio, terminated, truncated, mask = trajectory(1)
    found, targets = off_policy.vtrace(
        reward, values, ratio, terminated, truncated, mask, gamma, gae_lambda, rho_max, c_max
    )
    time, envs = reward.shape

    def delta(t, b):
        following = 0.0 if terminated[t, b] else values[t + 1, b]
        return reward[t, b] + gamma * following - values[t, b]

    def d(s, b):
        total, product = 0.0, 1.0
        for t in range(s, time):
            if not mask[t, b]:
                break
            total += product * min(rho_max, ratio[t, b]) * delta(t, b)
            if terminated[t, b] or truncated[t, b]:
                break
            product *= gamma * gae_lambda * min(c_max, ratio[t, b])
        return total

    for s, b in itertools.product(range(time), range(envs)):
        expected = values[s, b] + d(s, b)
        np.testing.assert_allclose(targets[s, b], expected, rtol=1e-12)
        ended = terminated[s, b] or truncated[s, b] or s + 1 == time
        advantage = mask[s, b] * (delta(s, b) + (0.0 if ended else gamma * gae_lambda * d(s + 1, b)))
        np.testing.assert_allclose(found[s, b], advantage, rtol=1e-12, atol=1e-15)


def stale_rows(scale, seed=0):
    """Ratios whose logs are N(-s^2/2, s^2) for s in `scale` [T, B], and KL(mu || pi) there."""
    return np.exp(scale * np.random.default_rng(seed).normal(size=scale.shape) - scale**2 / 2), scale**2 / 2


def test_traces_of_stale_rows_are_as_long_as_those_of_fresh_ones():
    """A reward five steps on, past fresh states and stale ones: on average it counts (gamma lambda)^5 and its rho."""
    scale = np.broadcast_to([[0.5], [0.0], [0.3], [0.0], [0.5], [0.5]], (6, 40_000))
    ratio, kl = stale_rows(scale)
    reward, mask = np.zeros(scale.shape), np.ones(scale.shape)
    reward[-1] = 1.0
    arrays = reward, np.zeros((7, scale.shape[1])), ratio, mask > 1, mask > 1, mask, 0.9, 0.8, 1.0, 1.0
    found, published = (
        off_policy.vtrace(*arrays, x)[0][0].numpy() for x in (off_policy.trace_mean(tf.constant(kl), 1.0), 1.0)
    )
    kept = np.minimum(ratio, 1).mean(1)
    assert kept[0] < 0.85
    assert abs(found.mean() - 0.72**5 * kept[-1]) < 3 * found.std() / np.sqrt(scale.shape[1])
    np.testing.assert_allclose(published.mean(), 0.72**5 * np.prod(kept[1:]), rtol=0.02)


def test_traces_through_fresh_states_do_not_grow():
    """Every other stretch of states is stale: targets vary as those of GAE do, in 2000 steps, too."""
    scale = np.where(np.arange(2000) // 250 % 2, 0.5, 0.0)[:, None] + np.zeros(16)
    ratio, kl = stale_rows(scale)
    reward, none, values = np.random.default_rng(1).normal(size=scale.shape), scale < 0, np.zeros((2001, 16))
    means = off_policy.trace_mean(tf.constant(kl), 1.0), 1.0
    spread = [
        off_policy.vtrace(reward, values, x, none, none, ~none, 0.995, 0.95, 1.0, 1.0, mean)[1].numpy().std()
        for x, mean in zip((ratio, np.ones_like(ratio)), means, strict=True)
    ]
    assert 0.8 < spread[0] / spread[1] < 1.25


@pytest.mark.parametrize("c_max", [0.5, 1.0, 1.5, np.inf])
def test_the_mean_of_traces(c_max):
    ratio, kl = stale_rows(np.full(200_000, 0.5))
    found = float(off_policy.trace_mean(tf.constant(kl[0]), c_max))
    traces = np.minimum(ratio, c_max) / min(c_max, 1.0)
    assert abs(traces.mean() - found) < 3 * traces.std() / np.sqrt(len(traces))
    np.testing.assert_allclose(off_policy.trace_mean(tf.constant([0.0, -1e-12], tf.float64), c_max), 1.0, atol=1e-8)
    assert float(off_policy.trace_mean(tf.constant(np.inf, tf.float64), 1.0)) == 0.75
    pi, mu = np.array([0.3, 0.3, 0.4]), np.array([0.35, 0.22, 0.43])  # and where log ratios are not normal
    exact = mu @ np.minimum(pi / mu, c_max) / min(c_max, 1.0)
    np.testing.assert_allclose(off_policy.trace_mean(tf.constant(mu @ np.log(mu / pi)), c_max), exact, atol=0.02)


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_targets_from_older_policies_are_the_values_of_the_current_one(lag):
    """Rows of mu, targets of pi: their mean at every state is V of pi, within three standard errors."""
    mdp, (pi, mu) = Mdp(3), policies(4, lag)
    time, envs = 40, 20_000
    states, actions, reward = mdp.sample(mu, np.random.default_rng(5), time, envs)
    ratio = (pi / mu)[states[:-1], actions]
    none = np.zeros(reward.shape, bool)
    guess = np.random.default_rng(6).normal(size=4)  # of the values: wrong, so that something is to be corrected
    _, targets = off_policy.vtrace(
        reward, guess[states], ratio, none, none, np.ones_like(reward), mdp.gamma, 1.0, np.inf, np.inf
    )
    exact, seen = mdp.solve(pi)[0], []
    for state in range(4):
        first = targets.numpy()[0][states[0] == state]
        error = first.std() / np.sqrt(len(first))
        # 40 steps leave 0.8^40 of the wrong guess, 1e-4.
        assert abs(first.mean() - exact[state]) < 3 * error + 1e-3
        seen.append(abs(mdp.solve(mu)[0][state] - exact[state]) / error)
    assert max(seen) > 3, "else this measures nothing"


@pytest.mark.parametrize(("time", "gae_lambda"), [(1, 1.0), (10, 0.9)])
def test_truncated_targets_have_the_values_of_the_policy_between(time, gae_lambda):
    """The fixed point is V of the policy proportional to min(rho_max mu, pi), equation 3 of the paper; traces, with the
    mean that they are given in training, leave it alone."""
    mdp, (pi, mu), rho_max = Mdp(7), policies(8, 4), 0.8
    between = np.minimum(rho_max * mu, pi)
    exact = mdp.solve(between / between.sum(1, keepdims=True))[0]
    assert np.abs(exact - mdp.solve(pi)[0]).max() > 0.05, "else this measures nothing"
    states, actions, reward = mdp.sample(mu, np.random.default_rng(9), time, 200_000)
    none, kl = np.zeros(reward.shape, bool), (mu * np.log(mu / pi)).sum(1)
    ratio, mean = (pi / mu)[states[:-1], actions], off_policy.trace_mean(kl, 1.0).numpy()[states[:-1]]
    assert mean.min() < 0.95, "else this measures nothing"
    limits = rho_max, 1.0, mean
    _, targets = off_policy.vtrace(
        reward, exact[states], ratio, none, none, np.ones_like(reward), mdp.gamma, gae_lambda, *limits
    )
    for state in range(4):
        change = (targets.numpy() - exact[states[:-1]])[0][states[0] == state]
        assert abs(change.mean()) < 3 * change.std() / np.sqrt(len(change)), "at the fixed point nothing moves"


@pytest.mark.parametrize("distance", [0.2, 0.28])
@pytest.mark.parametrize("rho", [1.0, 2.0, np.inf])
def test_ratios_truncated_at_one_narrow_a_policy_that_moves(rho, distance):
    """Natural gradient of E_mu[min(rho, pi / mu) pi' / pi A] for an A linear in the action, by quadrature: while the
    mean moves by one, log std moves by -d / 2 with rho = 1, where d is how far pi is from mu; it should not move."""
    expected = {1.0: -distance / 2, 2.0: {0.2: -0.0005, 0.28: -0.0102}[distance], np.inf: 0.0}[rho]
    gaussian = Family(gym.spaces.Box(-np.inf, np.inf, (1,)), Config(env="x"))
    action = np.linspace(-10, 10, 100_001)[:, None].astype(np.float32)
    weights = np.exp(-0.5 * np.float64(action[:, 0]) ** 2)  # mu is the standard normal
    ratio = np.minimum(rho, np.exp(distance * action[:, 0] - distance**2 / 2))
    advantage = action[:, 0] - np.average(action[:, 0], weights=weights * ratio)
    params = tf.constant([[distance, 0.0]])
    behavior_logp = gaussian.log_prob(params, action) - np.log(ratio).astype(np.float32)
    batch = Batch(None, action, behavior_logp, advantage.astype(np.float32), None, None, None)
    with tf.GradientTape() as tape:
        tape.watch(params)
        value = surrogate(gaussian, params, batch, weights / weights.sum())
    moved = tape.gradient(value, params).numpy()[0] / [1.0, 2.0]  # over the Fisher matrix
    assert moved[0] > 0.5
    assert moved[1] / moved[0] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("rho", "expected"), [(1.0, -0.02), (2.0, 0.0), (np.inf, 0.0)])
def test_ratios_truncated_at_one_narrow_a_policy_that_followed_noise(rho, expected):
    """Advantages that are 1 or -1 by chance, and pi moved by 0.02 sum A grad log mu of four rows: the derivative for
    the log std on the same rows, on average over 200,000 such batches, is -0.02 with rho = 1, and should be 0."""
    rng, gaussian = np.random.default_rng(0), Family(gym.spaces.Box(-np.inf, np.inf, (1,)), Config(env="x"))
    action = rng.normal(size=(200_000, 4)).astype(np.float32)  # mu is the standard normal
    advantage = rng.choice([-1.0, 1.0], action.shape).astype(np.float32)
    mean = np.repeat(0.02 * (advantage * action).sum(1), 4)
    params, action = tf.stack([mean, np.zeros_like(mean)], 1), action.reshape(-1, 1)
    behavior_logp = gaussian.log_prob(tf.zeros_like(params), action)
    behavior_logp = tf.maximum(behavior_logp, gaussian.log_prob(params, action) - np.float32(np.log(rho)))
    batch = Batch(None, action, behavior_logp, advantage.ravel(), None, None, None)
    with tf.GradientTape() as tape:
        tape.watch(params)
        value = surrogate(gaussian, params, batch, tf.ones(len(action)))
    assert tape.gradient(value, params).numpy()[:, 1].mean() == pytest.approx(expected, abs=0.005)


def on_simplex(x):
    """The point of the probability simplex nearest to x [K]."""
    ordered = np.sort(x)[::-1]
    over = (ordered.cumsum() - 1) / np.arange(1, len(x) + 1)
    return np.maximum(0, x - over[np.nonzero(ordered > over)[0][-1]])


@pytest.mark.parametrize("reuse", [2, 3, 4, 7, 16])
def test_optimal_weights_are_those_of_the_convex_program(reuse):
    """By Lagrange: for a price p of sum w^2, the best weights are the projection of -ages / 2p; p by bisection."""
    ages = np.arange(1.0, 4 * reuse)
    low, high = 1e-6, 1e6
    for _ in range(200):
        price = np.sqrt(low * high)
        weights = on_simplex(-ages / (2 * price))
        low, high = (price, high) if (weights**2).sum() > 1 / reuse else (low, price)
    found = off_policy.reuse_weights(reuse, optimal=True)
    np.testing.assert_allclose(found, weights[: len(found)], atol=1e-8)
    assert weights[len(found) :].max() < 1e-8
    np.testing.assert_allclose((found**2).sum(), 1 / reuse)
    uniform = off_policy.radius_share(np.full(reuse, 1 / reuse))
    np.testing.assert_allclose(uniform, 2 / (reuse + 1))
    assert off_policy.radius_share(found) > uniform


def test_a_single_batch_has_all_the_weight():
    assert off_policy.reuse_weights(1, True).tolist() == off_policy.reuse_weights(1, False).tolist() == [1.0]
    assert off_policy.radius_share([1.0]) == 1.0


def test_a_lag_shortens_steps_by_its_root():
    """Five steps in independent directions lead as far as one of sqrt(5) times the length."""
    found = off_policy.radius_share([0.5, 0.5], 4)
    np.testing.assert_allclose(found, off_policy.radius_share([0.5, 0.5]) / np.sqrt(5))


def test_diagnostics_by_hand():
    rows = off_policy.Rows(
        weights=tf.constant([1.0, 2.0, 1.0, 0.0]),
        ratio=tf.constant([1.0, 2.0, 0.5, 9.0]),
        advantage=tf.constant([1.0, -1.0, 2.0, 5.0]),
        kl=tf.constant([0.0, 0.3, 0.1, 9.0], tf.float64),
        staleness=tf.constant([0, 1, 2, 2]),
    )
    found = off_policy.diagnostics(rows, 3, 9.0)
    found = {name.removeprefix("stale/"): float(x) for name, x in found.items()}
    np.testing.assert_allclose(found["effective_sample_size"], (5.5 / 4) ** 2 / (9.25 / 4), rtol=1e-6)
    assert found["max_ratio"] == 2.0
    np.testing.assert_allclose(found["mean_ratio_error"], (0 + 2 * 1 + 0.5) / 4)
    gain, weight = np.array([1.0, -2.0, 1.0]), np.array([0.25, 0.5, 0.25])
    np.testing.assert_allclose(found["surrogate_variance"], weight**2 @ (gain - weight @ gain) ** 2)
    np.testing.assert_allclose(found["kl_behavior_old"], 0.5 * 0.3 + 0.25 * 0.1, rtol=1e-6)
    assert [found[f"share_of_staleness_{k}"] for k in range(3)] == [0.25, 0.5, 0.25]


def test_a_truncated_ratio_counts_as_what_the_surrogate_makes_of_it():
    """One row of 1000 with a ratio of 100: like the others where rho is 1, most of the weight where it is not."""
    ratio = tf.constant([100.0] + [1.0] * 999)
    zeros = tf.zeros(1000)
    rows = off_policy.Rows(tf.ones(1000), ratio, zeros, tf.zeros(1000, tf.float64), tf.zeros(1000, tf.int32))
    found = [off_policy.diagnostics(rows, 1, rho) for rho in (1.0, 1000.0)]
    sizes = [float(x["stale/effective_sample_size"]) for x in found]
    np.testing.assert_allclose(sizes, [1.0, 1099**2 / 1000 / (100**2 + 999)], rtol=1e-6)
    assert [float(x["stale/max_ratio"]) for x in found] == [100.0, 100.0]


def made(value, time=3, envs=2):
    """A trajectory whose every number is one value."""
    fields = [np.full((time, envs), value, np.float32) for _ in range(6)]
    return Trajectory({"x": np.full((time + 1, envs, 5), value, np.float32)}, *fields)


def test_the_newest_trajectories_stand_side_by_side_and_the_places_of_others_are_masked():
    replay = off_policy.Replay(3)
    first, second = replay.add(made(1)), replay.add(made(2))
    assert first.obs["x"].shape == second.obs["x"].shape == (4, 6, 5)
    assert first.mask[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert second.mask[0].tolist() == [2, 2, 1, 1, 0, 0]
    replay.add(made(3))
    assert replay.add(made(4)).reward[1].tolist() == [4, 4, 3, 3, 2, 2]


def test_a_single_trajectory_is_passed_through():
    trajectory = made(1)._replace(advantage=np.zeros((3, 2)))
    tf.nest.map_structure(np.testing.assert_array_equal, off_policy.Replay(1).add(made(1)), trajectory)
    assert not off_policy.Replay(1).arrays()


def test_what_is_kept_goes_through_arrays():
    replay, other = off_policy.Replay(3), off_policy.Replay(3)
    for value in (1, 2, 3, 4):
        replay.add(made(value))
        replay.settle(np.full((3, 2), 10 * value, np.float32))
    other.restore(replay.arrays() | {"collector/obs/x": np.zeros(3)})
    found = replay.add(made(5))
    tf.nest.map_structure(np.testing.assert_array_equal, found, other.add(made(5)))
    assert found.advantage[2].tolist() == [0, 0, 40, 40, 30, 30]


def test_where_every_row_is_fresh_nothing_of_older_ones_is_computed(tiny, stepped, monkeypatch):
    monkeypatch.setattr(off_policy, "correct", None)
    monkeypatch.setattr(TRPO, "_compared", None)
    (row,) = stepped(Agent(tiny()))
    assert row["policy/reason"] == "accepted"
    assert not [name for name in row if name.startswith(("stale/", "radius/"))]


def test_the_first_update_is_that_of_one_batch_with_the_smaller_radius(tiny, stepped):
    """Places that are still empty add nothing; the radius is 4 / (reuse + 1)^2 of max_kl."""
    thetas = []
    for changes in ({"reuse": 3, "max_kl": 0.04}, {"max_kl": 0.01}):
        agent = Agent(tiny(max_step=1e9, **changes))
        (row,) = stepped(agent)
        thetas.append(agent.policy.network.theta().numpy())
    assert row["policy/kl"] > 0.005
    np.testing.assert_allclose(*thetas, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_rows_that_are_too_stale_move_nothing_and_the_reason_says_so(tiny):
    agent = Agent(tiny(reuse=2, min_effective_sample_size=0.99999))
    agent.start()
    first, _ = agent.step()
    before = agent.policy.network.theta().numpy()
    row, _ = agent.step()
    agent.learner.wait()
    agent.behavior.close()
    assert first["policy/reason"] == "accepted"
    assert row["stale/effective_sample_size"] < 0.99999
    assert (row["policy/reason"], row["policy/kl"], row["policy/step_fraction"]) == ("stale", 0.0, 0.0)
    np.testing.assert_array_equal(agent.policy.network.theta(), before)


@pytest.mark.parametrize("settings", [{}, {"network": "gru", "sequence_length": 4}])
def test_values_are_fitted_to_new_rows_and_to_all_of_them(tiny, settings):
    """2 trajectories of 4 environments, the new one first; a Batch has the rows of a sequence together."""
    config = tiny(reuse=2, value_epochs=3, value_minibatch_size=8, **settings)
    learner, time = TRPO(*given(config), 0), config.time_steps
    row = np.arange(time)[:, None] * 8 + np.arange(8)
    if settings:
        row = np.arange(time)[:, None] // 4 * 32 + np.arange(8) * 4 + np.arange(time)[:, None] % 4
    assert sorted(row.ravel()) == list(range(8 * time))
    rows, times = np.unique(learner._order(tf.constant([0, 1])), return_counts=True)
    np.testing.assert_array_equal(rows, np.sort(row[:, :4].ravel()))
    assert (times == 3).all()


def test_what_values_explain_is_of_the_new_rows(tiny, stepped, monkeypatch):
    """In the second of two updates; what is logged is from before the fit."""
    agent = Agent(tiny(reuse=2))
    batches, prepare = [], agent.learner._prepare
    monkeypatch.setattr(agent.learner, "_prepare", lambda given: [found := prepare(given), batches.append(found[0])][0])
    *_, row = stepped(agent, 2)
    time, envs = agent.config.time_steps, agent.config.num_envs
    returns, values, mask = (
        np.reshape(x, [time, 2, envs]) for x in (batches[1].returns, batches[1].values, batches[1].mask)
    )
    new, all_rows = (
        1 - np.var((returns - values)[rows]) / np.var(returns[rows])
        for rows in ((mask > 0) & (np.arange(2) == 0)[:, None], mask > 0)
    )
    assert abs(new - all_rows) > 1e-3, "else this measures nothing"
    assert row["value/explained_variance"] == pytest.approx(new, abs=1e-4)


def updated(agent, trajectories, updates):
    """The metrics of updates with these trajectories, and the policy's parameters after them."""
    rows = [agent.learner.update(t, number, 0.0)[0] for t, number in zip(trajectories, updates, strict=True)]
    agent.learner.wait()
    agent.behavior.close()
    return rows, agent.policy.network.theta().numpy()


@pytest.mark.usefixtures("uncompiled")
def test_rows_beyond_max_staleness_are_as_if_they_were_masked(tiny):
    results = []
    for masked in (False, True):
        agent = Agent(tiny(behavior_lag=2, max_staleness=2, normalize_obs=False, scale_reward=False))
        agent.start()
        trajectory, _ = agent.behavior.collect(0)
        version = trajectory.policy_version.copy()
        version[:, :2] = 5 - 3
        version[:, 2:] = 5 - 2
        mask = trajectory.mask.copy()
        if masked:
            mask[:, :2] = 0
        results.append(updated(agent, [trajectory._replace(policy_version=version, mask=mask)], [5]))
    (metrics,), theta = results[0]
    assert metrics["policy/reason"] == "accepted"
    assert metrics["stale/share_of_staleness_2"] == 1.0
    np.testing.assert_array_equal(theta, results[1][1])


@pytest.mark.usefixtures("uncompiled")
def test_uncorrected_rows_count_as_those_of_the_current_policy(tiny):
    """As an update on fresh data whose behavior log-probabilities are those of the learner's policy, with the step that
    a lag of 1 leaves."""
    agent = Agent(tiny(behavior_lag=1, correct_stale=False))
    agent.start()
    trajectory, _ = agent.behavior.collect(0)
    params = trajectory.behavior_params + np.array([0.5, -0.5], np.float32)
    flat = params.reshape(-1, 2), trajectory.action.reshape(-1, 1)
    logp = agent.policy.log_prob(*flat).numpy().reshape(trajectory.mask.shape)
    other = trajectory._replace(behavior_params=params, behavior_logp=logp)
    rows, theta = updated(agent, [other], [1])
    fresh = Agent(tiny(max_kl=agent.config.max_kl / 2, max_step=agent.config.max_step / np.sqrt(2)))
    fresh.start()
    _, expected = updated(fresh, [trajectory], [1])
    np.testing.assert_allclose(theta, expected, rtol=1e-3, atol=1e-5)
    assert rows[0]["stale/mean_ratio_error"] > 0.1
    corrected = Agent(tiny(behavior_lag=1))
    corrected.start()
    _, found = updated(corrected, [other], [1])
    assert np.abs(found - expected).max() > 1e-3


def by_hand(given: Trajectory, values, logp, kl, column_weights, scale, config):
    """`off_policy.correct` in numbers, row by row: weights, advantages, their std, targets, and what is kept."""
    (time, envs), new, corrected = given.reward.shape, config.num_envs, config.correct_stale
    weights = given.mask * column_weights * (given.policy_version <= config.max_staleness)
    ratio = np.exp(logp - given.behavior_logp) if corrected else np.ones((time, envs))
    advantage, targets = np.zeros((time, new)), np.zeros((time, new))
    for b in range(new):
        after = 0.0
        for t in reversed(range(time)):
            if not given.mask[t, b]:
                targets[t, b], after = values[t, b], 0.0
                continue
            rho = min(1.0, ratio[t, b])
            # 1 - TV(mu, pi) of normal log ratios
            mean = max(math.erfc(math.sqrt(kl[t, b]) / 2), 0.75) if corrected else 1.0
            following = 0.0 if given.terminated[t, b] else values[t + 1, b]
            ended = given.terminated[t, b] or given.truncated[t, b]
            delta = given.reward[t, b] + config.gamma * following - values[t, b]
            decay = 0.0 if ended else config.gamma * config.gae_lambda
            advantage[t, b] = delta + decay * after
            after = rho * delta + decay * rho / mean * after
            targets[t, b] = values[t, b] + after
    kept = advantage * scale
    advantage = np.concatenate([advantage, given.advantage[:, new:] / scale], 1)
    trusted = weights * np.minimum(ratio, 1.0)
    for first in range(0, envs, new):
        batch = slice(first, first + new)
        advantage[:, batch] -= np.average(advantage[:, batch], weights=trusted[:, batch])
    std = np.sqrt(np.average(advantage**2, weights=trusted))
    return weights, np.where(trusted > 0, advantage / std, 0.0), std, targets, kept


@pytest.mark.parametrize("corrected", [True, False])
def test_correct_by_hand(tiny, corrected):
    """Two batches of three environments, the second used before: what was found then is taken for it."""
    config = tiny(num_envs=3, reuse=2, max_staleness=2, correct_stale=corrected, gamma=0.9, gae_lambda=0.8)
    rng, shape = np.random.default_rng(11), (7, 6)
    reward, values, ratio, terminated, truncated, mask = trajectory(12, *shape)
    logp = rng.normal(size=shape)
    given = Trajectory(
        {},
        None,
        *(np.float32(x) for x in (logp - np.log(ratio), reward)),
        terminated,
        truncated,
        np.float32(mask),
        None,
        np.array([1, 0, 0, 1, 1, 3], np.int32) + np.zeros(shape, np.int32),
        np.float32(rng.normal(size=shape)),
    )
    arguments = (
        np.float32(values[:, :3]),
        np.float32(logp),
        rng.uniform(0, 0.05, shape),
        np.float32([1.2] * 3 + [0.8] * 3),
        3.0,
    )
    found = off_policy.correct(given, *arguments, config)
    weights, advantage, std, targets, kept = by_hand(given, *arguments, config)
    assert 0 < (weights > 0).sum() < (mask > 0).sum()
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    np.testing.assert_allclose(found.advantage, advantage, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.advantage_std, std, rtol=1e-5)
    np.testing.assert_allclose(found.targets, targets, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.kept, kept, rtol=1e-4, atol=1e-4)
    in_surrogate = np.exp(logp - found.behavior_logp)
    np.testing.assert_allclose(in_surrogate, np.minimum(ratio, 1.0) if corrected else 1.0, rtol=1e-5)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_fourth_update_with_optimal_weights(tiny, stepped, monkeypatch, lag):
    """Its weights, its ratios by the policy of now, what it has from when rows were new, and how far it goes; the
    normaliser has each row once."""
    settings = {"gamma": 0.9, "max_kl": 1.0, "max_step": 0.05, "vtrace_rho": 1.0, "min_effective_sample_size": 0.0}
    agent = Agent(tiny(reuse=2, reuse_weights="optimal", behavior_lag=lag, **settings))
    given, found, params, prepare = [], [], [], agent.learner._prepare

    def prepared(trajectory):
        given.append(tf.nest.map_structure(np.asarray, trajectory))
        found.append(prepare(trajectory))
        params.append(agent.policy.params(agent.policy.network.theta(), found[-1][0].obs))
        return found[-1]

    monkeypatch.setattr(agent.learner, "_prepare", prepared)
    *_, row = stepped(agent, 4)
    batch, trajectory, params = found[-1][0], given[-1], params[-1]
    weights = off_policy.reuse_weights(2, optimal=True)
    assert len(weights) == 3
    masks = [x.mask[:, :4] for x in given]
    assert sum(map(np.sum, masks)) < 4 * masks[0].size, "else this measures nothing"
    for moments in (agent.policy.normalizer.moments, agent.learner.reward_scaler.moments):
        assert float(moments.count) == sum(map(np.sum, masks))
    share = off_policy.radius_share(weights, lag)
    np.testing.assert_allclose(row["policy/step_size"], 0.05 * row["policy/advantage_std"] / 0.1 * share, rtol=1e-5)

    mask = batch.mask.numpy()
    expected = np.concatenate([w * x.mask[:, :4] for w, x in zip(weights, given[:0:-1], strict=True)], 1).ravel()
    np.testing.assert_allclose(mask / mask.sum(), expected / expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(batch.fresh, np.where(np.arange(12) < 4, trajectory.mask, 0.0).ravel())
    shares = [row[f"stale/share_of_staleness_{k}"] for k in range(3 + lag)]
    assert [x > 0 for x in shares] == [False] * lag + [True] * 3
    staleness = trajectory.policy_version.ravel()
    np.testing.assert_allclose(shares, [mask[staleness == k].sum() / mask.sum() for k in range(3 + lag)], atol=1e-5)

    after = agent.policy.params(agent.policy.network.theta(), batch.obs)
    logits = (np.float64(x).reshape(-1, 2) for x in (trajectory.behavior_params, params, after))
    mu, pi, new = (np.exp(x) / np.exp(x).sum(1)[:, None] for x in logits)
    for name, policy in (("stale/kl_behavior_old", pi), ("stale/kl", new)):
        np.testing.assert_allclose(row[name], np.average((mu * np.log(mu / policy)).sum(1), weights=mask), rtol=1e-3)
    assert abs(row["stale/kl"] / row["stale/kl_behavior_old"] - 1) > 0.01, "else this measures nothing"
    taken = np.arange(len(mask)), trajectory.action.ravel().astype(int)
    assert row["stale/max_ratio"] == pytest.approx((pi / mu)[taken][mask > 0].max(), rel=1e-3)
    assert row["stale/max_ratio"] > 1.05
    before_step = pi[taken] / np.exp(batch.behavior_logp.numpy())
    np.testing.assert_allclose(before_step[mask > 0], np.minimum((pi / mu)[taken], 1.0)[mask > 0], rtol=1e-4)
    for k in (1, 2):
        then = found[-1 - k][4]
        np.testing.assert_array_equal(trajectory.advantage[:, 4 * k : 4 * k + 4], then)
        assert np.ptp(then) > 0
    if not lag:  # the advantage of a new row is its target less its value, and it is kept in units of the reward
        scale = float(agent.learner.reward_scaler.scale())
        assert abs(scale - 1) > 0.1
        gain = np.reshape(batch.returns - batch.values, [-1, 12])[:, :4] * scale
        np.testing.assert_allclose(np.where(trajectory.mask[:, :4] > 0, found[-1][4] - gain, 0.0), 0.0, atol=1e-4)


@pytest.mark.slow
def test_with_a_memory_the_ratio_is_that_of_the_unrolled_policy(tiny, stepped):
    """Not corrected, pi is its own behavior policy, so the ratio is 1 before the step, in sequences too."""
    settings = {"env": "Pendulum-v1", "network": "gru", "sequence_length": 4, "fisher_chunk": 20}
    rows = stepped(Agent(tiny(reuse=2, correct_stale=False, **settings)), 3)
    assert rows[-1]["stale/mean_ratio_error"] > 1e-3
    assert max(row["policy/max_ratio_error"] for row in rows) < 1e-4


def test_batches_beyond_max_staleness_are_not_kept(tiny):
    assert TRPO(*given(tiny(reuse=8, max_staleness=2)), 0)._columns == 4 * 3
    assert TRPO(*given(tiny(reuse=8, max_staleness=3, behavior_lag=2)), 0)._columns == 4 * 2
    with pytest.raises(UsageError, match=r"--max_staleness=0: must be >= 1, .* --behavior_lag=0 and --pipeline"):
        tiny(pipeline=True, max_staleness=0)
    with pytest.raises(UsageError, match=r"--max_staleness=1: leaves --reuse=2 .* must be >= 2"):
        tiny(pipeline=True, reuse=2, max_staleness=1)


def given(config):
    """A policy of CartPole's spaces, and the configuration."""
    return Policy(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), config, 0), config
