"""Trust Region Policy Optimization: one update from one trajectory.

Reference: Schulman, Levine, Moritz, Jordan, Abbeel 2015, "Trust Region Policy Optimization", section 6 and appendix C.
"""

import dataclasses
import threading
import time
from concurrent.futures import Future

import numpy as np
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import (
    advantages,
    chunks,
    conjugate_gradient,
    fisher,
    off_policy,
    radius,
    trust_region,
    value_fit,
)
from trpo_tf.learner.advantages import masked_mean, mean_weights, weighted_sum
from trpo_tf.learner.conjugate_gradient import dot
from trpo_tf.policy.policy import Policy
from trpo_tf.types import ALIGNMENT, Batch, Trajectory


def surrogate(family, params, batch: Batch, weights) -> tf.Tensor:
    """sum_n w_n ratio_n advantage_n, ratio = exp(logp - behavior_logp); maximised (equation 14). Float64 scalar."""
    ratio = tf.exp(family.log_prob(params, batch.action) - batch.behavior_logp)
    return weighted_sum(ratio * batch.advantage, weights)


def mean_kl(family, params_old, params, weights) -> tf.Tensor:
    """sum_n w_n KL(old || new)_n (equation 12: the old policy comes first), in float64. params: [N, K]."""
    return weighted_sum(family.kl(*(tf.cast(p, tf.float64) for p in (params_old, params))), weights)


def fisher_operator(network, family, theta_old, batch: Batch, fisher_rows, config: Config):
    """The Fisher matrix of the policy on `fisher_rows`, as a function v [P] -> F v [P]. Arguments as `policy_step`."""
    rows, mask = batch.obs, batch.mask
    if fisher_rows is not None:
        rows, mask = fisher_rows, tf.gather(batch.mask, fisher_rows)
    weights = tf.cast(mean_weights(mask), theta_old.dtype)

    def fvp(vector):
        def product(rows, weights):
            obs = rows if fisher_rows is None else _rows_of(batch.obs, rows)
            of_network = fisher.PRODUCTS[config.fisher_product]
            return of_network(lambda theta: network(theta, obs), family, theta_old, weights, vector)

        return chunks.add_up(product, rows, weights, config.fisher_chunk)

    return fvp


def policy_step(
    network, family, theta_old, batch: Batch, fisher_rows, max_kl, max_step, config: Config, penalty=None, half=None
):
    """Computes the new policy parameters (appendix C).

    Maximise the surrogate subject to mean KL(old || new) <= max_kl: the direction solves (F + damping I) x = grad by
    conjugate gradient, the full step is min(sqrt(2 max_kl / x.F x), max_step) x, and a line search on the true
    surrogate and KL finds how much of it to take. A pure function: no variable is read or written.

    The first length makes the KL max_kl however small the advantages are, and where they are only noise the policy
    wanders. 1 / length is the multiplier of the KL constraint; max_step bounds it from below: a unit of KL has a price.

    With a penalty C, the objective is the surrogate - C KL(old || new), the minorisation of section 3, and nothing
    bounds the KL: the full step is min(1 / C, max_step) x, where its quadratic model is largest.

    Args:
      network: (theta [P], obs [C, ...]) -> params [C, K]. family: of policy/distributions.py.
      theta_old: [P].
      batch: N rows, no field None; obs may have more.
      fisher_rows: [M] int32, the rows that Fisher products use; None for all.
      max_kl, max_step: scalars, float64; nats, and multiples of x. With a penalty, max_kl is not read.
      penalty: C, a scalar, float64, > 0; None for the constraint.
      half: [N], a mask of every other environment's rows, for "policy/unbiased_improvement"; None to leave it out.
      config: cg_iterations, cg_tolerance, cg_damping, backtrack_ratio, max_backtracks, fisher_product and fisher_chunk
        are read.

    Returns:
      theta [P], theta_old to the bit where no step was acceptable, and a dict of scalar metrics.
    """
    chunk, weights = config.fisher_chunk, mean_weights(batch.mask)
    params_old = chunks.apply(lambda obs: network(theta_old, obs), batch.obs, batch.mask.shape[0], chunk)

    def gradient(rows: Batch, weights):
        with tf.GradientTape() as tape:
            tape.watch(theta_old)
            value = surrogate(family, network(theta_old, rows.obs), rows, weights)
        return value, tape.gradient(value, theta_old)

    surrogate_old, grad = chunks.add_up(gradient, batch, weights, chunk)

    fvp = fisher_operator(network, family, theta_old, batch, fisher_rows, config)

    def damped_fvp(vector):
        return fvp(vector) + config.cg_damping * vector

    solution = conjugate_gradient.conjugate_gradient(damped_fvp, grad, config.cg_iterations, config.cg_tolerance)
    direction = solution.direction
    damped, damping = dot(direction, solution.product), config.cg_damping * dot(direction, direction)
    # x.F x is their difference, without another product, unless little is left of it but rounding.
    curvature = tf.cond(damped > 1.001 * damping, lambda: damped - damping, lambda: dot(direction, fvp(direction)))
    step_size = tf.where(curvature > 0, tf.sqrt(2.0 * max_kl / tf.where(curvature > 0, curvature, 1.0)), 0.0)
    if penalty is not None:
        max_kl, step_size = tf.constant(np.inf, tf.float64), tf.where(curvature > 0, 1.0 / penalty, 0.0)
    step_size = tf.minimum(step_size, max_step)
    full_step = tf.cast(step_size, theta_old.dtype) * direction

    def evaluate(theta):
        def part(rows, weights):
            params = network(theta, rows[0].obs)
            return surrogate(family, params, rows[0], weights), mean_kl(family, rows[1], params, weights)

        value, kl = chunks.add_up(part, (batch, params_old), weights, chunk)
        return value - surrogate_old - (0.0 if penalty is None else penalty * kl), kl

    step = trust_region.line_search(
        evaluate, theta_old, full_step, max_kl, config.backtrack_ratio, config.max_backtracks
    )
    expected = step.step_fraction * dot(grad, full_step)
    improvement = step.improvement if penalty is None else step.improvement + penalty * step.kl
    improvement_ratio = tf.where(expected > 0, improvement / tf.where(expected > 0, expected, 1.0), 0.0)
    logp_old = family.log_prob(params_old, batch.action)
    metrics = {}
    if half is not None:
        # A step looks better on the rows that chose it than it is. Gradients of two halves have independent errors, so
        # g_2 F^-1 g_1 has the mean that g F^-1 g would have without any.
        _, first = chunks.add_up(gradient, batch, mean_weights(batch.mask * half), chunk)
        _, second = chunks.add_up(gradient, batch, mean_weights(batch.mask * (1 - half)), chunk)
        other = conjugate_gradient.conjugate_gradient(damped_fvp, first, config.cg_iterations, config.cg_tolerance)
        metrics["policy/unbiased_improvement"] = step.step_fraction * step_size * dot(second, other.direction)
    return step.theta, metrics | {
        "policy/kl": step.kl,
        "policy/improvement": improvement,
        "policy/expected_improvement": expected,
        "policy/improvement_ratio": improvement_ratio,
        "policy/step_fraction": step.step_fraction,
        "policy/backtracks": step.backtracks,
        "policy/reason": step.reason,
        "policy/step_size": step_size,
        "policy/entropy": masked_mean(family.entropy(params_old), batch.mask),
        "policy/gradient_norm": tf.sqrt(dot(grad, grad)),
        "policy/max_ratio_error": tf.reduce_max(
            tf.where(batch.mask > 0, tf.abs(tf.exp(logp_old - batch.behavior_logp) - 1.0), 0.0)
        ),
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
        chunk = -(-config.fisher_chunk // config.length) * config.length  # whole sequences
        self.radius = radius.Radius(config, policy.network.size)
        weights = off_policy.reuse_weights(config.reuse, config.reuse_weights == "optimal")
        weights = weights[: config.max_staleness - config.lag + 1]
        weights /= weights.sum()
        self.replay = off_policy.Replay(len(weights))
        self._share = off_policy.radius_share(weights, config.lag)
        self._column_weights = np.repeat(weights * len(weights), config.num_envs).astype(np.float32)
        self._columns = config.num_envs * len(weights)  # of an update; the first num_envs are the newest trajectory
        self._config = dataclasses.replace(config, fisher_chunk=chunk)
        self._seed = seed
        self._fit: Future | None = None
        self._prepare, self._policy_step, self._fit_values, self._commit = (
            tf.function(function, autograph=False, jit_compile=policy.compiled)
            for function in (self._prepare, self._policy_step, self._fit_values, self._commit)
        )

    def wait(self) -> None:
        """Lets a value fit under way end; the value network and its optimiser may not be read before."""
        if self._fit is not None:
            self._fit.result()

    def update(self, trajectory: Trajectory, update: int, progress: float) -> tuple[dict[str, float | str], Future]:
        """Learns from one trajectory: values, advantages, value fit, policy step, then the normaliser.

        Args:
          trajectory: arrays [T, B, ...], made by this policy with the normaliser it has now, or with config.off_policy
            by an older one. The update works in the memory of its obs, which must stay as they are until the Future
            below is done.
          update: its number; draws are keyed by it.
          progress: share of the training done, in [0, 1]; drives the decay of the learning rate.

        Returns:
          Metrics by name, and those of the value fit once it has ended.
        """
        config = self._config
        self.wait()
        if config.off_policy:
            trajectory = self.replay.add(trajectory)
            trajectory = trajectory._replace(policy_version=np.int32(update) - trajectory.policy_version)
        else:
            trajectory = trajectory._replace(behavior_params=(), policy_version=(), advantage=())
        obs = {name: _shared(x) for name, x in trajectory.obs.items()}
        trajectory = Trajectory(obs, *tf.nest.map_structure(tf.convert_to_tensor, trajectory[1:]))
        batch, value_features, constants, advantage_std, kept, stale = self._prepare(trajectory)
        if config.off_policy:
            self.replay.settle(kept.numpy())
        if constants is not None:
            batch = batch._replace(obs={name: self._rows(x) for name, x in obs.items()})
        seed = tf.constant([self._seed, update], tf.int32)
        max_kl = tf.constant(config.max_kl * self._share**2, tf.float64)
        learning_rate = config.value_learning_rate * (1.0 - progress if config.value_learning_rate_decay else 1.0)
        self._fit = _start(
            self._timed_fit, batch, value_features, constants, seed, tf.constant(learning_rate, tf.float32)
        )
        metrics = self._policy_step(batch, constants, seed, max_kl, advantage_std, stale)
        if self.policy.normalizer.enabled.any():
            self._commit({name: obs[name] for name in self.policy.encoder.vectors}, trajectory.mask)
        if config.fisher_chunk:
            self.wait()  # beside the next trajectory, the fit would keep the observations of this one in memory
        metrics = _numbers(metrics | stale)
        metrics["policy/reason"] = trust_region.REASONS[metrics["policy/reason"]]
        metrics["cg/reason"] = conjugate_gradient.REASONS[metrics["cg/reason"]]
        return metrics, self._fit

    def _timed_fit(self, batch: Batch, value_features, constants, seed, learning_rate) -> dict[str, float]:
        start = time.perf_counter()
        metrics = _numbers(self._fit_values(batch, value_features, constants, self._order(seed), learning_rate))
        return metrics | {"time/value_fit_seconds": time.perf_counter() - start}

    def _prepare(self, trajectory: Trajectory):
        """Trajectory [T, B, ...] to Batch [N, ...], what a value network on a shared torso takes (else None), the
        normaliser's constants, the standard deviation of the advantages in those of the discounted return, the
        advantages of the new rows for when they are used again, and how far rows of older policies are from this one's.
        The trajectory's `policy_version` is its staleness here.

        The batch's obs are features, and the constants None; with fisher_chunk, where all features at once might not
        fit into memory, obs are None, for the caller to put the trajectory's there."""
        config, policy = self._config, self.policy
        time, envs = trajectory.reward.shape
        obs, constants = {name: _flat(x) for name, x in trajectory.obs.items()}, None
        if config.fisher_chunk:
            constants = policy.normalizer.constants()
        else:
            obs = policy.preprocess(obs)

        def by_chunks(function):
            rows = (time + 1) * envs
            return chunks.apply(lambda obs: function(self._features(obs, constants)), obs, rows, config.fisher_chunk)

        # A sequence of one row each, for which the states are there: as the actor went through them.
        value_features = None
        if policy.shared:
            value_features = {"vector": by_chunks(lambda features: policy.value_features(features)["vector"])}
            values = policy.values(value_features)
            value_features = {"vector": self._by_sequence(value_features["vector"])}
        else:
            values = by_chunks(policy.values)
        values = tf.reshape(values, [time + 1, envs])
        ended, new = trajectory.terminated | trajectory.truncated, slice(config.num_envs)
        self.reward_scaler.merge(trajectory.reward[:, new], ended[:, new], trajectory.mask[:, new])
        trajectory = trajectory._replace(reward=self.reward_scaler(trajectory.reward))
        kept, stale, scale = (), {}, self.reward_scaler.scale()
        if config.off_policy:
            rows = self._compared(trajectory, obs, constants)
            rows = off_policy.correct(trajectory, values[:, new], *rows, self._column_weights, scale, config)
            trajectory = trajectory._replace(mask=rows.weights, behavior_logp=rows.behavior_logp)
            standardized, advantage_std, kept, stale = rows.advantage, rows.advantage_std, rows.kept, rows.metrics
            targets = tf.pad(rows.targets, [[0, 0], [0, envs - config.num_envs]])
        else:
            flags = (trajectory.terminated, trajectory.truncated, trajectory.mask)
            advantage = advantages.generalized_advantage(
                trajectory.reward, values, *flags, config.gamma, config.gae_lambda
            )
            targets = advantage + values[:-1]
            standardized, advantage_std = advantages.standardize(advantage, trajectory.mask)
        advantage_std *= tf.cast(scale / self.reward_scaler.std(), tf.float64)
        batch = Batch(
            obs=None if constants else {name: self._by_sequence(x) for name, x in obs.items()},
            action=self._rows(trajectory.action),
            behavior_logp=self._rows(trajectory.behavior_logp),
            advantage=self._rows(standardized),
            returns=self._rows(targets),
            values=self._rows(values[:-1]),
            mask=self._rows(trajectory.mask),
            fresh=self._rows(tf.sign(trajectory.mask) * (np.arange(envs) < config.num_envs)),
            behavior_params=self._rows(trajectory.behavior_params) if config.off_policy else (),
        )
        return batch, value_features, constants, advantage_std, kept, stale

    def _compared(self, trajectory: Trajectory, obs, constants):
        """The policy of now, as the policy step computes it, on the rows of a trajectory, whose obs [>= T B, ...] are
        given by row: log-probabilities of its actions [T, B], and KL(mu || pi) [T, B] in float64."""
        family, theta, length = self.policy.family, self.policy.network.theta(), self._config.length
        columns, rows = self._columns, self._config.time_steps * self._columns
        params = chunks.apply(
            lambda obs: self.policy.params(theta, self._features(obs, constants), length),
            {name: self._by_sequence(x) for name, x in obs.items()},
            rows,
            self._config.fisher_chunk,
        )
        params = tf.reshape(params, [-1, columns, length, params.shape[-1]])
        params = tf.reshape(tf.transpose(params, [0, 2, 1, 3]), [rows, -1])
        logp = family.log_prob(params, _flat(trajectory.action))
        kl = family.kl(*(tf.cast(x, tf.float64) for x in (_flat(trajectory.behavior_params), params)))
        return tf.reshape(logp, [-1, columns]), tf.reshape(kl, [-1, columns])

    def _rows(self, x):
        """[T, B, ...], or [T+1, B, ...], in the order of a Batch."""
        if self._config.length == 1 and x.shape[0] > self._config.time_steps:
            return _flat(x)  # what is over stays, so that the memory can
        return self._by_sequence(_flat(x))

    def _by_sequence(self, x):
        """The first T B of rows [>= T B, ...], the rows of a sequence together."""
        length, envs = self._config.length, self._columns
        x = x[: self._config.time_steps * envs]
        if length == 1:
            return x
        x = tf.reshape(x, [-1, length, envs, *x.shape[1:]])
        return tf.reshape(tf.transpose(x, [0, 2, 1, *range(3, x.shape.rank)]), [-1, *x.shape[3:]])

    def _features(self, obs, constants):
        """A batch's obs as what networks take."""
        return obs if constants is None else self.policy.preprocess(obs, constants)

    def _policy_step(self, batch: Batch, constants, seed, max_kl, advantage_std, stale):
        policy, length = self.policy, self._config.length
        rows = batch.mask.shape[0]
        count = -(-_fisher_count(rows, self._config.fisher_fraction) // length)
        fisher_rows = None
        if count * length < rows:
            fisher_rows = _whole(tf.argsort(tf.random.stateless_uniform([rows // length], seed))[:count], length)
        # Advantages were divided by their std, and the gradient of the return is the surrogate's over 1 - gamma.
        max_step = self._config.max_step * advantage_std / max(1.0 - self._config.gamma, 1e-9)
        theta_old, family, chunk = policy.network.theta(), policy.family, self._config.fisher_chunk

        def network(theta, obs):
            return policy.params(theta, self._features(obs, constants), length)

        def on_new_rows(theta):
            def part(rows, weights):
                return surrogate(family, network(theta, rows.obs), rows, weights)

            return chunks.add_up(part, batch, mean_weights(batch.fresh), chunk)

        measured = self.radius.measure(theta_old, on_new_rows, advantage_std)
        growth = self.radius.growth()
        max_kl, max_step = max_kl * growth, max_step * self._share * tf.sqrt(growth)
        penalty = self.radius.penalty.value() if self.radius.priced else None
        half = None
        if self.radius.adaptive:
            half = tf.constant(np.arange(rows) // length % self._config.num_envs % 2, batch.mask.dtype)
        theta, metrics = policy_step(
            network, family, theta_old, batch, fisher_rows, max_kl, max_step, self._config, penalty, half
        )
        if stale and self._config.correct_stale:
            usable = stale["stale/effective_sample_size"] >= self._config.min_effective_sample_size
            theta = tf.where(usable, theta, theta_old)
            metrics = trust_region.refuse(metrics, ~usable)
        measured |= self.radius.follow(theta_old, metrics, max_kl, advantage_std)
        if stale:
            params = chunks.apply(lambda obs: network(theta, obs), batch.obs, rows, chunk)
            measured["stale/kl"] = mean_kl(family, batch.behavior_params, params, mean_weights(batch.mask))
        policy.network.assign(theta)
        return metrics | measured | {"policy/advantage_std": advantage_std}

    @tf.function(autograph=False)
    def _order(self, seed):
        config, length = self._config, self._config.length
        sequences = config.time_steps * config.num_envs // length
        key, size = seed + tf.constant([1, 0]), -(-config.value_minibatch_size // length)
        order = value_fit.minibatch_order(config.value_epochs, sequences, size, key)
        return _whole(order // config.num_envs * self._columns + order % config.num_envs, length)  # the new columns

    def _fit_values(self, batch: Batch, value_features, constants, order, learning_rate):
        policy, length = self.policy, self._config.length
        before = advantages.explained_variance(batch.returns, batch.values, batch.fresh)

        inputs = batch.obs if value_features is None else value_features

        def features(rows):
            return self._features(rows, constants) if value_features is None else rows

        value_fit.fit(
            policy.value_network,
            self.adam,
            lambda phi, rows: policy.value_network(phi, features(_rows_of(inputs, rows)), length=length)[:, 0],
            order,
            batch.returns,
            batch.fresh,
            learning_rate,
        )
        values = chunks.apply(
            lambda rows: policy.values(features(rows), length), inputs, batch.mask.shape[0], self._config.fisher_chunk
        )
        loss = masked_mean(0.5 * (values - batch.returns) ** 2, batch.fresh)
        return {
            "value/loss": loss,
            "value/explained_variance": before,
            "value/explained_variance_after": advantages.explained_variance(batch.returns, values, batch.fresh),
            "value/learning_rate": learning_rate,
        }

    def _commit(self, obs, mask):
        policy, new = self.policy, slice(self._config.num_envs)
        rows = {name: _flat(x[:, new]) for name, x in obs.items()}
        chunks.for_each(
            lambda rows, mask: policy.normalizer.commit(policy.encoder.vector(rows), mask),
            rows,
            tf.reshape(mask[:, new], [-1]),
            self._config.fisher_chunk,
        )


def _flat(x: tf.Tensor) -> tf.Tensor:
    """[T, B, ...] -> [T B, ...]."""
    return tf.reshape(x, [-1, *x.shape[2:]])


def _rows_of(nest, rows: tf.Tensor):
    """Rows [M] int32 of every tensor of a nest."""
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), nest)


def _whole(blocks: tf.Tensor, length: int) -> tf.Tensor:
    """The rows of sequences [..., M] -> [..., M L] int32."""
    if length == 1:
        return blocks
    rows = blocks[..., None] * length + tf.range(length)
    return tf.reshape(rows, [*blocks.shape[:-1], blocks.shape[-1] * length])


def _fisher_count(rows: int, fraction: float) -> int:
    """How many of so many rows Fisher products use."""
    return max(1, round(fraction * rows)) if fraction else max(min(rows, 4096), rows // 5)


def _shared(array: np.ndarray) -> tf.Tensor:
    """The array as a tensor, in the same memory if that is aligned; convert_to_tensor takes twice its size."""
    if array.ctypes.data % ALIGNMENT or not array.flags.writeable:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


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
