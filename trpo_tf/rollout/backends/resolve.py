"""Which backend has an environment's id, and what to say where none has it."""

import difflib
import importlib
import re
from collections.abc import Iterable

import gymnasium as gym

from trpo_tf.errors import UsageError
from trpo_tf.rollout.backends import envpool

# Packages whose environments EnvPool has in C++ under the same ids.
_MIRRORED = {"gymnasium", "ale_py", "highway_env", "metaworld", "minigrid", "procgen", "shimmy", "vizdoom"}


def resolve_backend(env_id: str, backend: str, allow_module: bool) -> str:
    """ "envpool" or "gymnasium", for an id and what was asked for.

    Args:
      env_id: such as Hopper-v5, ALE/Pong-v5 or module:Id.
      backend: "auto" (EnvPool where it has the id, unless somebody else registered it in gymnasium, too; else
        gymnasium), "envpool" or "gymnasium".
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
    if backend == "auto" and env_id in envpool.ids() and not _registered_by_others(env_id):
        return "envpool"
    if env_id not in gym.registry:
        known = [*gym.registry, *(envpool.ids() if backend == "auto" else ())]
        raise UsageError(f"--env={env_id}: no such environment{_nearest(env_id, known)}")
    return "gymnasium"


def explain(env_id: str, backend: str) -> str:
    """Which backend serves an id, and which other one has the id, too, for the start of a run."""
    chosen, other = {"envpool": ("EnvPool", "gymnasium"), "gymnasium": ("gymnasium", "EnvPool")}[backend]
    if not (env_id in gym.registry and env_id in envpool.ids()):
        return chosen
    why = ", as registered in this process" if backend == "gymnasium" and _registered_by_others(env_id) else ""
    return f"{chosen}{why}; {other} has it, too"


def _registered_by_others(env_id: str) -> bool:
    """Whether gymnasium has an id that was registered by a package whose environments EnvPool does not mirror."""
    spec = gym.registry.get(env_id)
    entry = None if spec is None else spec.entry_point
    if entry is None:
        return False
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return re.split(r"[.:]", module)[0] not in _MIRRORED


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
