"""The learner: a thin shell of state around `policy_step` and the value fit."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf import faults, state
from trpo_tf.config import Config
from trpo_tf.errors import ActingDiffersError
from trpo_tf.learner import chunks, conjugate_gradient, fisher, line_search, value_fit
from trpo_tf.learner.layout import Layout
from trpo_tf.learner.objective import Objective, make_objective
from trpo_tf.learner.prepare import Preparation, Prepared, StaleInput
from trpo_tf.learner.reuse import Mixture, Replay, batch_weights, length_factor
from trpo_tf.learner.reward_scaler import RewardScaler
from trpo_tf.learner.rules import RULES
from trpo_tf.learner.statistics import explained_variance, masked_mean
from trpo_tf.learner.step_rule import StepRule
from trpo_tf.learner.transaction import Undo, if_finite
from trpo_tf.messages import warn
from trpo_tf.policy.policy import Policy
from trpo_tf.types import ALIGNMENT, Rollout, ValueBatch

_LARGEST_RATIO_ERROR = 0.05  # of fresh transitions; rounding makes 1e-4
_PARTS = {  # metrics that are 0 where a part was not committed, and what the part is
    "policy/committed": "policy and step rule:",
    "value/committed": "value network and Adam:",
    "rewards/committed": "moments of the rewards:",
    "normalizer/committed": "moments of the observations:",
}
_REASONS = {"policy/reason": line_search.REASONS, "cg/reason": conjugate_gradient.REASONS}  # metrics that are words


class Learner(tf.Module):
    """What learns from rollouts, an update at a time, and the state that it keeps between updates.

    The policy step and the value fit do not need each other, and acting needs the policy only. So the value fit runs in
    a thread of its own, beside the policy step and the rollout that follows, until the next update or `wait`.

    An update is a transaction. Where it raises, everything is as before it. Where a part of it is not finite, that part
    is as before it, its metric */committed is 0, and a line says so once. `per_update`: what one learns from, in words.

    Args:
      policy: updated in place.
      config: of the run.
      seed: key of every draw, beside the update's number; below 2^31 - 1.
      step_rule: by default that of the configured algorithm.
    """

    def __init__(self, policy: Policy, config: Config, seed: int, step_rule: StepRule | None = None):
        super().__init__(name="learner")
        self.policy, self._config, self._seed = policy, config, seed
        envs, length = config.environment.num_envs, config.policy.length
        self.per_update = f"{config.time_steps * envs} transitions"
        self.reward_scaler = RewardScaler(config.advantage.scale_reward)
        self.adam = value_fit.AdamState(policy.value_network.size)
        weights = batch_weights(config.off_policy)
        self.replay = Replay(weights) if config.stale else None
        self._layout = Layout(config.time_steps, envs * len(weights), length)  # the first num_envs columns are new
        self._batch_layout, self._group, together = self._layout, 1, length  # rows of the policy step
        if config.sampling.vine:
            together, every = policy.tried(config.sampling.vine_actions)
            self._batch_layout = Layout(config.sampling.vine_states * together, 1, 1)
            self._group = 1 if every else together
            self.per_update += f" and {self._batch_layout.rows} branches"
        self._chunk = -(-config.compute.chunk_size // together) * together  # whole sequences, or states
        self._preparation = Preparation(policy, config, self._layout, self._chunk, self.reward_scaler)
        self.step_rule = step_rule or RULES[config.algorithm.algorithm](
            config,
            policy.network.size,
            length_factor(weights, 0 if config.workers.asynchronous else config.off_policy.lag),
            self._layout.column_of_row() % envs % 2,
        )
        stepped = [*policy.network.model.trainable_variables, *self.step_rule.variables]
        fitted = [*policy.value_network.model.trainable_variables, *self.adam.variables]
        moments = [*self.reward_scaler.variables, *policy.normalizer.variables]
        self._stepped, self._fitted = stepped, Undo(fitted)
        self._all = Undo([*stepped, *fitted, *moments])  # that an update assigns to
        self._fitting: Future | None = None
        self._compared_with_acting = False
        self._warned: set[str] = set()
        compiled = {"auto": not policy.has_images, "on": True, "off": False}[config.compute.xla]
        self._prepare, self._policy_step, self._fit_values, self._commit = (
            tf.function(function, autograph=False, jit_compile=compiled)
            for function in (self._preparation.prepare, self._take_step, self._fit, self._merge)
        )

    def weights(self) -> dict[str, np.ndarray]:
        """What a source is to act with: the policy's weights."""
        return self.policy.get_weights()

    def wait(self) -> None:
        """Lets a value fit under way end; the value network and its optimiser may not be read before.

        What the value fit raised is left to its Future and, once, to the next update.
        """
        if self._fitting is not None:
            futures.wait([self._fitting])

    def _finish_fit(self) -> None:
        """As `wait`, but raises what the value fit raised; value network and optimiser are as before that fit."""
        fitting, self._fitting = self._fitting, None
        if fitting is not None:
            fitting.result()

    def update(self, rollout: Rollout, update: int, progress: float) -> tuple[dict[str, Any], Future]:
        """Learns from one rollout: estimates, then policy step and value fit side by side, then the normaliser.

        Args:
          rollout: arrays [T, B, ...], made by this policy with the normaliser it has now, or by an older one where the
            configuration learns from stale transitions. The update works in the memory of its obs, which must stay as
            they are until the Future below is done.
          update: its number; draws are keyed by it.
          progress: fraction of the training done, in [0, 1]; drives the decay of the learning rate.

        Returns:
          Metrics by name, and those of the value fit once it has ended.

        Raises:
          ActingDiffersError: in the first update on fresh transitions, the policy that acted is not this one.
          Exception: of a model or of TensorFlow. Everything is as before the update, or before the value fit that began
            in the last one.
        """
        self._finish_fit()
        with self._all_or_nothing():
            return self._update(rollout, update, progress)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Leaves networks, optimiser, moments, step rule and kept rollouts as they are where the block raises."""
        kept = self.replay.kept() if self.replay else []
        try:
            with self._all.on_failure(first=self.wait):
                yield
        except BaseException:
            self._fitting = None  # what it raised, if it did, is not told: this is
            if self.replay:
                self.replay.keep(kept)
            raise

    def _update(self, rollout: Rollout, update: int, progress: float) -> tuple[dict[str, Any], Future]:
        config = self._config
        mixture = self.replay.add(rollout) if self.replay else None
        trajectory = rollout.trajectory if mixture is None else mixture.trajectory
        obs = {name: _shared(x) for name, x in trajectory.obs.items()}
        tensors = tf.nest.map_structure(tf.convert_to_tensor, trajectory._replace(obs=()))._replace(obs=obs)
        discounted_return = tf.convert_to_tensor(rollout.discounted_return)
        branches = rollout.branches and tf.nest.map_structure(tf.convert_to_tensor, rollout.branches)
        prepared = self._prepare(tensors, discounted_return, self._stale_input(mixture, update), branches)
        if self.replay and prepared.stale:
            advantage = prepared.stale.new_advantage.numpy()
            self.replay.settle(np.where(np.isfinite(advantage), advantage, np.float32(0)))
        prepared = self._preparation.with_features(prepared, obs)
        seed = tf.constant([self._seed, update], tf.int32)
        rate = config.value.value_learning_rate * (1.0 - progress if config.value.value_learning_rate_decay else 1.0)
        fit = prepared.value_batch, prepared.constants, seed, tf.constant(rate, tf.float32)
        self._fitting = _start(self._timed_fit, *fit)
        faults.point("policy_step")
        metrics = self._policy_step(prepared, seed) | {"rewards/committed": prepared.rewards_committed}
        faults.point("commit")
        if self.policy.normalizer.active:
            seen = {name: obs[name] for name in self.policy.encoder.leaves}
            metrics["normalizer/committed"] = self._commit(seen, tensors.mask)
        if branches is not None:
            metrics["vine/states"] = tf.math.count_nonzero(prepared.batch.weights[:: branches.behavior_logp.shape[1]])
        metrics = self._checked(_numbers(metrics))
        metrics |= {name: words[metrics[name]] for name, words in _REASONS.items() if name in metrics}
        versions = rollout.version if mixture is None else mixture.version
        fresh = bool((versions[trajectory.mask > 0] == update).all())
        self._compare_with_acting(fresh, metrics["policy/max_ratio_error"])
        fitting = self._fitting
        if self._chunk:
            self._finish_fit()  # beside the next rollout, it would keep the observations of this one in memory
        return metrics, fitting

    def reward_scale(self) -> float:
        """What a unit of the value network is in the environment's units of reward."""
        self.wait()
        return float(self.reward_scaler.scale().numpy())

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` of a learner of the same configuration needs, when no value fit is under way."""
        self.wait()
        kept = state.prefixed("replay", self.replay.state()) if self.replay else {}
        return state.read(self._variables()) | kept

    def restore(self, saved: dict[str, np.ndarray], replay: bool = True) -> None:
        """Takes back what `state` gave; without `replay`, all but the rollouts that are used again.

        Raises:
          UsageError: a variable is missing or has another shape.
        """
        self.wait()
        state.assign(self._variables(), saved)
        if self.replay and replay:
            self.replay.restore(state.part("replay", saved))

    def _variables(self) -> dict[str, tf.Variable]:
        parts = self.reward_scaler, self.adam, self.step_rule
        return {v.name.removesuffix(":0"): v for part in parts for v in part.variables}

    def _compare_with_acting(self, fresh: bool, error: float) -> None:
        """In the first update whose transitions are all fresh: were their actions drawn by this policy?"""
        if self._compared_with_acting or not fresh:
            return
        if not error <= _LARGEST_RATIO_ERROR:
            raise ActingDiffersError(
                "the policy that acts is not the policy that learns: the ratio of their probabilities of the same "
                f"action is up to {error:.3g} from 1; does policy_network answer differently from call to call?"
            )
        self._compared_with_acting = True

    def _checked(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Says, once for each, which parts of an update were not finite; returns the metrics."""
        for name in metrics.keys() & _PARTS.keys() - self._warned:
            if not metrics[name]:
                self._warned.add(name)
                warn(f"{_PARTS[name]} not finite after an update, so they stay as they were; training goes on ({name})")
        return metrics

    def _stale_input(self, mixture: Mixture | None, update: int) -> StaleInput | None:
        """What `prepare` takes of a mixture beside its trajectory."""
        if mixture is None:
            return None
        given = mixture.behavior_params, np.int32(update) - mixture.version, mixture.advantage, mixture.column_weights
        return StaleInput(*map(tf.convert_to_tensor, given))

    def _take_step(self, prepared: Prepared, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes the step that the rule finds; returns metrics."""
        metrics: dict[str, tf.Tensor] = {}

        def step() -> tuple:
            theta, found = self.step_rule(self._objective(prepared, seed), self.policy.network.theta(), prepared)
            self.policy.network.assign(theta)
            metrics.update(found)
            return ()

        _, finite = if_finite(self._stepped, step)
        return metrics | {"policy/committed": tf.cast(finite, tf.int32)}

    def _objective(self, prepared: Prepared, seed: tf.Tensor) -> Objective:
        config, layout = self._config.trust_region, self._batch_layout

        def network(theta: tf.Tensor, rows: dict[str, tf.Tensor]) -> tf.Tensor:
            return self.policy.params(theta, self._preparation.features(rows, prepared.constants), layout.length)

        return make_objective(
            network,
            self.policy.distribution,
            prepared.batch,
            fisher.draw_rows(layout, config.fisher_fraction, seed),
            config.fisher_product,
            self._chunk,
            self._group,
        )

    def _timed_fit(self, value_batch: ValueBatch, constants: dict, seed, learning_rate) -> dict[str, float]:
        faults.point("value_fit")
        start = time.perf_counter()
        with self._fitted.on_failure():
            metrics = _numbers(self._fit_values(value_batch, constants, self._order(seed), learning_rate))
        return self._checked(metrics) | {"time/value_fit_seconds": time.perf_counter() - start}

    @tf.function(autograph=False)
    def _order(self, seed: tf.Tensor) -> tf.Tensor:
        """The rows of each minibatch of the value fit: whole sequences of new columns, [S, M] int32."""
        config, layout, envs = self._config.value, self._layout, self._config.environment.num_envs
        sequences = layout.time * envs // layout.length
        key, size = seed + tf.constant([1, 0]), -(-config.value_minibatch_size // layout.length)
        order = value_fit.minibatch_order(config.value_epochs, sequences, size, key)
        return layout.rows_of_sequences(order // envs * layout.columns + order % envs)

    def _fit(self, batch: ValueBatch, constants: dict, order, learning_rate) -> dict[str, tf.Tensor]:
        policy, length = self.policy, self._layout.length
        before = explained_variance(batch.returns, batch.values, batch.mask)

        def features(rows):
            return rows if policy.shared else self._preparation.features(rows, constants)

        def predict(phi, rows):
            taken = tf.nest.map_structure(lambda x: tf.gather(x, rows), batch.features)
            return policy.value_network(phi, features(taken), length=length)[:, 0]

        def change() -> tuple[tf.Tensor, tf.Tensor]:
            """Fits; returns the values afterwards, and their loss."""
            value_fit.fit(policy.value_network, self.adam, predict, order, batch.returns, batch.mask, learning_rate)
            values = chunks.apply(
                lambda rows: policy.values(features(rows), length), batch.features, self._layout.rows, self._chunk
            )
            return values, loss(values)

        def loss(values: tf.Tensor) -> tf.Tensor:
            return masked_mean(0.5 * (values - batch.returns) ** 2, batch.mask)

        (values, _), finite = if_finite(self._fitted.variables, change)
        values = tf.where(finite, values, batch.values)
        return {
            "value/committed": tf.cast(finite, tf.int32),
            "value/loss": loss(values),
            "value/explained_variance": before,
            "value/explained_variance_after": explained_variance(batch.returns, values, batch.mask),
            "value/learning_rate": learning_rate,
        }

    def _merge(self, obs: dict[str, tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
        """Merges the new columns of obs [T+1, W, ...] into the normaliser; 1 where it is finite. mask: [T, W]."""
        policy, new = self.policy, slice(self._config.environment.num_envs)

        def merge() -> tuple:
            chunks.for_each(
                lambda rows, mask: policy.normalizer.commit(policy.encoder(rows), mask),
                {name: self._layout.flat(x[:, new]) for name, x in obs.items()},
                tf.reshape(mask[:, new], [-1]),
                self._chunk,
            )
            return ()

        return tf.cast(if_finite(policy.normalizer.variables, merge)[1], tf.int32)


def _shared(array: np.ndarray) -> tf.Tensor:
    """The array as a tensor, in the same memory if that is aligned; convert_to_tensor takes twice its size."""
    if array.ctypes.data % ALIGNMENT or not array.flags.writeable:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _start(function: Callable[..., Any], *args: Any) -> Future:
    """Calls a function in a thread of its own; not in a pool's, which takes no work once the main thread has ended."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=function.__name__).start()
    return future


def _numbers(metrics: dict[str, tf.Tensor]) -> dict[str, Any]:
    return {name: value.numpy().item() for name, value in metrics.items()}
