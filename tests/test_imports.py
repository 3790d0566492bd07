"""The shape of the project: arrows between rooms, one place for each outside thing, nothing forbidden."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trpo_tf"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"train", "evaluate", "export", "plot", "serve"}
# A room may import itself and what stands to its right.
ALLOWED = {
    "config": set(),
    "types": set(),
    "cli": {"config"},
    "policy": {"config", "types"},
    "learner": {"policy", "config", "types"},
    "rollout": {"policy", "config", "types"},
    "run": {"policy", "config", "types"},
    "trainer": {"learner", "rollout", "run", "policy", "config", "types"},
    "api": {"trainer", "rollout", "run", "policy", "config", "types"},
    "commands": {"api", "cli", "run", "config"},
    "__init__": {"api", "config"},
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


@pytest.mark.parametrize("package", ["envpool", "ray", "safetensors", "absl"])
def test_outside_packages_are_imported_in_one_file(package):
    users = {path.name for path in FILES if any(name.split(".")[0] == package for name in imports(path))}
    assert len(users) <= 1, users


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
    for path in (PACKAGE / "learner").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"gymnasium", "envpool", "os", "pathlib", "absl"}
        assert "open(" not in path.read_text()
