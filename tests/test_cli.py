"""The commands as a user runs them: exit codes, one line on stderr, nothing left behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import commands
from trpo_tf import cli, config
from trpo_tf.errors import UsageError

ROOT = Path(__file__).parents[1]
SMALL = [
    "--xla=off",
    "--env=CartPole-v1",
    "--total_steps=300",
    "--steps_per_update=100",
    "--num_envs=4",
    "--hidden_sizes=8",
]


def command(name, *args, cwd, **env):
    environment = {k: v for k, v in os.environ.items() if k != "TRPO_TF_TRACEBACK"} | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        **env,
    }
    line = [sys.executable, "-m", f"trpo_tf.{name}", *args]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs a command in this process, which has TensorFlow already: here(name, *args) -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRPO_TF_TRACEBACK", raising=False)
    return lambda name, *args: commands.run_here(commands.Line(name, list(args), ""), list(args))[:3]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The directory that the bad command lines are run in."""
    folder = tmp_path_factory.mktemp("files")
    commands.prepare(folder)
    return folder


def shown(line):
    return f"{line.command} {' '.join(line.args)}"[:60]


@pytest.mark.parametrize("line", [line for line in commands.lines() if line.early], ids=shown)
def test_bad_command_lines_are_one_line_before_tensorflow_and_leave_nothing(line, files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.delenv("TRPO_TF_TRACEBACK", raising=False)
    assert commands.check_here(line, files, 1) == []


@pytest.mark.parametrize("line", [line for line in commands.lines() if not line.early][::3], ids=shown)
def test_what_only_tensorflow_can_tell_is_one_line_too(line, files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.delenv("TRPO_TF_TRACEBACK", raising=False)
    with commands.taken_port() as port:
        assert commands.check_here(line, files, port) == []


def test_a_usage_error_of_the_command_itself(files):
    bad = commands.Line("train", ["--env=Hopper-v5", "--gamma=2"], "--gamma=2.0: must be <= 1")
    assert commands.check_process(bad, files, 1) == []


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--total_steps=1e5", "total_steps", 100_000),
        ("--total_steps=1_000_000", "total_steps", 1_000_000),
        ("--total_steps=2.0", "total_steps", 2),
        ("--max_kl=1", "max_kl", 1.0),
        ("--hidden_sizes=", "hidden_sizes", ()),
        ("--hidden_sizes=8, 1e1", "hidden_sizes", (8, 10)),
        ("--noexport", "export", False),
        ("--export=no", "export", False),
        ("--export=Yes", "export", True),
        ("--export=1", "export", True),
        ("--export=off", "export", False),
        ("--export", "export", True),
        ("--env_options=a=1,b=2", "env_options", "a=1,b=2"),
        ("--flagfile=good", "seed", 7),
    ],
)
def test_values_as_people_write_them(flag, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").write_text("\ufeff# seven\r\n// or not\r\n\r\n  --seed=7  \r\n--flagfile=more\r\n")
    (tmp_path / "more").write_text("--gamma=0.5\n")
    given = cli.parse(config.Config, ["train", "--seed=3", flag])
    assert given[name] == value
    assert type(given[name]) is type(value)


def test_the_last_of_repeated_flags_counts_and_flagfiles_stand_where_they_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("--seed=2\n--gamma=0.5\n")
    given = cli.parse(config.Config, ["train", "--seed=1", "--flagfile=file", "--gamma=0.7"])
    assert (given["seed"], given["gamma"]) == (2, 0.7)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def test_an_exception_without_words_is_one_line(monkeypatch, capsys):
    def main(given):
        raise Unspeakable

    monkeypatch.delenv("TRPO_TF_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["plot"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main, config.PlotConfig, "plot", "")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "trpo_tf: Unspeakable: Unspeakable (TRPO_TF_TRACEBACK=1 shows where)\n"


def test_a_usage_error_of_a_flagfile_is_raised_as_it_is():
    with pytest.raises(UsageError, match="the name of a file is needed") as raised:
        cli.parse(config.Config, ["train", "--flagfile="])
    assert raised.value.__cause__ is None


def test_help_shows_flags_in_groups(tmp_path):
    done = command("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in ("trust region:", "value fit:", "--max_kl  [0.03]", "--[no]resume", "one of auto, envpool"):
        assert text in done.stdout


@pytest.mark.slow
def test_train_evaluate_export_plot_from_anywhere(tmp_path, here):
    done = command("train", *SMALL, "--run_dir=run", cwd=tmp_path, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert f"SavedModel: {tmp_path}/run/saved_model/1" in done.stdout
    code, _, said = here("train", *SMALL, "--run_dir=run")
    assert code == 2
    assert "holds a run" in said

    done = command("evaluate", "--saved_model=run/saved_model", "--episodes=3", "--json=result.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["returns"]) == 3
    assert json.loads(done.stdout.splitlines()[-1])["return_mean"] == result["return_mean"]
    for extra in (["--stochastic"], []):
        code, same, said = here("evaluate", "--run_dir=run", "--episodes=3", "--json=-", *extra)
        assert code == 0, said
    assert json.loads(same)["returns"] == result["returns"]

    done = command("export", "--run_dir=run", cwd=tmp_path)
    assert done.stdout.splitlines()[0] == f"{tmp_path}/run/saved_model/2", done.stderr
    again = command("export", "--run_dir=run", cwd=tmp_path)
    assert again.stdout.splitlines()[0] == f"{tmp_path}/run/saved_model/3"
    assert again.stdout.splitlines()[1] == done.stdout.splitlines()[1], "the same policy makes the same bytes"
    done = command("plot", "--run_dirs=run", "--output=x.png", cwd=tmp_path)
    assert (tmp_path / "x.png").stat().st_size > 10_000, done.stderr


@pytest.mark.slow
def test_a_closed_stdout_does_not_stop_training(tmp_path):
    line = f"{sys.executable} -m trpo_tf.train {' '.join(SMALL)} --total_steps=600 --run_dir=run | head -n 1"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.match(r"CartPole-v1 .*, seed 0, 100 transitions per update", done.stdout)
    assert (tmp_path / "run" / "saved_model" / "1").is_dir(), done.stderr


INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["trpo_tf.run.checkpoint", "trpo_tf.runs", "tensorflow.python.framework.ops"])
def test_ctrl_c_while_a_command_starts_is_130_and_no_traceback(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    flags = ["--run_dir=run", "--resume"] if module == "trpo_tf.run.checkpoint" else [*SMALL, "--run_dir=run"]
    done = command("train", *flags, cwd=tmp_path, PYTHONPATH=paths, INTERRUPT_AT=module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not (tmp_path / "run").exists()
