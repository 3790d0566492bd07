"""Environments that answer something odd: what works all the same, and what is refused, in which words."""

import contextlib
import functools
import gc

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout.helpers import environments
from tests.rollout.odd import LINE, Odd
from trpo_tf.acting.action_sampler import ActionSampler
from trpo_tf.acting.encoders import Encoder
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.backends.restarts import count_restarts

Box, Dict, Discrete, MultiDiscrete = gym.spaces.Box, gym.spaces.Dict, gym.spaces.Discrete, gym.spaces.MultiDiscrete
MultiBinary, Tuple = gym.spaces.MultiBinary, gym.spaces.Tuple
TWO = Dict({"a": LINE, "b": Discrete(3)})
FIT = {"a": np.zeros(2, np.float32), "b": 1}
CHOICE = Discrete(3)


def play(make, steps=10, num_envs=2, **settings):
    """Steps environments with random actions, masked where there is a mask; the steps. None is made anew unasked."""
    settings = {"max_env_restarts": 0} | settings
    envs = environments(make, num_envs, **settings).training(0)
    sampler, rng = ActionSampler(envs.action_space, PolicyConfig(rescale_action=True)), np.random.default_rng(0)
    with contextlib.closing(envs):
        obs, taken, restarts = envs.reset(), [], 0
        for _ in range(steps):
            params = rng.normal(size=(num_envs, sampler.size)).astype(np.float32)
            if "action_mask" in obs:
                params = sampler.masked(params, obs["action_mask"])
            raw_action = sampler.draw(params, rng.normal(size=(num_envs, sampler.noise_size)).astype(np.float32))
            taken.append(envs.step(sampler.to_env(raw_action)))
            obs, restarts = taken[-1].obs, count_restarts(envs.pop_failures(), restarts, envs.max_restarts)
    return taken


def changing(count):
    """An info of which no two can be merged."""
    return [{"a": np.zeros(count % 3)}, {"a": "text"}, {"a": 3}, {"a": {"b": None}}, {"a": None}, {}][count % 6]


FINE = {
    "info that changes": {"info": changing},
    "info None": {},
    "info that is no dict": {"first": (np.zeros(2, np.float32), {}), "info": lambda count: [count]},
    "observation a list": {"obs": [0.0, 1.0]},
    "observation of doubles": {"obs": np.zeros(2)},
    "observation of whole numbers": {"obs": [0, 1]},
    "observation out of bounds": {"obs": np.full(2, 9.0)},
    "a part a whole number": {"observation": TWO, "obs": FIT},
    "reward [r]": {"reward": np.array([1.0])},
    "reward [[r]]": {"reward": [[1]]},
    "reward of float32": {"reward": np.float32(1)},
    "reward a bool": {"reward": True},
    "terminated [False]": {"terminated": np.array([False])},
    "terminated 0": {"terminated": 0},
    "terminated of numpy": {"terminated": np.False_},
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_odd_but_clear_works(name):
    taken = play(functools.partial(Odd, **FINE[name]))
    assert all(x.dtype == np.float32 for step in taken for x in (step.reward, step.mask))
    rewards = {reward for step in taken for reward in step.reward[step.mask > 0]}
    assert rewards == {1.0}


def later(value, fit, count=3):
    """`fit` until the step `count`, from which on it is `value`."""
    return lambda now: value if now >= count else fit


UNFIT = "its reset does not fit its observation space: observation "
REFUSED = {
    "a tuple for a Box": (
        {"obs": (0.0, 0.5)},
        UNFIT + "is a tuple of 2, an array of numbers of shape (2,) is declared",
    ),
    "None": ({"obs": None}, UNFIT + "is None, an array of numbers of shape (2,) is declared"),
    "objects": (
        {"obs": np.array([1, None])},
        UNFIT + "is an array of object, an array of numbers of shape (2,) is declared",
    ),
    "text": ({"obs": "abc"}, UNFIT + "is a str, an array of numbers of shape (2,) is declared"),
    "ragged": ({"obs": [[1], [1, 2]]}, UNFIT + "is a list of 2, an array of numbers"),
    "another shape": ({"obs": np.zeros(3)}, UNFIT + "has the shape (3,), (2,) is declared"),
    "a matrix": ({"obs": np.zeros((1, 2))}, UNFIT + "has the shape (1, 2), (2,) is declared"),
    "fractions for bytes": (
        {"observation": Box(0, 255, (2,), np.uint8), "obs": np.zeros(2)},
        UNFIT + "is of float64, uint8 is declared",
    ),
    "an extra key": (
        {"observation": TWO, "obs": FIT | {"c": 1}},
        UNFIT + "has the keys ['a', 'b', 'c'], ['a', 'b'] are declared",
    ),
    "a missing key": ({"observation": TWO, "obs": {"a": 1}}, UNFIT + "has the keys ['a'], ['a', 'b'] are declared"),
    "no dict": ({"observation": TWO, "obs": np.zeros(2)}, UNFIT + "is an array of float64, a dict is declared"),
    "a part": (
        {"observation": TWO, "obs": FIT | {"a": [1.0]}},
        "its reset does not fit its observation space: observation['a'] has the shape (1,), (2,) is declared",
    ),
    "a short tuple": (
        {"observation": Tuple((LINE, CHOICE)), "obs": (np.zeros(2),)},
        UNFIT + "is a tuple of 1, a tuple of 2 is declared",
    ),
    "a list for a tuple": (
        {"observation": Tuple((LINE, CHOICE)), "obs": [np.zeros(2), 1]},
        UNFIT + "is a list of 2, a tuple of 2 is declared",
    ),
    "the first step's observation": (
        {"obs": later(np.zeros(3), np.zeros(2), 1)},
        "its step does not fit its observation space: observation has the shape (3,), (2,) is declared",
    ),
    "old reset": ({"first": lambda count: np.zeros(2)}, "its reset does not return (obs, info); it was written for an"),
    "reset of two": ({"first": lambda count: (0.0, 0.0)}, "its reset does not return (obs, info)"),
    "old step": (
        {"answer": lambda count: (np.zeros(2), 1.0, False, {})},
        "its step does not return (obs, reward, terminated, truncated, info); it was written for an older API",
    ),
    "reward None": ({"reward": None}, "its step returned None as reward; a number is needed"),
    "reward of text": ({"reward": "1"}, "its step returned '1' as reward; a number is needed"),
    "two rewards": ({"reward": [1, 2]}, "its step returned [1, 2] as reward; a number is needed"),
    "terminated None": ({"terminated": lambda count: None}, "its step returned None as terminated; a bool is needed"),
    "truncated 2": ({"truncated": 2}, "its step returned 2 as truncated; a bool is needed"),
    "a mask for a Box": (
        {"info": {"action_mask": np.ones(2)}},
        "it gives an action_mask, but its actions, Box(-1.0, 1.0, (2,), float32), have no choices to be taken away",
    ),
    "a mask from the first step on": (
        {"action": CHOICE, "info": later({"action_mask": np.ones(3)}, {}, 1)},
        "its step returns an action_mask in info, its reset did not; return it from both",
    ),
    "a mask of another size": (
        {"action": CHOICE, "info": {"action_mask": np.ones(4)}},
        "its action_mask has 4 entries; the actions have 3 choices",
    ),
    "a mask of zeros": (
        {"action": CHOICE, "info": {"action_mask": np.zeros(3)}},
        "its action_mask allows no action; allow one until the episode is over",
    ),
    "a mask of NaN": (
        {"action": CHOICE, "info": {"action_mask": np.array([1, np.nan, 0])}},
        "its action_mask holds something else than 0 and 1: array([ 1., nan, 0.])",
    ),
    "a mask of text": (
        {"action": CHOICE, "info": {"action_mask": "all"}},
        "its action_mask holds something else than 0 and 1: 'all'",
    ),
    "an empty mask": (
        {"action": CHOICE, "info": {"action_mask": []}},
        "its action_mask has 0 entries; the actions have 3 choices",
    ),
    "a mask in the observation without choice": (
        {"action": CHOICE, "observation": Dict({"action_mask": MultiBinary(3)}), "obs": {"action_mask": [0, 0, 0]}},
        "its action_mask allows no action",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_in_one_line_before_training(name):
    settings, message = REFUSED[name]
    gc.unfreeze()
    gc.collect()  # closes what tests before left open, after their failures
    Odd.opened = 0
    with pytest.raises(UsageError) as error:
        play(functools.partial(Odd, **settings), 1, num_envs=1)
    assert f"env=functools:partial: {message}" in str(error.value).replace("tests.rollout.odd:Odd", "functools:partial")
    assert "\n" not in str(error.value)
    if "step" not in message and "truncated" not in message and "terminated" not in message:
        assert Odd.opened == 0, "what is refused while it is made is closed"


@pytest.mark.parametrize(
    "name", ["a tuple for a Box", "the first step's observation", "old reset", "old step", "two rewards"]
)
def test_what_is_not_clear_is_refused_in_processes_too(name):
    settings, message = REFUSED[name]
    with pytest.raises(UsageError) as error:
        play(functools.partial(Odd, **settings), 1, env_processes=True)
    assert str(error.value).startswith(f"env=tests.rollout.odd:Odd: {message}")


MASKED = {"action_mask": np.ones(3)}
FAILING = {
    "reward None": ({"reward": later(None, 1.0)}, "its step returned None as reward; a number is needed"),
    "terminated None": ({"terminated": later(None, False)}, "its step returned None as terminated; a bool is needed"),
    "a mask": (
        {"action": CHOICE, "info": later(MASKED, {})},
        "its step returns an action_mask in info, its reset did not; return it from both",
    ),
    "no mask": (
        {"action": CHOICE, "info": later({}, MASKED, 2)},
        "its action_mask is missing; reset and step have to return it each time",
    ),
    "no choice": ({"action": CHOICE, "info": later({"action_mask": [0, 0, 0]}, MASKED)}, "allows no action"),
    "another mask": ({"action": CHOICE, "info": later({"action_mask": [1, 1]}, MASKED)}, "has 2 entries"),
    "another shape": (
        {"obs": later(np.zeros(3), np.zeros(2))},
        "its step does not fit its observation space: observation has the shape (3,), (2,) is declared",
    ),
    "three values": (
        {"answer": lambda count: (np.zeros(2), 1.0, False, False, {})[: 3 if count > 2 else 5]},
        "its step does not return (obs, reward, terminated, truncated, info); it was written for an older API",
    ),
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_turns_odd_later_is_made_anew_and_past_the_cap_a_failure_so_that_the_work_is_saved(
    name, processes, capsys
):
    settings, message = FAILING[name]
    with pytest.raises(EnvironmentFailure) as error:
        play(functools.partial(Odd, **settings), env_processes=processes, max_env_restarts=3)
    said = str(error.value)
    assert said.startswith("environment failed: it")
    assert message in said
    assert said.endswith(" (env=tests.rollout.odd:Odd, environment 1 of 2); max_env_restarts=3")
    assert said.isprintable()
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith(" (--env=tests.rollout.odd:Odd, environment 0 of 2); made anew, its episode is dropped")


class Later(Odd):
    """The first one is as it should be."""

    def __init__(self, **settings):
        super().__init__(**(settings if Later.made else {}))
        Later.made += 1


@pytest.mark.parametrize("name", ["a tuple for a Box", "old reset", "a mask for a Box"])
def test_what_does_not_fit_three_times_in_a_row_later_is_a_failure(name):
    settings, message = REFUSED[name]
    Later.made = 0
    envs = environments(functools.partial(Later, **settings))
    envs.probe().close()
    with pytest.raises(EnvironmentFailure) as error:
        envs.training(0)
    assert str(error.value).startswith(f"environment failed: {message}")
    assert str(error.value).endswith(
        " (env=tests.rollout.test_odd_environments:Later, environment 0 of 1); 3 times in a row"
    )


@pytest.mark.parametrize(("reward", "expected"), [(1e300, np.inf), (-1e39, -np.inf), (1e38, np.float32(1e38))])
def test_rewards_beyond_float32_are_infinite_and_count_as_nothing_in_returns(reward, expected):
    envs = environments(lambda: Odd(reward=lambda count: reward if count == 2 else 1.0)).training(0)
    envs.reset()
    rewards = [envs.step(np.zeros((1, 2), np.float32)).reward[0] for _ in range(4)]
    assert rewards == [1, expected, 1, 1]
    assert envs.pop_episodes().returns == [3.0 + (1e38 if reward == 1e38 else 0)]


ACTIONS = [
    Box(0.1, 0.7, (3,), np.float64),
    Box(np.array([-0.1, -np.inf]), np.array([0.3, 1e300]), dtype=np.float64),
    Box(-0.1, 0.3, (2, 2), np.float16),
    Box(-3, 7, (2,), np.int64),
    Box(0, 255, (2,), np.uint8),
    Box(3, 60_000, (1,), np.uint16),
    Box(-(2**31), 2**31 - 1, (1,), np.int32),
    Discrete(3, start=-2),
    MultiDiscrete([2, 3], start=[5, -1]),
    MultiDiscrete([[2, 3], [4, 2]]),
    MultiBinary((2, 2)),
    Dict({"z": Box(0.1, 0.7, (1,), np.float64), "a": Tuple((Discrete(2, start=1), Box(0, 5, (1,), np.int8)))}),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_action_is_in_the_space_to_the_last_bit(space, processes):
    steps = play(
        functools.partial(Odd, action=space), 200, env_processes=processes
    )  # Odd looks whether it contains them
    assert len(steps) == 200


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(-1, 1, (0,)), "Box([], [], (0,), float32) holds nothing to be chosen"),
        (Box(-1, 1, (2, 0)), "holds nothing to be chosen"),
        (MultiDiscrete([]), "MultiDiscrete([]) holds nothing to be chosen"),
        (Dict({}), "it holds nothing to be chosen"),
        (Tuple((CHOICE, Box(-1, 1, (0,)))), "holds nothing to be chosen"),
        (gym.spaces.Text(4), "is not supported"),
        (Box(0, 1, (2,), bool), "is not supported"),
    ],
    ids=str,
)
def test_action_spaces_with_nothing_to_choose_are_named(space, message):
    with pytest.raises(UsageError, match=r"^action space ") as error:
        ActionSampler(space, PolicyConfig())
    assert message in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        Box(-1, 1, (0,)),
        MultiDiscrete([]),
        Dict({}),
        Tuple(()),
        Dict({"a": LINE, "b": MultiDiscrete([])}),
        Dict({"a": LINE, "b": Box(-1, 1, (0, 3))}),
    ],
    ids=str,
)
def test_observation_spaces_with_nothing_to_see_are_named(space):
    with pytest.raises(UsageError, match=r"^observation space .* holds nothing to be seen"):
        Encoder(space)


class Method(Odd):
    """Says with the method of sb3-contrib which actions are allowed; it may not be asked when an episode is over."""

    allowed = None

    def action_masks(self):
        assert self._in_episode < 4
        return np.arange(3) == self._count % 3

    def step(self, action):
        assert self.action_masks()[action], "not allowed"
        return super().step(action)


def test_masks_of_the_method_action_masks_are_kept():
    for make in (
        lambda: Method(action=CHOICE),
        lambda: gym.wrappers.RecordEpisodeStatistics(
            gym.wrappers.TimeLimit(Method(action=CHOICE, info=lambda count: {}), 3)
        ),
    ):
        taken = play(make, 30)
        assert taken[0].obs["action_mask"].tolist() == [[0, 1, 0]] * 2


def test_masks_of_parts_and_masks_where_an_episode_is_over():
    space, first = Dict({"b": MultiDiscrete([2, 3]), "a": Discrete(2)}), {"a": [1, 0], "b": ([0, 1], [0, 0, 1])}
    given = {"action_mask": first}
    taken = play(lambda: Odd(action=space, first=(np.zeros(2), given), info=lambda count: given if count % 4 else {}))
    assert taken[0].obs["action_mask"].tolist() == [[1, 0, 0, 1, 0, 0, 1]] * 2
    assert taken[3].obs["action_mask"].tolist() == [[1] * 7] * 2


class Frozen(gym.wrappers.NormalizeObservation):
    """Learns nothing any more."""

    def __init__(self, env):
        super().__init__(env)
        self.update_running_mean = False


class Own(gym.wrappers.NormalizeReward):
    """Somebody's own kind of it."""


LEARNS = "learns statistics that start afresh in every evaluation and at every checkpoint; leave it out: "


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (gym.wrappers.NormalizeObservation, f"NormalizeObservation {LEARNS}normalize_obs"),
        (lambda env: gym.wrappers.TimeLimit(Own(env), 3), f"NormalizeReward {LEARNS}scale_reward"),
    ],
)
def test_wrappers_that_learn_statistics_are_refused(wrap, named):
    with pytest.raises(UsageError) as error:
        environments(lambda: wrap(Odd())).probe()
    assert named in str(error.value)
    given = gym.vector.SyncVectorEnv([lambda: wrap(Odd())])
    with pytest.raises(UsageError) as error:
        environments(given)
    assert named in str(error.value)
    with pytest.raises(UsageError) as error:
        environments(gym.wrappers.vector.NormalizeReward(gym.vector.SyncVectorEnv([Odd])))
    assert f"NormalizeReward {LEARNS}scale_reward" in str(error.value)
    with pytest.raises(UsageError, match=r"^wrappers=ClipAction\(\);NormalizeObservation: NormalizeObservation learns"):
        environments("CartPole-v1", wrappers="ClipAction();NormalizeObservation")


@pytest.mark.parametrize(
    "wrap", [Frozen, gym.wrappers.Autoreset, lambda env: gym.wrappers.FrameStackObservation(env, 2)]
)
def test_wrappers_that_learn_nothing_are_taken(wrap):
    masks = [step.mask.tolist() for step in play(lambda: wrap(Odd()), 10)]
    assert masks == [[1, 1]] * 4 + [[0, 0]] + [[1, 1]] * 4 + [[0, 0]], "NEXT_STEP"


class Given(gym.vector.VectorEnv):
    """Two environments at once that answer what they are told."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, obs=None, reward=None, info=None):
        self.num_envs, self.single_observation_space, self.single_action_space = 2, LINE, CHOICE
        self.observation_space = gym.vector.utils.batch_space(LINE, 2)
        self.action_space = gym.vector.utils.batch_space(CHOICE, 2)
        self.obs = np.zeros((2, 2)) if obs is None else obs
        self.reward = np.zeros(2) if reward is None else reward
        self.info = info or {}

    def reset(self, *, seed=None, options=None):
        return self.obs, self.info

    def step(self, actions):
        return self.obs, self.reward, np.zeros(2, bool), np.zeros(2, bool), self.info


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"obs": np.zeros(2)}, "its reset does not fit: observation has the shape (2,), (2, 2) is declared"),
        ({"reward": np.zeros((2, 1))}, "its step does not fit: reward and flags have the shapes [(2, 1), (2,), (2,)]"),
        (
            {"info": {"action_mask": np.ones((2, 3))}},
            "its reset does not fit: action_mask in info reaches no policy; pass a function that makes one environment",
        ),
    ],
)
def test_a_given_vector_environment_is_looked_at_once(settings, message):
    play(Given())
    with pytest.raises(UsageError) as error:
        play(Given(**settings))
    assert f"env=Given: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"observation": Box(-1, 1, (3,)), "obs": np.zeros(3)},
            "its observation space is Box(-1.0, 1.0, (3,), float32)",
        ),
        (
            {"observation": Box(0, 255, (2,), np.uint8), "obs": np.zeros(2, np.uint8)},
            "its observation space is Box(0, 255",
        ),
        ({"action": Box(-2, 2, (2,))}, "its action space is Box(-2.0, 2.0, (2,), float32); that of the policy is"),
        ({"action": CHOICE}, "its action space is Discrete(3); that of the policy is Box(-1.0, 1.0, (2,), float32)"),
        ({"observation": Box(-9, 9, (2,), np.float64)}, ""),
    ],
)
def test_an_environment_of_other_spaces_is_refused_before_it_is_used(other, message):
    made = environments(Odd, eval_env=lambda: Odd(**other))
    made.probe()
    if not message:
        made.check_evaluation()
        return
    with pytest.raises(UsageError, match=r"^eval_env=") as error:
        made.check_evaluation()
    assert message in str(error.value)
    kinds = iter([{}, other])
    changing_spaces = environments(lambda: Odd(**next(kinds)))
    changing_spaces.probe()
    with pytest.raises(UsageError) as error:
        changing_spaces.training(0)
    assert message in str(error.value)


def test_an_evaluation_in_the_same_environment_is_not_tried():
    Odd.made = 0
    environments(Odd).check_evaluation()
    assert Odd.made == 0
    with pytest.raises(UsageError, match="Given: a vector environment cannot be evaluated in"):
        environments(Given(), 2).check_evaluation()
