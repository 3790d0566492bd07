"""A killed export leaves no version that is not whole."""

import random
import signal
import subprocess
import sys
import time

import pytest

from export import check

EXPORTS = """
import sys
from pathlib import Path
from tests import exports
from trpo_tf.serving import saved_model
base = Path(sys.argv[1])
made = exports.make("gaussian", base)
print("ready", flush=True)
while True:
    saved_model.save(made.policy, 1.0, exports.METADATA, base)
"""
KILLS = 20


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_only_whole_versions(tmp_path):
    moments, killed_while_writing = random.Random(0), 0
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", EXPORTS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_while_writing += any(path.name.startswith(".export") for path in tmp_path.iterdir())
    assert killed_while_writing > 0, "else this measures nothing"
    versions = [path for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(versions) >= KILLS
    for path in versions:
        reasons = {rule: reason for rule, reason in check.check(path, 8).items() if reason}
        assert not reasons, path
