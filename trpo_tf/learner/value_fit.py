"""The value network's regression: minibatch Adam as one compiled loop."""

import tensorflow as tf

from trpo_tf.learner.shapes import has_shape, same_shape

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class AdamState(tf.Module):
    """First and second moments [P] and the step count of Adam."""

    def __init__(self, size: int, name: str = "adam"):
        super().__init__(name=name)
        self.m = tf.Variable(tf.zeros([size]), trainable=False, name=f"{name}/m")
        self.v = tf.Variable(tf.zeros([size]), trainable=False, name=f"{name}/v")
        self.steps = tf.Variable(0, trainable=False, name=f"{name}/steps")


def adam(theta, grad, m, v, step, learning_rate):
    """One step of Adam, bias-corrected.

    Reference: Kingma and Ba 2015, algorithm 1.

    Args:
      theta, grad, m, v: [P]. step: scalar int32, 1 at the first step. learning_rate: scalar.

    Returns:
      theta, m, v.
    """
    m = _BETA_1 * m + (1 - _BETA_1) * grad
    v = _BETA_2 * v + (1 - _BETA_2) * grad**2
    t = tf.cast(step, theta.dtype)
    rate = learning_rate * tf.sqrt(1 - _BETA_2**t) / (1 - _BETA_1**t)
    return theta - rate * m / (tf.sqrt(v) + _EPSILON), m, v


def squared_error(values, returns, mask) -> tf.Tensor:
    """Masked mean of (V(s) - returns)^2 / 2 over rows. All [N].

    Raises:
      ValueError: their shapes differ.
    """
    same_shape(values=values, returns=returns, mask=mask)
    error = tf.where(mask > 0, values - returns, 0.0)
    return 0.5 * tf.reduce_sum(error**2) / tf.maximum(tf.reduce_sum(mask), 1.0)


def fit(network, state: AdamState, values, order, returns, mask, learning_rate) -> None:
    """Fits the network to the returns; the Keras variables and the optimiser's state are updated.

    A minibatch without a valid row changes nothing and does not count as a step.

    Args:
      network: a FlatNetwork.
      values: (its parameters [P], rows [M] int32) -> its predictions for them [M].
      order: [S, M] int32, the rows of each of S minibatches.
      returns, mask: [N].
      learning_rate: scalar.

    Raises:
      ValueError: returns, mask or predictions have another shape.
    """
    has_shape("returns", returns, [None])
    same_shape(returns=returns, mask=mask)

    def step(k, phi, m, v, count):
        rows = order[k]
        weights = tf.gather(mask, rows)
        with tf.GradientTape() as tape:
            tape.watch(phi)
            loss = squared_error(values(phi, rows), tf.gather(returns, rows), weights)
        stepped = (*adam(phi, tape.gradient(loss, phi), m, v, count + 1, learning_rate), count + 1)
        used = tf.reduce_any(weights > 0)
        return (k + 1, *(tf.where(used, new, old) for new, old in zip(stepped, (phi, m, v, count), strict=True)))

    start = (tf.constant(0), network.theta(), state.m.value(), state.v.value(), state.steps.value())
    _, phi, m, v, count = tf.while_loop(lambda k, *_: k < order.shape[0], step, start)
    network.assign(phi)
    state.m.assign(m)
    state.v.assign(v)
    state.steps.assign(count)


def minibatch_order(epochs: int, rows: int, minibatch_size: int, seed: tf.Tensor) -> tf.Tensor:
    """Row numbers of every minibatch, a fresh permutation each epoch.

    Args:
      epochs, rows, minibatch_size: >= 0, >= 1, >= 1; a minibatch holds at most `rows`, and what does not fill one is
        left out of that epoch.
      seed: [2] int32.

    Returns:
      [epochs * (rows // minibatch_size), minibatch_size] int32.
    """
    size = min(minibatch_size, rows)
    shuffled = tf.argsort(tf.random.stateless_uniform([epochs, rows], seed), axis=-1)
    return tf.reshape(shuffled[:, : rows // size * size], [-1, size])
