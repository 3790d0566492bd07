"""Spaces and their values as flat dictionaries of named leaves: what is stored, and what a served policy takes.

A space that is no Dict or Tuple is one leaf. Of a nested one, the leaf at a["Left arm"][0] is called left_arm_0.
"""

import keyword
import re

import gymnasium as gym


def nested(space: gym.Space):
    """The space as nested dicts and tuples of spaces that are neither."""
    if isinstance(space, gym.spaces.Dict):
        return {key: nested(part) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(nested(part) for part in space)
    return space


def named(value, whole: str, taken: tuple[str, ...] = ()) -> dict:
    """The leaves of nested dicts and tuples by name, in an order that depends on the structure only.

    Args:
      value: leaves are anything else.
      whole: the name where there is one leaf and nothing around it; before names that could not stand alone.
      taken: names that are not to be given.
    """
    if not isinstance(value, dict | tuple):
        return {whole: value}
    leaves = {}
    for path, leaf in _paths(value):
        name = re.sub(r"[^a-z0-9_]", "_", "_".join(map(str, path)).lower())
        if not name[:1].isalpha() or name in taken or keyword.iskeyword(name):  # names become parameters
            name = f"{whole}_{name}"
        while name in leaves:
            name += "_"
        leaves[name] = leaf
    return leaves


def _paths(value, path=()):
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, tuple):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, part in items:
        yield from _paths(part, (*path, key))


def rebuild(structure, make):
    """The nested dicts and tuples of `structure` with make(leaf) for each leaf, called in the order of `named`."""
    if isinstance(structure, dict):
        built = {key: rebuild(structure[key], make) for key in sorted(structure, key=str)}
        return {key: built[key] for key in structure}
    if isinstance(structure, tuple | list):
        return tuple(rebuild(part, make) for part in structure)
    return make(structure)
