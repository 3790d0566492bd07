"""How far stale transitions are from the current policy: metrics by hand, steps not taken, versions of every kind."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.learner import line_search
from trpo_tf.learner.policy_step import PolicyStep
from trpo_tf.learner.staleness import Seen, accept, diagnostics


def test_diagnostics_by_hand():
    rows = Seen(
        weights=tf.constant([1.0, 2.0, 1.0, 0.0]),
        ratio=tf.constant([1.0, 2.0, 0.5, 9.0]),
        advantage=tf.constant([1.0, -1.0, 2.0, 5.0]),
        kl=tf.constant([0.0, 0.3, 0.1, 9.0], tf.float64),
        staleness=tf.constant([0, 1, 2, 2]),
    )
    found = diagnostics(rows, 3, 9.0)
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
    rows = Seen(tf.ones(1000), ratio, zeros, tf.zeros(1000, tf.float64), tf.zeros(1000, tf.int32))
    found = [diagnostics(rows, 1, rho) for rho in (1.0, 1000.0)]
    sizes = [float(x["stale/effective_sample_size"]) for x in found]
    np.testing.assert_allclose(sizes, [1.0, 1099**2 / 1000 / (100**2 + 999)], rtol=1e-6)
    assert [float(x["stale/max_ratio"]) for x in found] == [100.0, 100.0]


def test_where_nothing_is_valid_every_number_is_zero_or_finite():
    zeros = tf.zeros(3)
    found = diagnostics(Seen(zeros, tf.ones(3) * np.nan, zeros, tf.zeros(3, tf.float64), tf.zeros(3, tf.int32)), 2, 1.0)
    assert {name: float(x) for name, x in found.items()} == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize("usable", [True, False])
def test_a_step_is_taken_or_not(usable):
    """What was found stays as it was; what was done is nothing."""
    zero = tf.constant(0.0, tf.float64)
    step = PolicyStep(*[zero] * len(PolicyStep._fields))._replace(
        theta=tf.constant([1.0, 2.0]),
        reason=tf.constant(line_search.ACCEPTED),
        **{name: tf.constant(k + 1.0, tf.float64) for k, name in enumerate(DONE)},
        max_kl_used=tf.constant(0.01, tf.float64),
        step_size=tf.constant(0.7, tf.float64),
    )
    theta_old = tf.constant([0.5, 0.25])
    found = accept(step, theta_old, tf.constant(usable))
    np.testing.assert_array_equal(found.theta, step.theta if usable else theta_old)
    assert line_search.REASONS[found.reason] == ("accepted" if usable else "stale")
    assert [float(getattr(found, name)) for name in DONE] == ([1.0, 2.0, 3.0, 4.0] if usable else [0.0] * 4)
    assert (float(found.max_kl_used), float(found.step_size)) == (0.01, 0.7)


DONE = "kl", "improvement", "expected_improvement", "step_fraction"


def test_transitions_that_are_too_stale_move_nothing_and_the_reason_says_so(make_session, stepped):
    session = make_session(reuse=2, min_effective_sample_size=0.99999)
    (first,) = stepped(session)
    before = session.policy.network.theta().numpy()
    (row,) = stepped(session)
    assert first["policy/reason"] == "accepted"
    assert row["stale/effective_sample_size"] < 0.99999
    assert (row["policy/reason"], row["policy/kl"], row["policy/step_fraction"]) == ("stale", 0.0, 0.0)
    np.testing.assert_array_equal(session.policy.network.theta(), before)


def updated(session, rollouts, updates):
    """The metrics of updates with these rollouts, and the policy's parameters after them."""
    rows = [session.learner.update(x, number, 0.0)[0] for x, number in zip(rollouts, updates, strict=True)]
    session.learner.wait()
    return rows, session.policy.network.theta().numpy()


@pytest.mark.slow
def test_transitions_beyond_max_staleness_are_as_if_they_were_masked(make_session, rolled_out):
    results = []
    for masked in (False, True):
        session = make_session(behavior_lag=2, max_staleness=2, normalize_obs=False, scale_reward=False)
        rollout = rolled_out(session)
        version = rollout.version.copy()
        version[:, :2] = 5 - 3
        version[:, 2:] = 5 - 2
        mask = rollout.trajectory.mask.copy()
        if masked:
            mask[:, :2] = 0
        rollout = rollout._replace(version=version, trajectory=rollout.trajectory._replace(mask=mask))
        results.append(updated(session, [rollout], [5]))
    (metrics,), theta = results[0]
    assert metrics["policy/reason"] == "accepted"
    assert metrics["stale/share_of_staleness_2"] == 1.0
    np.testing.assert_array_equal(theta, results[1][1])


@pytest.mark.slow
def test_uncorrected_transitions_count_as_those_of_the_current_policy(make_session, rolled_out):
    """As an update on fresh data whose behavior log-probabilities are those of the learner's policy, with the step that
    a lag of 1 leaves."""
    session = make_session(behavior_lag=1, correct_stale=False)
    rollout = rolled_out(session)
    trajectory, limits = rollout.trajectory, session.config.trust_region
    params = rollout.behavior_params + np.array([0.5, -0.5], np.float32)
    flat = params.reshape(-1, 2), trajectory.raw_action.reshape(-1, 1)
    logp = session.policy.log_prob(*flat).numpy().reshape(trajectory.mask.shape)
    other = rollout._replace(behavior_params=params, trajectory=trajectory._replace(behavior_logp=logp))
    rows, theta = updated(session, [other], [1])
    fresh = make_session(max_kl=limits.max_kl / 2, max_step=limits.max_step / np.sqrt(2))
    fresh.start()
    _, expected = updated(fresh, [rollout], [1])
    np.testing.assert_allclose(theta, expected, rtol=1e-3, atol=1e-5)
    assert rows[0]["stale/mean_ratio_error"] > 0.1
    corrected = make_session(behavior_lag=1)
    corrected.start()
    _, found = updated(corrected, [other], [1])
    assert np.abs(found - expected).max() > 1e-3


class MixedVersions:
    """A source of a session's own rollouts, whose transitions say that they are of these versions."""

    def __init__(self, source, versions):
        self._source, self._versions = source, iter(versions)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def next(self):
        return self._source.next()._replace(version=next(self._versions))


def test_every_transition_has_its_own_staleness_whatever_the_order(make_session, prepared):
    """Four updates on versions mixed by transition, a later rollout older than the one before: what is beyond
    max_staleness has no weight, the histogram is that of the others, and the reused half is an update older."""
    session, random, first = make_session(reuse=2, behavior_lag=2, max_staleness=3), np.random.default_rng(0), 5
    shape, oldest = (session.config.time_steps, 4), [3, 0, 4, 0]  # the least age of a rollout's transitions
    ages = [random.integers(low, low + 2 if low else 4, shape, np.int32) for low in oldest]
    versions = [np.int32(first + u) - age for u, age in enumerate(ages)]
    session.start()
    session.update, session.source = first, MixedVersions(session.source, versions)
    calls = prepared(session)
    for u in range(4):
        row = dict(session.step())
        trajectory, _, (_, staleness, *_), _ = calls[u].given
        earlier = versions[u - 1] if u else versions[0]
        expected = first + u - np.concatenate([versions[u], earlier], 1)
        np.testing.assert_array_equal(staleness, expected)
        weights = trajectory.mask.numpy() * (expected <= 3)
        if not u:
            assert not weights[:, 4:].any()
        np.testing.assert_array_equal(tf.reshape(calls[u].made.batch.weights, expected.shape), weights)
        np.testing.assert_array_equal(calls[u].made.value_batch.mask, (weights * (np.arange(8) < 4)).ravel())
        shares = [row[f"stale/share_of_staleness_{k}"] for k in range(4)]
        counted = [weights[expected == k].sum() / max(weights.sum(), 1) for k in range(4)]
        np.testing.assert_allclose(shares, counted, atol=1e-6)
        assert all(np.isfinite(x) for x in row.values() if isinstance(x, float))
    assert sum(share > 0.05 for share in counted) == 4, "else versions are not mixed"
