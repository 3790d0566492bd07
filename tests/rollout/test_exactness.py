"""What cannot be put back to where it was is found by trying, and refused by name."""

import functools
import importlib.util
import re
import time

import gymnasium as gym
import numpy as np
import pytest

from tests import tasks
from tests.rollout import stateful
from tests.rollout.acting import Drawn
from tests.rollout.helpers import NEEDS_ENVPOOL, environments
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.exactness import check

BOX2D = ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"]
HAS_BOX2D = importlib.util.find_spec("Box2D") is not None
HIDDEN = [
    stateful.InC,
    stateful.Global,
    stateful.GlobalAtReset,
    stateful.OfTheClass,
    stateful.Closure,
    stateful.Clock,
]


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("processes", [False, True])
def test_hidden_state_is_found_and_the_environment_refused_by_name(kind, processes):
    with pytest.raises(UsageError) as error:
        check(kind, "Mine-v0", processes)
    assert re.sub(r"after \d+ steps", "after N steps", str(error.value)) == (
        "sampling=vine: Mine-v0 cannot be put back to where it was (put back, it goes on otherwise after N steps: some "
        "of its state is in none of its attributes); leave sampling out, which takes any environment"
    )


@pytest.mark.parametrize("kind", [stateful.Working, stateful.Reading, stateful.Vectors])
def test_what_cannot_be_copied_is_refused_by_name(kind):
    with pytest.raises(UsageError, match=r"^sampling=vine: Mine-v0 cannot be .* \(its attribute \w+ cannot be copied"):
        check(kind, "Mine-v0")


@pytest.mark.skipif(not HAS_BOX2D, reason="Box2D is not installed")
@pytest.mark.parametrize("env_id", BOX2D)
def test_box2d_is_refused_by_name(env_id):
    with pytest.raises(UsageError, match=f"{env_id} cannot be .*Box2D gives out neither the impulses") as error:
        environments(env_id, backend="gymnasium").check_states()
    assert "\n" not in str(error.value)


def test_what_box2d_made_is_refused_without_box2d_too():
    world = type("b2World", (), {"__module__": "Box2D.Box2D"})

    class Lander(stateful.Walk):
        def __init__(self):
            self.world = [world()]

    with pytest.raises(UsageError, match="its attribute world cannot be copied: Box2D gives out neither"):
        check(Lander, "Lander-v0")


def test_what_cannot_be_pickled_is_refused_where_it_would_be():
    check(stateful.Unpickled, "Mine-v0")
    with pytest.raises(UsageError, match="its state cannot be pickled, as env_processes needs it: "):
        check(stateful.Unpickled, "Mine-v0", processes=True)


class Touching(gym.Wrapper):
    """Pays for contacts as they were before the step."""

    def step(self, action):
        before = self.unwrapped.data.contact.dist.sum() + self.unwrapped.data.ncon
        obs, reward, *rest = self.env.step(action)
        return obs, float(reward + before), *rest


def lying(env_id="HumanoidStandup-v5"):
    return Touching(gym.make(env_id))


def test_contacts_of_the_step_before_are_known_in_one_process_only():
    check(lying, "Lying-v0")
    with pytest.raises(
        UsageError, match="another one, put there as between processes, goes on otherwise after 1 steps"
    ):
        check(lying, "Lying-v0", processes=True)


TWO = gym.spaces.Dict(a=gym.spaces.Box(0, 1), b=gym.spaces.Discrete(2))
EXACT = {
    "CartPole": "CartPole-v1",
    "mask in info": "Taxi-v4",
    "mask, not at the end": tasks.MaskedInInfo,
    "mask in obs": tasks.MaskedInObservation,
    "nested": tasks.Hybrid,
    "draws from its space, masked": functools.partial(Drawn, TWO, gym.spaces.Discrete(4), True),
    "nested choices, masked": stateful.Choosing,
    "state everywhere": stateful.Everywhere,
}


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("env", EXACT.values(), ids=EXACT)
def test_others_pass_whatever_their_actions(env, processes):
    environments(env, backend="gymnasium", env_processes=processes).check_states()


def clocked():
    """A pole whose reward is by the clock, which a wrapper looks at."""
    return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: reward + time.perf_counter())


def test_wrappers_are_tried_too():
    environments("CartPole-v1", wrappers="TimeLimit(4)").check_states()
    with pytest.raises(UsageError, match=r":clocked cannot .* \(put back, it goes on otherwise after 1 steps"):
        environments(clocked).check_states()


@NEEDS_ENVPOOL
def test_envpool_is_refused_by_name():
    with pytest.raises(UsageError, match=r"^sampling=vine: Pendulum-v1 cannot .*env_backend=gymnasium does"):
        environments("Pendulum-v1", backend="envpool").check_states()
    envs = environments("Pendulum-v1", 2, backend="envpool").training(0)
    envs.reset()
    for call in (lambda: envs.save(0), lambda: envs.restore(0, (None, [0] * 5))):
        with pytest.raises(UsageError, match=r"^sampling=vine: Pendulum-v1 cannot .*env_backend=gymnasium does"):
            call()
    envs.close()


def test_a_vector_environment_is_refused_by_name():
    mode = gym.vector.AutoresetMode.NEXT_STEP
    given = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    made = environments(given, 2)
    with pytest.raises(UsageError, match=r"^sampling=vine: CartPole-v1 cannot .*pass an id or a function instead"):
        made.check_states()
    envs = made.training(0)
    envs.reset()
    with pytest.raises(UsageError, match=r"^sampling=vine: CartPole-v1 cannot .*pass an id or a function instead"):
        envs.save(0)
    given.close()


def test_an_environment_that_fails_in_the_trial_is_named():
    class Broken(stateful.Walk):
        def draw(self):
            raise OSError("no power")

    with pytest.raises(EnvironmentFailure, match="OSError: no power"):
        environments(lambda: Broken()).check_states()


def test_both_environments_are_closed():
    opened = []

    class Counted(stateful.Global):
        def __init__(self):
            opened.append(self)

        def close(self):
            opened.remove(self)

    with pytest.raises(UsageError):
        check(Counted, "Mine-v0")
    assert opened == []
    assert np.isfinite(Counted().reset(seed=0)[0]).all()


def test_an_environment_that_fails_now_and_then_is_tried_again():
    class Unlucky(stateful.Walk):
        made = 0

        def __init__(self):
            Unlucky.made += 1
            self.number = Unlucky.made

        def draw(self):
            if self.number < 3:
                raise OSError("no power")
            return super().draw()

    environments(lambda: Unlucky()).check_states()
    assert Unlucky.made == 4


def test_a_module_is_no_state():
    class Knows(stateful.Walk):
        def __init__(self):
            self.np = np

    environments(lambda: Knows()).check_states()


def test_maps_that_are_drawn_for_each_environment_are_refused():
    """Whether it would show in the trial is up to the maps; that they differ is looked at."""
    with pytest.raises(UsageError, match="each one has other transitions"):
        environments("FrozenLake-v1", backend="gymnasium", env_options="desc=None,map_name=None").check_states()
    environments("FrozenLake-v1", backend="gymnasium").check_states()
