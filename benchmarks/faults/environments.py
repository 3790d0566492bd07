"""Odd environments in every call of a run: nothing of the work is lost, and one line says what happened.

    python benchmarks/faults/environments.py                                    # 15 minutes on two cores
    python benchmarks/faults/environments.py --odd=memory,exit --calls=step --processes=all

Each of the odd things of tests/rollout/faulty.py happens in a constructor, reset, step, evaluation, rebuild or close;
once, and for good from the third update on. What happens once is survived: exit code 0, every update there once. What
happens for good ends the run: exit code 1, one line that names the environment and what it said, a checkpoint of every
finished update; the run that is resumed with a sane environment ends with the arrays of one that was never disturbed.
Prints what is wrong, and counts; exit code 1 where anything is.

Environments in processes of their own take the part of a run in every call where a process would not survive it, and in
`step` otherwise; with --processes=all always.
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import tensorflow as tf
from absl import app, flags

from tests.rollout.faulty import ODD
from tests.rollout.flaky import Flaky
from trpo_tf import cli, faults, training
from trpo_tf.api import TRPO
from trpo_tf.config import Config, make_config
from trpo_tf.run import checkpoint
from trpo_tf.run.metrics.csv import read_csv

CALLS = ("constructor", "reset", "step", "evaluation", "rebuild", "close")
UPDATES, ROWS = 4, 32
TINY = {
    "num_envs": 2, "steps_per_update": ROWS, "hidden_sizes": (4,), "value_epochs": 1, "value_minibatch_size": 32,
    "cg_iterations": 2,
    "eval_episodes": 2, "eval_every": 2, "final_eval_episodes": 0, "checkpoint_every": 2, "xla": "off",
    "tensorboard": False, "export": False, "stagger": False,
    "total_steps": (UPDATES - 1) * ROWS + ROWS // 2, "max_env_restarts": 2,
}  # fmt: skip
NAME = "tests.rollout.flaky:Flaky"
# Where a run is when it becomes odd: a point of trpo_tf/faults.py, and how often it was reached.
ARMED_AT = {"reset": ("collect", 3), "step": ("collect", 3), "evaluation": ("evaluate", 1), "rebuild": ("renew", 1)}
USAGE = {"gymnasium", "gymnasium reset", "gymnasium action", "import"}  # at the first constructor: the id is to blame

_ODD = flags.DEFINE_list("odd", [], "which odd things; empty: all")
_CALLS = flags.DEFINE_list("calls", list(CALLS), "in which calls")
_PROCESSES = flags.DEFINE_enum(
    "processes",
    "needed",
    ["needed", "all", "only", "no"],
    "when environments are in processes; only: all cases, and none here",
)


class Armed:
    """Makes a Flaky environment odd in one call while a file is there. once: which is removed then."""

    def __init__(self, odd: str, call: str, path: Path, once: bool):
        self.odd, self.call, self.path, self.once = odd, call, path, once

    def __call__(self, env, call, count):
        if call != self.call or not self.path.exists():
            return None
        if self.once:
            try:
                self.path.unlink()
            except FileNotFoundError:  # another process was first
                return None
        odd = ODD[self.odd]
        if odd.error is not None:
            raise odd.error()
        if odd.act is not None:
            odd.act()
        return odd.change


def calm(env, call, count):
    """Nothing odd."""


class Run:
    """Runs of the training command in one directory; its environments are in this process or in others."""

    def __init__(self, directory: Path, processes: bool):
        self.directory, self.processes = directory / "run", processes

    def start(self, fault=calm, eval_fault=calm, resume=False, hook=None, **settings) -> tuple[object, list[str]]:
        """Exit code, and what is on stderr."""
        env, eval_env = (functools.partial(Flaky, one) for one in (fault, eval_fault))
        own = {"env": NAME, "env_processes": self.processes, "env_timeout": 1.5 if self.processes else 0.0}

        def make_agent():
            if resume:
                return TRPO.resume(self.directory, env=env, eval_env=eval_env)
            config = make_config(**TINY | own | settings, run_dir=str(self.directory))
            return TRPO(env, eval_env=eval_env, config=config)

        def main(given):
            return cli.PREEMPTED if training.run(make_agent).preempted else cli.OK

        faults.hook = hook
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            arguments, sys.argv = sys.argv, ["train"]
            try:
                code = cli._run(main, Config, "train", "")
            except SystemExit as error:
                code = f"SystemExit {error.code}"
            except BaseException as error:
                code = f"{type(error).__name__} passed through"
            finally:
                faults.hook, sys.argv = None, arguments
        return code, said.getvalue().splitlines()

    def updates(self) -> list[int]:
        """Of progress.csv."""
        return [int(row["update"]) for row in read_csv(self.directory / "progress.csv")]

    def arrays(self) -> dict[str, bytes]:
        """Of the newest checkpoint, but those of callbacks."""
        saved = checkpoint.newest(self.directory / "checkpoints")
        return {name: x.tobytes() for name, x in saved.arrays.items() if not name.startswith("callbacks/")}

    def saved_update(self) -> int:
        """Of the newest checkpoint."""
        return checkpoint.newest(self.directory / "checkpoints").meta["update"]


def arming(call: str, path: Path):
    """A hook that makes the environments odd when the run is in its third update, or at what else `call` says."""
    reached: Counter[str] = Counter()

    def hook(point):
        reached[point] += 1
        if (point, reached[point]) == ARMED_AT.get(call):
            path.touch()

    return hook


def once(run: Run, odd: str, call: str, path: Path) -> list[str]:
    """What is wrong with a run in which something odd happens once."""
    inner = {"evaluation": "step", "rebuild": "constructor"}.get(call, call)
    fault = Armed(odd, inner, path, once=True)
    ours = {"eval_fault": fault} if call == "evaluation" else {"fault": fault}
    code, lines = run.start(**ours, hook=arming(call, path))
    wrong = [] if code == 0 else [f"exit code {code}"]
    updates = run.updates()
    if updates != list(range(1, len(updates) + 1)) or len(updates) < UPDATES:
        wrong.append(f"updates {updates}")
    if path.exists():
        wrong.append("nothing odd happened")
    if len(lines) != 1 or not names(lines[0], odd):
        wrong.append(f"said {lines}")
    restarts = int(read_csv(run.directory / "progress.csv")[-1]["env/restarts"])
    if restarts != (call in ("reset", "step", "rebuild")):
        wrong.append(f"{restarts} restarts")
    return wrong


def for_good(run: Run, odd: str, call: str, path: Path, undisturbed: dict[str, bytes]) -> list[str]:
    """What is wrong with a run in which it happens whenever it can from the third update on, and when it is resumed."""
    inner = {"evaluation": "step", "rebuild": "constructor"}.get(call, call)
    fault = Armed(odd, inner, path, once=False)
    ours = {"eval_fault": fault} if call == "evaluation" else {"fault": fault}
    code, lines = run.start(**ours, hook=arming(call, path))
    wrong = [] if code == 1 else [f"exit code {code}"]
    if not lines or not names(lines[-1], odd) or len(lines) > 2 or any("Traceback" in line for line in lines):
        wrong.append(f"said {lines}")
    if run.updates() != [1, 2] or run.saved_update() != 2:
        wrong.append(f"updates {run.updates()}, saved {run.saved_update()}")
    path.unlink(missing_ok=True)
    code, lines = run.start(resume=True)
    if code != 0 or lines:
        wrong.append(f"resumed: exit code {code}, said {lines}")
    if run.updates() != list(range(1, UPDATES + 1)):
        wrong.append(f"resumed: updates {run.updates()}")
    after = run.arrays()
    if different := [name for name in undisturbed if after.get(name) != undisturbed[name]]:
        wrong.append(f"resumed: other arrays than undisturbed: {different[:3]}")
    return wrong


def at_first(run: Run, odd: str, path: Path) -> list[str]:
    """What is wrong where the first constructor does it: nothing may have been made."""
    path.touch()
    code, lines = run.start(fault=Armed(odd, "constructor", path, once=False))
    wrong = [] if code == (2 if odd in USAGE else 1) else [f"exit code {code}"]
    if len(lines) != 1 or not (names(lines[0], odd) or odd in USAGE):
        wrong.append(f"said {lines}")
    if run.directory.exists():
        wrong.append("a directory was made")
    return wrong


def closing(run: Run, odd: str, path: Path, undisturbed: dict[str, bytes]) -> list[str]:
    """What is wrong where every close does it: a warning at most."""
    path.touch()
    code, lines = run.start(fault=Armed(odd, "close", path, once=False))
    wrong = [] if code == 0 else [f"exit code {code}"]
    if len(lines) > 1 or any("Traceback" in line for line in lines):
        wrong.append(f"said {lines}")
    if run.arrays() != undisturbed:
        wrong.append("other arrays than undisturbed")
    return wrong


def names(line: str, odd: str) -> bool:
    """Whether a line names the environment and what it said, and is one."""
    said = ODD[odd].said
    return NAME in line and (said in line or said.replace("\\", "?") in line) and line.isprintable() and len(line) < 600


def cases():
    """(odd, call, in processes) of all that is asked for."""
    for odd, what in ODD.items():
        if _ODD.value and odd not in _ODD.value:
            continue
        for call in _CALLS.value:
            made = call in ("constructor", "rebuild", "close")  # where what is returned does not matter
            if made and what.change:
                continue
            if not what.alone and _PROCESSES.value != "only":
                yield odd, call, False
            if call in ("constructor", "close") or (what.alone and call == "rebuild"):
                continue  # a constructor is called in this process, too, for its spaces; a process may die when closed
            if _PROCESSES.value in ("all", "only") or (_PROCESSES.value == "needed" and (what.alone or call == "step")):
                yield odd, call, True


def main(_) -> None:
    """Runs all cases."""
    counts, undisturbed = Counter(), {}
    tf.config.run_functions_eagerly(True)  # a run has four updates: less than it takes to trace them
    with tempfile.TemporaryDirectory() as name:
        for processes in (False, True):
            run = Run(Path(name) / f"undisturbed-{processes}", processes)
            assert run.start() == (0, []), run.start()
            undisturbed[processes] = run.arrays()
        for number, (odd, call, processes) in enumerate(cases()):
            start = time.monotonic()
            made = functools.partial(_fresh, Path(name), number, processes)
            if call == "constructor":
                found = {"at first": at_first(*made(1)[:1], odd, made(1)[1])}
            elif call == "close":
                found = {"always": closing(*made(1)[:1], odd, made(1)[1], undisturbed[processes])}
            else:
                found = {"once": once(made(1)[0], odd, call, made(1)[1])}
                found["for good"] = for_good(made(2)[0], odd, call, made(2)[1], undisturbed[processes])
            for how, wrong in found.items():
                counts["wrong" if wrong else "right"] += 1
                if wrong:
                    place = "processes" if processes else "here"
                    print(f"{odd}, {call}, {how}, {place}: {'; '.join(wrong)}", flush=True)
            counts["seconds"] += round(time.monotonic() - start, 1)
    print(f"{counts['right'] + counts['wrong']} cases, {counts['wrong']} wrong, {counts['seconds']:.0f} s")
    sys.exit(1 if counts["wrong"] else 0)


def _fresh(directory: Path, number: int, processes: bool, part: int) -> tuple[Run, Path]:
    return Run(directory / f"{number}-{part}", processes), directory / f"{number}-{part}.armed"


if __name__ == "__main__":
    app.run(main)
