"""Sessions of a tiny configuration, without XLA, which takes longer to compile than a few updates of a few rows."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from trpo_tf.config import make_config
from trpo_tf.learner.prepare import Prepared
from trpo_tf.rollout.environments import Environments
from trpo_tf.session import Session


class Call(NamedTuple):
    """One call of the learner's `_prepare`."""

    given: tuple  # its arguments
    made: Prepared
    theta: tf.Tensor  # [P], the policy before the step


@pytest.fixture
def tiny():
    """Makes a configuration that trains in seconds, not compiled: tiny(total_steps=500, ...)."""
    return lambda **changes: make_config(**(TINY | {"xla": "off"} | changes))


@pytest.fixture
def make_session(tiny):
    """Makes a session of the tiny configuration: make_session(reuse=2, ...). All are closed at the end."""
    sessions = []

    def make(source=None, **changes):
        config = tiny(**changes)
        sessions.append(Session(config, Environments(config.environment), source=source))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def stepped():
    """Takes so many steps: stepped(session, 3) -> the metrics of each, those of the value fit included."""
    return lambda session, count=1: [dict(session.step()) for _ in range(count)]


@pytest.fixture
def rolled_out():
    """A rollout by the policy as it is: rolled_out(session)."""

    def roll_out(session):
        session.start()
        session.source.publish(session.update, session.policy.get_weights())
        return session.source.next()

    return roll_out


@pytest.fixture
def arrays():
    """All that a session learns, by name: arrays(session)."""
    return lambda session: session.checkpoint(source=False).arrays


@pytest.fixture
def prepared(monkeypatch):
    """What the learner prepares from now on: prepared(session) -> a list of Call."""

    def record(session):
        calls, prepare = [], session.learner._prepare

        def recording(*given):
            calls.append(Call(given, prepare(*given), session.policy.network.theta()))
            return calls[-1].made

        monkeypatch.setattr(session.learner, "_prepare", recording)
        return calls

    return record


@pytest.fixture
def column():
    """Of a tensor [N] the same numbers as [N, 1]: what is a mistake where [N] belongs."""
    return lambda x: np.asarray(x)[..., None]
