"""Draws from the distribution over a whole action space: one sampler for each of its parts."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.acting import spaces
from trpo_tf.acting.arrays import join
from trpo_tf.acting.colored_noise import colored
from trpo_tf.acting.samplers import CategoricalSampler, GaussianSampler, make_sampler
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError


class ActionSampler:
    """The samplers of the parts of an action space, their columns one after the other.

    Interface as in samplers.py; `parts` are the samplers by the name of the part, and `choices` is how many actions
    there are where an action is one choice: raw actions 0, 1, ... [N, 1]. Else it is 0.

    Args:
      space: of a single environment.
      config: action_distribution, rescale_action, init_log_std and noise_color are read.

    Raises:
      UsageError: a part of the space is not supported, or no part has noise that can have a color.
    """

    def __init__(self, space: gym.Space, config: PolicyConfig):
        self._nested = spaces.nested(space)
        self.parts = {
            name: make_sampler(part, space, config) for name, part in spaces.named(self._nested, "action").items()
        }
        self._parts = parts = list(self.parts.values())
        if not parts:
            raise UsageError(f"action space {space} is not supported: it holds nothing to be chosen")
        self.size = sum(part.size for part in parts)
        self.outputs = sum(part.outputs for part in parts)
        self.action_size = sum(part.action_size for part in parts)
        self.noise_size = sum(part.noise_size for part in parts)
        self.mask_size = sum(part.mask_size for part in parts)
        self.bias = np.concatenate([part.bias for part in parts])
        self.free = np.concatenate([part.free for part in parts])
        self.in_numpy = all(part.in_numpy for part in parts)
        alone = len(parts) == 1 and isinstance(parts[0], CategoricalSampler) and parts[0].action_size == 1
        self.choices = self.size if alone else 0
        normal = [np.full(part.noise_size, isinstance(part, GaussianSampler)) for part in parts]
        self._color, self._normal = config.noise_color, np.concatenate(normal)
        if self._color and not self._normal.any():
            raise UsageError(
                f"--noise_color={self._color:g}: only Gaussian actions have such noise, and action space {space} with "
                f"--action_distribution={config.action_distribution} has none; leave it out"
            )
        self._no_noise = np.zeros((1, self.noise_size), np.float32)

    def split(self, x, kind: str) -> list:
        """The columns of x [..., D] by part; kind: "size", "action_size", "noise_size" or "mask_size"."""
        if len(self._parts) == 1:
            return [x]
        sizes = [getattr(part, kind) for part in self._parts]
        return [x[..., end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True)]

    def interleave(self, outputs, free) -> list:
        """What params are joined of: each part's columns of the outputs [N, ...], then its columns of free [N, ...]."""
        pieces, at, used = [], 0, 0
        for part in self._parts:
            own = len(part.free)
            pieces += [outputs[:, at : at + part.outputs], free[:, used : used + own]][: 2 if own else 1]
            at, used = at + part.outputs, used + own
        return pieces

    def params(self, outputs: np.ndarray, free: np.ndarray) -> np.ndarray:
        """The distribution's parameters [N, K] of a network's outputs [N, outputs] and the free parameters [F]."""
        if not len(free):
            return outputs
        return join(self.interleave(outputs, free[None].repeat(len(outputs), 0)))

    def masked(self, params, mask, xp=np):
        """params [N, K] with the choices taken away whose mask [N, mask_size] is 0."""
        split = zip(self._parts, self.split(params, "size"), self.split(mask, "mask_size"), strict=True)
        return join([part.masked(p, m, xp) if part.mask_size else p for part, p, m in split], xp)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """What draws of samples [*shape] need, [*shape, noise_size]."""
        return join([part.noise(generator, shape) for part in self._parts])

    def noise_over_time(self, noise: Callable[[tuple[int, int]], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """What the draws of a rollout need, [T, B, noise_size]; with noise_color it is correlated over time.

        Args:
          noise: from a shape to what independent draws of so many samples need, [*shape, noise_size].
          shape: T, B.
        """
        if not self._color:
            return noise(shape)
        both = noise((2 * shape[0], shape[1]))
        return np.where(self._normal, colored(both, self._color), both[: shape[0]])

    def draw(self, params, noise, xp=np):
        """[N, K], [N, noise_size] -> raw actions [N, A]."""
        split = zip(self._parts, self.split(params, "size"), self.split(noise, "noise_size"), strict=True)
        return join([part.draw(p, n, xp) for part, p, n in split], xp)

    def mode(self, params: np.ndarray) -> np.ndarray:
        """The likeliest raw actions [N, A] under params [N, K]: a draw of zero noise."""
        return self.draw(params, self._no_noise)

    def to_env(self, raw_action, xp=np) -> Any:
        """Raw actions [N, A] -> what the environments' step takes, [N, ...] in the structure of the space."""
        split = zip(self._parts, self.split(raw_action, "action_size"), strict=True)
        parts = iter([part.to_env(x, xp) for part, x in split])
        return spaces.rebuild(self._nested, lambda _: next(parts))

    def structure(self) -> Any:
        """The action space as nested dicts and tuples of names: `action`, or action_<part>."""
        names: list[str] = []
        for part in self.parts:
            name = part if part.startswith("action") else f"action_{part}"
            while name in names:
                name += "_"
            names.append(name)
        remaining = iter(names)
        return spaces.rebuild(self._nested, lambda _: next(remaining))
