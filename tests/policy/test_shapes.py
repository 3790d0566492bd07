"""Shapes at the borders: what would broadcast is refused when a function is traced, and named."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config import PolicyConfig
from trpo_tf.policy import distributions
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.shapes import check

BOX = gym.spaces.Box(-1, 1, (3,))
N, A, K = 7, 3, 6


@pytest.fixture(scope="module")
def distribution():
    return distributions.ActionDistribution(BOX, PolicyConfig())


def ones(*shape):
    return tf.ones(shape)


WRONG = [
    ("log_prob", (ones(N, K), ones(N, 1)), r"log_prob: raw_action has shape \[7, 1\]; \[7, 3\] is needed"),
    ("log_prob", (ones(N, K), ones(1, A)), r"raw_action has shape \[1, 3\]; \[7, 3\]"),
    ("log_prob", (ones(N, K), ones(A)), r"raw_action has shape \[3\]; \[7, 3\]"),
    ("log_prob", (ones(N, 2), ones(N, A)), r"params has shape \[7, 2\]; \[N, 6\]"),
    ("log_prob", (ones(1, K), ones(N, A)), r"raw_action has shape \[7, 3\]; \[1, 3\]"),
    ("kl", (ones(N, K), ones(N, 1)), r"kl: new has shape \[7, 1\]; \[7, 6\]"),
    ("kl", (ones(N, 2), ones(N, K)), r"kl: old has shape \[7, 2\]; \[N, 6\]"),
    ("kl", (ones(N, K), ones(1, K)), r"new has shape \[1, 6\]; \[7, 6\]"),
    ("fisher_product", (ones(N, K), ones(N, 1)), r"fisher_product: tangent has shape \[7, 1\]; \[7, 6\]"),
    ("fisher_product", (ones(N, K), ones(K)), r"tangent has shape \[6\]; \[7, 6\]"),
    ("fisher_product", (ones(N, 1), ones(N, K)), r"params has shape \[7, 1\]; \[N, 6\]"),
    ("entropy", (ones(N, 8),), r"entropy: params has shape \[7, 8\]; \[N, 6\]"),
    ("mode", (ones(N, 8),), r"mode: params has shape \[7, 8\]"),
    ("draw", (ones(N, K), ones(N, 1)), r"draw: noise has shape \[7, 1\]; \[7, 3\]"),
    ("bound", (ones(N, 1),), r"bound: raw_action has shape \[7, 1\]; \[N, 3\]"),
]


@pytest.mark.parametrize(("function", "given", "message"), WRONG)
@pytest.mark.parametrize("traced", [False, True])
def test_what_would_broadcast_is_refused(distribution, function, given, message, traced):
    call = getattr(distribution, function)
    call = tf.function(call, autograph=False).get_concrete_function if traced else call
    with pytest.raises(ValueError, match=message):
        call(*given)


def test_a_mask_of_another_width_is_refused():
    distribution = distributions.ActionDistribution(gym.spaces.Discrete(4), PolicyConfig())
    with pytest.raises(ValueError, match=r"masked: mask has shape \[7, 1\]; \[7, 4\]"):
        distribution.masked(ones(N, 4), ones(N, 1))


@pytest.mark.parametrize("sizes", [(None, None), (N, None), (None, N)])
def test_unknown_numbers_of_samples_pass_and_known_widths_are_still_checked(distribution, sizes):
    params, action, narrow = (tf.TensorSpec([n, width]) for n, width in zip((*sizes, sizes[1]), (K, A, 1), strict=True))
    function = tf.function(distribution.log_prob, autograph=False)
    np.testing.assert_allclose(
        function.get_concrete_function(params, action)(ones(N, K), ones(N, A)),
        distribution.log_prob(ones(N, K), ones(N, A)),
    )
    with pytest.raises(ValueError, match=r"raw_action has shape \[.*, 1\]"):
        function.get_concrete_function(params, narrow)


def test_an_unknown_rank_passes():
    check("f", {"x": (tf.keras.Input(()), []), "y": (np.zeros((2, 3)), [3])})
    tf.function(lambda x: check("f", {"x": (x, [3])}), autograph=False).get_concrete_function(tf.TensorSpec(None))


def test_one_number_of_samples_for_all_of_them():
    check("f", {"a": (np.zeros((4, 2)), [2]), "b": (np.zeros(4), []), "c": (np.zeros((4, 1, 5)), [1, 5])})
    with pytest.raises(ValueError, match=r"f: b has shape \[4, 1\]; \[4\] is needed"):
        check("f", {"a": (np.zeros((4, 2)), [2]), "b": (np.zeros((4, 1)), [])})
    with pytest.raises(ValueError, match=r"c has shape \[3\]; \[4\]"):
        check("f", {"a": (np.zeros((4, 2)), [2]), "c": (np.zeros(3), [])})


def make(**changes):
    space = gym.spaces.Dict({"x": BOX, "action_mask": gym.spaces.MultiBinary(4)})
    return Policy(space, gym.spaces.Discrete(4), PolicyConfig(hidden_sizes=(5,), **changes), 0)


def features(**changes):
    given = {"vector": ones(N, 3), "action_mask": ones(N, 4), "is_first": ones(N), "policy_state": ones(N, 5)}
    return given | {"value_state": ones(N, 5)} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_first": ones(N, 1)}, r"is_first has shape \[7, 1\]; \[[N7]\] is needed"),
        ({"vector": ones(N, 1)}, r"vector has shape \[7, 1\]; \[7, 3\] is needed"),
        ({"policy_state": ones(1, 5)}, r"policy_state has shape \[1, 5\]; \[7, 5\] is needed"),
        ({"action_mask": ones(N, 1)}, r"action_mask has shape \[7, 1\]; \[7, 4\] is needed"),
    ],
)
def test_features_of_another_shape_are_refused(changes, message):
    policy = make(network="gru")
    theta = policy.network.theta()
    assert policy.params(theta, features()).shape == (N, 4)
    assert policy.values(features()).shape == (N,)
    for where, call in (("params", lambda x: policy.params(theta, x)), ("values", policy.values)):
        with pytest.raises(ValueError, match=f"{where}: {message}"):
            call(features(**changes))


def test_parameters_of_another_size_are_refused():
    policy = make()
    theta = policy.network.theta()
    for wrong in (theta[:, None], theta[1:]):
        with pytest.raises(
            ValueError, match=rf"theta has shape \[{', '.join(map(str, wrong.shape))}\]; \[{len(theta)}\]"
        ):
            policy.params(wrong, features())


def test_a_shared_torso_takes_what_the_policy_makes_of_features():
    policy = make(share_torso=True)
    assert policy.values(policy.value_features(features())).shape == (N,)
    with pytest.raises(ValueError, match=r"values: vector has shape \[7, 3\]; \[N, 5\]"):
        policy.values(features())
