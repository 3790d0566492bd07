"""A finite MDP, exact linear algebra: the identities and bounds that the surrogate stands on."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.learner.mdp import Mdp, categorical, draw, policies, softmax
from trpo_tf.config import TrustRegionConfig
from trpo_tf.learner import reuse
from trpo_tf.learner.objective import make_objective, surrogate
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.step_limit import Penalty
from trpo_tf.types import Batch

S, A, GAMMA = 5, 3, 0.9


def two_policies(seed):
    return softmax(np.random.default_rng(seed + 10).normal(size=(2, S, A)))


def test_expected_return_is_the_old_one_plus_discounted_advantages():
    for seed in range(5):
        mdp, (old, new) = Mdp(seed, S, A, GAMMA), two_policies(seed)
        _, advantage, _, eta_old = mdp.solve(old)
        _, _, rho_new, eta_new = mdp.solve(new)
        # Equation 1, E over trajectories of the new policy of sum_t gamma^t A_old(s_t, a_t), summed over time:
        state, total = mdp.start.copy(), 0.0
        p = np.einsum("sa,sat->st", new, mdp.p)
        for t in range(400):
            total += GAMMA**t * state @ (new * advantage).sum(-1)
            state = state @ p
        np.testing.assert_allclose(eta_new, eta_old + total, atol=1e-10)
        # Equation 2, the same over discounted visitation frequencies:
        np.testing.assert_allclose(eta_new, eta_old + rho_new @ (new * advantage).sum(-1), atol=1e-10)


def exact_surrogate(mdp, theta, behavior, advantage):
    """Our surrogate of softmax logits theta [S, A] on rows that hold every (s, a) with its exact weight."""
    batch = mdp.every_row(behavior, advantage)
    return surrogate(categorical(A), tf.gather(theta, batch.features), batch, batch.weights)


def test_surrogate_gradient_at_theta_old_is_the_policy_gradient():
    for seed in range(3):
        mdp, theta_old = Mdp(seed, S, A, GAMMA), np.random.default_rng(seed).normal(size=(S, A))
        theta, old = tf.constant(theta_old), softmax(theta_old)
        _, advantage, rho, _ = mdp.solve(old)
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = exact_surrogate(mdp, theta, old, advantage)
        gradient = tf.convert_to_tensor(tape.gradient(value, theta)).numpy()
        np.testing.assert_allclose(float(value), 0.0, atol=1e-12)
        numeric, step = np.zeros((S, A)), 1e-6
        for index in np.ndindex(S, A):
            shift = np.zeros((S, A))
            shift[index] = step
            up, down = (mdp.solve(softmax(theta_old + sign * shift))[3] for sign in (1, -1))
            numeric[index] = (up - down) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
        # and in closed form: d eta / d theta[s, a] = rho(s) pi(a | s) A(s, a)
        np.testing.assert_allclose(gradient, rho[:, None] * old * advantage, atol=1e-12)


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_the_surrogate_of_rows_of_older_policies_is_the_exact_one_in_value_and_gradient(lag):
    """Rows of mu estimate sum_s d_mu(s) sum_a new(a | s) A_pi(s, a); its ratio is new / mu, not new / pi."""
    mdp, (pi, mu) = Mdp(1, S, A, GAMMA), policies(2, lag, S, A)
    _, advantage, _, _ = mdp.solve(pi)
    rho = mdp.solve(mu)[2]
    visited, rng, rows = rho / rho.sum(), np.random.default_rng(3), 200_000
    states = draw(np.tile(visited, (rows, 1)), rng)
    actions = draw(mu[states], rng)
    theta = tf.constant(np.log(pi) + 0.3 * rng.normal(size=pi.shape))
    new = softmax(theta.numpy())
    batch = Batch(
        features=(),
        raw_action=tf.constant(actions[:, None], tf.float32),
        behavior_logp=tf.constant(np.log(mu[states, actions])),
        advantage=tf.constant(advantage[states, actions]),
        weights=(),
    )
    with tf.GradientTape() as tape:
        tape.watch(theta)
        value = surrogate(
            categorical(A), tf.gather(theta, states), batch, tf.fill([rows], tf.constant(1 / rows, tf.float64))
        )
    gradient = tf.convert_to_tensor(tape.gradient(value, theta)).numpy()
    gain = (new / mu * advantage)[states, actions]
    expected = visited @ (new * advantage).sum(1)
    assert abs(float(value) - expected) < 3 * gain.std() / np.sqrt(rows)
    assert abs((new / pi * advantage)[states, actions].mean() - expected) > 3 * gain.std() / np.sqrt(rows), "measures"
    # d/d theta[s, k] = d_mu(s) new(k | s) (A(s, k) - sum_a new(a | s) A(s, a))
    centered = advantage - (new * advantage).sum(1, keepdims=True)
    exact = visited[:, None] * new * centered
    for s, k in np.ndindex(S, A):
        per_row = (states == s) * gain * ((actions == k) - new[s, k])
        assert abs(gradient[s, k] - exact[s, k]) < 3 * per_row.std() / np.sqrt(rows)


def distance(policy, other, states):
    """Mean over states, by their weights, of the total variation distance."""
    return states @ (0.5 * np.abs(policy - other).sum(1))


def wandering(seed, count):
    """An MDP, a new policy and the last `count` ones, the current first, and the largest distance of neighbours in any
    state."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(size=(S, A))]
    for _ in range(count):
        logits.append(logits[-1] + 0.05 * rng.normal(size=(S, A)))
    new, *past = (softmax(x) for x in reversed(logits))
    step = max(distance(a, b, one) for a, b in itertools.pairwise([new, *past]) for one in np.eye(S))
    return Mdp(seed, S, A, GAMMA), new, past, step


def test_the_improvement_bound_holds_for_mixtures_of_older_policies():
    """eta(new) - eta(pi) >= sum_i w_i (L_i - 2 gamma C / (1 - gamma)^2 E TV(new, mu_i)), E over states of mu_i.

    Of rows that lag by k with steps s, C TV is at most 2 max|A| s^2 (1 + k): that of a fresh batch and longer steps."""
    slack = []
    for seed, count, optimal in itertools.product(range(40), (1, 2, 4), (False, True)):
        weights = reuse.reuse_weights(count, optimal)
        mdp, new, past, step = wandering(seed, len(weights))
        _, advantage, _, eta = mdp.solve(past[0])
        worst = np.abs((new * advantage).sum(1)).max()
        bound = 0.0
        for lag, (weight, mu) in enumerate(zip(weights, past, strict=True)):
            longer = step / reuse.length_factor([1.0], lag)
            visited = (1 - GAMMA) * mdp.solve(mu)[2]
            bound += weight * float(exact_surrogate(mdp, tf.constant(np.log(new)), mu, advantage))
            bound -= weight * 2 * GAMMA * worst / (1 - GAMMA) ** 2 * distance(new, mu, visited)
            assert worst * distance(new, mu, visited) <= 2 * np.abs(advantage).max() * longer**2 + 1e-12
        gained = mdp.solve(new)[3] - eta
        assert gained >= bound
        slack.append(gained - bound)
    assert min(slack) < 0.1, "else the bound says nothing"


@pytest.mark.parametrize("optimal", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_improvement_bound_holds_with_advantages_of_when_rows_were_new(count, optimal):
    """Those of mu_i: with f_i(p)(s) = sum_a p(a | s) A_mu_i(s, a), eta(new) - eta(pi) >= sum_i w_i (L_i(new) - L_i(pi)
    - 2 gamma / (1 - gamma)^2 (max|f_i(new) - f_i(pi)| E_mu_i TV(new, mu_i) + max|f_i(pi)| E_pi TV(new, pi)))."""
    slack = []
    for seed in range(40):
        weights = reuse.reuse_weights(count, optimal)
        mdp, new, past, step = wandering(seed, len(weights))
        pi, bound, classic = past[0], 0.0, 0.0
        _, _, rho, eta = mdp.solve(pi)
        gained, moved = mdp.solve(new)[3] - eta, distance(new, pi, (1 - GAMMA) * rho)
        for i, (weight, mu) in enumerate(zip(weights, past, strict=True)):
            _, advantage, rho, _ = mdp.solve(mu)
            gain = np.subtract(*(exact_surrogate(mdp, tf.constant(np.log(p)), mu, advantage) for p in (new, pi)))
            after, before = ((p * advantage).sum(1) for p in (new, pi))
            away = distance(new, mu, (1 - GAMMA) * rho)
            penalty = np.abs(after - before).max() * away + np.abs(before).max() * moved
            bound += weight * (gain - 2 * GAMMA / (1 - GAMMA) ** 2 * penalty)
            worst = 2 * (2 * i + 1) * step**2 * np.abs(advantage).max()
            assert penalty <= worst + 1e-12
            classic += weight * (gain - 2 * GAMMA / (1 - GAMMA) ** 2 * worst)
        assert gained >= bound >= classic - 1e-12
        slack.append(gained - bound)
    assert min(slack) < 0.1, "else the bound says nothing"


@pytest.mark.parametrize("optimal", [False, True])
def test_shorter_steps_are_short_enough_for_advantages_of_when_rows_were_new(optimal):
    """The penalty is s^2 sum_i w_i (2 i + 1) there, and s_1^2 with one batch."""
    for count in range(1, 20):
        weights = reuse.reuse_weights(count, optimal)
        factor = reuse.length_factor(weights)
        assert factor**2 * (weights * (2 * np.arange(len(weights)) + 1)).sum() <= 1 + 1e-12


def test_shorter_steps_keep_the_penalty_of_a_mixture_within_that_of_one_batch():
    """Steps of length_factor of total variation s each: the mixture's mean distance is at most s."""
    for seed, count, optimal in itertools.product(range(20), (1, 2, 3, 5), (False, True)):
        weights, s = reuse.reuse_weights(count, optimal), 0.05
        step, rng = s * reuse.length_factor(weights), np.random.default_rng(seed)
        path = [softmax(rng.normal(size=(S, A)))]
        for _ in weights:
            shift = rng.normal(size=(S, A))
            shift -= shift.mean(1, keepdims=True)
            shift *= 2 * step / np.abs(shift).sum(1, keepdims=True)
            path.append(path[-1] + shift)
        states = rng.dirichlet(np.ones(S))
        total = sum(w * distance(path[-1], mu, states) for w, mu in zip(weights, path[-2::-1], strict=True))
        assert total <= s + 1e-12


STATES, FEATURES, ACTIONS = 4, 2, 3


@tf.function(autograph=False)
def lower_bound_step(theta, batch, penalty):
    """One policy step on softmax logits that are linear in a state's features, theta [FEATURES ACTIONS]."""
    config = TrustRegionConfig(cg_damping=1e-9, cg_iterations=8, cg_tolerance=1e-20)
    objective = make_objective(
        lambda theta, features: features @ tf.reshape(theta, [FEATURES, ACTIONS]), categorical(ACTIONS), batch
    )
    return policy_step(objective, Penalty(penalty, tf.constant(np.inf, tf.float64)), theta, config)


def test_steps_on_the_lower_bound_never_lower_the_return():
    """Section 3: policy iteration by the penalty improves monotonically; by a ten thousandth of it, it does not.

    C = 4 eps gamma / (1 - gamma)^2 is the coefficient of the largest KL of a state. The KL of a state is at most the
    mean KL over its weight, so C / min weight is a coefficient of the mean. States share parameters, so that they are
    in conflict.
    """
    fell, moved = {1.0: 0, 1e-4: 0}, 0
    for seed, scale in itertools.product(range(30), fell):
        mdp, rng = Mdp(seed, STATES, ACTIONS, 0.9), np.random.default_rng(seed)
        features, theta = rng.normal(size=(STATES, FEATURES)), rng.normal(size=FEATURES * ACTIONS)

        def solve(theta, mdp=mdp, features=features):
            pi = softmax(features @ theta.reshape(FEATURES, ACTIONS))
            return pi, *mdp.solve(pi)

        pi, _, advantage, rho, eta = solve(theta)
        for _ in range(8):
            coefficient = 4 * np.abs(advantage).max() * mdp.gamma / (1 - mdp.gamma) ** 2
            # policy_step divides weights by their sum: its surrogate is (1 - gamma) of the one in theorem 1.
            penalty = scale * coefficient * (1 - mdp.gamma) / (rho / rho.sum()).min()
            batch = mdp.every_row(pi, advantage)
            batch = batch._replace(features=tf.gather(tf.constant(features), batch.features))
            theta = lower_bound_step(tf.constant(theta), batch, tf.constant(penalty)).theta.numpy()
            before = eta
            pi, _, advantage, rho, eta = solve(theta)
            fell[scale] += eta < before - 1e-12
            moved += scale == 1.0 and eta > before
    assert fell[1.0] == 0
    assert moved > 100
    assert fell[1e-4] > 0, "else this measures nothing"
