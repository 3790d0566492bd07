"""The step rules by the names that --algorithm has for them."""

from trpo_tf.learner.natural_gradient import NaturalGradient
from trpo_tf.learner.policy_gradient import PolicyGradient
from trpo_tf.learner.step_rule import TrustRegion

RULES = {"trpo": TrustRegion, "npg": NaturalGradient, "vpg": PolicyGradient}
