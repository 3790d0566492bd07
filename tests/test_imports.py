"""The shape of the project: arrows between rooms, one place for each outside thing, sizes, nothing forbidden."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trpo_tf import faults

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trpo_tf"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"train", "evaluate", "export", "plot", "serve"}
BASE = {"errors", "seeds", "types", "state", "files", "messages", "faults", "paths"}
BELOW_SESSION = {"learner", "rollout", "run", "policy", "acting", "config"} | BASE
# A room may import itself and these.
ALLOWED = {
    "errors": set(),
    "seeds": set(),
    "types": set(),
    "files": set(),
    "faults": set(),
    "state": {"errors"},
    "messages": {"errors"},
    "paths": {"errors"},
    "config": {"errors", "paths"},
    "acting": {"config"} | BASE,
    "policy": {"acting", "config"} | BASE,
    "learner": {"policy", "acting", "config"} | BASE,
    "rollout": {"acting", "config"} | BASE,
    "run": {"config"} | BASE,
    "serving": {"policy", "acting", "config"} | BASE,
    "search": {"sources", "rollout", "policy", "acting", "config"} | BASE,
    "sources": {"rollout", "policy", "acting", "config"} | BASE,
    "algorithms": {"search", "sources"} | BELOW_SESSION,
    "session": {"algorithms", "sources"} | BELOW_SESSION,
    "callbacks": {"rollout", "run", "serving", "config"} | BASE,
    "finite": {"errors"},
    "plotting": {"errors"},
    "history": {"plotting", "run", "paths"},
    "training": {"callbacks", "session", "rollout", "run", "config"} | BASE,
    "api": {"training", "session", "callbacks", "history", "serving"} | BELOW_SESSION,
    "runs": {"api", "training", "serving"} | BELOW_SESSION,
    "cli": {"config", "errors", "messages", "paths"},
    "commands": {"runs", "cli", "run", "serving", "plotting", "files", "config", "errors", "messages"},
    "__init__": {"api", "callbacks", "history", "config", "errors"},
}


def room(path):
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "commands" if first in COMMANDS else first


def imports(path):
    """Dotted names imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "trpo_tf" and len(parts) > 1:
            there = "commands" if parts[1] in COMMANDS else parts[1]
            assert there == here or there in ALLOWED[here], f"{here} imports {name}"
            assert there != "commands" or here == "commands", f"{path} imports a command"


def test_no_arrow_points_back():
    """The rooms can be put in a row such that each imports only what stands before it."""
    remaining, row = dict(ALLOWED), []
    while remaining:
        free = [name for name, needs in remaining.items() if not needs & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        row += free
        remaining = {name: needs for name, needs in remaining.items() if name not in free}
    assert row.index("acting") < row.index("policy") < row.index("learner") < row.index("session") < row.index("api")


@pytest.mark.parametrize("package", ["envpool", "ray", "safetensors", "absl", "aiohttp", "grpc", "filelock", "cma"])
def test_outside_packages_are_imported_in_one_file(package):
    users = {str(path) for path in FILES if any(name.split(".")[0] == package for name in imports(path))}
    assert len(users) <= 1, users


def outside(folder):
    """Packages that the files below a folder import."""
    return {name.split(".")[0] for path in (PACKAGE / folder).rglob("*.py") for name in imports(path)}


def test_acting_and_rollouts_know_no_tensorflow():
    forbidden = {"tensorflow", "keras", "tensorflow_probability", "tf_keras"}
    for folder in ("acting", "rollout", "config"):
        assert not outside(folder) & forbidden, folder


def test_finite_mdps_need_numpy_only():
    assert outside("finite") == {"numpy", "typing", "trpo_tf"}


def test_a_worker_starts_without_tensorflow():
    """The collector, its environments and an actor are imported where TensorFlow cannot be."""
    code = """
import sys
for name in ("tensorflow", "keras", "tensorflow_probability", "tf_keras"):
    sys.modules[name] = None
import trpo_tf.acting.array_actor, trpo_tf.rollout.collector, trpo_tf.rollout.environments
import trpo_tf.rollout.sources.local
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_only_unix_has_is_not_needed_to_start():
    """Windows and macOS lack some of these; what uses them says so when it is asked for."""
    code = """
import os, select, signal, sys
for name in ("resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for module, name in ((os, "fork"), (os, "sched_getaffinity"), (os, "getuid"), (select, "poll"), (signal, "SIGKILL")):
    delattr(module, name)
import trpo_tf, trpo_tf.cli, trpo_tf.rollout.environments, trpo_tf.rollout.collector, trpo_tf.run.metrics.csv
import trpo_tf.run.checkpoint, trpo_tf.run.directory
trpo_tf.make_config(env="x", run_dir="~/x" if os.path.expanduser("~") != "~" else "x")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_flags_are_read_in_one_function():
    readers = [path.name for path in FILES if "absl" in path.read_text()]
    assert readers == ["cli.py"]
    assert "FLAGS" not in (PACKAGE / "cli.py").read_text()
    assert (PACKAGE / "cli.py").read_text().count("FlagValues") == 1


def test_nothing_unsafe_is_called():
    forbidden = {"eval", "exec", "load_model", "unsafe_load"}
    for path in [*FILES, *(ROOT / "export").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        assert not {name.split(".")[0] for name in imports(path)} & {
            "pickle",
            "dill",
            "cloudpickle",
            "marshal",
            "shelve",
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert called not in forbidden, f"{path}:{node.lineno} calls {called}"
                assert not any(k.arg == "shell" or (k.arg == "allow_pickle") for k in node.keywords), path


def test_no_file_and_no_environment_enters_the_learner():
    for path in (PACKAGE / "learner").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"gymnasium", "envpool", "os", "pathlib", "absl"}
        assert "open(" not in path.read_text()


def code_lines(node, lines):
    """Lines of a function that are code: no docstring, no comment, no empty line."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    inside = range(node.lineno, node.end_lineno + 1)
    doc = range(node.body[0].lineno, node.body[0].end_lineno + 1) if body is not node.body else ()
    return [n for n in inside if n not in doc and lines[n - 1].strip() and not lines[n - 1].strip().startswith("#")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert len(code_lines(node, lines)) <= 40, f"{node.name} at line {node.lineno}"


def test_the_papers_appendix_c_is_on_one_screen():
    assert len((PACKAGE / "learner" / "policy_step.py").read_text().splitlines()) <= 120


def test_every_fault_point_is_in_the_code_once():
    named = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point":
                named.append(node.args[0].value)
    assert sorted(named) == sorted(faults.POINTS)
