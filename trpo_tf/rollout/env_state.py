"""The state of one gymnasium environment, saved and put back to the bit: simulator, wrappers, random generators.

The attributes of the environment and of every wrapper are copied; a simulator in C or C++ is asked for what it holds.
What is here runs in the processes of environments, too, and must not import TensorFlow.
"""

import collections
import contextlib
import copy
import types
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from trpo_tf.errors import UsageError, first_line
from trpo_tf.rollout.simulators import Unsavable, is_model, package, simulator

_PLAIN = {type(None), bool, int, float, complex, str, bytes, *np.sctypeDict.values()} - {np.void, np.object_}
# Attributes that gymnasium sets once.
_ONCE = {"_cached_spec", "_ezpickle_args", "_ezpickle_kwargs", "_metadata", "_saved_kwargs", "metadata", "spec"}
_TOY_TEXT = "gymnasium.envs.toy_text."  # whose P, the table of all transitions, takes milliseconds to copy
_SCREENS = {"OpenGL", "glfw", "moviepy", "pygame", "pyglet"}
_RENDERERS = {"gymnasium.envs.mujoco.mujoco_rendering", "mujoco.renderer", "mujoco.viewer"}


def refusal(name: str, why: str) -> UsageError:
    """What to raise where the environment of that name cannot be put back to where it was."""
    return UsageError(
        f"--sampling=vine: {name} cannot be put back to where it was ({why}); leave --sampling out, which takes any "
        "environment"
    )


class Saved(NamedTuple):
    """The state of an environment."""

    attributes: list[dict[str, Any]]  # of each layer
    simulators: list[Any]
    draws: list[Any]  # state of the generator of each space


class Saver:
    """Saves the state of an environment and puts it back, as often as wanted and in any order.

    The state may be put back into another environment of the same make, too, by the Saver of that one. What renders
    stays as it is. The wrappers of this project change nothing that follows, and are passed over.

    Args:
      env: with all its wrappers.

    Attributes:
      env: see above.

    Raises:
      Unsavable: it is no gymnasium.Env, or its simulator does not give out all that it holds.
    """

    def __init__(self, env: gym.Env):
        if not isinstance(env, gym.Env):
            raise Unsavable(f"{type(env).__qualname__} is no gymnasium.Env")
        self.env, self._layers = env, _layers(env)
        self._fixed = [dict(_fixed(layer)) for layer in self._layers]
        live = {(index, ""): layer for index, layer in enumerate(self._layers)}
        for index, fixed in enumerate(self._fixed):
            live |= {(index, name): value for name, value in fixed.items() if name not in _ONCE}
        self._live, self._held = live, {id(value): _Held(key) for key, value in live.items()}
        self._simulators = [found for value in live.values() if (found := simulator(value))]
        self._spaces = _spaces(self._layers)

    def save(self) -> Saved:
        """The state; the environment goes on as if nothing had happened.

        Raises:
          Unsavable: an attribute cannot be copied.
        """
        for layer in self._layers:
            if not isinstance(layer, gym.Wrapper):
                _ = layer.np_random  # made here, since one that is made later has a seed that nobody knows
        memo: dict[Any, Any] = dict(self._held)
        attributes = []
        for layer, fixed in zip(self._layers, self._fixed, strict=True):
            saved = {}
            for name, value in vars(layer).items():
                if type(value) in _PLAIN:
                    saved[name] = value
                elif fixed.get(name) is not value:
                    with contextlib.suppress(_Rendering):
                        saved[name] = _attribute(name, value, memo)
            attributes.append(saved)
        draws = [space.np_random.bit_generator.state for space in self._spaces]
        return Saved(attributes, [one.save() for one in self._simulators], draws)

    def restore(self, saved: Saved, seed: int | None = None) -> None:
        """Puts the environment back to where it, or another one of the same make, was.

        seed: of `np_random` from there on; None: that goes on as it did. Other generators go on in any case.
        """
        memo: dict[Any, Any] = {_Held: self._live}
        for layer, fixed, attributes in zip(self._layers, self._fixed, saved.attributes, strict=True):
            now = vars(layer)
            for name in now.keys() - attributes.keys():
                if name in fixed:
                    now[name] = fixed[name]
                elif not _renders(now[name]):
                    del now[name]
            for name, value in attributes.items():
                if type(value) not in _PLAIN:
                    now[name] = copied(value, memo)
                elif value is not None or not _renders(now.get(name)):
                    now[name] = value
        for one, state in zip(self._simulators, saved.simulators, strict=True):
            one.restore(state)
        for space, state in zip(self._spaces, saved.draws, strict=True):
            space.np_random.bit_generator.state = state
        if seed is not None:
            for index, layer in enumerate(self._layers):
                if not isinstance(layer, gym.Wrapper):
                    layer.np_random = np.random.Generator(np.random.PCG64([seed, index]))


def packed(saved: Any) -> bytes:
    """A state as bytes, for another process. Classes of the user's script, which it may not know, are in them."""
    return bytes(ForkingPickler.dumps(CloudpickleWrapper(saved)))


def unpacked(data: bytes) -> Any:
    """The state that `packed` was given."""
    return ForkingPickler.loads(data).fn


class _Held:
    """Stands in a state for what stays with the environment; put back, it becomes that of the environment.

    Args:
      key: number of the layer, and name of its attribute; "": the layer itself.
    """

    def __init__(self, key: tuple[int, str]):
        self._key = key

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return memo[_Held][self._key]


class _Rendering(Exception):
    """A value that renders."""


def tables(env: gym.Env) -> list[Any]:
    """What is no part of a state, because no step changes it: the transitions of toy text."""
    return [layer.P for layer in _layers(env) if hasattr(layer, "P") and type(layer).__module__.startswith(_TOY_TEXT)]


def _layers(env: gym.Env) -> list[gym.Env]:
    """The environment, what it wraps, and other environments that these have as attributes."""
    found = [env]
    for layer in found:
        inner = [value for value in vars(layer).values() if isinstance(value, gym.Env)]
        found += [value for value in inner if not any(value is other for other in found)]
    return [layer for layer in found if package(layer) != "trpo_tf"]


def _fixed(layer: gym.Env) -> Iterator[tuple[str, Any]]:
    """The attributes of a layer that are not copied, as long as they are the same object."""
    table = "P" if type(layer).__module__.startswith(_TOY_TEXT) else ""
    for name, value in vars(layer).items():
        if type(value) in _PLAIN:
            continue
        kept = (
            isinstance(value, gym.Env | gym.Space | types.ModuleType)
            or _is_bound(value)
            or is_model(value)
            or simulator(value)
        )
        if kept or name in _ONCE or name == table or _renders(value):
            yield name, value


def _is_bound(value: Any) -> bool:
    """Whether it is a function that is made anew with each environment, and may hold something of it."""
    if isinstance(value, types.FunctionType):
        return "<" in value.__qualname__  # <lambda>, or in the <locals> of another function
    return isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType)


def _spaces(layers: list[gym.Env]) -> list[gym.Space]:
    """All spaces of the layers, and those that they are made of."""
    found: dict[int, gym.Space] = {}
    waiting: list[Any] = []
    for layer in layers:
        waiting += [layer.observation_space, layer.action_space, *vars(layer).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, gym.Space) and id(value) not in found:
            found[id(value)] = value
            waiting += [part for of in vars(value).values() for part in _parts(of)]
    return list(found.values())


def _parts(value: Any) -> list[Any]:
    """What a container holds; a value alone where it is none."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _renders(value: Any) -> bool:
    """Whether a value, or what a container holds, belongs to a window or a renderer."""
    if type(value) in _PLAIN:
        return False
    if isinstance(value, dict | list | tuple):
        return any(map(_renders, _parts(value)))
    return package(value) in _SCREENS or type(value).__module__ in _RENDERERS


def _attribute(name: str, value: Any, memo: dict[Any, Any]) -> Any:
    try:
        return copied(value, memo)
    except _Rendering:
        raise
    except Exception as error:
        raise Unsavable(f"its attribute {name} cannot be copied: {first_line(error)}") from error


def copied(value: Any, memo: dict[Any, Any]) -> Any:
    """As copy.deepcopy, which takes twice as long for what environments mostly have.

    Raises:
      Exception: it cannot be copied.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is np.ndarray and not value.dtype.hasobject:
        new: Any = value.copy("K")
    elif kind is np.random.Generator:
        new = _generator(value)
    elif kind is tuple:
        parts = [copied(part, memo) for part in value]
        new = value if all(map(lambda a, b: a is b, parts, value)) else tuple(parts)
    elif kind in (list, dict, collections.deque):
        return _container(value, memo)
    else:
        return _other(value, memo)
    memo[id(value)] = new
    return new


def _container(value: Any, memo: dict[Any, Any]) -> Any:
    """A copy, which is known before its parts are: they may have it as a part."""
    new: Any = collections.deque(maxlen=value.maxlen) if isinstance(value, collections.deque) else type(value)()
    memo[id(value)] = new
    if isinstance(value, dict):
        new.update((key, copied(part, memo)) for key, part in value.items())
    else:
        new.extend(copied(part, memo) for part in value)
    return new


def _other(value: Any, memo: dict[Any, Any]) -> Any:
    if _renders(value):
        raise _Rendering
    if any(base.__module__.startswith("Box2D") for base in type(value).__mro__):
        raise TypeError("Box2D gives out neither the impulses that joints start from nor for how long bodies rested")
    if isinstance(value, gym.Env | gym.vector.VectorEnv):
        raise TypeError("it is an environment")
    return copy.deepcopy(value, memo)


def _generator(value: np.random.Generator) -> np.random.Generator:
    bits = value.bit_generator
    seeds = bits.seed_seq
    if type(seeds) is not np.random.SeedSequence:
        return copy.deepcopy(value)
    again = np.random.SeedSequence(
        seeds.entropy, spawn_key=seeds.spawn_key, pool_size=seeds.pool_size,
        n_children_spawned=seeds.n_children_spawned,
    )  # fmt: skip
    new = type(bits)(again)
    new.state = bits.state
    return np.random.Generator(new)
