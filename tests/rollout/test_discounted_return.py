"""The running discounted return of every stream: by hand, over ends, rollouts and resumed runs."""

import numpy as np
import pytest

from tests.conftest import TINY
from trpo_tf.config import make_config
from trpo_tf.rollout.environments import Environments
from trpo_tf.session import Session

GAMMA = 0.9


@pytest.fixture
def source():
    """Makes a source of CartPole's rollouts, T = 16 and B = 4."""
    sessions = []

    def make():
        config = make_config(**(TINY | {"gamma": GAMMA, "xla": "off"}))
        sessions.append(Session(config, Environments(config.environment)))
        sessions[-1].start()
        return sessions[-1].source

    yield make
    for session in sessions:
        session.close()


def by_hand(trajectory, carried):
    """R_t = gamma R_t-1 (1 - ended_t-1) + r_t, one stream and one time step after the other; and gamma R_T."""
    found, carried = np.zeros(trajectory.reward.shape), list(carried)
    for b in range(found.shape[1]):
        for t in range(found.shape[0]):
            found[t, b] = carried[b] + trajectory.reward[t, b]
            ended = trajectory.terminated[t, b] or trajectory.truncated[t, b]
            carried[b] = 0.0 if ended else GAMMA * found[t, b]
    return found, carried


def test_it_goes_on_from_rollout_to_rollout_and_begins_anew_with_every_episode(source):
    rollouts, carried, ends = source(), np.zeros(4), 0
    for _ in range(4):
        rollout = rollouts.next()
        expected, carried = by_hand(rollout.trajectory, carried)
        np.testing.assert_allclose(rollout.discounted_return, expected, rtol=1e-5)
        assert rollout.discounted_return.dtype == np.float32
        ends += (rollout.trajectory.terminated | rollout.trajectory.truncated).sum()
    assert ends > 2, "else no episode ended"
    assert max(carried) > 1, "else nothing is carried on"


def test_a_reward_of_one_each_step_gives_a_geometric_series(source):
    rollout = source().next()
    (ends,) = np.nonzero((rollout.trajectory.terminated | rollout.trajectory.truncated).any(1))
    first = ends[0] + 1 if len(ends) else 16
    assert first > 2
    expected = (1 - GAMMA ** np.arange(1, first + 1)) / (1 - GAMMA)
    np.testing.assert_allclose(rollout.discounted_return[:first], np.tile(expected[:, None], 4), rtol=1e-5)


def test_fresh_environments_begin_at_zero(source):
    rollouts = source()
    rollouts.next()
    rollouts.renew(1)
    np.testing.assert_array_equal(rollouts.next().discounted_return[0], np.ones(4))


def test_a_resumed_source_goes_on_with_it(source):
    first, second = source(), source()
    first.next()
    assert second.restore(first.state())
    expected = first.next().discounted_return
    assert expected[0].max() > 1, "else nothing was carried on"
    np.testing.assert_array_equal(second.next().discounted_return, expected)
