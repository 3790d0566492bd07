"""What a policy step optimises, on one batch, as functions of the policy's parameters theta [P].

ratio_n = exp(log pi_theta(a_n | s_n) - behavior_logp_n). With staleness 0, behavior_logp is that of the acting policy.
Functions may go through the batch chunk by chunk; the sums are the same to rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.learner import chunks, fisher
from trpo_tf.learner.shapes import has_shape, same_shape
from trpo_tf.learner.statistics import mean_weights, weighted_sum
from trpo_tf.types import Batch


def surrogate(distribution, params: tf.Tensor, batch: Batch, weights: tf.Tensor, group: int = 1) -> tf.Tensor:
    """sum_n w_n ratio_n advantage_n; maximised. Float64 scalar.

    In groups, the ratios of each are divided by their mean: several actions in one state, self-normalised.

    Reference: Schulman et al. 2015, equation 14; in groups equation 16.

    Args:
      distribution: an ActionDistribution.
      params: [N, K], of the candidate.
      batch: raw_action, behavior_logp and advantage are read.
      weights: [N].
      group: rows of one state, which stand together; 1: every row is by itself.
    """
    ratio = tf.exp(distribution.log_prob(params, batch.raw_action) - batch.behavior_logp)
    if group > 1:
        ratios = tf.reshape(ratio, [-1, group])
        ratio = tf.reshape(ratios / tf.reduce_mean(ratios, 1, keepdims=True), [-1])
    return weighted_sum(ratio * batch.advantage, weights)


def mean_kl(distribution, params_old: tf.Tensor, params: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_n w_n KL(old || new)_n, in nats, float64: the old policy comes first.

    Reference: Schulman et al. 2015, equation 12.

    Args:
      params_old, params: [N, K]. weights: [N].
    """
    return weighted_sum(distribution.kl(*(tf.cast(p, tf.float64) for p in (params_old, params))), weights)


class Objective(NamedTuple):
    """Surrogate, KL and Fisher products of one batch; `make_objective` makes one."""

    network: Callable[[tf.Tensor, Any], tf.Tensor]  # theta [P], features [C, ...] -> params [C, K]
    distribution: Any  # ActionDistribution
    batch: Batch
    weights: tf.Tensor  # [N] float64, of transitions in a mean; they sum to 1
    fisher_rows: tf.Tensor | None  # [M] int32, the transitions in Fisher products; None: all
    fisher_weights: tf.Tensor  # [M], theirs, in the type of theta; they sum to 1
    fisher_product_of: Callable[..., tf.Tensor]
    chunk_size: int  # transitions that the network sees at once; 0: all
    group: int = 1  # rows whose ratios are divided by their mean; divides chunk_size

    @property
    def transitions(self) -> int:
        """N."""
        return self.weights.shape[0]

    def params(self, theta: tf.Tensor) -> tf.Tensor:
        """The action distributions' parameters [N, K]."""
        return chunks.apply(
            lambda rows: self.network(theta, rows), self.batch.features, self.transitions, self.chunk_size
        )

    def surrogate(self, theta: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """The surrogate under weights [N], a scalar, float64."""

        def part(rows: Batch, weights):
            return surrogate(self.distribution, self.network(theta, rows.features), rows, weights, self.group)

        return chunks.add_up(part, self.batch, weights, self.chunk_size)

    def gradient(self, theta: tf.Tensor, weights: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The surrogate, and its gradient [P]; `weights`: [N], by default those of a mean over the batch."""

        def part(rows: Batch, weights):
            with tf.GradientTape() as tape:
                tape.watch(theta)
                params = self.network(theta, rows.features)
                value = surrogate(self.distribution, params, rows, weights, self.group)
            return value, tape.gradient(value, theta)

        weights = self.weights if weights is None else weights
        return chunks.add_up(part, self.batch, weights, self.chunk_size)

    def fisher_product(self, theta: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        """F(theta) v, [P] -> [P], of `fisher_rows`."""
        rows = self.batch.features if self.fisher_rows is None else self.fisher_rows

        def part(rows, weights):
            features = rows
            if self.fisher_rows is not None:
                features = tf.nest.map_structure(lambda x: tf.gather(x, rows), self.batch.features)
            return self.fisher_product_of(
                lambda theta: self.network(theta, features), self.distribution, theta, weights, vector
            )

        return chunks.add_up(part, rows, self.fisher_weights, self.chunk_size)

    def surrogate_and_kl(self, theta: tf.Tensor, params_old: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The surrogate, and KL(old || theta), of params_old [N, K]; scalars, float64."""

        def part(rows, weights):
            batch, old = rows
            params = self.network(theta, batch.features)
            return (
                surrogate(self.distribution, params, batch, weights, self.group),
                mean_kl(self.distribution, old, params, weights),
            )

        return chunks.add_up(part, (self.batch, params_old), self.weights, self.chunk_size)


def make_objective(
    network: Callable[[tf.Tensor, Any], tf.Tensor],
    distribution: Any,
    batch: Batch,
    fisher_rows: tf.Tensor | None = None,
    fisher_product: str = "forward",
    chunk_size: int = 0,
    group: int = 1,
) -> Objective:
    """The objective of a batch.

    Args:
      network: theta [P], features [C, ...] -> params [C, K]; every row by itself, or by sequences.
      distribution: an ActionDistribution.
      batch: N transitions.
      fisher_rows: [M] int32, the transitions that Fisher products use; None: all.
      fisher_product: "forward" or "reverse".
      chunk_size: transitions that the network sees at once; 0: all.
      group: see `surrogate`; divides N and chunk_size.

    Raises:
      ValueError: a field of the batch has another shape.
    """
    has_shape("advantage", batch.advantage, [None])
    has_shape("raw_action", batch.raw_action, [batch.advantage.shape[0], None])
    same_shape(advantage=batch.advantage, behavior_logp=batch.behavior_logp, weights=batch.weights)
    weights = batch.weights if fisher_rows is None else tf.gather(batch.weights, fisher_rows)
    return Objective(
        network,
        distribution,
        batch,
        mean_weights(batch.weights),
        fisher_rows,
        tf.cast(mean_weights(weights), batch.advantage.dtype),
        fisher.PRODUCTS[fisher_product],
        chunk_size,
        group,
    )
