"""From a rollout to what the policy step and the value fit take: values, scaled rewards, estimates, rows of a batch."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.learner import chunks, staleness
from trpo_tf.learner.estimate import Estimate
from trpo_tf.learner.estimate.gae import gae
from trpo_tf.learner.estimate.vine import action_values, vine
from trpo_tf.learner.estimate.vtrace import Comparison, vtrace_estimate
from trpo_tf.learner.layout import Layout
from trpo_tf.learner.reuse import Mixture
from trpo_tf.learner.reward_scaler import RewardScaler
from trpo_tf.policy.policy import Policy
from trpo_tf.types import Batch, Branches, Trajectory, ValueBatch


class StaleInput(NamedTuple):
    """What `prepare` takes of a Mixture besides its trajectory."""

    behavior_params: tf.Tensor  # [T, W, K]
    staleness: tf.Tensor  # [T, W] int32, how many updates old a transition is
    advantage: tf.Tensor  # [T, W], of when a transition was new, in the environment's units of reward
    column_weights: tf.Tensor  # [W]


class Stale(NamedTuple):
    """Data that only updates with stale transitions have."""

    behavior_params: tf.Tensor  # [N, K]
    new_advantage: tf.Tensor  # [T, B], in the environment's units of reward
    metrics: dict[str, tf.Tensor]
    lag: tf.Tensor | None  # scalar float64, mean staleness of the new transitions; None where settings fix it


class Prepared(NamedTuple):
    """What an update makes of its transitions before the policy step and the value fit."""

    batch: Batch  # with chunk_size its features are (): `with_features` puts observations there
    value_batch: ValueBatch  # likewise
    constants: dict[str, tuple]  # of the normaliser with chunk_size; else empty
    advantage_std: tf.Tensor  # scalar float64, in standard deviations of the discounted return
    rewards_committed: tf.Tensor  # scalar int32, 1 where the reward moments took the new rollout into account
    stale: Stale | None  # None where every transition is fresh
    rows: tf.Tensor | None = None  # [N] int32, of a vine: whose observation each row of the batch is, among [T W]


class Preparation:
    """Prepares the updates of one policy: first `prepare`, which is compiled, then `with_features`, which is not.

    Args:
      policy: as it is when an update begins.
      config: of the run.
      layout: of the transitions of an update; the first num_envs columns are new.
      chunk_size: transitions that networks see at once; 0: all.
      reward_scaler: takes every new transition into account.
    """

    def __init__(self, policy: Policy, config: Config, layout: Layout, chunk_size: int, reward_scaler: RewardScaler):
        self.policy, self._config, self._layout = policy, config, layout
        self._chunk, self._reward_scaler = chunk_size, reward_scaler

    def with_features(self, prepared: Prepared, obs: dict[str, tf.Tensor]) -> Prepared:
        """With chunks: observations, by row of a batch, in the place of features; else what was given.

        A compiled function would copy the observations.

        Args:
          prepared: what `prepare` gave. obs: [T+1, W, ...] each.
        """
        if not prepared.constants:
            return prepared
        rows = {name: self._layout.batch(x) for name, x in obs.items()}
        value_batch = prepared.value_batch
        if not self.policy.shared:
            value_batch = value_batch._replace(features=rows)
        if prepared.rows is not None:
            rows = {name: tf.gather(x, prepared.rows) for name, x in rows.items()}
        return prepared._replace(batch=prepared.batch._replace(features=rows), value_batch=value_batch)

    def features(self, rows: dict[str, tf.Tensor], constants: dict) -> dict[str, tf.Tensor]:
        """What networks take: rows of features as they are, rows of observations (with constants) preprocessed."""
        return self.policy.preprocess(rows, constants) if constants else rows

    def prepare(
        self,
        trajectory: Trajectory,
        discounted_return: tf.Tensor,
        stale: StaleInput | None = None,
        branches: Branches | None = None,
    ) -> Prepared:
        """Values, scaled rewards, estimates, and all of it by row of a batch.

        Args:
          trajectory: [T, W, ...].
          discounted_return: [T, B], of new transitions.
          stale: None where every transition is fresh.
          branches: of a vine. The policy step learns from them, the value fit from the trajectory.
        """
        config, policy, layout = self._config, self.policy, self._layout
        obs = {name: layout.flat(x) for name, x in trajectory.obs.items()}
        constants: dict[str, tuple] = {}
        if self._chunk:
            constants = policy.normalizer.constants()
        else:
            obs = policy.preprocess(obs)
        values, hidden = self._values(obs, constants)
        new = slice(config.environment.num_envs)
        committed = tf.cast(self._reward_scaler.merge(discounted_return, trajectory.mask[:, new]), tf.int32)
        reward, scale = self._reward_scaler(trajectory.reward), self._reward_scaler.scale()
        found = None
        if stale is not None:
            compared = self._compare(trajectory, stale.behavior_params, obs, constants)
            estimate, found = self._stale_estimate(trajectory, reward, values[:, new], compared, scale, stale)
        else:
            estimate = gae(trajectory, reward, values, config.advantage)
        features = () if constants else {name: layout.by_sequence(x) for name, x in obs.items()}
        batch, value_batch = self._batches(trajectory, estimate, values, features)
        if hidden is not None:
            value_batch = value_batch._replace(features={"vector": layout.by_sequence(hidden)})
        rows = None
        if branches is not None:
            estimate, rows = self._vine(branches, trajectory.mask, constants)
            batch = self._branch_batch(branches, estimate, features, rows)
        unit = tf.cast(scale / self._reward_scaler.std(), tf.float64)
        return Prepared(batch, value_batch, constants, estimate.advantage_std * unit, committed, found, rows)

    def _values(self, obs: dict, constants: dict) -> tuple[tf.Tensor, tf.Tensor | None]:
        """V [T+1, W] of flat obs [(T+1) W, ...], and with a shared torso its outputs [(T+1) W, D].

        Rows are sequences of one here: the recurrent states before them are those that the actor went through.
        """
        layout = self._layout
        values, hidden = self._flat_values(obs, (layout.time + 1) * layout.columns, constants)
        return tf.reshape(values, [layout.time + 1, layout.columns]), hidden

    def _flat_values(self, obs: dict, rows: int, constants: dict) -> tuple[tf.Tensor, tf.Tensor | None]:
        """V [rows] of flat obs [rows, ...], and with a shared torso its outputs [rows, D]."""
        policy = self.policy

        def by_chunks(function):
            return chunks.apply(lambda obs: function(self.features(obs, constants)), obs, rows, self._chunk)

        hidden = None
        if policy.shared:
            hidden = by_chunks(lambda features: policy.value_features(features)["vector"])
            values = policy.values({"vector": hidden})
        else:
            values = by_chunks(policy.values)
        return values, hidden

    def _vine(self, branches: Branches, mask: tf.Tensor, constants: dict) -> tuple[Estimate, tf.Tensor]:
        """The Estimate of branches [S, K], and the row of the trajectory that each begins in, [S K]. mask: [T, B]."""
        states, actions = branches.behavior_logp.shape
        end = {name: self._layout.flat(x) for name, x in branches.end_obs.items()}
        end = end if constants else self.policy.preprocess(end)
        values, _ = self._flat_values(end, states * actions, constants)
        found = action_values(
            self._reward_scaler(branches.reward),
            branches.mask,
            branches.terminated,
            tf.reshape(values, [states, actions]),
            self._config.advantage.gamma,
        )
        weight = branches.weight * tf.gather(tf.reshape(mask, [-1]), branches.row)
        _, every = self.policy.tried(self._config.sampling.vine_actions)
        return vine(found, branches.behavior_logp, weight, every), tf.repeat(branches.row, actions)

    def _branch_batch(self, branches: Branches, estimate: Estimate, features: Any, rows: tf.Tensor) -> Batch:
        """The Batch of branches, K rows of each state together."""
        flat = (tf.reshape(x, [-1]) for x in (estimate.behavior_logp, estimate.advantage, estimate.weights))
        return Batch(
            tf.nest.map_structure(lambda x: tf.gather(x, rows), features), self._layout.flat(branches.raw_action), *flat
        )

    def _stale_estimate(
        self, trajectory: Trajectory, reward, values, compared: Comparison, scale, given: StaleInput
    ) -> tuple[Estimate, Stale]:
        """The Estimate of new and kept transitions. values: [T+1, B], of new ones. reward: [T, W], divided by scale."""
        config, layout = self._config, self._layout
        mixture = Mixture(trajectory, given.behavior_params, (), given.advantage, given.column_weights)
        found = vtrace_estimate(
            mixture, reward, values, compared, given.staleness, scale, config.advantage, config.off_policy
        )
        estimate = found.estimate
        seen = estimate.weights, found.ratio, estimate.advantage, found.kl, given.staleness
        mixed, lag = layout.columns // config.environment.num_envs, None
        count = mixed + (staleness.COUNTED if config.workers.asynchronous else config.off_policy.lag)
        everything = staleness.Seen(*(tf.reshape(x, [-1]) for x in seen))
        metrics = staleness.diagnostics(everything, count, config.off_policy.vtrace_rho)
        if config.workers.asynchronous:
            new = slice(config.environment.num_envs)
            lag = staleness.mean(given.staleness[:, new], tf.sign(estimate.weights[:, new]))
            metrics |= staleness.spread(everything, count, lag)
        return estimate, Stale(layout.batch(given.behavior_params), found.new_advantage, metrics, lag)

    def _compare(self, trajectory: Trajectory, behavior_params, obs: dict, constants: dict) -> Comparison:
        """The policy of now, as the policy step computes it, beside the one that acted. obs: flat, [>= N, ...]."""
        policy, layout, theta = self.policy, self._layout, self.policy.network.theta()
        params = chunks.apply(
            lambda rows: policy.params(theta, self.features(rows, constants), layout.length),
            {name: layout.by_sequence(x) for name, x in obs.items()},
            layout.rows,
            self._chunk,
        )
        params = layout.time_major(params)
        logp = policy.distribution.log_prob(params, layout.flat(trajectory.raw_action))
        both = layout.flat(behavior_params), params
        kl = policy.distribution.kl(*(tf.cast(x, tf.float64) for x in both))
        return Comparison(*(tf.reshape(x, [-1, layout.columns]) for x in (logp, kl)))

    def _batches(self, trajectory: Trajectory, estimate: Estimate, values, features) -> tuple[Batch, ValueBatch]:
        """Estimates [T, W] by row of a batch; only new columns are in the value fit."""
        rows, width = self._layout.batch, self._layout.columns
        new = self._config.environment.num_envs
        returns, mask = estimate.returns, estimate.weights
        if new < width:
            returns = tf.pad(returns, [[0, 0], [0, width - new]])
        if self._config.stale:
            mask = tf.sign(mask) * (np.arange(width) < new)
        weights = rows(estimate.weights)
        batch = Batch(
            features=features,
            raw_action=rows(trajectory.raw_action),
            behavior_logp=rows(estimate.behavior_logp),
            advantage=rows(estimate.advantage),
            weights=weights,
        )
        value_batch = ValueBatch(
            features, rows(returns), rows(values[:-1]), rows(mask) if self._config.stale else weights
        )
        return batch, value_batch
