"""States of environments: 200 steps after one is put back are those after it was saved, to the bit."""

import copy
import functools
import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers

from tests.rollout import stateful
from trpo_tf.errors import UsageError
from trpo_tf.rollout.env_state import Saver, packed, unpacked
from trpo_tf.rollout.exactness import check
from trpo_tf.rollout.simulators import Snapshot, Unsavable

STEPS = 200
MUJOCO = (
    "HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup", "Swimmer", "Reacher", "Pusher",
    "InvertedPendulum", "InvertedDoublePendulum",
)  # fmt: skip
IDS = [
    *(f"{name}-v5" for name in MUJOCO),
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    *("FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1"),
]
HAS_ALE, HAS_CV2 = (importlib.util.find_spec(name) is not None for name in ("ale_py", "cv2"))


def atari(game="Breakout", **settings):
    import ale_py

    gym.register_envs(ale_py)
    return gym.make(f"ALE/{game}-v5", **({"repeat_action_probability": 0} | settings))


def sticky(env):
    return wrappers.StickyAction(env, 0.25)


def made(env_id, *around, **settings):
    env = gym.make(env_id, **settings)
    for wrap in around:
        env = wrap(env)
    return env


def ale(needed, make):
    return pytest.param(make, marks=pytest.mark.skipif(not needed, reason="ale-py or OpenCV is not installed"))


PENDULUM = functools.partial(made, "Pendulum-v1")
KINDS = (
    {name: functools.partial(gym.make, name) for name in IDS}
    | {
        "Taxi, rainy and fickle": functools.partial(gym.make, "Taxi-v4", is_rainy=True, fickle_passenger=True),
        "Ant with contact forces": functools.partial(gym.make, "Ant-v5", include_cfrc_ext_in_observation=True),
        "ALE": ale(HAS_ALE, atari),
        "ALE, random frames": ale(HAS_ALE, functools.partial(atari, "Seaquest", frameskip=(2, 5))),
        "ALE, frames in two parts": ale(HAS_ALE, functools.partial(atari, "Qbert")),
        "ALE, RAM": ale(HAS_ALE, functools.partial(atari, "Enduro", obs_type="ram")),
        "ALE as in papers": ale(
            HAS_ALE and HAS_CV2,
            lambda: wrappers.FrameStackObservation(wrappers.AtariPreprocessing(sticky(atari("Pong", frameskip=1))), 4),
        ),
        "time limit": lambda: PENDULUM(functools.partial(wrappers.TimeLimit, max_episode_steps=23)),
        "frame stack": lambda: PENDULUM(lambda env: wrappers.FrameStackObservation(env, 4)),
        "statistics of episodes": lambda: PENDULUM(wrappers.RecordEpisodeStatistics),
        "actions scaled, clipped": lambda: PENDULUM(
            lambda env: wrappers.RescaleAction(env, -3, 3), wrappers.ClipAction
        ),
        "sticky actions": lambda: PENDULUM(lambda env: wrappers.StickyAction(env, 0.4, (1, 4))),
        "sticky by its own generator": lambda: PENDULUM(stateful.Held),
        "delayed": lambda: PENDULUM(lambda env: wrappers.DelayObservation(env, 3)),
        "time in obs": lambda: PENDULUM(wrappers.TimeAwareObservation),
        "function of obs": lambda: PENDULUM(lambda env: wrappers.TransformObservation(env, np.cos, None)),
        "normalised": lambda: PENDULUM(wrappers.NormalizeObservation, wrappers.NormalizeReward),
        "resets itself": lambda: made("CartPole-v1", wrappers.Autoreset),
        "frames at once": lambda: made("CartPole-v1", lambda env: wrappers.MaxAndSkipObservation(env, 2)),
        "pixels": lambda: made("CartPole-v1", wrappers.AddRenderObservation, render_mode="rgb_array"),
        "pixels of tiles": lambda: made("FrozenLake-v1", wrappers.AddRenderObservation, render_mode="rgb_array"),
    }
    | {kind.__name__: kind for kind in (stateful.Walk, stateful.Everywhere, stateful.Handing, stateful.Holding)}
)


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def bits(value):
    """Something that is equal where the value is to the bit."""
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [bits(part) for part in value]
    return type(value), np.asarray(value).dtype, np.shape(value), np.asarray(value).tobytes()


def follow(env, steps=STEPS, seed=1):
    """All that it returns for drawn actions but `info`; it is reset where an episode is over, and in the end."""
    space, over, found = copy.deepcopy(env.action_space), False, []
    space.seed(seed)
    for _ in range(steps):
        if over:
            answer, over = env.reset()[:1], False
        else:
            *answer, _ = env.step(space.sample())
            over = answer[2] or answer[3]
        found.append(bits(tuple(answer)))
    return [*found, bits(env.reset()[0])]


def midway(make, steps=7):
    """An environment amid its first episode."""
    env = make()
    env.reset(seed=3)
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(space.sample())
        if terminated or truncated:
            env.reset()
    return env


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_200_steps_and_a_reset_are_repeated_to_the_bit(make):
    env, other = midway(make), make()
    saver = Saver(env)
    saved = saver.save()
    first = follow(env)
    assert follow(env, seed=2) != first, "other episodes lie between"
    saver.restore(saved)
    assert follow(env) == first
    Saver(other).restore(unpacked(packed(saved)))  # it was never reset
    assert follow(other) == first
    Saver(other).restore(saved)
    assert follow(other) == first
    env.close()
    other.close()


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_saving_changes_nothing(make):
    env, watched = midway(make), midway(make)
    saver = Saver(watched)
    for seed in range(4):
        saver.save()
        assert follow(watched, 11, seed) == follow(env, 11, seed)


@pytest.mark.parametrize("make", [KINDS[name] for name in ("Hopper-v5", "CartPole-v1", "time limit", "Everywhere")])
def test_two_states_are_put_back_in_any_order(make):
    env = midway(make)
    saver, saved, after = Saver(env), [], []
    for _ in range(2):
        saved.append(saver.save())
        after.append(follow(env, 40))
    for which in (1, 0, 0, 1, 0):
        saver.restore(saved[which])
        assert follow(env, 40) == after[which]
    assert after[0] != after[1]


def test_a_state_outlives_the_episode_it_is_from():
    env = midway(KINDS["CartPole-v1"])
    saver = Saver(env)
    saved, first = saver.save(), follow(env, 3)
    for _ in range(3):
        while not env.step(0)[2]:
            pass
        env.reset()
    env.step(1)
    saver.restore(saved)
    assert follow(env, 3) == first
    saver.restore(saved)
    env.reset(seed=99)  # other generators, too
    saver.restore(saved)
    assert follow(env, 3) == first


def test_a_branch_is_what_its_actions_make_of_it():
    """An independent reference: another environment that came there by the same seed and actions."""
    env = midway(KINDS["Hopper-v5"], 5)
    saver = Saver(env)
    saved = saver.save()
    for seed in range(3):
        saver.restore(saved)
        assert follow(env, 20, seed) == follow(midway(KINDS["Hopper-v5"], 5), 20, seed)


def test_what_comes_later_is_gone_again():
    env = stateful.Everywhere()
    env.reset(seed=3)
    saver = Saver(env)
    saved, before = saver.save(), set(vars(env))
    first = follow(env, 20)
    assert set(vars(env)) == before, "it was reset"
    env.step(0)
    assert set(vars(env)) == {*before, "late"}
    saver.restore(saved)
    assert set(vars(env)) == before
    assert follow(env, 20) == first


def test_a_generator_that_nobody_seeded_goes_on_as_it_did():
    env = stateful.Unseeded()
    env.reset()
    saver = Saver(env)
    saved = saver.save()
    first = follow(env, 20)
    saver.restore(saved)
    assert follow(env, 20) == first
    assert follow(env, 20) != first


def test_a_function_that_took_the_place_of_another_is_put_back():
    env = stateful.Walk()
    env.draw = lambda: 0.0
    env.reset(seed=3)
    saver = Saver(env)
    early = saver.save()
    env.draw = lambda: 0.25
    late = saver.save()
    env.draw = lambda: 0.5
    for saved, draw in ((late, 0.25), (early, 0.0), (late, 0.25)):
        saver.restore(saved)
        assert env.draw() == draw


def test_what_was_handed_out_before_stays_as_it_was():
    env = midway(stateful.Handing)
    saver = Saver(env)
    saved = saver.save()
    obs = env.step(1)[0]
    before = obs.copy()
    saver.restore(saved)
    assert obs == before
    env.step(0)
    assert obs == before


def test_a_state_is_not_changed_by_what_is_done_with_it():
    env = midway(stateful.Everywhere)
    saver = Saver(env)
    saved = saver.save()
    before = packed(saved)
    follow(env, 20)
    saver.restore(saved)
    follow(env, 20)
    assert packed(saved) == before


def test_renderers_stay_with_their_environment():
    env = midway(lambda: gym.make("CartPole-v1", render_mode="rgb_array"))
    saver = Saver(env)
    early = saver.save()
    frame, screen = env.render(), env.unwrapped.screen
    saved = saver.save()
    env.step(0)
    for state in (saved, early):
        saver.restore(state)
        assert env.unwrapped.screen is screen
        assert (env.render() == frame).all()
    assert b"pygame" not in packed(saved)


def test_tables_and_models_are_not_copied():
    for env_id, name in (("Taxi-v4", "P"), ("Hopper-v5", "model"), ("Hopper-v5", "mujoco_renderer")):
        env = midway(functools.partial(gym.make, env_id))
        saver, before = Saver(env), getattr(env.unwrapped, name)
        saved = saver.save()
        saver.restore(saved)
        assert getattr(env.unwrapped, name) is before
        assert len(packed(saved)) < 20_000


def test_aliases_are_aliases_again():
    env = midway(stateful.Everywhere)
    saver = Saver(env)
    saver.restore(unpacked(packed(saver.save())))
    assert env.alias is env.table["a"]
    assert env.own is env.shared
    assert env.helper.env is env
    assert env.helper.draw.__self__ is env


def test_unused_copies_of_mujoco_are_used_again():
    env = midway(KINDS["Hopper-v5"])
    saver = Saver(env)
    first = saver.save().simulators[0]
    assert isinstance(first, Snapshot)
    data = first.data
    del first
    assert saver.save().simulators[0].data is data
    one, two = saver.save(), saver.save()
    assert one.simulators[0].data is not two.simulators[0].data


def test_contacts_come_back_with_their_forces():
    """Those of the last step, which is not what the next one starts from."""
    env = midway(KINDS["Ant-v5"], 40)
    data, saver = env.unwrapped.data, Saver(env)
    while not data.ncon:
        env.step(np.zeros(8))
    saved, before = saver.save(), (data.ncon, data.contact.dist.tolist(), data.efc_force.tolist(), data.solver_niter[0])
    env.reset()
    assert data.ncon != before[0] or data.contact.dist.tolist() != before[1]
    saver.restore(saved)
    assert (data.ncon, data.contact.dist.tolist(), data.efc_force.tolist(), data.solver_niter[0]) == before


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (stateful.Working, "its attribute thread cannot be copied"),
        (stateful.Reading, "its attribute file cannot be copied"),
        (stateful.Vectors, "its attribute envs cannot be copied: it is an environment"),
    ],
)
def test_attributes_that_cannot_be_copied_are_named(make, why):
    env = midway(make)
    with pytest.raises(Unsavable, match=why):
        Saver(env).save()
    env.close()


@pytest.mark.skipif(not HAS_ALE, reason="ale-py is not installed")
def test_actions_that_ale_repeats_by_chance_are_not_known():
    with pytest.raises(UsageError, match=r"Sticky cannot .* \(ALE does not give out the action that it repeats; with"):
        check(functools.partial(atari, repeat_action_probability=0.25), "Sticky")


def test_only_one_environment_of_gymnasium_is_taken():
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(Unsavable, match=r"SyncVectorEnv is no gymnasium\.Env"):
        Saver(envs)
    envs.close()
