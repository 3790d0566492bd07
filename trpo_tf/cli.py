"""What the commands share: flags from a configuration record, help in groups, exit codes."""

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from trpo_tf import messages, paths
from trpo_tf.config import GROUPS, Config, flagfile, from_text, nearest, settings
from trpo_tf.errors import Error, UsageError, described

OK, FAILURE, USAGE, PREEMPTED, INTERRUPTED = 0, 1, 2, 42, 130


def run(main: Callable[[dict[str, Any]], int | None], config_class: type, command: str, text: str) -> None:
    """Runs a command with the flags given on the command line, and exits with its code.

    Args:
      main: from the flags that were given, by field name, to an exit code; None is 0.
      config_class: a record of config/; its settings are the flags.
      command, text: name and one line for the help.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with messages.outlets():
        code = _run(main, config_class, command, text)
    sys.exit(code)


def _run(main, config_class: type, command: str, text: str) -> int:
    try:
        given = parse(config_class, sys.argv)
        if given.pop("help"):
            messages.tell(help_text(config_class, command, text))
            return OK
        return main(given) or OK
    except Error as error:
        messages.warn(error.message)
        return USAGE if isinstance(error, UsageError) else FAILURE
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one, while Python ends, is no traceback either
        return INTERRUPTED
    except Exception as error:
        if "TRPO_TF_TRACEBACK" in os.environ:
            raise
        messages.warn(f"{described(error)} (TRPO_TF_TRACEBACK=1 shows where)")
        return FAILURE


def load_runs():
    """Imports trpo_tf.runs, as `import_quietly` does."""
    return import_quietly("trpo_tf.runs")


def import_quietly(name: str):
    """Imports a module, and with it TensorFlow, without TensorFlow's remarks on stderr about absent accelerators.

    They come from C++ before any log level is read, so the file descriptor itself is turned away meanwhile. Ctrl-C
    leaves at once: inside a library's import, a KeyboardInterrupt may become another exception, or none.
    """
    with _stderr_turned_away(), _leaving_at_once(), _temporary_directory_named():
        module = importlib.import_module(name)
        importlib.import_module("tensorflow").config.list_physical_devices()  # looks for them now, remarks included
        return module


@contextlib.contextmanager
def _stderr_turned_away() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is no stderr, or no /dev/null
            kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
        yield


@contextlib.contextmanager
def _temporary_directory_named() -> Iterator[None]:
    """TensorFlow's import asks for the name of the temporary directory. Where none can be written, any name does."""
    before = tempfile.tempdir
    try:
        tempfile.gettempdir()
    except OSError:
        tempfile.tempdir = os.sep
        try:
            yield
        finally:
            tempfile.tempdir = before
    else:
        yield


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def parse(config_class: type, argv: list[str]) -> dict[str, Any]:
    """Defines the flags of a record, reads them, and returns those that were given, and `help`.

    Raises:
      UsageError: there is no such flag, a value is not allowed, or an argument is not a flag.
    """
    values = flags.FlagValues()
    for _, field in _fields(config_class):
        # Texts, whatever they mean: what is not understood is said in the words of the configuration.
        plain: Any = flags.Flag(flags.ArgumentParser(), None, field.name, None, "", boolean=field.type is bool)
        flags.DEFINE_flag(plain, flag_values=values)
    flags.DEFINE_boolean("help", False, "show the flags", short_name="h", flag_values=values)
    try:
        rest = values([argv[0], *flagfile.expand(argv[1:])], known_only=True)[1:]
    except UsageError:
        raise
    except (flags.Error, ValueError) as error:
        raise UsageError(str(error)) from error
    for argument in rest:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name:
            hint = nearest(name, list(values), "--")
            raise UsageError(f"--{name}: no such flag{hint}")
        if argument != "--":
            raise UsageError(f"{argument}: not a flag; flags look like --name=value")
    given = {
        field.name: from_text(field, values[field.name].value)
        for _, field in _fields(config_class)
        if values[field.name].present
    }
    return given | {"help": values["help"].value}


def check_paths(config: Any) -> None:
    """Tries the paths of a record, or of all rooms of a Config, so that none is in vain what comes before their use.

    Raises:
      UsageError: there is nothing to read, or nothing can be written.
    """
    check = {"read": paths.check_readable, "directory": paths.try_directory, "file": paths.try_file}
    for record in [getattr(config, room) for room in GROUPS] if isinstance(config, Config) else [config]:
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            for path in value if isinstance(value, tuple) else [value]:
                if field.metadata["path"] and path not in ("", "-"):
                    check[field.metadata["path"]](field.name, path)


def _fields(config_class: type) -> Iterator[tuple[str, dataclasses.Field]]:
    """The settings of a record, or of all rooms of a Config, each with the group that it stands in."""
    if config_class is Config:
        for room, field in settings():
            yield GROUPS[room], field
    else:
        for field in dataclasses.fields(config_class):
            yield "flags", field


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
