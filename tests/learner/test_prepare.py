"""From a rollout to a batch: which policy ratios are of, what is reused, and the units of advantages."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import prepare
from trpo_tf.learner.estimate.gae import generalized_advantage
from trpo_tf.learner.reuse import length_factor, reuse_weights


def test_where_every_transition_is_fresh_nothing_of_older_ones_is_computed(make_session, stepped, monkeypatch):
    monkeypatch.setattr(prepare, "vtrace_estimate", None)
    monkeypatch.setattr(prepare.Preparation, "_compare", None)
    (row,) = stepped(make_session())
    assert row["policy/reason"] == "accepted"
    assert not [name for name in row if name.startswith(("stale/", "radius/"))]


def test_what_values_explain_is_of_the_new_transitions(make_session, stepped, prepared):
    """In the second of two updates; what is logged is from before the fit."""
    session = make_session(reuse=2)
    calls = prepared(session)
    *_, row = stepped(session, 2)
    time, envs = session.config.time_steps, 4
    batch = calls[1].made.value_batch
    returns, values, new = (np.reshape(x, [time, 2, envs]) for x in (batch.returns, batch.values, batch.mask))
    mask = np.reshape(calls[1].made.batch.weights, [time, 2, envs])
    np.testing.assert_array_equal(new > 0, (mask > 0) & (np.arange(2) == 0)[:, None])
    of_new, of_all = (1 - np.var((returns - values)[rows]) / np.var(returns[rows]) for rows in (new > 0, mask > 0))
    assert abs(of_new - of_all) > 1e-3, "else this measures nothing"
    assert row["value/explained_variance"] == pytest.approx(of_new, abs=1e-4)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_fourth_update_with_optimal_weights(make_session, stepped, prepared, lag):
    """Its weights, its ratios by the policy of now, what it has from when transitions were new, how far it goes; and
    that the normaliser has each transition once."""
    settings = {"gamma": 0.9, "max_kl": 1.0, "max_step": 0.05, "vtrace_rho": 1.0, "min_effective_sample_size": 0.0}
    session = make_session(reuse=2, reuse_weights="optimal", behavior_lag=lag, **settings)
    calls, policy = prepared(session), session.policy
    *_, row = stepped(session, 4)
    trajectory, _, stale = tf.nest.map_structure(np.asarray, calls[-1].given[:3])
    behavior_params, staleness, kept, _ = stale
    _, made, theta = calls[-1]
    batch, fit = made.batch, made.value_batch
    weights = reuse_weights(2, optimal=True)
    assert len(weights) == 3
    masks = [call.given[0].mask.numpy()[:, :4] for call in calls]
    assert sum(map(np.sum, masks)) < 4 * masks[0].size, "else this measures nothing"
    for moments in (policy.normalizer.moments, session.learner.reward_scaler.moments):
        assert float(moments.count) == sum(map(np.sum, masks))
    factor = length_factor(weights, lag)
    np.testing.assert_allclose(row["policy/step_size"], 0.05 * row["policy/advantage_std"] / 0.1 * factor, rtol=1e-5)

    mask = batch.weights.numpy()
    expected = np.concatenate([w * x for w, x in zip(weights, masks[:0:-1], strict=True)], 1).ravel()
    np.testing.assert_allclose(mask / mask.sum(), expected / expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(fit.mask, np.where(np.arange(12) < 4, trajectory.mask, 0.0).ravel())
    shares = [row[f"stale/share_of_staleness_{k}"] for k in range(3 + lag)]
    assert [x > 0 for x in shares] == [False] * lag + [True] * 3
    of_each = [mask[staleness.ravel() == k].sum() / mask.sum() for k in range(3 + lag)]
    np.testing.assert_allclose(shares, of_each, atol=1e-5)

    before, after = (policy.params(x, batch.features) for x in (theta, policy.network.theta()))
    logits = (np.float64(x).reshape(-1, 2) for x in (behavior_params, before, after))
    mu, pi, new = (np.exp(x) / np.exp(x).sum(1)[:, None] for x in logits)
    for name, probs in (("stale/kl_behavior_old", pi), ("stale/kl", new)):
        np.testing.assert_allclose(row[name], np.average((mu * np.log(mu / probs)).sum(1), weights=mask), rtol=1e-3)
    assert abs(row["stale/kl"] / row["stale/kl_behavior_old"] - 1) > 0.01, "else this measures nothing"
    taken = np.arange(len(mask)), trajectory.raw_action.ravel().astype(int)
    assert row["stale/max_ratio"] == pytest.approx((pi / mu)[taken][mask > 0].max(), rel=1e-3)
    assert row["stale/max_ratio"] > 1.05
    before_step = pi[taken] / np.exp(batch.behavior_logp.numpy())
    np.testing.assert_allclose(before_step[mask > 0], np.minimum((pi / mu)[taken], 1.0)[mask > 0], rtol=1e-4)
    for k in (1, 2):
        then = calls[-1 - k].made.stale.new_advantage
        np.testing.assert_array_equal(kept[:, 4 * k : 4 * k + 4], then)
        assert np.ptp(then) > 0
    if not lag:  # the advantage of a new transition is its target less its value, kept in units of the reward
        scale = float(session.learner.reward_scaler.scale())
        assert abs(scale - 1) > 0.1
        gain = np.reshape(fit.returns - fit.values, [-1, 12])[:, :4] * scale
        found = np.where(trajectory.mask[:, :4] > 0, made.stale.new_advantage - gain, 0.0)
        np.testing.assert_allclose(found, 0.0, atol=1e-4)


@pytest.mark.slow
def test_with_a_recurrent_core_the_ratio_is_that_of_the_unrolled_policy(make_session, stepped):
    """Not corrected, pi is its own behavior policy, so the ratio is 1 before the step, in sequences too."""
    settings = {"env": "Pendulum-v1", "network": "gru", "sequence_length": 4, "chunk_size": 20}
    rows = stepped(make_session(reuse=2, correct_stale=False, **settings), 3)
    assert rows[-1]["stale/mean_ratio_error"] > 1e-3
    assert max(row["policy/max_ratio_error"] for row in rows) < 1e-4


@pytest.mark.parametrize("scale_reward", [True, False])
def test_max_step_counts_natural_gradients_of_the_return_in_its_deviations(make_session, rolled_out, scale_reward):
    session = make_session(max_step=1e-5, gamma=0.9, scale_reward=scale_reward)
    config, learner, policy = session.config, session.learner, session.policy
    rollout = rolled_out(session)
    trajectory = rollout.trajectory
    obs = {name: x.reshape(-1, x.shape[-1]) for name, x in trajectory.obs.items()}
    values = policy.values(policy.preprocess(obs))
    metrics, _ = learner.update(rollout, 0, 0.0)
    std = float(learner.reward_scaler.std())
    assert abs(std - 1) > 0.1, "else units make no difference"
    reward = tf.constant(trajectory.reward / (std if scale_reward else 1.0), tf.float32)
    flags = (trajectory.terminated, trajectory.truncated, trajectory.mask)
    numbers = reward, tf.reshape(values, [-1, 4]), *flags, 0.9, config.advantage.gae_lambda
    advantage = generalized_advantage(*numbers).numpy()[trajectory.mask > 0]
    assert 0 < len(advantage) <= config.time_steps * 4
    unit = 1.0 if scale_reward else std
    np.testing.assert_allclose(metrics["policy/step_size"], 1e-5 * advantage.std() / unit / 0.1, rtol=1e-4)
    assert metrics["policy/kl"] < 1e-4
    learner.wait()
