"""One contract over both backends: what every row means, phases, seeds, errors."""

import gymnasium as gym
import numpy as np
import pytest

from tests.rollout import counting  # noqa: F401, registers its environments
from trpo_tf.config import UsageError
from trpo_tf.rollout import envs as envs_module
from trpo_tf.rollout.envs import Envs, derive_seed, resolve_backend

NEEDS_ENVPOOL = pytest.mark.skipif(not envs_module.envpool, reason="EnvPool is not installed")
BACKENDS = ["gymnasium", pytest.param("envpool", marks=NEEDS_ENVPOOL)]


def run(envs, steps, seed=0):
    """Random actions; obs [T+1, B, ...] and the rows stacked to [T, B]."""
    rng = np.random.default_rng(seed)
    space = envs.action_space
    obs, rows, actions = [np.array(envs.reset()["observation"])], [], []
    for _ in range(steps):
        if isinstance(space, gym.spaces.Discrete):
            action = rng.integers(space.n, size=envs.num_envs) + space.start
        else:
            action = rng.uniform(space.low, space.high, (envs.num_envs, *space.shape)).astype(np.float32)
        rows.append(envs.step(action))
        obs.append(np.array(rows[-1].obs["observation"]))
        actions.append(action)
    stacked = [np.stack(x) for x in zip(*(row[1:] for row in rows), strict=True)]
    return np.stack(obs), np.stack(actions), *stacked


@pytest.mark.parametrize("backend", BACKENDS)
def test_reset_rows_follow_ends_and_carry_nothing(backend):
    envs = Envs("CartPole-v1", 5, 3, backend)
    obs, _, reward, terminated, truncated, mask = run(envs, 200)
    ended = terminated | truncated
    np.testing.assert_array_equal(mask[1:] == 0, ended[:-1])
    assert (mask[0] == 1).all()
    reset = mask == 0
    assert reset.sum() > 20
    assert not reward[reset].any()
    assert not ended[reset].any()
    assert (np.abs(obs[1:][reset]) <= 0.05).all(), "what follows a reset row is a first observation"
    assert (np.abs(obs[1:][terminated])[:, [0, 2]] > [2.4, 0.2095]).any(-1).all(), "the true final observation"
    assert not (terminated & truncated).any()
    episodes = envs.pop_episodes()
    assert len(episodes.returns) == ended.sum()
    assert sum(episodes.returns) <= reward.sum()
    assert episodes.lengths == [int(x) for x in episodes.returns], "CartPole pays 1 a step"


@NEEDS_ENVPOOL
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_rows_are_those_of_envpools_own_step(env):
    ours, theirs = (Envs(env, 3, 7, "envpool", stagger=True) for _ in range(2))
    assert ours._backend._state
    theirs._backend._state = None
    for a, b in zip(run(ours, 450), run(theirs, 450), strict=True):  # over cuts and, of Pendulum, the time limit
        np.testing.assert_array_equal(a, b)
    assert ours.pop_episodes() == theirs.pop_episodes()


@NEEDS_ENVPOOL
def test_actions_of_another_shape_do_not_reach_envpool():
    envs = Envs("HalfCheetah-v5", 2, 0, "envpool")
    envs.reset()
    with pytest.raises(UsageError, match="shape"):
        envs.step(np.zeros((2, 1), np.float32))


@NEEDS_ENVPOOL
@pytest.mark.parametrize(
    ("usable", "threads", "num_envs", "expected"),
    [
        ({0, 1}, 0, 4, (2, 0)),  # bound, from core 0 on
        ({0, 1}, 2, 4, (2, -1)),  # as many as asked for, not bound
        ({0, 1, 2, 3}, 0, 2, (2, -1)),  # more cores than environments
        ({2, 3}, 0, 4, (2, -1)),  # core 0 is another's
    ],
)
def test_threads_are_bound_to_cores_where_that_is_safe(monkeypatch, usable, threads, num_envs, expected):
    given, make = [], envs_module.envpool.make

    def watched(*args, **settings):
        given.append((settings["num_threads"], settings["thread_affinity_offset"]))
        return make(*args, **settings | {"thread_affinity_offset": -1})

    monkeypatch.setattr(envs_module, "usable_cores", lambda: usable)
    monkeypatch.setattr(envs_module.envpool, "make", watched)
    Envs("CartPole-v1", num_envs, 0, "envpool", threads).close()
    assert given == [expected]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_steps_at_which_nothing_ends_are_kept_like_any_other(env):
    short, long = (Envs(env, 3, 7, stagger=True) for _ in range(2))
    step = long.step

    def at_length(action):
        long._quiet = 0
        return step(action)

    long.step = at_length
    for a, b in zip(run(short, 450), run(long, 450), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert short.pop_episodes() == long.pop_episodes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cartpole_rows_obey_the_same_dynamics(backend):
    """Every valid row of either backend is a transition of gymnasium's CartPole from the same state."""
    reference = gym.make("CartPole-v1").unwrapped
    reference.reset()
    obs, action, reward, terminated, _, mask = run(Envs("CartPole-v1", 4, 0, backend), 120)
    for t, b in zip(*np.nonzero(mask), strict=True):
        reference.state, reference.steps_beyond_terminated = tuple(obs[t, b].astype(np.float64)), None
        expected, paid, over, _, _ = reference.step(int(action[t, b]))
        np.testing.assert_allclose(obs[t + 1, b], expected, atol=1e-5)
        assert (paid, over) == (reward[t, b], terminated[t, b])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_cheetah_rows_obey_the_same_dynamics(backend):
    reference = gym.make("HalfCheetah-v5").unwrapped
    reference.reset()
    obs, action, reward, _, _, mask = run(Envs("HalfCheetah-v5", 3, 0, backend), 40)
    errors = []
    for t, b in zip(*np.nonzero(mask), strict=True):
        reference.set_state(np.r_[0.0, obs[t, b, :8]], obs[t, b, 8:])
        expected, paid, _, _, _ = reference.step(action[t, b])
        errors.append(np.r_[obs[t + 1, b] - expected, reward[t, b] - paid])
    # The solver is warm-started from the step before, which a state set by hand does not have.
    assert np.abs(errors).max() < 0.05
    assert np.abs(errors).mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_limits_truncate(backend):
    _, _, _, terminated, truncated, _ = run(Envs("Pendulum-v1", 2, 0, backend), 402)
    assert not terminated.any()
    assert np.argwhere(truncated).tolist() == [[199, 0], [199, 1], [400, 0], [400, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_episodes_are_cut_so_that_phases_spread(backend):
    envs = Envs("Pendulum-v1", 4, 0, backend, stagger=True)
    obs, _, _, terminated, truncated, mask = run(envs, 460)
    assert not terminated.any()
    ends = [np.flatnonzero(truncated[:, b]).tolist() for b in range(4)]
    assert ends == [[49, 250, 451], [99, 300], [149, 350], [199, 400]]
    np.testing.assert_array_equal(mask[1:] == 0, truncated[:-1])
    speed = np.abs(obs[1:][mask == 0][:, 2])
    assert (speed <= 1).all(), "first observations have an angular velocity of at most 1"
    assert len(envs.pop_episodes().returns) == 6, "cut episodes are not counted; those of full length are"
    assert truncated[199, 3], "the last environment's first episode is whole"


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_environments_with_ends_beside_cuts_keep_the_contract(backend):
    _, _, _, _, truncated, mask = run(Envs("Pendulum-v1", 128, 0, backend, stagger=True), 420)
    np.testing.assert_array_equal(mask[1:] == 0, truncated[:-1])
    assert (truncated.sum(0) >= 2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_episode_is_reconstructed_from_the_rows_with_its_length_and_return(backend):
    envs = Envs("CartPole-v1", 6, 2, backend)
    obs, _, reward, terminated, truncated, mask = run(envs, 150)
    found = []
    for b in range(6):
        start = 0
        for t in range(150):
            if not mask[t, b]:
                assert start == t, "a reset row stands between two episodes"
                start = t + 1
                continue
            assert not (terminated[t, b] and np.abs(obs[t, b, 0]) > 2.4), "no row starts beyond the end"
            if terminated[t, b] or truncated[t, b]:
                assert (np.abs(obs[start, b]) <= 0.05).all()
                found.append((reward[start : t + 1, b].sum(), t + 1 - start))
                start = t + 1
    episodes = envs.pop_episodes()
    assert sorted(zip(episodes.returns, episodes.lengths, strict=True)) == sorted(found)
    assert len(found) > 20


def test_every_episode_of_a_counting_environment_is_reconstructed():
    envs = Envs("Counting-v0", 3, 7, "gymnasium")
    obs, action, reward, terminated, truncated, mask = run(envs, 60)
    found = []
    for b in range(3):
        episode = []
        for t in range(60):
            if not mask[t, b]:
                assert not episode
                continue
            episode.append((obs[t, b], reward[t, b], obs[t + 1, b]))
            if terminated[t, b] or truncated[t, b]:
                number = int(episode[0][0][0])
                assert len(episode) == 2 + number % 4
                assert truncated[t, b] == (number % 2 == 1)
                for k, (before, _, after) in enumerate(episode):
                    assert before.tolist() == [number, k]
                    assert after.tolist() == [number, k + 1]
                found.append((b, number, sum(r for _, r, _ in episode), len(episode)))
                episode = []
    for b in range(3):
        numbers = [number for env, number, _, _ in found if env == b]
        assert numbers == list(range(100 * (7 + b), 100 * (7 + b) + len(numbers)))
    episodes = envs.pop_episodes()
    assert sorted(zip(episodes.returns, episodes.lengths, strict=True)) == sorted((r, n) for _, _, r, n in found)
    np.testing.assert_array_equal(reward[mask > 0], action[mask > 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_repeat_differ_between_environments_and_count_up(backend):
    def first(seed, count):
        return np.array(Envs("CartPole-v1", count, seed, backend).reset()["observation"])

    a, b, c = first(5, 4), first(5, 4), first(6, 3)
    np.testing.assert_array_equal(a, b)
    assert len({row.tobytes() for row in a}) == 4
    np.testing.assert_array_equal(a[1:], c)


def test_derived_seeds_depend_on_every_part_and_leave_room_for_environments():
    seeds = {derive_seed(s, p, c) for s in range(20) for p in range(5) for c in range(20)}
    assert len(seeds) == 2000
    assert max(seeds) < 2**31 - 2**17
    assert derive_seed(1, 2) == derive_seed(1, 2)


@pytest.mark.parametrize(
    ("env_id", "backend", "message"),
    [
        ("Hoper-v5", "auto", "no such environment; near it: .*Hopper-v5"),
        ("Hopper-v9", "auto", "its newest version is Hopper-v5"),
        ("Nothing-at-all", "auto", "no such environment"),
        ("some.module:Thing-v0", "auto", "allow_env_module"),
        pytest.param("Counting-v0", "envpool", "EnvPool does not have it", marks=NEEDS_ENVPOOL),
        ("CartPool-v1", "gymnasium", "CartPole-v1"),
    ],
)
def test_unknown_environments_get_one_helpful_line(env_id, backend, message):
    with pytest.raises(UsageError, match=message) as error:
        Envs(env_id, 1, 0, backend)
    assert "\n" not in str(error.value)


def test_auto_takes_envpool_where_it_can_and_gymnasium_elsewhere(monkeypatch):
    assert resolve_backend("Counting-v0", "auto", False) == "gymnasium"
    if envs_module.envpool:
        assert resolve_backend("Hopper-v5", "auto", False) == "envpool"
    monkeypatch.setattr(envs_module, "envpool", None)
    assert resolve_backend("Hopper-v5", "auto", False) == "gymnasium"
    with pytest.raises(UsageError, match="not installed"):
        resolve_backend("Hopper-v5", "envpool", False)


def test_environments_of_the_old_api_are_named():
    envs = Envs("Old-v0", 1, 0)
    envs.reset()
    with pytest.raises(UsageError, match=r"Old-v0.*\(obs, reward, terminated, truncated, info\)"):
        envs.step(np.zeros((1, 1), np.float32))
