"""Graphs that distributions were traced in are freed with their functions."""

import gc
import weakref

import pytest
import tensorflow as tf

from tests.spaces_table import ACTIONS
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.distributions import ActionDistribution


@pytest.mark.parametrize("name", ["box", "discrete", "multi_binary", "beta", "squashed", "dict"])
def test_no_distribution_keeps_the_graph_that_it_was_traced_in(name):
    space, settings = ACTIONS[name]
    distribution = ActionDistribution(space, PolicyConfig(**settings))

    def everything(params, raw_action):
        numbers = distribution.log_prob(params, raw_action) + distribution.entropy(params)
        return numbers + distribution.kl(params, params), distribution.mode(params)

    specs = (tf.TensorSpec([3, size], tf.float32) for size in (distribution.size, distribution.action_size))
    function = tf.function(everything, autograph=False).get_concrete_function(*specs)
    graph = weakref.ref(function.graph)
    del function
    gc.collect()
    assert graph() is None
