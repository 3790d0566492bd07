"""Command lines in files: --flagfile=FILE stands for the lines of the file, one flag each."""

from collections.abc import Iterable

from trpo_tf import paths
from trpo_tf.errors import UsageError, reason

_LARGEST = 1 << 20  # bytes


def expand(arguments: Iterable[str], inside: tuple[str, ...] = ()) -> list[str]:
    """The arguments, the lines of flagfiles in the place of what names these. Comments begin with # or //.

    Args:
      arguments: of a command line, or lines of a file.
      inside: the files in which they stand, absolute.

    Raises:
      UsageError: a flagfile cannot be read, is no text, or includes itself.
    """
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, name = argument.partition("=")
        if flag in ("--flagfile", "-flagfile"):
            result += _lines(name if equals else next(rest, ""), inside)
        else:
            result.append(argument)
            if argument == "--":
                result += rest
    return result


def _lines(name: str, inside: tuple[str, ...]) -> list[str]:
    path = paths.absolute("flagfile", name)
    if not path:
        raise UsageError("--flagfile=: the name of a file is needed")
    if path in inside:
        raise UsageError(f"--flagfile={name}: includes itself")
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--flagfile={name}: {reason(error)}") from error
    except ValueError:
        raise UsageError(f"--flagfile={name}: not a text in UTF-8") from None
    if len(data) > _LARGEST:
        raise UsageError(f"--flagfile={name}: larger than {_LARGEST} bytes")
    lines = [line.strip() for line in text.splitlines()]
    return expand([line for line in lines if line and not line.startswith(("#", "//"))], (*inside, path))
