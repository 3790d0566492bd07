"""The adaptive radius and the penalty coefficient: scripted sequences give exact numbers."""

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.mdp import categorical, softmax
from trpo_tf.config import Config, EnvironmentConfig, RadiusConfig, TrustRegionConfig, make_config
from trpo_tf.errors import UsageError
from trpo_tf.learner import line_search, radius, step_rule
from trpo_tf.learner.objective import make_objective
from trpo_tf.learner.policy_step import PolicyStep, policy_step
from trpo_tf.learner.step_limit import Constraint
from trpo_tf.types import Batch


def change(gains, predicted, kl=0.01, max_kl=0.01, low=1e-4, high=0.1, start=0.01):
    """The factor of the radius after these updates, weighted equally."""
    both = np.array([gains, predicted])
    numbers = (tf.constant(x, tf.float64) for x in (max_kl, start, both.sum(1), both @ both.T, kl))
    return float(radius.adapted(*numbers, low, high)) / max_kl


@pytest.mark.parametrize(
    ("gain", "predicted", "kl", "expected"),
    [
        (0.2, 1.0, 0.01, 1 / 1.05),  # short of a quarter
        (-1.0, 1.0, 0.01, 1 / 1.05),
        (0.3, 1.0, 0.01, 1.0),  # between the two
        (0.7, 1.0, 0.01, 1.0),
        (0.8, 1.0, 0.01, 1.05),
        (0.8, 1.0, 0.004, 1.0),  # the step had no use for more
        (0.2, -1.0, 0.01, 1.05),  # the prediction is an estimate, and this one was wrong
        (-0.2, -1.0, 0.01, 1.0),
        (-0.5, -1.0, 0.01, 1 / 1.05),
        (0.2, 1.0, 0.004, 1 / 1.05),
        (0.0, 0.0, 0.01, 1.0),
    ],
)
def test_one_change_of_the_radius(gain, predicted, kl, expected):
    np.testing.assert_allclose(change([gain] * 9, [predicted] * 9, kl), expected, rtol=1e-12)


def test_the_radius_is_kept_where_what_decides_is_within_two_standard_errors():
    """Errors of +-x around a mean d from its threshold: 16 of them are two standard errors away at x^2 = 3 d^2, and two
    never are enough. The thresholds are a quarter of the prediction, 1, to shrink, and 0 to grow."""
    for mean, distance, factor in ((-0.25, 0.5, 1 / 1.05), (1.0, 1.0, 1.05)):
        for error, expected in ((0.95, factor), (1.05, 1.0)):
            x = error * np.sqrt(3) * distance
            found = change(mean + x * np.array([1, -1] * 8), [1.0] * 16)
            assert found == pytest.approx(expected, rel=1e-12), (mean, error)
        assert change([mean] * 2, [1.0] * 2) == 1.0


def test_without_evidence_the_radius_goes_back_to_the_start():
    for start in (0.005, 0.02):
        expected = np.exp(0.95 * np.log(0.01) + 0.05 * np.log(start))
        np.testing.assert_allclose(0.01 * change([0.5] * 9, [1.0] * 9, start=start), expected, rtol=1e-12)


def test_noise_does_not_shrink_the_radius():
    """Gains and predictions of mean 0."""
    rng, smallest, adapted = np.random.default_rng(0), [], tf.function(radius.adapted)
    for _ in range(10):
        kl, sums, squares = tf.constant(0.01, tf.float64), np.zeros(2), np.zeros([2, 2])
        path = []
        for new in rng.normal(size=[300, 2]):
            sums, squares = 0.9 * sums + new, 0.9**2 * squares + np.outer(new, new)
            kl = adapted(kl, 0.01, tf.constant(sums), tf.constant(squares), kl, 1e-4, 0.1)
            path.append(float(kl))
        smallest.append(min(path))
        assert np.median(path) == pytest.approx(0.01, rel=0.2)
    assert np.median(smallest) > 0.003


def test_the_radius_stays_within_its_bounds():
    assert change([0.0] * 64, [1.0] * 64, low=0.0096) == pytest.approx(0.96)
    assert change([1.0] * 9, [1.0] * 9, high=0.0104) == pytest.approx(1.04)


@pytest.mark.parametrize(
    ("kl", "limited", "failed", "expected"),
    [
        (0.016, True, False, 6.0),
        (0.016, False, False, 6.0),
        (0.014, True, False, 3.0),
        (0.007, True, False, 3.0),
        (0.006, True, False, 1.5),
        (0.006, False, False, 3.0),  # max_step or the line search made the step short, not the penalty
        (0.0, False, True, 6.0),
    ],
)
def test_one_change_of_the_penalty_coefficient(kl, limited, failed, expected):
    numbers = (tf.constant(x, tf.float64) for x in (3.0, kl, 0.01))
    assert float(radius.adapted_penalty(*numbers, limited, failed)) == expected


def test_the_penalty_coefficient_stays_within_its_bounds():
    low = high = tf.constant(1.0, tf.float64)
    for _ in range(50):
        low = radius.adapted_penalty(low, 0.0, 0.01, True, False)
        high = radius.adapted_penalty(high, 1.0, 0.01, True, False)
    assert (float(low), float(high)) == (1e-3, 1e6)


def step_of(kl, reason=line_search.ACCEPTED, fraction=1.0, size=1.0):
    """A policy step."""
    zero = tf.constant(0.0, tf.float64)
    numbers = {"kl": kl, "step_fraction": fraction, "step_size": size}
    return PolicyStep(*[zero] * len(PolicyStep._fields))._replace(
        reason=tf.constant(reason), **{name: tf.constant(x, tf.float64) for name, x in numbers.items()}
    )


def test_a_scripted_sequence_of_steps_gives_exact_radii():
    """Surrogates are linear, theta[0] per step, so that what a step gained is what the script says."""
    state = radius.AdaptiveRadius(RadiusConfig(), 0.01, 1)
    script = [
        # predicted gain, gain, KL (0: no step was taken; 0.004: under half of the radius), radius / start
        *[(1.0, 0.9, 0.01, 1.0)] * 4,
        (1.0, 0.9, 0.01, 1.05),
        (1.0, 3.0, 0.0, 1.05),
        (1.0, 0.9, 0.01, 1.1025),
        (1.0, 0.9, 0.004, 1.0971),
        *[(1.0, 0.4, 0.01, x) for x in (1.152, 1.1439, 1.1362)],
        *[(1.0, -3.0, 0.01, x) for x in (1.129, 1.1221, 1.1157, 1.1096, 1.1039, 1.0513, 1.0012, 0.9536)],
    ]
    sums, squares = np.zeros(2), np.zeros([2, 2])
    expected, found = 0.01, []
    theta = np.float32(0.0)
    assert float(state.measure(tf.constant([theta]), lambda x: tf.cast(x[0], tf.float64), 7.0)["radius/max_kl"]) == 0.01
    for predicted, gain, kl, _ in script:
        limit, unit = tf.constant(0.01, tf.float64), tf.constant(2.0, tf.float64)
        state.follow(tf.constant([theta]), step_of(kl), tf.constant(predicted, tf.float64), limit, unit)
        theta = np.float32(theta + gain)
        metrics = state.measure(tf.constant([theta]), lambda x: tf.cast(x[0], tf.float64), unit)
        new = 2 * np.array([gain, predicted]) * (kl > 0)
        sums, squares = 0.9 * sums + new, 0.9**2 * squares + np.outer(new, new)
        (total, of_predicted), error = sums, {a: 2 * np.sqrt([1, -a] @ squares @ [1, -a]) for a in (0, 0.25)}
        if kl and total - 0.25 * of_predicted < -error[0.25]:
            expected /= 1.05
        elif kl > 0.005 and total > max(error[0], 0.75 * of_predicted):
            expected *= 1.05
        elif kl:
            expected = expected**0.95 * 0.01**0.05
        np.testing.assert_allclose(metrics["radius/max_kl"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["radius/measured"], total, rtol=1e-5)
        np.testing.assert_allclose(metrics["radius/promised"], of_predicted, rtol=1e-5)
        np.testing.assert_allclose(state.factor(), expected / 0.01, rtol=1e-6)
        found.append(round(expected / 0.01, 4))
    assert found == [by_hand for *_, by_hand in script]


@pytest.mark.parametrize("wrong", ["gain", "predicted"])
def test_what_is_not_finite_is_left_out(wrong):
    state, one = radius.AdaptiveRadius(RadiusConfig(), 0.01, 1), tf.constant(1.0, tf.float64)
    bad = tf.constant(np.nan, tf.float64)
    state.follow(tf.zeros([1]), step_of(0.01), bad if wrong == "predicted" else one, tf.constant(0.01, tf.float64), one)
    metrics = state.measure(tf.ones([1]), lambda x: bad if wrong == "gain" else tf.cast(x[0], tf.float64), one)
    found = [float(metrics[f"radius/{name}"]) for name in ("max_kl", "measured", "promised")]
    assert found == ([0.01, 0.0, 0.0] if wrong == "gain" else [pytest.approx(0.01), 1.0, 0.0])


@pytest.mark.parametrize("max_step", [0.01, 1e9])
def test_steps_are_as_long_as_the_radius_allows(make_session, rolled_out, max_step):
    """A quarter of it, in KL, makes them half as long, whatever bounds them; what they use of it is counted in KL of a
    single fresh batch, of which two used again have (2 / 3)^2."""
    sizes, session = [], make_session(radius="adaptive", reuse=2, max_step=max_step)
    adaptive, max_kl = session.learner.step_rule.radius, session.config.trust_region.max_kl
    rollout, saved = rolled_out(session), session.checkpoint(source=False)
    for factor in (1.0, 0.25):
        session.restore(saved, source=False)
        adaptive.max_kl.assign(factor * max_kl)
        row, _ = session.learner.update(rollout, 0, 0.0)
        assert row["radius/max_kl"] == factor * max_kl
        np.testing.assert_allclose(adaptive.last_kl, row["policy/kl"] * 9 / 4, rtol=1e-6)
        assert (row["policy/max_kl_used"] == pytest.approx(factor * max_kl * 4 / 9)) == (max_step == 1e9)
        assert (row["policy/kl"] > 0.9 * row["radius/max_kl"] * 4 / 9) == (max_step == 1e9)
        sizes.append(row["policy/step_size"])
    np.testing.assert_allclose(sizes[1], sizes[0] / 2, rtol=1e-6)


def test_what_a_step_gained_is_measured_on_the_transitions_after_it(make_session, stepped, prepared):
    """Minus the surrogate of the policy before, with the advantages of the policy now, over the newest transitions."""
    session = make_session(radius="adaptive", reuse=2, min_effective_sample_size=0.0)
    calls, policy = prepared(session), session.policy
    first, second = stepped(session, 2)
    made = calls[1].made
    batch, unit, new = made.batch, float(made.advantage_std), np.asarray(made.value_batch.mask) > 0
    assert 0 < new.sum() <= 64 < len(new)

    def surrogate(theta):
        params = policy.params(theta, batch.features)
        ratio = np.exp(policy.distribution.log_prob(params, batch.raw_action).numpy() - batch.behavior_logp.numpy())
        return (ratio * batch.advantage.numpy())[new].mean()

    gained = (surrogate(calls[1].theta) - surrogate(calls[0].theta)) * unit
    predicted = first["policy/unbiased_improvement"] * float(calls[0].made.advantage_std)
    assert predicted != 0
    np.testing.assert_allclose(second["radius/measured"], gained, rtol=1e-3)
    np.testing.assert_allclose(second["radius/promised"], predicted, rtol=1e-6)


def test_the_predicted_gain_is_that_of_two_halves_by_dense_algebra():
    """g_2 (F + damping)^-1 g_1 times the step's length, gradients and Fisher matrix of a softmax written out."""
    rng, damping = np.random.default_rng(0), 0.01
    features, actions, advantage = rng.normal(size=(40, 2)), rng.integers(3, size=40), rng.normal(size=40)
    mask, half = (rng.random(40) < 0.8).astype(float), np.arange(40) % 2.0
    theta = rng.normal(size=6)
    probs = softmax(features @ theta.reshape(2, 3))
    jacobian = np.einsum("nf,nak->nafk", features, probs[:, :, None] * (np.eye(3) - probs[:, None])).reshape(40, 3, 6)
    score = np.einsum("nf,nk->nfk", features, np.eye(3)[actions] - probs).reshape(40, 6)

    def mean(values, weights):
        return np.tensordot(weights / weights.sum(), values, 1)

    dense = mean(np.einsum("nap,naq,na->npq", jacobian, jacobian, 1 / probs), mask) + damping * np.eye(6)
    first, second = (mean(score * advantage[:, None], mask * h) for h in (half, 1 - half))
    batch = Batch(
        features=tf.constant(features),
        raw_action=tf.constant(actions[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(probs[np.arange(40), actions])),
        advantage=tf.constant(advantage),
        weights=tf.constant(mask),
    )
    config = TrustRegionConfig(cg_damping=damping, cg_iterations=20, cg_tolerance=1e-24)
    objective = make_objective(lambda theta, x: x @ tf.reshape(theta, [2, 3]), categorical(3), batch)
    limit = Constraint(tf.constant(0.01, tf.float64), tf.constant(np.inf, tf.float64))
    step = policy_step(objective, limit, tf.constant(theta), config)
    length = float(step.step_fraction * step.step_size)
    assert length > 0
    expected = length * second @ np.linalg.solve(dense, first)
    found = radius.predicted_gain(objective, tf.constant(theta), step, tf.constant(half), config)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kl", "reason", "fraction", "size", "expected"),
    [
        (0.016, line_search.ACCEPTED, 1.0, 0.25, 8.0),  # KL above the band
        (0.006, line_search.ACCEPTED, 1.0, 0.25, 2.0),  # below it, and nothing but the penalty made the step short
        (0.006, line_search.ACCEPTED, 0.8, 0.25, 4.0),  # the line search did
        (0.006, line_search.ACCEPTED, 1.0, 0.2, 4.0),  # max_step did
        (0.0, line_search.IMPROVEMENT, 0.0, 0.25, 8.0),
        (0.0, line_search.NOT_FINITE, 0.0, 0.25, 8.0),
        (0.0, line_search.NO_DIRECTION, 0.0, 0.0, 4.0),
        (0.0, line_search.STALE, 0.0, 0.25, 4.0),
    ],
)
def test_what_a_step_does_to_the_penalty_coefficient(kl, reason, fraction, size, expected):
    coefficient = radius.PenaltyCoefficient()
    assert float(coefficient.penalty) == 1.0
    coefficient.penalty.assign(4.0)
    metrics = coefficient.follow(step_of(kl, reason, fraction, size), tf.constant(0.01, tf.float64))
    assert (float(metrics["radius/penalty"]), float(coefficient.penalty)) == (4.0, expected)


def test_the_penalty_coefficient_follows_the_divergence(make_session, stepped):
    rows = stepped(make_session(objective="penalty", max_kl=0.02), 12)
    late = [row["policy/kl"] for row in rows[6:] if row["policy/reason"] == "accepted"]
    assert 0.02 / 4 < np.mean(late) < 0.02 * 4
    assert rows[0]["radius/penalty"] == 1.0
    assert all(row["policy/improvement"] > 0 for row in rows if row["policy/reason"] == "accepted")


def test_radius_and_penalty_coefficient_are_in_the_checkpoint(make_session, stepped):
    first, other = (make_session(radius="adaptive", objective="penalty", reuse=2) for _ in range(2))
    stepped(first, 3)
    other.restore(first.checkpoint(), source=False)
    variables = {x.name: x.numpy() for x in first.learner.step_rule.variables}
    assert len(variables) == 7
    assert np.abs(variables["radius/sums:0"]).min() > 0
    for variable in other.learner.step_rule.variables:
        np.testing.assert_array_equal(variable, variables[variable.name])


def test_the_penalty_coefficient_does_not_fall_while_max_step_makes_steps_short(make_session, stepped):
    rows = stepped(make_session(objective="penalty", max_step=1e-6), 3)
    assert [row["radius/penalty"] for row in rows] == [1.0, 1.0, 1.0]


def test_the_start_of_an_adaptive_radius_is_within_its_bounds():
    with pytest.raises(UsageError, match=r"min_kl=0\.5: must be <= max_kl_bound"):
        RadiusConfig(radius="adaptive", min_kl=0.5)
    with pytest.raises(UsageError, match=r"max_kl=0\.2: with radius=adaptive between"):
        make_config(env="x", radius="adaptive", max_kl=0.2)


def test_an_environment_is_in_one_half_in_every_batch_of_a_mixture(make_session, stepped, monkeypatch):
    """Of 3 environments, column 0 of the newest batch and 3 of the older one are the same."""
    session, halves = make_session(num_envs=3, reuse=2, radius="adaptive"), []

    def record(objective, theta_old, step, half, config):
        halves.append(tf.get_static_value(half))
        return radius.predicted_gain(objective, theta_old, step, half, config)

    monkeypatch.setattr(step_rule, "predicted_gain", record)
    stepped(session)
    np.testing.assert_array_equal(halves[0][:6], [0, 1, 0, 0, 1, 0])


def test_halves_need_two_environments():
    with pytest.raises(UsageError, match="num_envs=1: radius=adaptive"):
        Config(environment=EnvironmentConfig(env="x", num_envs=1), radius=RadiusConfig(radius="adaptive"))
