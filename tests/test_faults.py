"""The programs that hurt runs, briefly."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd", "calls", "processes"),
    [("sys.exit", "constructor,step,evaluation,rebuild,close", "no"), ("kill", "step,evaluation", "only")],
)
def test_odd_environments_cost_nothing(odd, calls, processes):
    program = [sys.executable, "benchmarks/faults/environments.py", f"--processes={processes}"]
    done = subprocess.run([*program, f"--odd={odd}", f"--calls={calls}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong" in done.stdout
