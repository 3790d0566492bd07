"""Which backend has an environment's id, and what to say where none has it."""

import difflib
import importlib
import re
from collections.abc import Iterable

import gymnasium as gym

from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends import envpool


def resolve_backend(env_id: str, backend: str, allow_module: bool) -> str:
    """ "envpool" or "gymnasium", for an id and what was asked for.

    Args:
      env_id: such as Hopper-v5, ALE/Pong-v5 or module:Id.
      backend: "auto" (EnvPool where it has the id, else gymnasium), "envpool" or "gymnasium".
      allow_module: whether an id may import a module.

    Raises:
      UsageError: neither has the id, or the backend asked for is not installed or does not have it.
    """
    if ":" in env_id:
        if not allow_module:
            raise UsageError(f"--env={env_id}: imports a module; pass --allow_env_module if you trust it")
        if backend == "envpool":
            raise UsageError(f"--env={env_id}: EnvPool does not have it; module:Id goes with --env_backend=gymnasium")
        return "gymnasium"
    if env_id.startswith("ALE/"):
        _register_atari(env_id)
    if backend == "envpool":
        if not envpool.installed():
            raise UsageError("--env_backend=envpool: EnvPool is not installed; try: pip install envpool")
        if env_id not in envpool.ids():
            raise UsageError(f"--env={env_id}: EnvPool does not have it{_nearest(env_id, envpool.ids())}")
        return "envpool"
    if backend == "auto" and env_id in envpool.ids():
        return "envpool"
    if env_id not in gym.registry:
        known = [*gym.registry, *(envpool.ids() if backend == "auto" else ())]
        raise UsageError(f"--env={env_id}: no such environment{_nearest(env_id, known)}")
    return "gymnasium"


def _register_atari(env_id: str) -> None:
    try:
        gym.register_envs(importlib.import_module("ale_py"))
    except ImportError as error:
        raise UsageError(f"--env={env_id}: ale-py is not installed; try: pip install 'trpo_tf[atari]'") from error


def _nearest(env_id: str, known: Iterable[str]) -> str:
    """A hint: the newest version of the same name, else the nearest ids."""
    version = re.compile(re.escape(re.sub(r"-v\d+$", "", env_id)) + r"-v(\d+)")
    versions = [(int(match[1]), name) for name in known if (match := version.fullmatch(name))]
    if versions:
        return f"; its newest version is {max(versions)[1]}"
    near = difflib.get_close_matches(env_id, sorted(set(known)), n=3)
    return f"; near it: {', '.join(near)}" if near else ""
