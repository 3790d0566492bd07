"""Fisher-vector products of a policy's mean KL divergence."""

import tensorflow as tf

from trpo_tf.learner.layout import Layout


def draw_rows(layout: Layout, fraction: float, seed: tf.Tensor) -> tf.Tensor | None:
    """The rows that Fisher products use, [M] int32, whole sequences; None: all.

    fraction: of the rows; 0: as `count` says. seed: [2] int32, of the draw.
    """
    sequences = -(-count(layout.rows, fraction) // layout.length)
    if sequences >= layout.sequences:
        return None
    drawn = tf.argsort(tf.random.stateless_uniform([layout.sequences], seed))[:sequences]
    return layout.rows_of_sequences(drawn)


def count(rows: int, fraction: float) -> int:
    """How many of so many rows Fisher products use; with fraction 0 a fifth of them, but 4096 at least."""
    return max(1, round(fraction * rows)) if fraction else max(min(rows, 4096), rows // 5)


def forward_product(network, distribution, theta: tf.Tensor, weights: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    """Multiplies the Fisher matrix with a vector, in Gauss-Newton form.

    F v = sum_n w_n J_n^T M_n J_n v,  J_n = d params_n / d theta,  M_n the Fisher matrix of the action
    distribution in its params.

    J v comes from forward mode, J^T from reverse mode; no second derivatives, and F is positive semi-definite by
    construction. It equals the Hessian of the mean KL(old || new) at new = old.

    Reference: Schulman et al. 2015, appendix C.1.

    Args:
      network: theta [P] -> params [N, K].
      distribution: an ActionDistribution of policy/distributions.
      theta: [P].
      weights: [N], of the rows; they sum to 1.
      vector: [P].

    Returns:
      [P].
    """
    with tf.autodiff.ForwardAccumulator(theta, vector) as accumulator, tf.GradientTape() as tape:
        tape.watch(theta)
        params = network(theta)
    weighted = weights[:, None] * distribution.fisher_product(params, accumulator.jvp(params))
    return tape.gradient(params, theta, output_gradients=tf.stop_gradient(weighted))


def reverse_product(network, distribution, theta: tf.Tensor, weights: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    """The same product as the gradient of (gradient of the mean KL(old || new)) . vector at new = old.

    For networks that forward mode cannot pass; about 1.5 times the cost. Arguments as `forward_product`.

    Reference: Schulman et al. 2015, appendix C.
    """
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            params = network(theta)
            kl = tf.reduce_sum(weights * distribution.kl(tf.stop_gradient(params), params))
        product = tf.reduce_sum(inner.gradient(kl, theta) * vector)
    return outer.gradient(product, theta)


PRODUCTS = {"forward": forward_product, "reverse": reverse_product}
