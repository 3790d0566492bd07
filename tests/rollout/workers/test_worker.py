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
from tests.rollout.flaky import Flaky, drawn
from tests.rollout.helpers import NEEDS_ENVPOOL, environments
from trpo_tf import seeds
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.array_actor import ArrayActor
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError
from trpo_tf.policy import worker_actor
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.workers.fragments import in_pieces
from trpo_tf.rollout.workers.ledger import Identity
from trpo_tf.rollout.workers.worker import Worker, WorkerPlan
from trpo_tf.types import pack

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
    fragment = worker.fragment(Identity(slot, serial, 0), 0, weights)
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
    first = begun(plan).fragment(Identity(0, 0, 0), 0, weights).rollout.trajectory
    again = begun(plan).fragment(Identity(0, 0, 0), 0, weights).rollout.trajectory
    assert first.raw_action.tobytes() == again.raw_action.tobytes()
    others = [
        begun(plan, 0, 1).fragment(Identity(0, 1, 0), 0, weights),
        begun(plan).fragment(Identity(0, 0, 1), 0, weights),
        begun(dataclasses.replace(plan, seed=4)).fragment(Identity(0, 0, 0), 0, weights),
    ]
    for other in others:
        assert first.raw_action.tobytes() != other.rollout.trajectory.raw_action.tobytes()


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
    first, second = (worker.fragment(Identity(0, 0, k), k, weights).rollout for k in range(2))
    np.testing.assert_array_equal(first.trajectory.obs["observation"][-1], second.trajectory.obs["observation"][0])
    assert (first.version == 0).all()
    assert (second.version == 1).all()
    assert worker._collector._actions == []


@pytest.mark.parametrize("env", ["CartPole-v1", Counting, functools.partial(Flaky, drawn(0.05))])
@pytest.mark.parametrize("config", [SMALL, PolicyConfig(network="gru", sequence_length=4)])
def test_a_fragment_in_pieces_is_the_whole_one_to_the_bit(env, config):
    """Episodes, running returns and recurrent states go on from piece to piece."""
    plan, weights = plan_of(env, time_steps=32, config=config)
    restarts = dropped = 0
    whole, parted = begun(plan), begun(dataclasses.replace(plan, pieces=(5, 8, 3, 16)))
    for k in range(3):
        identity = Identity(0, 0, k)
        one = whole.fragment(identity, k, weights)
        for _ in range(3):
            assert parted.fragment(identity, k, weights) == identity
        two = parted.fragment(identity, k, weights)
        assert (one.restarts, one.dropped) == (two.restarts, two.dropped)
        restarts, dropped = restarts + one.restarts, dropped + one.dropped
        apart = {"restarts": 0, "dropped": 0, "discounted_return": one.rollout.trajectory.mask}
        same, other = (pack(x.rollout._replace(**apart), "x") for x in (one, two))
        valid = one.rollout.trajectory.mask > 0  # nobody looks at the others
        np.testing.assert_array_equal(one.rollout.discounted_return[valid], two.rollout.discounted_return[valid])
        assert same.keys() == other.keys()
        assert [name for name in same if same[name].tobytes() != other[name].tobytes()] == []
    assert same["x/episode_ends"].size
    assert (restarts > 2 and dropped > 2) == isinstance(env, functools.partial)


def test_each_piece_of_a_fragment_is_drawn_with_the_weights_it_was_sent():
    plan, weights = plan_of("CartPole-v1", time_steps=32)
    plan = dataclasses.replace(plan, pieces=(16, 16))
    newer = {name: x + 1 for name, x in weights.items()}
    worker, identity = begun(plan), Identity(0, 0, 0)
    worker.fragment(identity, 5, weights)
    rollout = worker.fragment(identity, 6, newer).rollout
    np.testing.assert_array_equal(rollout.version, np.repeat([[5], [6]], 16, 0) + np.zeros((1, 2)))
    actor = plan.make_actor()
    for first, used in ((0, weights), (16, newer)):
        actor.set_weights(used)
        obs = rollout.trajectory.obs["observation"][first : first + 16].reshape(-1, 4)
        params, _, _ = actor({"observation": obs}, np.zeros((32, actor.noise_size), np.float32))
        np.testing.assert_allclose(params, rollout.behavior_params[first : first + 16].reshape(32, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("time_steps", "pieces"),
    [(1, (1,)), (63, (63,)), (64, (32, 32)), (127, (63, 64)), (128, (32, 32, 64)), (131, (32, 32, 67))],
)
def test_pieces_are_short_while_an_update_may_be_taken(time_steps, pieces):
    assert in_pieces(time_steps) == pieces


def test_first_episodes_are_cut_as_in_one_process():
    """Over all environments of all workers: those of slot 1 later than those of slot 0."""
    plan, weights = plan_of("Pendulum-v1", time_steps=200, stagger=True)
    ends = []
    for slot in range(2):
        trajectory = begun(plan, slot, slot).fragment(Identity(slot, slot, 0), 0, weights).rollout.trajectory
        ends += [int(np.flatnonzero(column)[0]) + 1 for column in trajectory.truncated.T]
    assert ends == [50, 100, 150, 200]


def test_what_goes_wrong_is_a_reply():
    plan, weights = plan_of("CartPole-v1")
    worker = begun(plan)
    assert worker.answer("begin", None).trouble.message.startswith("a rollout worker failed: AttributeError")
    broken = dataclasses.replace(plan, make_actor=lambda: sys.exit(3))
    assert "SystemExit: 3" in Worker(0, 0).answer("begin", broken).trouble.message
    assert begun(plan).answer("fragment", Identity(0, 0, 0), 0, {}).trouble.kind == ""

    class Silent(Counting):
        def step(self, action):
            raise RuntimeError("no power")

    plan, weights = plan_of(Silent, max_env_restarts=0)
    trouble = begun(plan).answer("fragment", Identity(0, 0, 0), 0, weights).trouble
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
    reply = worker.answer("fragment", Identity(0, 0, k), k, weights)
    assert reply.trouble is None, reply.trouble
smaps = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
print((int(smaps["Private_Clean:"]) + int(smaps["Private_Dirty:"])) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 130
