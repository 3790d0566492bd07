"""Whether an environment that is put back to where it was goes on as it did, to the bit: tried before relied on."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.encoders import MASK
from trpo_tf.errors import first_line
from trpo_tf.rollout.backends.guard import quiet
from trpo_tf.rollout.backends.restarts import TRIES
from trpo_tf.rollout.env_state import Saver, packed, refusal, tables, unpacked
from trpo_tf.rollout.simulators import Unsavable

_BEFORE, _AFTER = 10, 60  # time steps before the state is saved, and those that are repeated; a reset amid them


def check(make: Callable[[], gym.Env], name: str, processes: bool = False) -> None:
    """Tries whether an environment goes on from a saved state as it did, with drawn actions and through a reset.

    The state is put back into the same environment, after another episode, and into another one of the same make.
    Hidden state that does not show in so few steps is not found. An environment that raises is tried again.

    Args:
      make: makes an environment.
      name: of the environment, for messages.
      processes: also as between processes, where a state is pickled.

    Raises:
      UsageError: it cannot be put back to where it was.
    """
    for attempt in range(TRIES):
        try:
            _try_made(make, processes, attempt)
        except Unsavable as error:
            raise refusal(name, str(error)) from error
        except Exception:
            if attempt == TRIES - 1:
                raise
        else:
            return


def _try_made(make: Callable[[], gym.Env], processes: bool, seed: int) -> None:
    made: list[gym.Env] = []
    try:
        for _ in range(2):
            made.append(make())
        _try(made[0], made[1], processes, seed)
    finally:
        for env in made:
            with quiet():  # nothing depends on it any more
                env.close()


def _try(env: gym.Env, other: gym.Env, processes: bool, seed: int) -> None:
    if tables(env) != tables(other):
        raise Unsavable("each one has other transitions, which are not in its state")
    saver = Saver(env)
    now = list(_steps(env, (env.reset(seed=seed)[0], False), _BEFORE, 0))[-1].place
    saved = saver.save()
    first = list(_steps(env, now, _AFTER, 1))
    list(_steps(env, first[-1].place, _AFTER, 2))  # other episodes lie between
    saver.restore(saved)
    _compare(first, _steps(env, now, _AFTER, 1), "put back, it")
    Saver(other).restore(saved)
    _compare(first, _steps(other, now, _AFTER, 1), "another one of the same make, put there,")
    if processes:
        Saver(other).restore(_sent(saved))
        _compare(first, _steps(other, now, _AFTER, 1), "another one, put there as between processes,")


def _sent(saved: Any) -> Any:
    try:
        return unpacked(packed(saved))
    except Exception as error:
        raise Unsavable(f"its state cannot be pickled, as --env_processes needs it: {first_line(error)}") from error


class _Step(NamedTuple):
    """A time step."""

    bits: Any  # of what was answered
    place: tuple[Any, bool]  # the observation, and whether the episode is over


def _compare(first: list[_Step], again: Iterator[_Step], which: str) -> None:
    for step, (one, other) in enumerate(zip(first, again, strict=True)):
        if one.bits != other.bits:
            raise Unsavable(
                f"{which} goes on otherwise after {step + 1} steps: some of its state is in none of its attributes"
            )


def _steps(env: gym.Env, place: tuple[Any, bool], count: int, seed: int) -> Iterator[_Step]:
    """Time steps with drawn actions, from a place on; a reset is amid them."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    obs, over = place
    for step in range(count):
        if over or step == count // 2:
            obs, over = env.reset()[0], False
            yield _Step(_bits(obs), (obs, over))
        else:
            obs, reward, terminated, truncated, _ = env.step(_drawn(space, obs))
            over = terminated or truncated
            yield _Step(_bits((obs, reward, terminated, truncated)), (obs, over))


def _bits(value: Any) -> Any:
    """What can be compared with == for equality to the bit, NaN included; of the value as it is now."""
    if isinstance(value, dict):
        return {key: _bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_bits(part) for part in value]
    x = np.asarray(value)
    return x.dtype, x.shape, x.tobytes()


def _drawn(space: gym.Space, obs: Any) -> Any:
    """An action, allowed by the action_mask in obs where there is one."""
    mask = obs.get(MASK) if isinstance(obs, dict) else None
    if mask is None:
        return space.sample()
    rest = np.asarray(mask, np.int8)

    def draw(leaf: gym.Space) -> Any:
        nonlocal rest
        if not isinstance(leaf, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            return leaf.sample()
        sizes = np.ravel(leaf.n if isinstance(leaf, gym.spaces.Discrete) else leaf.nvec)
        *parts, rest = np.split(rest, np.cumsum(sizes))
        return leaf.sample(parts[0] if isinstance(leaf, gym.spaces.Discrete) else tuple(parts))

    return spaces.rebuild(spaces.nested(space), draw)
