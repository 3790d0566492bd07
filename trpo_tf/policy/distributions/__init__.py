"""Action distributions: one class each, and their product over the parts of an action space.

A class is called with parameters [N, K] and returns a TFP distribution over raw actions [N, A], which are float32
whatever they are in the environment. It is made of its sampler (acting/samplers.py), which knows the sizes and draws;
besides that it knows
  fisher_product  F(params) @ tangent for each sample, F the Fisher information in the parameters
  noise           the random numbers that a draw takes
  draw            from parameters and noise to raw actions
  bound           from any numbers to raw actions, and which samples were some already
  describe        the parameters by name, for the `distribution` signature
Functions with an argument xp take and return arrays with xp=np.
"""

from trpo_tf.acting.bounds import Bounds
from trpo_tf.policy.distributions.bernoulli import Bernoulli
from trpo_tf.policy.distributions.beta import Beta
from trpo_tf.policy.distributions.categorical import Categorical
from trpo_tf.policy.distributions.gaussian import DiagonalGaussian
from trpo_tf.policy.distributions.product import ActionDistribution, Parameters

__all__ = ["ActionDistribution", "Bernoulli", "Beta", "Bounds", "Categorical", "DiagonalGaussian", "Parameters"]
