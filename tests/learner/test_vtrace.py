"""V-trace against GAE, against its definition as a sum, and against exact values of a finite MDP."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.learner.mdp import Mdp, policies
from trpo_tf.config import AdvantageConfig, OffPolicyConfig, PolicyConfig
from trpo_tf.learner.estimate.gae import generalized_advantage
from trpo_tf.learner.estimate.vtrace import Comparison, trace_mean, vtrace, vtrace_estimate
from trpo_tf.learner.objective import surrogate
from trpo_tf.learner.reuse import Mixture
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch, Trajectory


def random_rows(seed=0, time=9, envs=4):
    """Random arrays [T, B], values [T+1, B]: reward, values, ratio, terminated, truncated, mask."""
    rng = np.random.default_rng(seed)
    ended = rng.choice(3, size=(time, envs), p=[0.7, 0.15, 0.15])
    mask = (rng.random((time, envs)) < 0.9).astype(np.float64)
    reward, values = rng.normal(size=(time, envs)), rng.normal(size=(time + 1, envs))
    return reward, values, rng.lognormal(0, 0.5, (time, envs)), ended == 1, ended == 2, mask


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_where_nothing_is_stale_it_is_gae(gamma, gae_lambda):
    reward, values, _, *flags = random_rows()
    expected = generalized_advantage(reward, values, *flags, gamma, gae_lambda).numpy()
    found, targets = vtrace(reward, values, np.ones_like(reward), *flags, gamma, gae_lambda, 1.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(targets, expected + values[:-1], rtol=1e-12, atol=1e-12)


def test_it_is_the_sum_of_its_definition():
    """v_s = V(x_s) + sum_t gamma^(t-s) (prod_i c_i) rho_t delta_t, equation 1 of the paper, episode by episode."""
    gamma, gae_lambda, rho_max, c_max = 0.9, 0.8, 1.2, 0.7
    reward, values, ratio, terminated, truncated, mask = random_rows(1)
    found, targets = vtrace(reward, values, ratio, terminated, truncated, mask, gamma, gae_lambda, rho_max, c_max)
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
    found, published = (vtrace(*arrays, x)[0][0].numpy() for x in (trace_mean(tf.constant(kl), 1.0), 1.0))
    kept = np.minimum(ratio, 1).mean(1)
    assert kept[0] < 0.85
    assert abs(found.mean() - 0.72**5 * kept[-1]) < 3 * found.std() / np.sqrt(scale.shape[1])
    np.testing.assert_allclose(published.mean(), 0.72**5 * np.prod(kept[1:]), rtol=0.02)


def test_traces_through_fresh_states_do_not_grow():
    """Every other stretch of states is stale: targets vary as those of GAE do, in 2000 steps, too."""
    scale = np.where(np.arange(2000) // 250 % 2, 0.5, 0.0)[:, None] + np.zeros(16)
    ratio, kl = stale_rows(scale)
    reward, none, values = np.random.default_rng(1).normal(size=scale.shape), scale < 0, np.zeros((2001, 16))
    means = trace_mean(tf.constant(kl), 1.0), 1.0
    spread = [
        vtrace(reward, values, x, none, none, ~none, 0.995, 0.95, 1.0, 1.0, mean)[1].numpy().std()
        for x, mean in zip((ratio, np.ones_like(ratio)), means, strict=True)
    ]
    assert 0.8 < spread[0] / spread[1] < 1.25


@pytest.mark.parametrize("c_max", [0.5, 1.0, 1.5, np.inf])
def test_the_mean_of_traces(c_max):
    ratio, kl = stale_rows(np.full(200_000, 0.5))
    found = float(trace_mean(tf.constant(kl[0]), c_max))
    traces = np.minimum(ratio, c_max) / min(c_max, 1.0)
    assert abs(traces.mean() - found) < 3 * traces.std() / np.sqrt(len(traces))
    np.testing.assert_allclose(trace_mean(tf.constant([0.0, -1e-12], tf.float64), c_max), 1.0, atol=1e-8)
    assert float(trace_mean(tf.constant(np.inf, tf.float64), 1.0)) == 0.75
    pi, mu = np.array([0.3, 0.3, 0.4]), np.array([0.35, 0.22, 0.43])  # and where log ratios are not normal
    exact = mu @ np.minimum(pi / mu, c_max) / min(c_max, 1.0)
    np.testing.assert_allclose(trace_mean(tf.constant(mu @ np.log(mu / pi)), c_max), exact, atol=0.02)


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_targets_from_older_policies_are_the_values_of_the_current_one(lag):
    """Rows of mu, targets of pi: their mean at every state is V of pi, within three standard errors."""
    mdp, (pi, mu) = Mdp(3), policies(4, lag)
    time, envs = 40, 20_000
    states, actions, reward = mdp.sample(mu, np.random.default_rng(5), time, envs)
    ratio = (pi / mu)[states[:-1], actions]
    none = np.zeros(reward.shape, bool)
    guess = np.random.default_rng(6).normal(size=4)  # of the values: wrong, so that something is to be corrected
    _, targets = vtrace(reward, guess[states], ratio, none, none, np.ones_like(reward), mdp.gamma, 1.0, np.inf, np.inf)
    exact, seen = mdp.solve(pi)[0], []
    for state in range(4):
        first = targets.numpy()[0][states[0] == state]
        error = first.std() / np.sqrt(len(first))
        # 40 steps leave 0.8^40 of the wrong guess, 1e-4.
        assert abs(first.mean() - exact[state]) < 3 * error + 1e-3
        seen.append(abs(mdp.solve(mu)[0][state] - exact[state]) / error)
    assert max(seen) > 3, "else this measures nothing"


def test_targets_of_a_batch_of_mixed_versions_are_the_values_of_the_current_policy():
    """As a batch of workers is: column by column another version, the ratio of each against its own."""
    mdp, lags, envs, rng = Mdp(3), (0, 1, 3, 6), 6_000, np.random.default_rng(5)
    guess = np.random.default_rng(6).normal(size=4)
    versions, parts = [policies(4, k)[0] for k in range(7)], []  # of one walk
    pi = versions[-1]
    for lag in lags:
        mu = versions[-1 - lag]
        states, actions, reward = mdp.sample(mu, rng, 40, envs)
        parts.append((states, reward, (pi / mu)[states[:-1], actions]))
    shuffled = rng.permutation(len(lags) * envs)
    states, reward, ratio = (np.concatenate(x, 1)[:, shuffled] for x in zip(*parts, strict=True))
    none = np.zeros(reward.shape, bool)
    _, targets = vtrace(reward, guess[states], ratio, none, none, np.ones_like(reward), mdp.gamma, 1.0, np.inf, np.inf)
    _, wrong = vtrace(
        reward, guess[states], np.ones_like(ratio), none, none, np.ones_like(reward), mdp.gamma, 1.0, np.inf, np.inf
    )
    exact, seen = mdp.solve(pi)[0], []
    for state in range(4):
        first, uncorrected = (x.numpy()[0][states[0] == state] for x in (targets, wrong))
        error = first.std() / np.sqrt(len(first))
        assert abs(first.mean() - exact[state]) < 3 * error + 1e-3
        seen.append(abs(uncorrected.mean() - exact[state]) / error)
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
    ratio, mean = (pi / mu)[states[:-1], actions], trace_mean(kl, 1.0).numpy()[states[:-1]]
    assert mean.min() < 0.95, "else this measures nothing"
    limits = rho_max, 1.0, mean
    _, targets = vtrace(reward, exact[states], ratio, none, none, np.ones_like(reward), mdp.gamma, gae_lambda, *limits)
    for state in range(4):
        change = (targets.numpy() - exact[states[:-1]])[0][states[0] == state]
        assert abs(change.mean()) < 3 * change.std() / np.sqrt(len(change)), "at the fixed point nothing moves"


@pytest.mark.parametrize("distance", [0.2, 0.28])
@pytest.mark.parametrize("rho", [1.0, 2.0, np.inf])
def test_ratios_truncated_at_one_narrow_a_policy_that_moves(rho, distance):
    """Natural gradient of E_mu[min(rho, pi / mu) pi' / pi A] for an A linear in the action, by quadrature: while the
    mean moves by one, log std moves by -d / 2 with rho = 1, where d is how far pi is from mu; it should not move."""
    expected = {1.0: -distance / 2, 2.0: {0.2: -0.0005, 0.28: -0.0102}[distance], np.inf: 0.0}[rho]
    gaussian = ActionDistribution(gym.spaces.Box(-np.inf, np.inf, (1,)), PolicyConfig())
    action = np.linspace(-10, 10, 100_001)[:, None].astype(np.float32)
    weights = np.exp(-0.5 * np.float64(action[:, 0]) ** 2)  # mu is the standard normal
    ratio = np.minimum(rho, np.exp(distance * action[:, 0] - distance**2 / 2))
    advantage = action[:, 0] - np.average(action[:, 0], weights=weights * ratio)
    params, count = tf.constant([[distance, 0.0]]), len(action)
    behavior_logp = gaussian.log_prob(tf.repeat(params, count, 0), action) - np.log(ratio).astype(np.float32)
    batch = Batch(None, action, behavior_logp, advantage.astype(np.float32), None)
    with tf.GradientTape() as tape:
        tape.watch(params)
        value = surrogate(gaussian, tf.repeat(params, count, 0), batch, weights / weights.sum())
    moved = tape.gradient(value, params).numpy()[0] / [1.0, 2.0]  # over the Fisher matrix
    assert moved[0] > 0.5
    assert moved[1] / moved[0] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("rho", "expected"), [(1.0, -0.02), (2.0, 0.0), (np.inf, 0.0)])
def test_ratios_truncated_at_one_narrow_a_policy_that_followed_noise(rho, expected):
    """Advantages that are 1 or -1 by chance, and pi moved by 0.02 sum A grad log mu of four rows: the derivative for
    the log std on the same rows, on average over 200,000 such batches, is -0.02 with rho = 1, and should be 0."""
    rng, gaussian = np.random.default_rng(0), ActionDistribution(gym.spaces.Box(-np.inf, np.inf, (1,)), PolicyConfig())
    action = rng.normal(size=(200_000, 4)).astype(np.float32)  # mu is the standard normal
    advantage = rng.choice([-1.0, 1.0], action.shape).astype(np.float32)
    mean = np.repeat(0.02 * (advantage * action).sum(1), 4)
    params, action = tf.stack([mean, np.zeros_like(mean)], 1), action.reshape(-1, 1)
    behavior_logp = gaussian.log_prob(tf.zeros_like(params), action)
    behavior_logp = tf.maximum(behavior_logp, gaussian.log_prob(params, action) - np.float32(np.log(rho)))
    batch = Batch(None, action, behavior_logp, advantage.ravel(), None)
    with tf.GradientTape() as tape:
        tape.watch(params)
        value = surrogate(gaussian, params, batch, tf.ones(len(action)))
    assert tape.gradient(value, params).numpy()[:, 1].mean() == pytest.approx(expected, abs=0.005)


def by_hand(mixture, reward, values, logp, kl, staleness, scale, config, off_policy):
    """`vtrace_estimate` in numbers, one transition after the other: weights, advantages, their std, targets, and the
    advantages that are kept."""
    trajectory, (time, envs) = mixture.trajectory, reward.shape
    new, corrected = values.shape[1], off_policy.correct_stale
    weights = trajectory.mask * mixture.column_weights * (staleness <= off_policy.max_staleness)
    ratio = np.exp(logp - trajectory.behavior_logp) if corrected else np.ones((time, envs))
    advantage, targets = np.zeros((time, new)), np.zeros((time, new))
    for b in range(new):
        after = 0.0
        for t in reversed(range(time)):
            if not trajectory.mask[t, b]:
                targets[t, b], after = values[t, b], 0.0
                continue
            rho = min(1.0, ratio[t, b])
            # 1 - TV(mu, pi) of normal log ratios
            mean = max(math.erfc(math.sqrt(kl[t, b]) / 2), 0.75) if corrected else 1.0
            following = 0.0 if trajectory.terminated[t, b] else values[t + 1, b]
            ended = trajectory.terminated[t, b] or trajectory.truncated[t, b]
            delta = reward[t, b] + config.gamma * following - values[t, b]
            decay = 0.0 if ended else config.gamma * config.gae_lambda
            advantage[t, b] = delta + decay * after
            after = rho * delta + decay * rho / mean * after
            targets[t, b] = values[t, b] + after
    kept = advantage * scale
    advantage = np.concatenate([advantage, mixture.advantage[:, new:] / scale], 1)
    trusted = weights * np.minimum(ratio, 1.0)
    for first in range(0, envs, new):
        batch = slice(first, first + new)
        advantage[:, batch] -= np.average(advantage[:, batch], weights=trusted[:, batch])
    std = np.sqrt(np.average(advantage**2, weights=trusted))
    return weights, np.where(trusted > 0, advantage / std, 0.0), std, targets, kept


def stale_arguments():
    """What `vtrace_estimate` takes of two batches of three environments, the second used before."""
    rng, shape = np.random.default_rng(11), (7, 6)
    reward, values, ratio, terminated, truncated, mask = random_rows(12, *shape)
    logp = rng.normal(size=shape)
    stored = (np.float32(x) for x in (logp - np.log(ratio), reward))
    trajectory = Trajectory({}, None, *stored, terminated, truncated, np.float32(mask))
    staleness = np.array([1, 0, 2, 2, 1, 3], np.int32) + np.zeros(shape, np.int32)
    kept = np.float32(rng.normal(size=shape))
    mixture = Mixture(trajectory, None, None, kept, np.float32([1.2] * 3 + [0.8] * 3))
    compared = Comparison(np.float32(logp), rng.uniform(0, 0.05, shape))
    return mixture, trajectory.reward, np.float32(values[:, :3]), compared, staleness, 3.0, ratio


@pytest.mark.parametrize("corrected", [True, False])
def test_the_estimate_by_hand(corrected):
    """What was found for the second batch, when it was new, is taken for it."""
    config = AdvantageConfig(gamma=0.9, gae_lambda=0.8)
    off_policy = OffPolicyConfig(reuse=2, max_staleness=2, correct_stale=corrected)
    *arguments, ratio = stale_arguments()
    mixture, reward, values, (logp, kl), staleness, scale = arguments
    mask = mixture.trajectory.mask
    found = vtrace_estimate(*arguments, config, off_policy)
    estimate = found.estimate
    numbers = by_hand(mixture, reward, values, logp, kl, staleness, scale, config, off_policy)
    weights, advantage, std, targets, kept = numbers
    assert 0 < (weights > 0).sum() < (mask > 0).sum()
    np.testing.assert_allclose(estimate.weights, weights, rtol=1e-6)
    np.testing.assert_allclose(estimate.advantage, advantage, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimate.advantage_std, std, rtol=1e-5)
    np.testing.assert_allclose(estimate.returns, targets, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.new_advantage, kept, rtol=1e-4, atol=1e-4)
    in_surrogate = np.exp(logp - estimate.behavior_logp)
    np.testing.assert_allclose(in_surrogate, np.minimum(ratio, 1.0) if corrected else 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.ratio, np.where(mask > 0, ratio, 1.0), rtol=1e-5)
    np.testing.assert_array_equal(found.kl, np.where(mask > 0, kl, 0.0))


@pytest.mark.parametrize("name", ["reward", "values", "ratio", "terminated", "truncated", "mask", "c_mean"])
def test_a_column_where_a_matrix_belongs_is_refused(name, column):
    names = "reward", "values", "ratio", "terminated", "truncated", "mask"
    arrays = dict(zip(names, random_rows(), strict=True)) | {"c_mean": np.ones((9, 4))}
    limits = {"gamma": 0.9, "gae_lambda": 0.9, "rho_max": 1.0, "c_max": 1.0}
    vtrace(**arrays, **limits)
    with pytest.raises(ValueError, match="has shape"):
        vtrace(**arrays | {name: column(arrays[name])}, **limits)


@pytest.mark.parametrize("name", ["logp", "kl", "staleness"])
def test_what_belongs_to_other_rows_is_refused(name, column):
    mixture, reward, values, compared, staleness, scale, _ = stale_arguments()
    if name == "staleness":
        staleness = column(staleness)
    else:
        compared = compared._replace(**{name: getattr(compared, name)[:, :3]})
    with pytest.raises(ValueError, match=f"{name} has shape"):
        vtrace_estimate(mixture, reward, values, compared, staleness, scale, AdvantageConfig(), OffPolicyConfig())
