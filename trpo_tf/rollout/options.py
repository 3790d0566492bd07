"""What a user writes of an environment's options and wrappers, read without being executed."""

import ast
from typing import Any

import gymnasium as gym

from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.backends import checks


def keywords(flag: str, text: str) -> dict[str, Any]:
    """name=value,name=value as a dict; values are Python literals.

    Raises:
      UsageError: it is something else.
    """
    name, positional, named = _call(flag, f"options({text})", text)
    if name != "options" or positional:
        raise UsageError(f"--{flag}={text}: name=value,name=value is needed")
    return named


def wrappers(flag: str, text: str) -> list:
    """Name(arguments);Name as functions from an environment to a wrapped one.

    Raises:
      UsageError: it is something else, or gymnasium has no such wrapper.
    """
    return [_wrapper(flag, part.strip(), text) for part in text.split(";") if part.strip()]


def _wrapper(flag: str, part: str, text: str):
    name, positional, named = _call(flag, part if part.endswith(")") else f"{part}()", text)
    try:
        kind = getattr(gym.wrappers, name, None)  # some are imported when they are asked for
    except (ImportError, gym.error.Error) as error:
        raise UsageError(f"--{flag}={text}: {name}: {first_line(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, gym.Wrapper)):
        raise UsageError(f"--{flag}={text}: gymnasium.wrappers has no {name}")
    if said := checks.learns(kind):
        raise UsageError(f"--{flag}={text}: {said}")

    def wrap(env: gym.Env) -> gym.Env:
        try:
            return kind(env, *positional, **named)
        except (AssertionError, AttributeError, TypeError, ValueError, gym.error.Error) as error:
            raise UsageError(f"--{flag}={text}: {name}: {first_line(error)}") from error

    return wrap


def _call(flag: str, code: str, text: str) -> tuple[str, list, dict[str, Any]]:
    try:
        call = ast.parse(code, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("not a call")
        named = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
        if "" in named:
            raise ValueError("** is not a name")
        return call.func.id, [ast.literal_eval(value) for value in call.args], named
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(f"--{flag}={text}: not understood; values are written as in Python") from error
