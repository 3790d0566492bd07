"""What tests of environments in processes share."""

import gc
import multiprocessing

import pytest

from trpo_tf.rollout.backends import processes


@pytest.fixture
def nothing_left(monkeypatch):
    """No process outlives its test, and none is waited for as long as users' are."""
    monkeypatch.setattr(processes, "CLOSE_SECONDS", 0.5)
    yield
    gc.collect()
    assert not multiprocessing.active_children()
