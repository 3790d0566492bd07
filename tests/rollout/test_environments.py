"""The environments of a run: of an id, of a function, given as an object; and what is refused in one line."""

import functools

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout import counting
from tests.rollout.helpers import NEEDS_ENVPOOL, environments, run, vector_env
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.backends import envpool as envpool_backend
from trpo_tf.rollout.environments import env_name
from trpo_tf.seeds import derive_seed

NEXT_STEP, SAME_STEP = gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP


def cartpole():
    return gym.make("CartPole-v1")


def sync(make=cartpole, count=3, mode=NEXT_STEP):
    return gym.vector.SyncVectorEnv([make] * count, autoreset_mode=mode)


def pool(env="CartPole-v1", **settings):
    return envpool_backend.envpool.make(env, **({"env_type": "gymnasium", "num_envs": 3, "seed": 5} | settings))


def test_derived_seeds_depend_on_every_part_and_leave_room_for_environments():
    seeds = {derive_seed(s, p, c) for s in range(20) for p in range(5) for c in range(20)}
    assert len(seeds) == 2000
    assert max(seeds) < 2**31 - 2**17
    assert derive_seed(1, 2) == derive_seed(1, 2)


def same(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stagger", [True, False])
def test_a_function_is_as_good_as_an_id(stagger):
    ours = run(vector_env(cartpole, 3, 5, stagger=stagger), 100)
    assert same(ours, run(vector_env("CartPole-v1", 3, 5, "gymnasium", stagger=stagger), 100))


def test_training_is_staggered_as_configured_and_evaluation_never():
    def make():
        return gym.wrappers.TimeLimit(counting.Faulty({k: ("obs", 0) for k in range(99)}), 4)

    made = environments(make, 2, stagger=True)
    cut = run(made.training(0), 4)[4]
    assert np.argwhere(cut).tolist() == [[1, 0], [3, 1]], "the time limit of a wrapper is seen without a spec"
    assert np.argwhere(run(environments(make, 2).training(0), 4)[4]).tolist() == [[3, 0], [3, 1]]
    assert np.argwhere(run(made.evaluation(2, 0), 4)[4]).tolist() == [[3, 0], [3, 1]]


def test_evaluation_has_as_many_environments_as_asked_for_with_its_own_seeds():
    made = environments("CartPole-v1", 2)
    first = made.evaluation(3, 9).reset()["observation"]
    np.testing.assert_array_equal(first, vector_env("CartPole-v1", 3, 9).reset()["observation"])


def test_evaluation_may_be_in_another_environment():
    made = environments("CartPole-v1", 2, eval_env="Pendulum-v1")
    assert made.training(0).observation_space.shape == (4,)
    assert made.evaluation(1, 0).observation_space.shape == (3,)
    with pytest.raises(UsageError, match=r"Pendulum-v8: .*newest version is Pendulum-v1"):
        environments("CartPole-v1", 2, eval_env="Pendulum-v8")
    with pytest.raises(UsageError, match=r"eval_env=CartPole-v1: .*pass an id or a function"):
        environments("CartPole-v1", 3, eval_env=sync())


def test_a_probe_is_one_environment():
    envs = environments("CartPole-v1", 5).probe()
    assert envs.num_envs == 1
    assert envs.observation_space.shape == (4,)


def test_wrappers_go_around_what_a_function_makes_and_options_do_not_reach_it():
    envs = vector_env(cartpole, 1, 0, wrappers="FrameStackObservation(2)")
    assert envs.reset()["observation"].shape == (1, 2, 4)
    with pytest.raises(
        UsageError, match=r"^env_options=a=1: goes with an id; tests.rollout.test_environments:cartpole"
    ):
        environments(cartpole, env_options="a=1")
    assert (
        environments(cartpole, env_options="max_episode_steps=9", eval_env="Pendulum-v1").evaluation(1, 0).num_envs == 1
    )


def test_names():
    assert env_name("Hopper-v5") == "Hopper-v5"
    assert env_name(cartpole) == "tests.rollout.test_environments:cartpole"
    assert env_name(counting.Counting) == "tests.rollout.counting:Counting"
    assert env_name(functools.partial(cartpole)) == "tests.rollout.test_environments:cartpole"
    assert env_name(type("Maker", (), {"__call__": cartpole})()) == "tests.rollout.test_environments:Maker"
    assert env_name(sync()) == "CartPole-v1"
    assert env_name(sync(counting.Counting)) == "SyncVectorEnv"
    assert env_name(gym.make_vec("Pendulum-v1", 2)) == "Pendulum-v1"
    assert environments(cartpole).name == "tests.rollout.test_environments:cartpole"
    assert environments("CartPole-v1").name == "CartPole-v1"
    assert environments(sync(), 3).name == "CartPole-v1"


@NEEDS_ENVPOOL
def test_pools_have_the_name_of_their_task():
    assert env_name(pool()) == "CartPole"


@pytest.mark.parametrize("stagger", [True, False])
def test_a_given_vector_environment_is_reset_with_the_seed_each_time_and_stays_open(stagger):
    given = sync()
    made = environments(given, 3, stagger=stagger)
    assert made.backend == "gymnasium"
    expected = run(vector_env("CartPole-v1", 3, 5, "gymnasium", stagger=stagger), 60)
    for _ in range(2):
        envs = made.training(5)
        assert same(run(envs, 60), expected)
        envs.close()
    assert not given.closed
    given.close()


def test_a_given_asynchronous_one_is_cut_too():
    given = gym.make_vec("Pendulum-v1", 2, vectorization_mode="async")
    ours = run(environments(given, 2, stagger=True).training(3), 210)
    assert same(ours, run(vector_env("Pendulum-v1", 2, 3, "gymnasium", stagger=True), 210))
    given.close()


def test_vector_environments_that_may_not_know_how_to_reset_some_are_not_cut():
    given = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    envs = environments(given, 3, stagger=True).training(0)
    assert envs._backend.max_episode_steps is None
    _, _, _, terminated, truncated, mask = run(envs, 60)
    assert not truncated.any()
    np.testing.assert_array_equal(mask[1:] == 0, terminated[:-1])


def test_a_look_at_a_given_one_neither_resets_nor_steps_it():
    given = sync(counting.Counting)
    given.reset(seed=3)
    given.step(np.ones(3, np.int64))
    envs = environments(given, 3).probe()
    assert envs.observation_space == counting.Counting.observation_space
    assert envs.num_envs == 3
    envs.close()
    assert [env.count for env in given.envs] == [1, 1, 1]
    assert not given.closed


@NEEDS_ENVPOOL
def test_a_given_pool_is_reset_each_time_and_stays_open(monkeypatch):
    given, closed = pool(), []
    monkeypatch.setattr(type(given), "close", lambda pool: closed.append(pool))
    made = environments(given, 3, stagger=True)
    assert made.backend == "envpool"
    for seed in range(2):
        envs = made.training(seed)
        obs, _, _, terminated, truncated, mask = run(envs, 100)
        assert (np.abs(obs[0]) <= 0.05).all()
        np.testing.assert_array_equal(mask[1:] == 0, (terminated | truncated)[:-1])
        envs.close()
    assert not closed
    assert made.probe().observation_space.shape == (4,)
    expected = run(vector_env("CartPole-v1", 3, 5, "envpool"), 100)
    assert same(run(environments(pool(), 3).training(0), 100), expected)


@NEEDS_ENVPOOL
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_type": "dm"}, "env_type='gymnasium'"),
        ({"batch_size": 2}, "batch_size=2 of num_envs=3; leave batch_size out"),
        ({"num_envs": 2}, "num_envs=3: CartPole has 2 environments"),
    ],
)
def test_pools_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UsageError, match=message) as error:
        environments(pool(**settings), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda: sync(count=2), {}, "num_envs=3: CartPole-v1 has 2 environments; must be the same"),
        (
            lambda: sync(mode=SAME_STEP),
            {},
            "autoreset_mode is SAME_STEP; pass one made with autoreset_mode=.*NEXT_STEP",
        ),
        (sync, {"wrappers": "TimeLimit(3)"}, "wrappers=.*wrap what it is made of"),
        (sync, {"env_options": "a=1"}, "env_options=a=1: goes with an id"),
        (sync, {"env_processes": True}, "env_processes: CartPole-v1 is a vector environment"),
        (sync, {"backend": "envpool"}, "env_backend=envpool: CartPole-v1 is gymnasium's"),
        (lambda: cartpole, {"backend": "envpool"}, "env_backend=envpool: .*:cartpole is gymnasium's"),
        (cartpole, {}, "env=CartPole-v1: is neither an id, nor a function"),
        (lambda: 3, {}, "env=builtins:int: is neither"),
    ],
)
def test_what_is_given_and_does_not_fit_is_refused(make, settings, message):
    with pytest.raises(UsageError, match=message) as error:
        environments(make(), 3, **settings)
    assert "\n" not in str(error.value)


def test_a_vector_environment_without_autoreset_mode_is_refused():
    given = sync()
    del given.metadata["autoreset_mode"]
    with pytest.raises(UsageError, match="autoreset_mode is None; pass"):
        environments(given, 3)


def test_a_given_one_cannot_be_evaluated_in():
    with pytest.raises(UsageError, match="CartPole-v1: a vector environment cannot be evaluated in; pass eval_env"):
        environments(sync(), 3).evaluation(1, 0)
    assert environments(sync(), 3, eval_env="CartPole-v1").evaluation(2, 0).num_envs == 2
    assert environments(sync(), 3, eval_env=cartpole).evaluation(2, 0).backend == "gymnasium"


def test_functions_that_make_something_else_are_named():
    with pytest.raises(UsageError, match=r":.*<lambda>: returned builtins.dict, not a gymnasium.Env"):
        environments(lambda: {}).training(0)
    with pytest.raises(UsageError, match=r"SyncVectorEnv, not a gymnasium.Env"):
        environments(lambda: sync()).training(0)
    one = cartpole()
    with pytest.raises(UsageError, match="returns the same environment twice"):
        environments(lambda: one, 2).training(0)


def test_functions_have_to_make_what_can_be_shown():
    with pytest.raises(UsageError, match="made with render_mode=None; rgb_array is needed"):
        environments(cartpole).evaluation(1, 0, "rgb_array", "somewhere")
    watched = environments(functools.partial(gym.make, "CartPole-v1", render_mode="rgb_array"))
    assert watched.evaluation(1, 0, "rgb_array").num_envs == 1


def test_what_is_shown_is_gymnasiums():
    made = environments("CartPole-v1")
    assert made.evaluation(1, 0, "rgb_array").backend == "gymnasium"
    assert made.evaluation(1, 0).backend == made.backend


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("by zero"), "environment failed: ZeroDivisionError: by zero (env="),
        (SystemExit(2), "environment failed: SystemExit: 2 (env="),
    ],
)
def test_what_fails_while_it_is_made_is_named(error, message):
    def make():
        raise error

    with pytest.raises(EnvironmentFailure) as raised:
        environments(make).training(0)
    assert message in str(raised.value)
    assert str(raised.value).endswith("make, while it was made)")


def test_a_package_that_is_missing_is_named():
    def make():
        raise ImportError("no module named box2d\nand more")

    with pytest.raises(UsageError, match=r"make: no module named box2d$"):
        environments(make).training(0)


def test_modules_are_imported_where_that_is_allowed(monkeypatch, tmp_path):
    (tmp_path / "registers_more.py").write_text(
        "import gymnasium\ngymnasium.register('Counting-v7', 'tests.rollout.counting:Counting')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = vector_env("registers_more:Counting-v7", 2, 0, allow_env_module=True)
    assert envs.observation_space.shape == (2,)
    with pytest.raises(UsageError, match="pass allow_env_module if you trust it"):
        environments("tests.rollout.counting:Counting-v0")
    with pytest.raises(UsageError, match="no_such_module"):
        vector_env("no_such_module:Thing-v0", 1, 0, allow_env_module=True)
    with pytest.raises(UsageError, match="EnvPool does not have it"):
        environments("tests.rollout.counting:Counting-v0", 1, "envpool", allow_env_module=True)
