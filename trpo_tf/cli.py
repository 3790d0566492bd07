"""What the commands share: flags from a configuration record, help in groups, exit codes."""

import contextlib
import dataclasses
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, cast

from absl import flags

from trpo_tf.config import GROUPS, Config, settings
from trpo_tf.errors import ActingDiffersError, EnvironmentFailure, Error, NoCheckpointError, UsageError

OK, FAILURE, USAGE, PREEMPTED = 0, 1, 2, 42

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def run(main: Callable[[dict[str, Any]], int | None], config_class: type, command: str, text: str) -> None:
    """Runs a command with the flags given on the command line, and exits with its code.

    Args:
      main: from the flags that were given, by field name, to an exit code; None is 0.
      config_class: a record of config/; its settings are the flags.
      command, text: name and one line for the help.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(_run(main, config_class, command, text))


def _run(main, config_class: type, command: str, text: str) -> int:
    try:
        given = parse(config_class, sys.argv)
        if given.pop("help"):
            print(help_text(config_class, command, text))
            return OK
        return main(given) or OK
    except (UsageError, flags.Error, UnicodeDecodeError) as error:
        return _complain(error, USAGE)
    except KeyboardInterrupt:
        return 130
    except (EnvironmentFailure, NoCheckpointError, ActingDiffersError) as error:
        return _complain(error, FAILURE)
    except Exception as error:
        if "TRPO_TF_TRACEBACK" in os.environ:
            raise
        return _complain(f"{type(error).__name__}: {error} (TRPO_TF_TRACEBACK=1 shows where)", FAILURE)


def load_runs():
    """Imports trpo_tf.runs, as `import_quietly` does."""
    return import_quietly("trpo_tf.runs")


def import_quietly(name: str):
    """Imports a module, and with it TensorFlow, without TensorFlow's remarks on stderr about absent accelerators.

    They come from C++ before any log level is read, so the file descriptor itself is turned away meanwhile. Where
    there is no stderr, there is nothing to turn away.
    """
    with contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:
            kept = None
        if kept is not None:
            remarks = stack.enter_context(tempfile.TemporaryFile())
            os.dup2(remarks.fileno(), 2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
        module = importlib.import_module(name)
        importlib.import_module("tensorflow").config.list_physical_devices()  # looks for them now, remarks included
        return module


def _complain(error: Any, code: int) -> int:
    message = " ".join((error.message if isinstance(error, Error) else str(error)).split())
    print(f"trpo_tf: {''.join(c if c.isprintable() else '?' for c in message)}", file=sys.stderr)
    return code


def parse(config_class: type, argv: list[str]) -> dict[str, Any]:
    """Defines the flags of a record, reads them, and returns those that were given, and `help`.

    Raises:
      UsageError: a value has the wrong type, or an argument is not a flag.
      flags.Error: an unknown flag, or a flagfile that cannot be read.
    """
    values = flags.FlagValues()
    for _, field in _fields(config_class):
        define: Any = _DEFINE.get(cast(type, field.type), flags.DEFINE_list)
        default = list(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        define(field.name, default, field.metadata["help"], flag_values=values)
    flags.DEFINE_boolean("help", False, "show the flags", short_name="h", flag_values=values)
    rest = values(argv)
    if len(rest) > 1:
        raise UsageError(f"{rest[1]}: not a flag; flags look like --name=value")
    given = {
        field.name: _typed(field, values[field.name].value)
        for _, field in _fields(config_class)
        if values[field.name].present
    }
    return given | {"help": values["help"].value}


def _fields(config_class: type) -> Iterator[tuple[str, dataclasses.Field]]:
    """The settings of a record, or of all rooms of a Config, each with the group that it stands in."""
    if config_class is Config:
        for room, field in settings():
            yield GROUPS[room], field
    else:
        for field in dataclasses.fields(config_class):
            yield "flags", field


def _typed(field: dataclasses.Field, value: Any) -> Any:
    if field.type is float:
        return float(value)
    if field.type == tuple[int, ...]:
        try:
            return tuple(int(item) for item in value)
        except ValueError:
            raise UsageError(f"--{field.name}={','.join(value)}: integers separated by commas are needed") from None
    return tuple(value) if isinstance(value, list) else value


def help_text(config_class: type, command: str, text: str) -> str:
    """The flags in groups, with defaults, ranges and sources."""
    lines = [f"usage: python -m trpo_tf.{command} [--flag=value ...] [--flagfile=FILE]", "", text]
    group = None
    for name, field in _fields(config_class):
        if name != group:
            group = name
            lines += ["", f"{group}:"]
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        name = f"--[no]{field.name}" if field.type is bool else f"--{field.name}"
        lines += [f"  {name}  [{default}]{_allowed(field.metadata)}", f"      {field.metadata['help']}"]
    return "\n".join(lines)


def _allowed(meta) -> str:
    if meta["choices"]:
        return f"  one of {', '.join(meta['choices'])}"
    signs = (("low", ">="), ("high", "<="), ("above", ">"), ("below", "<"))
    bounds = [f"{sign} {meta[name]}" for name, sign in signs if meta[name] is not None]
    return f"  {', '.join(bounds)}" if bounds else ""
