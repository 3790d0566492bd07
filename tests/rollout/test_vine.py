"""Branches: which there are, that they repeat what happens when it is done by hand, and what they leave behind."""

import gymnasium as gym
import numpy as np
import pytest

from tests.learner.branching import TableActor
from tests.rollout.helpers import environments
from tests.rollout.stateful import Walk
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.rollout.stepper import LocalStepper, Past
from trpo_tf.rollout.vine import VinePlan, VineStepper

TIME, ENVS = 12, 3
PLAN = VinePlan(states=10, actions=2, steps=4, all_actions=True, common_noise=True, seed=5)


class Chain(gym.Env):
    """Places 0 to 5, one-hot: action 1 goes on and action 0 stays; place p pays p + noise, and 5 is the end."""

    observation_space = gym.spaces.Box(0, 1, (6,), np.float32)
    action_space = gym.spaces.Discrete(2)
    limit = 9

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.count = 0
        return self.obs(), {}

    def step(self, action):
        self.place, self.count = self.place + int(action), self.count + 1
        reward = self.place + self.np_random.random() / 100
        return self.obs(), reward, self.place == 5, self.count == self.limit, {}

    def obs(self):
        return np.eye(6, dtype=np.float32)[self.place]


def stepper(make=Chain, plan=PLAN, policy=(0.5, 0.5), **settings):
    made = environments(make, ENVS, **settings)
    args = (lambda update: made.training(100 + update)), TableActor(np.tile(policy, (6, 1)))
    return LocalStepper(*args) if plan is None else VineStepper(*args, plan)


def rolled(stepper, rollouts=1, past=None):
    """Steps and losses of each rollout; environments begin anew where no past is given."""
    actor, found = stepper._actor, []
    obs, _ = stepper.build(0, 0) if past is None else stepper.replay(past)
    past = past or Past(0, [], [])
    for _ in range(rollouts):
        noise = actor.sampler.noise(np.random.default_rng(past.time_steps), (TIME, ENVS))
        steps, losses, episodes = stepper.step(obs, np.zeros(ENVS, bool), noise, (0, 0), past)
        found.append((steps, losses, episodes))
        past, obs = (
            past._replace(actions=[*past.actions, steps.raw_action]),
            {"observation": steps.obs["observation"][-1]},
        )
    stepper.close()
    return found


def bits(steps):
    return [x.tobytes() for x in (*steps.obs.values(), *steps[1:-1])]


def test_the_trajectory_and_its_episodes_are_those_without_branches():
    for (steps, _, episodes), (others, _, same) in zip(
        rolled(stepper(), 3), rolled(stepper(plan=None), 3), strict=True
    ):
        assert bits(steps) == bits(others)
        assert episodes == same
        assert others.branches is None


def by_hand(place, count, first, policy, draws):
    """Rewards (without their noise) of a branch, whether it is terminal, and its last place; `draws`: later actions."""
    rewards = []
    for action in [first, *draws]:
        place, count = place + action, count + 1
        rewards.append(place)
        if place == 5 or count == Chain.limit:
            break
    return rewards, place == 5, place


@pytest.mark.parametrize("go_on", [0, 1])
def test_a_branch_takes_its_action_and_then_follows_the_policy_until_the_episode_ends(go_on):
    policy = (1 - go_on + 1e-30, go_on + 1e-30)
    ((steps, _, _),) = rolled(stepper(policy=policy))
    branches, count = steps.branches, _counts(steps)
    assert branches.weight.sum() > 5
    assert (branches.raw_action[branches.weight > 0][..., 0] == [0, 1]).all()
    for s, row in enumerate(branches.row):
        t, b = divmod(row, ENVS)
        assert branches.weight[s] == steps.mask[t, b]
        for k in range(2):
            made = int(branches.mask[s, k].sum())
            if not branches.weight[s]:
                assert made == 0
                assert branches.raw_action[s, k] == steps.raw_action[t, b]  # one that the policy can draw
                continue
            place = steps.obs["observation"][t, b].argmax()
            rewards, terminal, last = by_hand(place, count[t, b], k, policy, [go_on] * (PLAN.steps - 1))
            assert branches.mask[s, k].tolist() == [1] * len(rewards) + [0] * (PLAN.steps - len(rewards))
            np.testing.assert_array_equal(np.floor(branches.reward[s, k, :made]), rewards)
            assert (branches.reward[s, k, made:] == 0).all()
            assert branches.terminated[s, k] == terminal
            assert branches.end_obs["observation"][s, k].argmax() == last


def _counts(steps):
    """Steps since the beginning of its episode, of each row [T, B]."""
    counts = np.zeros(steps.mask.shape, int)
    for t in range(1, TIME):
        over = (steps.mask[t - 1] == 0) | (steps.terminated | steps.truncated)[t - 1]
        counts[t] = np.where(over, 0, counts[t - 1] + 1)
    return counts


def noises(branches):
    """The noise of the rewards of first steps, [S, K]."""
    return np.round(branches.reward[branches.weight > 0][..., 0] % 1, 5)


def test_with_common_noise_the_branches_of_a_state_meet_the_same_and_without_it_others():
    common, apart = (rolled(stepper(plan=PLAN._replace(common_noise=on)))[0][0].branches for on in (True, False))
    assert (noises(common)[:, 0] == noises(common)[:, 1]).all()
    assert len(np.unique(noises(common))) == len(noises(common))
    assert len(np.unique(noises(apart))) == noises(apart).size
    assert (common.row == apart.row).all()


def test_common_noise_draws_the_same_later_actions():
    def later(common):
        """Places won after the first step, by the first action; all from states that are far from the end."""
        plan = PLAN._replace(common_noise=common, states=30, steps=3)
        branches = rolled(stepper(Endless, plan))[0][0].branches
        gained = np.diff(np.floor(branches.reward), axis=-1)
        return gained[branches.weight > 0]

    common, apart = later(True), later(False)
    assert (common[:, 0] == common[:, 1]).all()
    assert (apart[:, 0] != apart[:, 1]).any()


class Endless(Chain):
    """Goes round, and has no end; pays the number of moves."""

    limit = -1

    def step(self, action):
        self.moves = getattr(self, "moves", 0) + int(action)
        self.place, self.count = self.moves % 6, self.count + 1
        return self.obs(), self.moves, False, False, {}


def test_drawn_actions_are_draws_of_the_policy():
    plan = PLAN._replace(all_actions=False, actions=40, states=20)
    branches = rolled(stepper(plan=plan, policy=(0.2, 0.8)))[0][0].branches
    drawn = branches.raw_action[branches.weight > 0]
    assert drawn.mean() == pytest.approx(0.8, abs=4 * 0.4 / np.sqrt(drawn.size))


def test_rollouts_have_other_states_and_a_resumed_run_has_the_same_ones():
    first, second = rolled(stepper(), 2)
    assert (first[0].branches.row != second[0].branches.row).any()
    past = Past(0, [first[0].raw_action], [])
    ((again, _, _),) = rolled(stepper(), 1, past)
    assert bits(again) == bits(second[0])
    for name in ("row", "weight", "raw_action", "reward", "mask", "terminated"):
        np.testing.assert_array_equal(getattr(again.branches, name), getattr(second[0].branches, name))


@pytest.mark.slow
def test_processes_give_the_same_branches():
    here, apart = (rolled(stepper(env_processes=on), 2)[1][0] for on in (False, True))
    assert bits(here) == bits(apart)
    np.testing.assert_array_equal(here.branches.reward, apart.branches.reward)
    np.testing.assert_array_equal(here.branches.end_obs["observation"], apart.branches.end_obs["observation"])


class Fragile(Chain):
    """Fails, or pays what is no number, in place 3; nobody goes there but branches."""

    broken = staticmethod(lambda: 1 / 0)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward if self.place < 3 else self.broken(), *rest


class Nan(Fragile):
    broken = staticmethod(lambda: np.nan)


@pytest.mark.parametrize("kind", [Fragile, Nan])
def test_states_with_a_branch_that_fails_count_for_nothing_and_the_trajectory_goes_on(kind):
    policy = (1 - 1e-30, 1e-30)  # stays where it is, but for first actions of branches

    class Begins(kind):
        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.place = seed % 2 + 1 if seed is not None else 1
            return self.obs(), {}

    (steps, losses, _), (following, _, _) = rolled(stepper(Begins, policy=policy), 2)
    branches, place = steps.branches, steps.obs["observation"].argmax(-1).reshape(-1)
    here = steps.mask.reshape(-1)[branches.row] > 0
    np.testing.assert_array_equal(branches.weight, here & (place[branches.row] < 2))
    assert 0 < branches.weight.sum() < here.sum()
    assert branches.mask.sum() > branches.weight.sum() * 2 * 4 - 1
    assert losses.failed == []
    assert (losses.restarts > 0) == (kind is Fragile)
    assert (following.mask[0] == (~(steps.terminated | steps.truncated)[-1])).all()


def test_environments_that_fail_in_branches_too_often_end_the_run():
    with pytest.raises(EnvironmentFailure, match="max_env_restarts=0"):
        rolled(stepper(Fragile, policy=(1e-30, 1 - 1e-30), max_env_restarts=0))


def test_observations_of_a_branch_are_not_those_of_the_trajectory():
    """Walk draws its steps: a branch that met the noise of another state would go elsewhere."""

    class Positions(Walk):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (6,), np.float32)

        def obs(self):
            return np.full(6, self.position, np.float32)

    ((steps, _, _),) = rolled(stepper(Positions, PLAN._replace(steps=1)))
    branches, seen = steps.branches, steps.obs["observation"][..., 0]
    for s, row in enumerate(branches.row):
        t, b = divmod(row, ENVS)
        if branches.weight[s]:
            taken = int(steps.raw_action[t, b, 0])
            ends = branches.end_obs["observation"][s, :, 0]
            assert ends[taken] == seen[t + 1, b]
            assert ends[1] - ends[0] == pytest.approx(0.2, abs=1e-6)


class Picky(Chain):
    """Goes round, and takes one action only, by its place; another one is a failure."""

    def step(self, action):
        assert action == self.place % 2
        self.place = (self.place + 1) % 6
        return self.obs(), 1.0, False, False, {}


def test_environments_without_a_branch_take_actions_of_their_own_state():
    plan = PLAN._replace(all_actions=False, actions=2, states=11)
    policy = np.eye(2)[np.arange(6) % 2] + 1e-30
    made = environments(Picky, ENVS)
    mine = VineStepper(lambda update: made.training(100 + update), TableActor(policy), plan)
    found = rolled(mine, 4)
    assert [losses.restarts for _, losses, _ in found] == [0] * 4
    assert any(steps.branches.weight.sum() % ENVS for steps, _, _ in found)  # some environments had none


class Unlucky(Chain):
    """Fails at random."""

    how_often = 0.08

    def step(self, action):
        if self.np_random.random() < self.how_often:
            raise RuntimeError("bad luck")
        return super().step(action)


class LessUnlucky(Unlucky):
    """In a process of its own, which takes a second to begin anew."""

    how_often = 0.02


@pytest.mark.parametrize(("kind", "apart"), [(Unlucky, False), pytest.param(LessUnlucky, True, marks=pytest.mark.slow)])
def test_failures_in_branches_do_not_reach_the_trajectory(kind, apart):
    settings = {"env_processes": apart, "max_env_restarts": 1000}
    vine = rolled(stepper(kind, PLAN._replace(common_noise=False), **settings), 4)
    path = rolled(stepper(kind, None, **settings), 4)
    for (steps, losses, episodes), (others, theirs, same) in zip(vine, path, strict=True):
        assert bits(steps) == bits(others)
        assert losses.failed == theirs.failed
        assert episodes == same
    assert any(theirs.failed for _, theirs, _ in path[1:])
    assert sum(losses.restarts - theirs.restarts for (_, losses, _), (_, theirs, _) in zip(vine, path, strict=True)) > 3
