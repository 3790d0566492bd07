"""One worker: its seeds and draws, what it imports, what it needs of memory, what it says when something is wrong."""

import dataclasses
import functools
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout.counting import Counting
from tests.rollout.helpers import NEEDS_ENVPOOL, environments
from trpo_tf import seeds
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy import worker_actor
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.workers.ledger import Identity
from trpo_tf.rollout.workers.worker import Worker, WorkerPlan

SMALL = PolicyConfig(hidden_sizes=(8,))


def plan_of(env, workers=2, envs=2, time_steps=8, config=SMALL, **settings):
    made = environments(env, envs, **settings)
    probe = made.probe()
    spaces = probe.observation_space, probe.action_space
    policy = Policy(*spaces, config, 0)
    spec = policy.acting_spec()
    probe.close()
    make = functools.partial(worker_actor.make, spaces, config, 1)
    plan = WorkerPlan(
        environments=made.of_worker(made._config),
        registered=made.registered(),
        make_actor=make if spec is None else functools.partial(ArrayActor, spec),
        workers=workers,
        envs=envs,
        time_steps=time_steps,
        gamma=0.9,
        max_invalid=0,
        seed=3,
    )
    return plan, policy.get_weights()


def begun(plan, slot=0, serial=0):
    worker = Worker(slot, serial)
    assert worker.answer("begin", plan).trouble is None
    return worker


def first_obs(worker, weights, slot=0, serial=0):
    fragment = worker.fragment(Identity(slot, serial, 0), 0, weights, 1)
    return fragment.rollout.trajectory.obs["observation"][0]


def test_every_environment_of_every_worker_has_a_seed_of_its_own():
    """Environment b of the worker with serial n has seed base + n B + b: at first those of one process."""
    plan, weights = plan_of(Counting)
    base = seeds.derive_seed(3, seeds.TRAIN_ENVS, 0)
    seen = [first_obs(begun(plan, serial % 2, serial), weights, serial % 2, serial)[:, 0] for serial in range(5)]
    expected = [100 * ((base + k) % 1000) for k in range(10)]
    np.testing.assert_array_equal(np.concatenate(seen), expected)


def test_draws_are_of_the_run_the_worker_and_the_fragment():
    plan, weights = plan_of("CartPole-v1")
    first = begun(plan).fragment(Identity(0, 0, 0), 0, weights, 1).rollout.trajectory
    again = begun(plan).fragment(Identity(0, 0, 0), 0, weights, 1).rollout.trajectory
    assert first.raw_action.tobytes() == again.raw_action.tobytes()
    others = [
        begun(plan, 0, 1).fragment(Identity(0, 1, 0), 0, weights, 1),
        begun(plan).fragment(Identity(0, 0, 1), 0, weights, 1),
        begun(dataclasses.replace(plan, seed=4)).fragment(Identity(0, 0, 0), 0, weights, 1),
    ]
    for other in others:
        assert first.raw_action.tobytes() != other.rollout.trajectory.raw_action.tobytes()


def test_noise_of_a_worker_has_the_color_of_the_run():
    plan, weights = plan_of(
        "Pendulum-v1", envs=16, time_steps=64, config=PolicyConfig(hidden_sizes=(8,), noise_color=2)
    )
    rollout = begun(plan).fragment(Identity(0, 0, 0), 0, weights, 1).rollout
    mean, log_std = np.split(rollout.behavior_params, 2, -1)
    noise = (rollout.trajectory.raw_action - mean) * np.exp(-log_std)
    assert np.mean(noise[1:] * noise[:-1]) > 0.8


@pytest.mark.parametrize(
    ("space", "config", "mean", "variance"),
    [
        (gym.spaces.Box(-1, 1, (3,)), PolicyConfig(), 0.0, 1.0),
        (gym.spaces.Box(-1, 1, (3,)), PolicyConfig(action_distribution="beta"), 0.5, 1 / 12),
        (gym.spaces.Discrete(3), PolicyConfig(), np.euler_gamma, np.pi**2 / 6),
        (gym.spaces.MultiBinary(3), PolicyConfig(), 0.0, np.pi**2 / 3),
    ],
)
def test_noise_has_the_law_that_draws_need(space, config, mean, variance):
    noise = ActionSampler(space, config).noise(np.random.default_rng(0), (50_000, 2))
    assert noise.shape == (50_000, 2, 3)
    assert noise.dtype == np.float32
    assert abs(noise.mean() - mean) < 4 * np.sqrt(variance / noise.size)
    assert abs(noise.var() / variance - 1) < 0.03
    assert abs(np.corrcoef(noise.reshape(-1, 6).T) - np.eye(6)).max() < 0.03


def test_draws_of_several_parts_are_side_by_side():
    space = gym.spaces.Dict(a=gym.spaces.Discrete(2), b=gym.spaces.Box(-1, 1, (3,)))
    sampler = ActionSampler(space, PolicyConfig())
    noise = sampler.noise(np.random.default_rng(0), (4,))
    assert noise.shape == (4, sampler.noise_size)


def test_fragments_follow_one_another_and_keep_no_record():
    plan, weights = plan_of(Counting)
    worker = begun(plan)
    first = worker.fragment(Identity(0, 0, 0), 0, weights, 1).rollout
    worker.take_weights(1, weights, 2)
    second = worker.fragment(Identity(0, 0, 1), 0, weights, 1).rollout
    np.testing.assert_array_equal(first.trajectory.obs["observation"][-1], second.trajectory.obs["observation"][0])
    assert (first.version == 0).all()
    assert (second.version == 1).all()
    assert worker._collector._actions == []


def test_weights_are_taken_over_at_the_next_time_step():
    """In the middle of a fragment. Every row's parameters are computed anew from the weights of its version."""
    at_step = {}

    class Told(gym.Wrapper):
        def step(self, action):
            at_step.pop(len(steps), lambda: None)()
            steps.append(action)
            return super().step(action)

    steps = []
    plan, weights = plan_of(lambda: Told(gym.make("Pendulum-v1")), envs=1, time_steps=32)
    newer = {version: {name: x + version for name, x in weights.items()} for version in (5, 6, 8)}
    worker = begun(plan)
    for step, version in ((3, 6), (20, 8)):
        at_step[step] = functools.partial(worker.take_weights, version, newer[version], version)
    rollout = worker.fragment(Identity(0, 0, 0), 5, newer[5], 5).rollout
    versions = np.repeat([5, 6, 8], [4, 17, 11])
    np.testing.assert_array_equal(rollout.version[:, 0], versions)
    assert rollout.version.dtype == np.int32
    actor = plan.make_actor()
    for t, version in enumerate(versions):
        actor.set_weights(newer[version])
        obs = {"observation": rollout.trajectory.obs["observation"][t]}
        params, _, _ = actor(obs, np.zeros((1, actor.noise_size), np.float32))
        np.testing.assert_allclose(params, rollout.behavior_params[t], atol=1e-5)
    assert (worker.fragment(Identity(0, 0, 1), 5, newer[5], 5).rollout.version == 8).all()


def test_weights_of_an_earlier_publication_are_not_taken_over_later():
    """A version may go back, where a run takes up an older checkpoint; publications do not."""
    plan, weights = plan_of("Pendulum-v1", envs=1)
    worker = begun(plan)
    worker.take_weights(7, weights, 2)
    assert (worker.fragment(Identity(0, 0, 0), 6, weights, 1).rollout.version == 7).all()
    worker.take_weights(3, weights, 3)
    assert (worker.fragment(Identity(0, 0, 1), 7, weights, 2).rollout.version == 3).all()


def test_first_episodes_are_cut_as_in_one_process():
    """Over all environments of all workers: those of slot 1 later than those of slot 0."""
    plan, weights = plan_of("Pendulum-v1", time_steps=200, stagger=True)
    ends = []
    for slot in range(2):
        trajectory = begun(plan, slot, slot).fragment(Identity(slot, slot, 0), 0, weights, 1).rollout.trajectory
        ends += [int(np.flatnonzero(column)[0]) + 1 for column in trajectory.truncated.T]
    assert ends == [50, 100, 150, 200]


def test_what_goes_wrong_is_a_reply():
    plan, weights = plan_of("CartPole-v1")
    worker = begun(plan)
    assert worker.answer("begin", None).trouble.message.startswith("a rollout worker failed: AttributeError")
    broken = dataclasses.replace(plan, make_actor=lambda: sys.exit(3))
    assert "SystemExit: 3" in Worker(0, 0).answer("begin", broken).trouble.message
    assert begun(plan).answer("fragment", Identity(0, 0, 0), 0, {}, 1).trouble.kind == ""

    class Silent(Counting):
        def step(self, action):
            raise RuntimeError("no power")

    plan, weights = plan_of(Silent, max_env_restarts=0)
    trouble = begun(plan).answer("fragment", Identity(0, 0, 0), 0, weights, 1).trouble
    assert trouble.kind == "environment"
    assert "no power" in trouble.message


def test_an_environment_that_only_the_run_knows_is_registered_in_the_worker():
    gym.register("OnlyHere-v0", entry_point=Counting)
    try:
        plan, weights = plan_of("OnlyHere-v0")
        sent = pickle.loads(pickle.dumps(plan.registered))
        del gym.registry["OnlyHere-v0"]
        worker = begun(dataclasses.replace(plan, registered=sent))
        assert first_obs(worker, weights).shape == (2, 2)
    finally:
        gym.registry.pop("OnlyHere-v0", None)


def test_a_vector_environment_cannot_be_sent():
    envs = gym.make_vec(
        "CartPole-v1",
        2,
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP},
        vectorization_mode="sync",
    )
    made = environments(envs, 2)
    with pytest.raises(UsageError, match="vector environment; pass an id or a function"):
        made.of_worker(made._config)
    envs.close()


@NEEDS_ENVPOOL
def test_a_worker_imports_no_tensorflow_and_needs_little_memory(tmp_path):
    """Of a MLP on EnvPool: its private memory after some fragments, as the kernel counts it."""
    plan, weights = plan_of("HalfCheetah-v5", envs=8, time_steps=64)
    (tmp_path / "plan").write_bytes(pickle.dumps((plan, weights)))
    code = f"""
import pickle, sys, time
began = time.perf_counter()
for name in ("tensorflow", "keras", "tensorflow_probability", "tf_keras"):
    sys.modules[name] = None
from trpo_tf.rollout.workers.ledger import Identity
from trpo_tf.rollout.workers.worker import Worker
plan, weights = pickle.load(open({str(tmp_path / "plan")!r}, "rb"))
worker = Worker(0, 0)
assert worker.answer("begin", plan).value["tensorflow"] is True  # the None above
for k in range(10):
    reply = worker.answer("fragment", Identity(0, 0, k), k, weights, k)
    assert reply.trouble is None, reply.trouble
smaps = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
print((int(smaps["Private_Clean:"]) + int(smaps["Private_Dirty:"])) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 130
