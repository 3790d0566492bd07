"""Trust Region Policy Optimization: one update from one trajectory.

Reference: Schulman, Levine, Moritz, Jordan, Abbeel 2015, "Trust Region Policy Optimization", section 6 and appendix C.
"""

import threading
import time
from concurrent.futures import Future

import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.config import Config
from trpo_tf.learner import advantages, conjugate_gradient, fisher, trust_region, value_fit
from trpo_tf.learner.advantages import masked_mean
from trpo_tf.learner.conjugate_gradient import dot
from trpo_tf.policy.policy import Policy
from trpo_tf.types import Batch, Trajectory


def surrogate(family, params, batch: Batch) -> tf.Tensor:
    """Masked mean of ratio * advantage, ratio = exp(logp - behavior_logp); maximised (equation 14). Float64 scalar."""
    ratio = tf.exp(family(params).log_prob(batch.action) - batch.behavior_logp)
    return masked_mean(ratio * batch.advantage, batch.mask)


def mean_kl(family, params_old, params, mask) -> tf.Tensor:
    """Masked mean of KL(old || new) (equation 12: the old policy comes first), in float64. params: [N, K]."""
    old, new = (family(tf.cast(p, tf.float64)) for p in (params_old, params))
    return masked_mean(tfp.distributions.kl_divergence(old, new), mask)


def policy_step(network, family, theta_old, batch: Batch, fisher_rows, max_kl, max_step, config: Config):
    """Computes the new policy parameters (appendix C).

    Maximise the surrogate subject to mean KL(old || new) <= max_kl: the direction solves (F + damping I) x = grad by
    conjugate gradient, the full step is min(sqrt(2 max_kl / x.F x), max_step) x, and a line search on the true
    surrogate and KL finds how much of it to take. A pure function: no variable is read or written.

    The first length makes the KL max_kl however small the advantages are, and where they are only noise the policy
    wanders. 1 / length is the multiplier of the KL constraint; max_step bounds it from below: a unit of KL has a price.

    Args:
      network: (theta [P], features [N, D]) -> params [N, K]. family: of policy/distributions.py.
      theta_old: [P].
      batch: N rows.
      fisher_rows: [M] int32, the rows that Fisher products use.
      max_kl, max_step: scalars, float64; nats, and multiples of x.
      config: cg_iterations, cg_tolerance, cg_damping, backtrack_ratio, max_backtracks, fisher_product are read.

    Returns:
      theta [P], theta_old to the bit where no step was acceptable, and a dict of scalar metrics.
    """
    with tf.GradientTape() as tape:
        tape.watch(theta_old)
        params_old = network(theta_old, batch.obs)
        surrogate_old = surrogate(family, params_old, batch)
    grad = tape.gradient(surrogate_old, theta_old)

    fisher_obs, weights = tf.gather(batch.obs, fisher_rows), tf.gather(batch.mask, fisher_rows)
    weights = tf.cast(weights / tf.maximum(tf.reduce_sum(weights), 1.0), theta_old.dtype)

    def fvp(vector):
        product = fisher.PRODUCTS[config.fisher_product]
        return product(lambda theta: network(theta, fisher_obs), family, theta_old, weights, vector)

    solution = conjugate_gradient.conjugate_gradient(
        lambda v: fvp(v) + config.cg_damping * v, grad, config.cg_iterations, config.cg_tolerance
    )
    direction = solution.direction
    curvature = dot(direction, fvp(direction))
    step_size = tf.where(curvature > 0, tf.sqrt(2.0 * max_kl / tf.where(curvature > 0, curvature, 1.0)), 0.0)
    step_size = tf.minimum(step_size, max_step)
    full_step = tf.cast(step_size, theta_old.dtype) * direction

    def evaluate(theta):
        params = network(theta, batch.obs)
        return surrogate(family, params, batch) - surrogate_old, mean_kl(family, params_old, params, batch.mask)

    step = trust_region.line_search(
        evaluate, theta_old, full_step, max_kl, config.backtrack_ratio, config.max_backtracks
    )
    expected = step.step_fraction * dot(grad, full_step)
    improvement_ratio = tf.where(expected > 0, step.improvement / tf.where(expected > 0, expected, 1.0), 0.0)
    logp_old = family(params_old).log_prob(batch.action)
    return step.theta, {
        "policy/kl": step.kl,
        "policy/improvement": step.improvement,
        "policy/expected_improvement": expected,
        "policy/improvement_ratio": improvement_ratio,
        "policy/step_fraction": step.step_fraction,
        "policy/backtracks": step.backtracks,
        "policy/reason": step.reason,
        "policy/step_size": step_size,
        "policy/entropy": masked_mean(family(params_old).entropy(), batch.mask),
        "policy/gradient_norm": tf.sqrt(dot(grad, grad)),
        "policy/max_ratio_error": tf.reduce_max(batch.mask * tf.abs(tf.exp(logp_old - batch.behavior_logp) - 1.0)),
        "cg/residual": solution.residual,
        "cg/iterations": solution.iterations,
        "cg/reason": solution.reason,
    }


class TRPO(tf.Module):
    """The learner: a thin shell of state around `policy_step` and the value fit.

    Neither needs the other, and acting needs the policy only: the value fit runs in a thread of its own, beside the
    policy step and the trajectory that follows, until the next update or `wait`.

    Args:
      policy: updated in place.
      config: its advantages, trust region and value fit groups are read.
      seed: key of every draw, beside the update's number; below 2^31 - 1.
    """

    def __init__(self, policy: Policy, config: Config, seed: int):
        super().__init__(name="trpo")
        self.policy = policy
        self.reward_scaler = advantages.RewardScaler(config.num_envs, config.gamma, config.scale_reward)
        self.adam = value_fit.AdamState(policy.value_network.size)
        self._config = config
        self._seed = seed
        self._fit: Future | None = None

    def wait(self) -> None:
        """Lets a value fit under way end; the value network and its optimiser may not be read before."""
        if self._fit is not None:
            self._fit.result()

    def update(self, trajectory: Trajectory, update: int, progress: float) -> tuple[dict[str, float | str], Future]:
        """Learns from one trajectory: values, advantages, value fit, policy step, then the normaliser.

        Args:
          trajectory: [T, B, ...], made by this policy with the normaliser it has now.
          update: its number; draws are keyed by it.
          progress: share of the training done, in [0, 1]; drives the decay of the learning rate.

        Returns:
          Metrics by name, and those of the value fit once it has ended.
        """
        config = self._config
        self.wait()
        batch, features, advantage_std = self._prepare(trajectory)
        seed = tf.constant([self._seed, update], tf.int32)
        max_kl = tf.constant(config.max_kl, tf.float64)
        learning_rate = config.value_learning_rate * (1.0 - progress if config.value_learning_rate_decay else 1.0)
        self._fit = _start(self._timed_fit, batch, seed, tf.constant(learning_rate, tf.float32))
        metrics = self._policy_step(batch, seed, max_kl, advantage_std)
        self._commit(features, batch.mask)
        metrics = _numbers(metrics)
        metrics["policy/reason"] = trust_region.REASONS[metrics["policy/reason"]]
        metrics["cg/reason"] = conjugate_gradient.REASONS[metrics["cg/reason"]]
        return metrics, self._fit

    def _timed_fit(self, batch: Batch, seed, learning_rate) -> dict[str, float]:
        start = time.perf_counter()
        metrics = _numbers(self._fit_values(batch, self._order(seed), learning_rate))
        return metrics | {"time/value_fit_seconds": time.perf_counter() - start}

    @tf.function(autograph=False, jit_compile=True)
    def _prepare(self, trajectory: Trajectory):
        """Trajectory [T, B, ...] to Batch [N, ...], the raw features [N, D] that the normaliser will merge, and the
        standard deviation of the advantages in those of the discounted return."""
        config, policy = self._config, self.policy
        time, envs = trajectory.reward.shape
        raw = policy.encoder(tf.reshape(trajectory.obs, [(time + 1) * envs, *trajectory.obs.shape[2:]]))
        features = policy.normalizer(raw)
        values = tf.reshape(policy.values(features), [time + 1, envs])
        ended = trajectory.terminated | trajectory.truncated
        reward = self.reward_scaler(trajectory.reward, ended, trajectory.mask)
        flags = (trajectory.terminated, trajectory.truncated, trajectory.mask)
        advantage = advantages.generalized_advantage(reward, values, *flags, config.gamma, config.gae_lambda)
        standardized, advantage_std = advantages.standardize(advantage, trajectory.mask)
        advantage_std *= tf.cast(self.reward_scaler.scale() / self.reward_scaler.std(), tf.float64)
        rows = time * envs

        def flat(x):
            return tf.reshape(x, [rows, *x.shape[2:]])

        batch = Batch(
            obs=features[:rows],
            action=flat(trajectory.action),
            behavior_logp=flat(trajectory.behavior_logp),
            advantage=flat(standardized),
            returns=flat(advantage + values[:-1]),
            values=flat(values[:-1]),
            mask=flat(trajectory.mask),
        )
        return batch, raw[:rows], advantage_std

    @tf.function(autograph=False, jit_compile=True)
    def _policy_step(self, batch: Batch, seed, max_kl, advantage_std):
        network = self.policy.network
        rows = batch.mask.shape[0]
        count = max(1, round(self._config.fisher_fraction * rows))
        fisher_rows = tf.range(rows)
        if count < rows:
            fisher_rows = tf.argsort(tf.random.stateless_uniform([rows], seed))[:count]
        # Advantages were divided by their std, and the gradient of the return is the surrogate's over 1 - gamma.
        max_step = self._config.max_step * advantage_std / max(1.0 - self._config.gamma, 1e-9)
        theta, metrics = policy_step(
            network, self.policy.family, network.theta(), batch, fisher_rows, max_kl, max_step, self._config
        )
        network.assign(theta)
        return metrics | {"policy/advantage_std": advantage_std}

    @tf.function(autograph=False)
    def _order(self, seed):
        config = self._config
        rows = config.time_steps * config.num_envs
        key = seed + tf.constant([1, 0])
        return value_fit.minibatch_order(config.value_epochs, rows, config.value_minibatch_size, key)

    @tf.function(autograph=False, jit_compile=True)
    def _fit_values(self, batch: Batch, order, learning_rate):
        network = self.policy.value_network
        before = advantages.explained_variance(batch.returns, batch.values, batch.mask)
        value_fit.fit(network, self.adam, batch.obs, batch.returns, batch.mask, order, learning_rate)
        values = self.policy.values(batch.obs)
        loss = masked_mean(0.5 * (values - batch.returns) ** 2, batch.mask)
        return {
            "value/loss": loss,
            "value/explained_variance": before,
            "value/explained_variance_after": advantages.explained_variance(batch.returns, values, batch.mask),
            "value/learning_rate": learning_rate,
        }

    @tf.function(autograph=False, jit_compile=True)
    def _commit(self, raw, mask):
        self.policy.normalizer.commit(raw, mask)


def _start(function, *args) -> Future:
    """Calls a function in a thread of its own; not in a pool's, which takes no work once the main thread has ended."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=function.__name__).start()
    return future


def _numbers(metrics: dict[str, tf.Tensor]) -> dict[str, float]:
    return {name: value.numpy().item() for name, value in metrics.items()}
