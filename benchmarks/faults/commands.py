"""Bad command lines over all commands: the exit code, one line on stderr, no traceback, nothing left behind.

    python benchmarks/faults/commands.py            # all of them in this process, and some as processes of their own
    python benchmarks/faults/commands.py --noprocesses

Prints every line that went wrong and the counts; exits with 1 if there is any. A line is early where it has to be
refused before TensorFlow is imported: that costs less than a second of processor time.
"""

import contextlib
import io
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from trpo_tf import cli, config

RECORDS = {
    "train": config.Config,
    "evaluate": config.EvaluateConfig,
    "export": config.ExportConfig,
    "plot": config.PlotConfig,
    "serve": config.ServeConfig,
}
LONGEST = 20  # seconds of processor time that a line may take
DIGITS = "9" * 5000  # more than Python reads as an integer


class Line(NamedTuple):
    """A command line, and what it has to give."""

    command: str
    args: list[str]
    says: str  # part of the one line on stderr
    code: int = 2
    early: bool = True


def _train(*args: str, env: str = "Hopper-v5") -> list[str]:
    return [f"--env={env}", *args]


# One flag of a training whose value is wrong, and what is said of it.
VALUES = [
    ("--gamma=2", "--gamma=2.0: must be <= 1"),
    ("-gamma=2", "--gamma=2.0: must be <= 1"),
    ("--gamma=-1", "must be >= 0"),
    ("--gamma=nan", "--gamma=nan: not finite"),
    ("--gamma=inf", "--gamma=inf: not finite"),
    ("--gamma=1e400", "not finite"),
    ("--gamma=", "--gamma=: a number is needed"),
    ("--gamma=1,5", "--gamma=1,5: a number is needed"),
    ("--max_kl=1/3", "--max_kl=1/3: a number is needed"),
    ("--max_kl=0x1p3", "a number is needed"),
    ("--max_kl=0", "must be > 0"),
    ("--backtrack_ratio=1", "must be < 1"),
    ("--num_envs=many", "--num_envs=many: an integer is needed"),
    ("--num_envs=0", "--num_envs=0: must be >= 1"),
    ("--num_envs=-1", "must be >= 1"),
    ("--num_envs=65537", "must be <= 65536"),
    ("--num_envs=2.5", "--num_envs=2.5: an integer is needed"),
    ("--num_envs=2**10", "--num_envs=2**10: an integer is needed"),
    ("--num_envs=0x10", "an integer is needed"),
    ("--num_envs=", "--num_envs=: an integer is needed"),
    ("--num_envs=1e400", "not finite"),
    ("--total_steps=0", "must be >= 1"),
    ("--total_steps=1e-3", "an integer is needed"),
    ("--total_steps=nan", "not finite"),
    ("--total_steps=1e30", "must be within"),
    ("--total_steps=10000000000000000000000", "must be within"),
    (f"--total_steps={DIGITS}", "--total_steps="),
    ("--total_steps=1 000", "an integer is needed"),
    ("--seed=-1", "--seed=-1: must be >= 0"),
    ("--seed=2147483648", "must be <= 2147483647"),
    ("--hidden_sizes=64,x", "--hidden_sizes=64,x: integers separated by commas are needed"),
    ("--hidden_sizes=64,,64", "integers separated by commas are needed"),
    ("--hidden_sizes=64,0", "--hidden_sizes=0: must be >= 1"),
    ('--hidden_sizes="', "integers separated by commas are needed"),
    ("--activation=sigmoidish", "--activation=sigmoidish: not one of tanh,"),
    ("--activation=", "not one of tanh,"),
    ("--env_backend=brax", "not one of auto, envpool, gymnasium"),
    ("--export=maybe", "--export=maybe: True or False is needed"),
    ("--export=2", "True or False is needed"),
    ("--export=", "True or False is needed"),
    ("--noexport=1", "--noexport=1"),
    ("--noenv", "--noenv: no such flag"),
    ("--gama=0.9", "--gama: no such flag; perhaps --gamma"),
    ("--total-steps=5", "perhaps --total_steps"),
    ("--Gamma=0.9", "perhaps --gamma"),
    ("--helpfull", "perhaps --help"),
    ("--help=perhaps", "help"),
    ("--" + "x" * 1_000_000, "no such flag"),
    ("--=1", "not a flag"),
    ("-", "not a flag"),
    ("extra", "extra: not a flag"),
    ("\u2013gamma=0.9", "not a flag"),  # a dash that a text program made of two hyphens
    ("--seed", "Missing value for flag --seed"),
    ("--resume", "--resume needs --run_dir"),
    ("--run_dir=~no_such_user/x", "no home directory is known"),
    ("--run_dir=run/..", "its last part must be a printable name"),
    ("--run_dir=/", "its last part must be a printable name"),
    ("--run_dir=text/x", "cannot be written: Not a directory"),
    ("--run_dir=text", "cannot be written: Not a directory"),
    ("--run_dir=/proc/x", "cannot be written"),
    ("--run_dir=" + "x" * 300, "at most 255 bytes"),
    ("--run_dir=" + "x/" * 3000, "File name too long"),
    ("--export_dir=text", "--export_dir=", "Not a directory"),
    ("--export_dir=" + "x" * 300, "File name too long"),
    ("--flagfile=nowhere", "--flagfile=nowhere: No such file or directory"),
    ("--flagfile=", "the name of a file is needed"),
    ("--flagfile=folder", "Is a directory"),
    ("--flagfile=binary", "--flagfile=binary: not a text in UTF-8"),
    ("--flagfile=utf16", "--flagfile=utf16: not a text in UTF-8"),
    ("--flagfile=large", "larger than"),
    ("--flagfile=long_line", "no such flag"),
    ("--flagfile=itself", "--flagfile=itself: includes itself"),
    ("--flagfile=circle", "includes itself"),
    ("--flagfile=text", "not a flag"),
    ("--flagfile=wrong", "--gamma=2.0: must be <= 1"),
    ("--flagfile=~no_such_user/x", "no home directory is known"),
]
# Flags of a training that contradict each other.
TOGETHER = [
    (["--network=gru", "--hidden_sizes="], "the last of --hidden_sizes is recurrent"),
    (["--pipeline", "--checkpoint_every=1"], "must be >= 2"),
    (["--radius=adaptive", "--num_envs=1"], "--num_envs=1"),
    (["--radius=adaptive", "--min_kl=0.2"], "--min_kl=0.2"),
    (["--radius=adaptive", "--max_kl=0.5"], "--max_kl=0.5"),
    (["--max_staleness=1", "--behavior_lag=2"], "--max_staleness=1"),
    (["--reuse=2", "--max_staleness=0"], "--max_staleness=0"),
]
# Environments that there are not.
ENVS = [
    (["--env=Hoper-v5"], "Hopper-v5"),
    (["--env=Hopper-v1"], "newest version is Hopper-v"),
    (["--env=Hopper-v5 "], "no such environment"),
    (["--env=../../etc/passwd"], "no such environment"),
    (["--env=\u00e9-v0"], "no such environment"),
    (["--env=os:Thing-v0"], "allow_env_module"),
    (["--env=no_such_module:Thing-v0", "--allow_env_module"], "no_such_module"),
    (["--env=Hopper-v5", "--env_options=a"], "--env_options=a: not understood"),
    (["--env=Hopper-v5", "--env_options=nonsense=1"], "nonsense"),
    (["--env=CartPole-v1", "--env_options=num_envs=3"], "num_envs is not to be set"),
    (["--env=Hopper-v5", "--wrappers=Nothing"], "gymnasium.wrappers has no Nothing"),
    (["--env=Hopper-v5", "--wrappers=__import__('os').system('id')"], "--wrappers="),
    (["--env=Hopper-v5", "--wrappers=TimeLimit(1)", "--env_backend=envpool"], "--env_backend=gymnasium takes them"),
    (["--env=Blackjack-v9"], "newest version is Blackjack-v"),
]
PLOTS = [
    ([], "--run_dirs is missing"),
    (["--run_dirs=none"], "none: no such directory"),
    (["--run_dirs=text"], "not a directory"),
    (["--run_dirs=folder"], "no progress.csv there"),
    (["--run_dirs=runs/words,none"], "none: no such directory"),
    (["--run_dirs=runs/empty"], "no whole row"),
    (["--run_dirs=runs/header"], "no whole row"),
    (["--run_dirs=runs/binary"], "no whole row"),
    (["--run_dirs=runs/other"], "no column env_steps"),
    (["--run_dirs=runs/words", "--metric=steps"], "no column env_steps"),
    (["--run_dirs=runs/good", "--metric="], "--metric is missing"),
    (["--run_dirs=runs/good", "--metric=policy/nothing"], "not a column; there are update, env_steps"),
    (["--run_dirs=runs/good", "--metric=policy/reason"], "holds words, such as accepted"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output=x.txt"], "one of .png, .svg, .pdf is needed"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output=x"], "one of .png, .svg, .pdf is needed"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output="], "one of .png, .svg, .pdf is needed"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output=folder"], "Is a directory"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output=none/x.png"], "No such file or directory"),
    (["--run_dirs=runs/good", "--metric=policy/kl", "--output=text/x.png"], "Not a directory"),
    (["--run_dirs=runs/good", "--metrics=policy/kl"], "perhaps --metric"),
]
EVALUATIONS = [
    ([], "either --run_dir or --saved_model"),
    (["--run_dir=folder", "--saved_model=folder"], "either --run_dir or --saved_model"),
    (["--saved_model=folder", "--best"], "--best goes with --run_dir"),
    (["--run_dir=folder", "--render", "--video=v"], "exclude each other"),
    (["--run_dir=none"], "none: no such directory"),
    (["--run_dir=text"], "text: not a directory"),
    (["--saved_model=none"], "none: no such directory"),
    (["--run_dir=folder", "--episodes=0"], "--episodes=0: must be >= 1"),
    (["--run_dir=folder", "--episodes=few"], "an integer is needed"),
    (["--run_dir=folder", "--seed=-1"], "must be >= 0"),
    (["--run_dir=folder", "--json=folder"], "cannot be written: Is a directory"),
    (["--run_dir=folder", "--json=none/x.json"], "cannot be written: No such file or directory"),
    (["--run_dir=folder", "--json=text/x.json"], "cannot be written: Not a directory"),
    (["--run_dir=folder", "--json=~no_such_user/x.json"], "no home directory is known"),
    (["--run_dir=folder", "--video=text"], "cannot be written: Not a directory"),
    (["--run_dir=folder", "--env_backend=brax"], "not one of auto"),
    (["folder"], "folder: not a flag"),
    (["--rundir=folder"], "perhaps --run_dir"),
]
EXPORTS = [
    ([], "--run_dir is missing"),
    (["--run_dir="], "--run_dir is missing"),
    (["--run_dir=none"], "no such directory"),
    (["--run_dir=text"], "not a directory"),
    (["--run_dir=folder", "--export_dir=text"], "cannot be written: Not a directory"),
    (["--run_dir=folder", "--export_dir=/proc/x"], "cannot be written"),
    (["--run_dir=folder", "--export_dir=" + "x" * 300], "File name too long"),
    (["--run_dir=folder", "--best=perhaps"], "True or False is needed"),
]
SERVINGS = [
    ([], "--model_dir is missing"),
    (["--model_dir=none"], "no such directory"),
    (["--model_dir=text"], "not a directory"),
    (["--model_dir=folder", "--rest_port=-1"], "must be >= 0"),
    (["--model_dir=folder", "--rest_port=70000"], "must be <= 65535"),
    (["--model_dir=folder", "--grpc_port=many"], "an integer is needed"),
    (["--model_dir=folder", "--poll_seconds=0"], "must be > 0"),
    (["--model_dir=folder", "--poll_seconds=nan"], "not finite"),
    (["--model_dir=folder", "--port=8501"], "--port: no such flag"),
]


def lines() -> list[Line]:
    """Every bad command line."""
    none = [Line("train", [], "--env is missing"), Line("train", ["--env="], "--env is missing")]
    none += [Line("train", ["--env"], "Missing value for flag --env")]
    values = [Line("train", _train(flag), says[-1]) for flag, *says in VALUES]
    together = [Line("train", _train(*args), says) for args, says in TOGETHER]
    envs = [Line("train", args, says, early=False) for args, says in ENVS]
    early = [
        Line(command, args, says)
        for command, table in (("plot", PLOTS), ("evaluate", EVALUATIONS), ("export", EXPORTS), ("serve", SERVINGS))
        for args, says in table
    ]
    late = [
        Line("train", _train("--resume", "--run_dir=none"), "no valid checkpoint", 1),
        Line("train", _train("--resume", "--run_dir=folder"), "no valid checkpoint", 1),
        Line("evaluate", ["--run_dir=folder"], "no valid checkpoint", 1, False),
        Line("evaluate", ["--saved_model=folder"], "no SavedModel", 2, False),
        Line("evaluate", ["--saved_model=broken"], "--saved_model=", 2, False),
        Line("export", ["--run_dir=folder"], "no valid checkpoint", 1, False),
        Line("export", ["--run_dir=folder", "--best"], "no valid checkpoint", 1, False),
        Line("serve", ["--model_dir=folder", "--rest_port=TAKEN", "--grpc_port=0"], "--rest_port=", 2, False),
        Line("serve", ["--model_dir=folder", "--rest_port=0", "--grpc_port=TAKEN"], "--grpc_port=", 2, False),
    ]
    return none + values + together + envs + early + late


def prepare(folder: Path) -> None:
    """The files that the command lines name."""
    (folder / "folder").mkdir()
    (folder / "text").write_text("a text\n")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "utf16").write_text("--gamma=2\n", encoding="utf-16")
    (folder / "large").write_text("--gamma=0.9\n" * 100_000)
    (folder / "long_line").write_text("--" + "x" * 1_000_000 + "\n")
    (folder / "itself").write_text("--flagfile=itself\n")
    (folder / "circle").write_text("--flagfile=back\n")
    (folder / "back").write_text("--flagfile=circle\n")
    (folder / "wrong").write_text("\ufeff# a comment\r\n\r\n--gamma=2\r\n", encoding="utf-8")
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "saved_model.pb").write_bytes(b"nonsense")
    good = "update,env_steps,policy/kl,policy/reason\n1,100,0.01,accepted\n2,200,,accepted\n"
    for name, text in {
        "good": good,
        "empty": "",
        "header": "update,env_steps\n",
        "other": "update,b\n1,2\n",
        "words": "update,env_steps\n1,many\n",
        "binary": bytes(range(256)),
    }.items():
        path = folder / "runs" / name / "progress.csv"
        path.parent.mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def contents(folder: Path) -> set[str]:
    """Everything below a folder, with the sizes of files."""
    return {f"{path.relative_to(folder)} {path.stat().st_size * path.is_file()}" for path in folder.rglob("*")}


def run_here(line: Line, args: list[str]) -> tuple[int, str, str, bool]:
    """Exit code, stdout, stderr of a command in this process, and whether it asked for TensorFlow."""
    asked, out, err, before = [], io.StringIO(), io.StringIO(), (sys.argv, cli.import_quietly)
    main = runpy.run_module(f"trpo_tf.{line.command}")["main"]  # importing it would put it in the place of a function

    def asking(name: str):
        asked.append(name)
        return before[1](name)

    sys.argv, cli.import_quietly = [line.command, *args], asking
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(main, RECORDS[line.command], line.command, "")
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv, cli.import_quietly = before
    return code, out.getvalue(), err.getvalue(), bool(asked)


def wrong(line: Line, folder: Path, code: int, err: str, before: set[str]) -> list[str]:
    """What is wrong with a command's end."""
    said = err.splitlines()
    left = sorted(contents(folder) - before)
    return [
        text
        for bad, text in (
            (code != line.code, f"exit code {code}, not {line.code}"),
            (len(said) != 1 or not said[0].startswith("trpo_tf: "), f"{len(said)} lines on stderr: {err[:500]!r}"),
            (line.says not in err, f"does not say {line.says!r} but {err[:300]!r}"),
            (len(err) > 1200, f"a line of {len(err)} characters"),
            ("Traceback" in err or "TRPO_TF_TRACEBACK" in err, "is no message for users"),
            (bool(left), f"left behind: {', '.join(left)[:300]}"),
        )
        if bad
    ]


def check_here(line: Line, folder: Path, port: int) -> list[str]:
    """What is wrong with a command line that is run in this process, in `folder`."""
    before, start = contents(folder), time.process_time()
    code, _, err, asked = run_here(line, [arg.replace("TAKEN", str(port)) for arg in line.args])
    found = wrong(line, folder, code, err, before)
    if line.early and asked:
        found.append("is refused after TensorFlow was imported only")
    if time.process_time() - start > LONGEST:
        found.append(f"took {time.process_time() - start:.0f} s")
    return found


def check_process(line: Line, folder: Path, port: int) -> list[str]:
    """What is wrong with a command line that is run as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRPO_TF_TRACEBACK"}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[1])  # the same source tree
    args = [arg.replace("TAKEN", str(port)) for arg in line.args]
    before, used = contents(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", f"trpo_tf.{line.command}", *args],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    found = wrong(line, folder, done.returncode, done.stderr, before)
    if cpu > (1 if line.early else LONGEST):
        found.append(f"took {cpu:.1f} s of processor time")
    return found


_PROCESSES = flags.DEFINE_boolean("processes", True, "run every seventh line as a process of its own, too")


def main(_) -> int:
    """Runs all lines, prints what is wrong and the counts."""
    failed = count = 0
    with tempfile.TemporaryDirectory() as name, taken_port() as port:
        folder = Path(name)
        prepare(folder)
        os.chdir(folder)
        every = [(line, check_here) for line in lines()]
        every += [
            (line, check_process) for line in lines()[::7] if max(map(len, [*line.args, ""])) < 100_000
        ] * _PROCESSES.value
        for line, check in every:
            found = check(line, folder, port)
            count += 1
            failed += bool(found)
            for what in found:
                print(f"{line.command} {' '.join(line.args)[:200]} ({check.__name__}): {what}", flush=True)
        os.chdir("/")
    print(f"{count} command lines, {count - failed} right, {failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    app.run(main)
