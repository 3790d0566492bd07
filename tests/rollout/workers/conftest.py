"""What the tests of workers share."""

import pytest
import tensorflow as tf


@pytest.fixture
def eagerly():
    """No graphs: for a few updates of a few rows they take longer to build than the updates."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
