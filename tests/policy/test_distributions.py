"""Action distributions: log-probabilities by hand, Fisher matrices by Monte Carlo and Hessian, the door to the env."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS, HYBRID
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy import distributions

BOX = gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([4.0, np.inf], np.float32))


def make(space, **changes):
    return distributions.ActionDistribution(space, PolicyConfig(**changes))


def case(name, rows=1):
    """A distribution, and float64 parameters [rows, K]."""
    space, changes = ACTIONS[name]
    distribution = make(space, **changes)
    return distribution, tf.constant(np.random.default_rng(7).normal(size=(rows, distribution.size)) * 0.7)


def fisher(distribution, params):
    rows = [distribution.fisher_product(params, tf.constant(row[None]))[0] for row in np.eye(distribution.size)]
    return np.stack(rows)


@pytest.mark.parametrize("name", list(ACTIONS))
def test_fisher_equals_the_hessian_of_the_kl_in_the_parameters(name):
    distribution, params = case(name)
    with tf.GradientTape() as outer:
        outer.watch(params)
        with tf.GradientTape() as inner:
            inner.watch(params)
            kl = distribution.kl(tf.stop_gradient(params), params)
        gradient = inner.gradient(kl, params)
    hessian = outer.jacobian(gradient, params).numpy()[0, :, 0, :]
    np.testing.assert_allclose(fisher(distribution, params), hessian, atol=1e-9)


@pytest.mark.parametrize("name", list(ACTIONS))
def test_fisher_equals_monte_carlo_of_its_own_draws(name):
    """The scores of what `draw` gives: it, log_prob and fisher_product are of one distribution."""
    distribution, params = case(name)
    count = 100_000
    rows = tf.repeat(params, count, axis=0)
    actions = distribution.draw(tf.cast(rows, tf.float32), distribution.noise([count], [1, 2]))
    with tf.GradientTape() as tape:
        tape.watch(rows)
        logp = distribution.log_prob(rows, tf.cast(actions, rows.dtype))
    scores = tape.gradient(logp, rows).numpy()
    assert (np.abs(scores.mean(0)) < 5 * scores.std(0) / np.sqrt(count) + 1e-12).all()
    tangent = np.linspace(1, -1, distribution.size)
    product = distribution.fisher_product(params, tf.constant(tangent[None])).numpy()[0]
    samples = scores * (scores @ tangent)[:, None]
    error = samples.std(0) / np.sqrt(count)
    assert (np.abs(samples.mean(0) - product) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("name", list(ACTIONS))
def test_kl_and_entropy_equal_monte_carlo(name):
    distribution, params = case(name)
    other = params + 0.3 * np.sin(np.arange(distribution.size))
    count = 100_000
    rows = tf.repeat(params, count, axis=0)
    actions = tf.cast(distribution.draw(tf.cast(rows, tf.float32), distribution.noise([count], [3, 4])), rows.dtype)
    logp, theirs = (
        distribution.log_prob(rows, actions).numpy(),
        distribution.log_prob(tf.repeat(other, count, axis=0), actions),
    )
    for samples, exact in (
        (logp - theirs.numpy(), distribution.kl(params, other)),
        (-logp, distribution.entropy(params)),
    ):
        assert abs(samples.mean() - float(exact[0])) < 5 * samples.std() / np.sqrt(count) + 1e-9


@pytest.mark.parametrize("name", list(ACTIONS))
def test_stored_actions_reach_the_environment_inside_its_space(name):
    space = ACTIONS[name][0]
    distribution, params = case(name, 50)
    params = tf.cast(4 * params, tf.float32)
    noise = distribution.noise([50], [5, 6])
    for stored in (distribution.draw(params, noise), distribution.mode(params)):
        assert stored.shape == (50, distribution.action_size)
        assert stored.dtype == tf.float32
        known, usable = distribution.bound(stored)
        assert usable.numpy().all()
        np.testing.assert_array_equal(known, stored)
        ours, arrays = distribution.to_env(stored), distribution.to_env(stored.numpy(), np)
        tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, arrays)
        for row in range(50):
            one = tf.nest.map_structure(lambda x, row=row: x[row][()], arrays)
            if isinstance(space, gym.spaces.Box):
                one = one.astype(space.dtype)
            assert space.contains(one), one


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "beta"])
def test_drawing_in_numpy_equals_tensorflow(name):
    distribution, params = case(name, 50)
    params, noise = tf.cast(params, tf.float32), distribution.noise([50], [5, 6])
    assert distribution.in_numpy
    np.testing.assert_allclose(
        distribution.draw(params.numpy(), noise.numpy(), np), distribution.draw(params, noise), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", list(ACTIONS))
def test_any_numbers_are_made_actions_and_told_from_them(name):
    distribution, params = case(name, 3)
    bad = tf.constant(np.stack([np.full(distribution.action_size, x, np.float32) for x in (np.nan, np.inf, -np.inf)]))
    known, usable = distribution.bound(bad)
    assert not usable.numpy().any()
    assert np.isfinite(distribution.log_prob(params, tf.cast(known, params.dtype))).all()


@pytest.mark.parametrize("name", list(ACTIONS))
def test_the_mode_is_likelier_than_any_draw(name):
    distribution, params = case(name, 200)
    draws = distribution.draw(tf.cast(params, tf.float32), distribution.noise([200], [8, 9]))
    at_mode = distribution.log_prob(params, tf.cast(distribution.mode(params), params.dtype)).numpy()
    assert (at_mode + 1e-6 >= distribution.log_prob(params, tf.cast(draws, params.dtype)).numpy()).all()


def test_gaussian_log_prob_by_hand():
    distribution = make(BOX)
    mean, log_std, action = np.array([0.5, -1.0]), np.array([-0.5, 0.3]), np.array([1.0, 2.0])
    expected = sum(
        -0.5 * ((a - m) / np.exp(s)) ** 2 - s - 0.5 * np.log(2 * np.pi)
        for a, m, s in zip(action, mean, log_std, strict=True)
    )
    params = tf.constant(np.concatenate([mean, log_std])[None])
    np.testing.assert_allclose(distribution.log_prob(params, action[None]), [expected])
    np.testing.assert_allclose(distribution.mode(params)[0], mean)
    assert distribution.describe(params)["std"].numpy()[0].tolist() == pytest.approx(np.exp(log_std).tolist())


def test_categorical_log_prob_by_hand():
    distribution = make(gym.spaces.Discrete(3, start=-4))
    params = tf.math.log(tf.constant([[0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(distribution.log_prob(params, [[1.0]]), [np.log(0.3)], rtol=1e-6)
    assert distribution.to_env(distribution.mode(params)).numpy().tolist() == [-2]
    np.testing.assert_allclose(distribution.describe(params)["probs"], [[0.2, 0.3, 0.5]], rtol=1e-6)


def test_choices_of_unequal_sizes_by_hand():
    distribution = make(gym.spaces.MultiDiscrete([2, 3]))
    probs = np.array([[0.9, 0.1, 0.2, 0.3, 0.5]])
    params = tf.constant(np.log(probs))
    np.testing.assert_allclose(distribution.log_prob(params, [[1.0, 0.0]]), [np.log(0.1 * 0.2)])
    np.testing.assert_allclose(distribution.entropy(params), [-(probs * np.log(probs)).sum()])
    np.testing.assert_allclose(distribution.describe(params)["probs"], probs)


def test_bits_by_hand():
    distribution = make(gym.spaces.MultiBinary(2))
    params = tf.constant([[np.log(0.9 / 0.1), np.log(0.2 / 0.8)]])
    np.testing.assert_allclose(distribution.log_prob(params, [[1.0, 1.0]]), [np.log(0.9 * 0.2)])
    assert distribution.mode(params).numpy().tolist() == [[1.0, 0.0]]


def test_beta_by_hand():
    distribution = make(gym.spaces.Box(-1, 3, (1,)), action_distribution="beta")
    params = tf.constant([[np.log(np.expm1(2 - 1.0001)), np.log(np.expm1(3 - 1.0001))]])
    # Beta(2, 3): density 12 x (1 - x)^2, mode 1/3.
    np.testing.assert_allclose(distribution.log_prob(params, [[0.25]]), [np.log(12 * 0.25 * 0.75**2)], rtol=1e-6)
    np.testing.assert_allclose(distribution.to_env(distribution.mode(params)), [[-1 + 4 / 3]], rtol=1e-5)
    np.testing.assert_allclose(distribution.describe(params)["alpha"], [[2.0]], rtol=1e-6)


def test_a_squashed_action_is_tanh_of_the_stored_one_between_the_bounds():
    distribution = make(gym.spaces.Box(-1, 3, (1,)), action_distribution="squashed_gaussian")
    np.testing.assert_allclose(
        distribution.to_env(tf.constant([[0.5], [-50.0]])), [[1 + 2 * np.tanh(0.5)], [-1]], rtol=1e-6
    )


def test_a_product_is_the_sum_of_its_parts_and_its_fisher_block_diagonal():
    distribution = make(HYBRID)
    params = tf.constant(np.random.default_rng(0).normal(size=(1, distribution.size)))
    assert list(distribution.parts) == ["move_to", "grip", "tools"]
    assert distribution.structure() == {"Move to": "action_move_to", "grip": "action_grip", "tools": "action_tools"}
    sizes = [part.sampler.size for part in distribution.parts.values()]
    blocks = np.zeros((distribution.size,) * 2)
    for part, size, end in zip(distribution.parts.values(), sizes, np.cumsum(sizes), strict=True):
        own = slice(end - size, end)
        rows = [part.fisher_product(params[:, own], tf.constant(row[None]))[0] for row in np.eye(size)]
        blocks[own, own] = np.stack(rows)
    np.testing.assert_allclose(fisher(distribution, params), blocks, atol=1e-12)
    # In parts: a normal in two dimensions, one of 2, one of 2 and one of 3.
    action = np.array([[0.1, -0.2, 1.0, 0.0, 2.0]])
    mean, log_std, rest = np.split(params.numpy()[0], [2, 4])
    expected = (-0.5 * ((action[0, :2] - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum()
    for logits, chosen in zip(np.split(rest, [2, 4]), (1, 0, 2), strict=True):
        expected += logits[chosen] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(distribution.log_prob(params, action), [expected])


def test_parts_of_an_action_have_names_of_their_own():
    distribution = make(gym.spaces.Dict({"x": gym.spaces.Discrete(3), "action_x": gym.spaces.Discrete(4)}))
    assert distribution.structure() == {"action_x": "action_x", "x": "action_x_"}
    named = distribution.named(tf.constant([[3.0, 1.0]]))
    assert {name: int(value[0]) for name, value in named.items()} == {"action_x": 3, "action_x_": 1}


MASKS = {
    "discrete": [1, 0, 1, 0],
    "multi_discrete": [1, 0, 0, 1, 1, 0, 0, 1, 0],
    "dict": [0, 1, 1, 0, 1, 0, 0],
}


@pytest.mark.parametrize("name", list(MASKS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_masked_choice_has_probability_zero_and_everything_stays_finite(name, dtype):
    distribution, params = case(name, 1000)
    mask = np.repeat([MASKS[name]], 1000, 0)
    assert distribution.mask_size == len(MASKS[name])
    params = tf.constant(params.numpy().astype(dtype))
    masked = distribution.masked(params, tf.constant(mask))
    np.testing.assert_array_equal(masked, distribution.masked(params.numpy(), mask, np))
    other = distribution.masked(params + 0.5 * np.cos(np.arange(distribution.size)), tf.constant(mask))
    described = distribution.describe(masked)
    probs = np.concatenate([described[key].numpy() for key in sorted(described) if key.endswith("probs")], 1)
    assert (probs[mask == 0] == 0).all()
    assert (probs[mask == 1] > 0).all()
    for value in (distribution.kl(masked, other), distribution.entropy(masked)):
        assert np.isfinite(value).all()
    assert (distribution.kl(masked, other).numpy() > 0).all()
    tangent = tf.ones_like(masked)
    product = distribution.fisher_product(masked, tangent)
    assert np.isfinite(product).all()
    with tf.GradientTape() as tape:
        tape.watch(params)
        action = distribution.draw(tf.cast(masked, tf.float32), distribution.noise([1000], [1, 1]))
        logp = distribution.log_prob(distribution.masked(params, tf.constant(mask)), tf.cast(action, dtype))
    gradient = tape.gradient(logp, params)
    assert np.isfinite(logp).all()
    assert np.isfinite(gradient).all()
    allowed, used = np.zeros(distribution.mask_size, bool), tf.nest.flatten(distribution.to_env(action.numpy(), np))
    assert used
    samplers = list(distribution.sampler.parts.values())
    parts = iter(np.split(action.numpy(), np.cumsum([part.action_size for part in samplers])[:-1], 1))
    at = 0
    for part in samplers:
        chosen = next(parts)
        for column, size in enumerate(getattr(part, "sizes", [])):
            allowed[at + np.unique(chosen[:, column]).astype(int)] = True
            at += size
    np.testing.assert_array_equal(allowed, np.array(MASKS[name], bool))


def test_a_mask_that_leaves_nothing_counts_as_absent():
    distribution = make(gym.spaces.MultiDiscrete([2, 3]))
    params = tf.constant([[0.1, 0.2, 0.3, 0.4, 0.5]])
    masked = distribution.masked(params, tf.constant([[0, 0, 1, 0, 0]]))
    np.testing.assert_allclose(masked[0, :3], params[0, :3])
    assert (masked.numpy()[0, 3:] < -1e8).all()


def test_box_actions_are_clipped_to_their_bounds():
    distribution = make(BOX)
    actions = tf.constant([[-5.0, -1e6], [9.0, 1e6], [1.0, 0.0]])
    np.testing.assert_array_equal(distribution.to_env(actions), [[-2.0, -1e6], [4.0, 1e6], [1.0, 0.0]])


def test_rescaling_maps_minus_one_to_one_onto_finite_bounds_only():
    distribution = make(BOX, rescale_action=True)
    actions = tf.constant([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(distribution.to_env(actions), [[-2.0, -1.0], [1.0, 0.5], [4.0, 1.0], [4.0, 3.0]])


@pytest.mark.parametrize("kind", ["squashed_gaussian", "beta"])
def test_an_unbounded_box_is_refused_where_bounds_are_needed(kind):
    with pytest.raises(UsageError, match=r"unbounded; action_distribution=gaussian"):
        make(BOX, action_distribution=kind)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Box(0, 1, (2,), bool), gym.spaces.Text(3), gym.spaces.Tuple((BOX, gym.spaces.Text(3)))],
    ids=["bits", "text", "text_inside"],
)
def test_unsupported_spaces_are_named(space):
    with pytest.raises(UsageError, match=r"action space .* is not supported"):
        make(space)
