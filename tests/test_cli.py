"""The commands as a user runs them: exit codes, one line on stderr, nothing left behind."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from trpo_tf import cli, config

COMMANDS = {
    "train": config.Config,
    "evaluate": config.EvaluateConfig,
    "export": config.ExportConfig,
    "plot": config.PlotConfig,
    "serve": config.ServeConfig,
}
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


def last_line(text):
    return [line for line in text.splitlines() if line.startswith("trpo_tf:")]


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, which has TensorFlow already: here(name, *args) -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRPO_TF_TRACEBACK", raising=False)

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *args])
        main = runpy.run_module(f"trpo_tf.{name}")["main"]  # importing it would put it in the place of trpo_tf.train
        code = 0
        try:
            cli.run(main, COMMANDS[name], name, "")
        except SystemExit as exit_:
            code = exit_.code
        return code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("train", [], "--env is missing"),
        ("train", ["--env="], "--env is missing"),
        ("train", ["--env=Hopper-v5", "--gama=0.9"], "gamma"),
        ("train", ["--env=Hopper-v5", "--gamma=2"], "--gamma=2.0: must be <= 1"),
        ("train", ["--env=Hopper-v5", "--num_envs=many"], "num_envs"),
        ("train", ["--env=Hopper-v5", "--hidden_sizes=64,x"], "--hidden_sizes=64,x: integers"),
        ("train", ["--env=Hopper-v5", "extra"], "extra: not a flag"),
        ("train", ["--flagfile=nowhere.flags"], "nowhere.flags"),
        ("train", ["--flagfile=binary.flags"], ""),
        ("train", ["--resume"], "--resume needs --run_dir"),
        ("train", ["--env=Hopper-v5", "--run_dir=a\tb"], "printable name"),
        ("evaluate", [], "either --run_dir or --saved_model"),
        ("evaluate", ["--run_dir=none"], "no such directory"),
        ("evaluate", ["--saved_model=none"], "no SavedModel"),
        ("export", [], "--run_dir is missing"),
        ("plot", ["--run_dirs=none"], "no progress.csv"),
        ("train", ["--env=Hoper-v5"], "Hopper-v5"),
        ("train", ["--env=tests.rollout.counting:Words-v0", "--allow_env_module"], "observation space Text"),
        ("train", ["--env=Hopper-v5", "--env_options=a"], "--env_options=a: not understood"),
        ("train", ["--env=Hopper-v5", "--wrappers=Nothing"], "gymnasium.wrappers has no Nothing"),
        (
            "train",
            ["--env=Hopper-v5", "--network=gru", "--hidden_sizes="],
            "--network=gru: the last of --hidden_sizes is recurrent",
        ),
    ],
)
def test_usage_errors_are_one_line_and_leave_nothing(name, args, message, tmp_path, here):
    (tmp_path / "binary.flags").write_bytes(bytes(range(128, 256)))
    code, _, said = here(name, *args)
    assert code == 2
    lines = last_line(said)
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["binary.flags"]


def test_a_usage_error_of_the_command_itself(tmp_path):
    done = command("train", "--env=Hoper-v5", cwd=tmp_path)
    assert done.returncode == 2
    assert len(last_line(done.stderr)) == 1
    assert "Hopper-v5" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_shows_flags_in_groups(tmp_path):
    done = command("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in ("trust region:", "value fit:", "--max_kl  [0.03]", "--[no]resume", "one of auto, envpool"):
        assert text in done.stdout


def test_train_evaluate_export_plot_from_anywhere(tmp_path, here):
    done = command("train", *SMALL, "--run_dir=run", cwd=tmp_path, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "SavedModel: run/saved_model/1" in done.stdout
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
    assert done.stdout.splitlines()[0] == "run/saved_model/2", done.stderr
    again = command("export", "--run_dir=run", cwd=tmp_path)
    assert again.stdout.splitlines()[0] == "run/saved_model/3"
    assert again.stdout.splitlines()[1] == done.stdout.splitlines()[1], "the same policy makes the same bytes"
    done = command("plot", "--run_dirs=run", "--output=x.png", cwd=tmp_path)
    assert (tmp_path / "x.png").stat().st_size > 10_000, done.stderr


def test_a_closed_stdout_does_not_stop_training(tmp_path):
    line = f"{sys.executable} -m trpo_tf.train {' '.join(SMALL)} --total_steps=3000 --run_dir=run | head -n 1"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "CartPole-v1, seed 0" in done.stdout
    assert (tmp_path / "run" / "saved_model" / "1").is_dir(), done.stderr
