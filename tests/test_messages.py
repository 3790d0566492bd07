"""What is said never ends a run: letters that a stream does not have, full disks, readers that went."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trpo_tf import messages
from trpo_tf.errors import Error, described, one_line, reason
from trpo_tf.run.metrics.screen import Screen

ROOT = Path(__file__).parents[1]


def ascii_stream():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)


def written(stream):
    return stream.buffer.getvalue().decode()


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_letters_that_a_stream_has_not_are_escaped(monkeypatch):
    out, err = ascii_stream(), ascii_stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    messages.tell("é \udcff")
    messages.warn("é \udcff")
    Screen(greeting="runs/é").say("in runs/é")
    assert written(out) == "\\xe9 \\udcff\nin runs/\\xe9\n"
    assert written(err) == "trpo_tf: \\xe9 \\udcff\n"


def test_what_prints_does_not_fail_by_its_stream(monkeypatch, capsys):
    """An environment that prints is not to fail by it."""
    for stream in (Full(), Gone(), ascii_stream(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        with messages.outlets():
            for _ in range(2):
                print("é", flush=True)
        assert sys.stdout is stream
    lost = "trpo_tf: what goes to the screen is lost: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == lost, "said once"


def test_a_result_that_cannot_be_written_is_a_failure_but_for_a_reader_that_went(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    with messages.outlets(), pytest.raises(Error, match="stdout cannot be written: No space left"):
        messages.tell("result")
    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        messages.tell("result")


def test_a_warning_goes_to_stderr_or_nowhere(monkeypatch, capsys):
    for stream in (None, Full(), Gone()):
        monkeypatch.setattr(sys, "stderr", stream)
        messages.warn("a warning")
    assert capsys.readouterr().out == "", "print(file=None) would print it here, among results"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device", "/a"), "No space left on device"),
        (OSError("a\x1b\nb"), "a\\x1b"),
        (ValueError("no"), "no"),
    ],
)
def test_the_reason_of_a_failure_has_neither_number_nor_file(error, why):
    assert reason(error) == why


def test_a_first_line_that_announces_the_rest_is_not_all_that_is_told():
    trace = "Detected at node a (most recent call last):\n" + "  File b, line 3\n" * 1000
    said = described(MemoryError(f"Graph execution error:\n\n{trace}\nOOM when allocating [4, 5]"))
    assert said.startswith("MemoryError: Graph execution error: Detected at node a")
    assert said.endswith("OOM when allocating [4, 5]")
    assert len(said) < 1100
    assert described(ValueError("one\ntwo")) == "ValueError: one"


def test_a_line_is_one_line_of_bounded_length():
    assert one_line("a\n b\x1b[31m\x00 ") == "a b\\x1b[31m\\x00"
    long = one_line("begins " + "x" * 10_000 + " must be >= 1")
    assert len(long) < 1100
    assert long.startswith("begins")
    assert long.endswith("must be >= 1")


GAMMA = "trpo_tf: --gamma=2.0: must be <= 1\n"
GONE = "trpo_tf: --run_dir=y: the working directory is gone\n"


def shell(line, cwd, **env):
    """A line of a shell in which {train} is the training command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    text = line.replace("{train}", f"{sys.executable} -m trpo_tf.train")
    return subprocess.run(["bash", "-c", text], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("set -o pipefail; {train} --help | head -n 1", 0, ""),
        ("{train} --help >&-", 0, ""),
        ("{train} --help > /dev/full", 1, "trpo_tf: stdout cannot be written: No space left on device\n"),
        ("{train} --env=x --gamma=2 2> /dev/full", 2, ""),
        ("{train} --env=x --gamma=2 2>&-", 2, ""),
        ("{train} --env=x --gamma=2 <&- >&-", 2, GAMMA),
        ("PYTHONIOENCODING=ascii {train} --env=x é", 2, "trpo_tf: \\xe9: not a flag; flags look like --name=value\n"),
        ("mkdir x; cd x; rmdir ../x; {train} --env=x --run_dir=y", 2, GONE),
        ("COLUMNS=abc LINES=0 TERM=dumb PYTHONOPTIMIZE=2 {train} --env=x --gamma=2", 2, GAMMA),
        ("PYTHONWARNINGS=error TZ=No/Where HOME= {train} --env=x --gamma=2", 2, GAMMA),
        ("HOME= {train} --env=x --run_dir='~nobody_of_that_name/x'", 2, None),
    ],
)  # fmt: skip
def test_streams_and_surroundings_of_a_process(line, code, said, tmp_path):
    done = shell(line, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr, "Exception" in done.stderr) == (code, False, False), (
        done.stderr
    )
    assert said is None or done.stderr == said


POOR = """
import tempfile
def none():
    raise FileNotFoundError(2, "No usable temporary directory found")
tempfile._get_default_tempdir = none
"""


@pytest.mark.slow
def test_a_training_in_poor_surroundings(tmp_path):
    """No temporary directory, no home, a full disk behind stdout, stderr and stdin closed, letters not to be shown."""
    (tmp_path / "sitecustomize.py").write_text(POOR)
    small = "--env=CartPole-v1 --total_steps=100 --steps_per_update=50 --num_envs=2 --hidden_sizes=4 --xla=off"
    line = f"{{train}} {small} --final_eval_episodes=1 --run_dir=é > /dev/full 2>&- <&-"
    env = {
        "PYTHONIOENCODING": "ascii",
        "HOME": "/proc/nowhere",
        "COLUMNS": "abc",
        "TERM": "dumb",
        "PYTHONOPTIMIZE": "1",
    }
    done = shell(line, tmp_path, **env | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert done.returncode == 0
    assert (tmp_path / "é" / "saved_model" / "1" / "saved_model.pb").is_file()
    assert (tmp_path / "é" / "progress.csv").read_text().splitlines()[1].startswith("1,")
