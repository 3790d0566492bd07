"""Which source of rollouts a configuration asks for."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from trpo_tf import seeds
from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.config import Config
from trpo_tf.errors import UsageError
from trpo_tf.messages import warn
from trpo_tf.policy import worker_actor
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.sources import RolloutSource
from trpo_tf.rollout.sources.lagging import LaggingSource
from trpo_tf.rollout.sources.local import LocalSource
from trpo_tf.rollout.sources.prefetching import PrefetchingSource
from trpo_tf.rollout.stepper import LocalStepper, Stepper
from trpo_tf.rollout.vine import VinePlan, VineStepper
from trpo_tf.rollout.workers.asynchronous import AsynchronousSource
from trpo_tf.rollout.workers.crew import Crew
from trpo_tf.rollout.workers.fleet import Fleet
from trpo_tf.rollout.workers.fragments import Shapes
from trpo_tf.rollout.workers.synchronous import WorkersStepper
from trpo_tf.rollout.workers.worker import WorkerPlan


class Acting(NamedTuple):
    """What acts where in a run."""

    config: Config
    environments: Environments
    policy: Policy  # that learns
    spaces: tuple[gym.Space, gym.Space]  # of observations and actions of one environment
    own_network: bool  # whether the policy's is a Keras model of the user's
    stopping: Callable[[], bool]  # whether the run is to end

    @property
    def envs(self) -> int:
        """B, of each worker."""
        return self.config.environment.num_envs // self.config.workers.workers

    def log_prob(self, params: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-probabilities [N] of raw actions [N, A] under parameters [N, K]."""
        return self.policy.log_prob(params, action).numpy()


def make_source(acting: Acting) -> RolloutSource:
    """Makes the training environments, in this process or in workers, and what collects in them.

    Raises:
      UsageError: workers cannot have these environments, or this policy, or there is no Ray.
      EnvironmentFailure: an environment failed.
    """
    config = acting.config
    off_policy, asynchronous = config.off_policy, config.workers.asynchronous
    make = _asynchronous if asynchronous else _synchronous if config.workers.workers else _local
    source: RolloutSource = make(acting)
    if off_policy.behavior_lag:
        source = LaggingSource(source, off_policy.behavior_lag)
    if off_policy.pipeline and asynchronous:
        warn("--pipeline changes nothing: asynchronous workers collect while updates run in any case")
    return PrefetchingSource(source) if off_policy.pipeline and not asynchronous else source


def check(acting: Acting) -> None:
    """Tries what `make_source` needs.

    Raises:
      UsageError: workers cannot have these environments, or this policy, or there is no Ray for them; environments
        cannot be put back to where they were, as a vine needs it.
    """
    if acting.config.sampling.vine:
        acting.environments.check_states()
    if acting.config.workers.workers:
        from trpo_tf.rollout.workers import ray_cluster

        _plan(acting)
        ray_cluster.check(acting.config.workers)


def _local(acting: Acting) -> LocalSource:
    config, policy = acting.config, acting.policy
    if config.off_policy.lag:
        policy = Policy(*acting.spaces, config.policy, seeds.derive_seed(config.run.seed, seeds.WEIGHTS))
    actor = make_actor(policy, live=policy is acting.policy)

    def make_envs(update: int):
        return acting.environments.training(seeds.derive_seed(config.run.seed, seeds.TRAIN_ENVS, update))

    stepper = LocalStepper(make_envs, actor)
    if config.sampling.vine:
        stepper = VineStepper(make_envs, actor, _branches(acting))
    return _collecting(acting, stepper, actor, actor)


def _branches(acting: Acting) -> VinePlan:
    config = acting.config.sampling
    seed = seeds.derive_seed(acting.config.run.seed, seeds.BRANCHES)
    tried = acting.policy.tried(config.vine_actions)
    return VinePlan(config.vine_states, tried[0], config.vine_steps, tried[1], config.vine_common_noise, seed)


def _synchronous(acting: Acting) -> LocalSource:
    config = acting.config
    dimensions = config.workers.workers, acting.envs, config.time_steps, config.environment.max_env_restarts
    stepper = WorkersStepper(partial(_crew, acting, _plan(acting)), *dimensions, acting.stopping)
    return _collecting(acting, stepper, make_actor(acting.policy, live=True), stepper)


def _collecting(acting: Acting, stepper: Stepper, actor: Any, taking: Any) -> LocalSource:
    """What collects with a stepper. actor: of the policy. taking: takes weights over."""
    config, key = acting.config, seeds.derive_seed(acting.config.run.seed, seeds.ACTIONS)
    limits = config.advantage.gamma, config.environment.max_invalid_rows
    with _closed_if_raised(stepper):
        collector = Collector(stepper, actor, *limits)

    distribution = acting.policy.distribution

    def draw_noise(shape: tuple[int, int], count: int) -> np.ndarray:
        seed = tf.constant([key, count], tf.int32)
        return distribution.sampler.noise_over_time(lambda shape: distribution.noise(list(shape), seed).numpy(), shape)

    return LocalSource(collector, taking, draw_noise, acting.log_prob, config.time_steps)


@contextlib.contextmanager
def _closed_if_raised(something: Any) -> Iterator[None]:
    """Closes something where what needs it cannot be made."""
    with contextlib.ExitStack() as stack:
        stack.callback(something.close)
        yield
        stack.pop_all()


def _asynchronous(acting: Acting) -> AsynchronousSource:
    config, environment = acting.config, acting.config.environment
    shapes = Shapes(make_actor(acting.policy, live=True), config.time_steps, acting.envs)
    crew, limits = partial(_crew, acting, _plan(acting)), (environment.max_invalid_rows, environment.max_env_restarts)
    return AsynchronousSource(crew, config.workers.workers, shapes, acting.log_prob, *limits, acting.stopping)


def _crew(acting: Acting, plan: WorkerPlan, serial: int = 0) -> Crew:
    config = acting.config.workers
    fleet = _on_ray(acting, plan)
    needed = 1 if config.asynchronous else config.workers
    with _closed_if_raised(fleet):
        return Crew(fleet, config.workers, config.fragment_timeout, serial, needed)


def _on_ray(acting: Acting, plan: WorkerPlan) -> Fleet:
    from trpo_tf.rollout.workers.ray_fleet import RayFleet

    config = acting.config
    sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in acting.policy.specs.values()]
    batch = (config.time_steps + 1) * config.environment.num_envs * (sum(sizes) + 256)
    return RayFleet(config.workers, plan, 4 * batch)  # one flies, one waits, one is learned from, and one more


def _plan(acting: Acting) -> WorkerPlan:
    config, spec = acting.config, acting.policy.acting_spec()
    environment, threads = config.environment, max(1, int(config.workers.worker_cpus))
    make: Callable[[], Any] = partial(worker_actor.make, acting.spaces, config.policy, threads)
    if spec is not None:
        make = partial(ArrayActor, spec)
    elif acting.own_network:
        raise UsageError(
            "--workers: your own model goes with them where it is of Dense layers, which workers compute in "
            "NumPy; take the networks of the flags"
        )
    own = dataclasses.replace(environment, num_envs=acting.envs, env_threads=environment.env_threads or threads)
    return WorkerPlan(
        environments=acting.environments.of_worker(own),
        registered=acting.environments.registered(),
        make_actor=make,
        workers=config.workers.workers,
        envs=acting.envs,
        time_steps=config.time_steps,
        gamma=config.advantage.gamma,
        max_invalid=environment.max_invalid_rows,
        seed=config.run.seed,
    )
