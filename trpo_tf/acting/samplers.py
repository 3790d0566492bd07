"""Draws of actions, from parameters and noise: one sampler for each action distribution of policy/distributions.

A sampler knows
  outputs         how many numbers of a network it needs, and `bias`, what they start from
  free            parameters that no observation changes, their start; params = [outputs, free] and K = size
  action_size     A, the columns of a raw action, which is float32 whatever the environment takes
  noise_size      how many random numbers a draw takes
  mask_size       how many choices an action mask may take away; 0 where `masked` does not exist
  in_numpy        whether `draw` exists; if not, only TensorFlow can draw
  draw            from parameters and noise to raw actions
  noise           what draws of samples [*shape] need, [*shape, noise_size] float32, of a NumPy generator
  to_env          from raw actions to what the environment's step takes
Functions with an argument xp take and return arrays, or tensors with xp=tensorflow.
"""

import gymnasium as gym
import numpy as np

from trpo_tf.acting.arrays import cast, join, largest, take
from trpo_tf.acting.bounds import Bounds, is_bounded
from trpo_tf.config import PolicyConfig
from trpo_tf.errors import UsageError

NEVER = -1e9  # logit of a masked choice: its probability is 0 in float32 and float64, and 0 times it is 0
_NONE = np.zeros(0, np.float32)


class GaussianSampler:
    """raw_action = mean + std * noise, params = [mean, log_std] of shape [N, 2A], for a Box of any shape.

    Args:
      bounds: from raw actions to the Box.
      init_log_std: initial log standard deviation.
      state_dependent: log_std is an output of the network instead of free.
    """

    in_numpy, mask_size = True, 0

    def __init__(self, bounds: Bounds, init_log_std: float, state_dependent: bool):
        self.action_size = self.noise_size = len(bounds.low)
        self.size = 2 * self.action_size
        log_std = np.full(self.action_size, init_log_std, np.float32)
        mean = np.zeros(self.action_size, np.float32)
        self.bias = np.concatenate([mean, log_std]) if state_dependent else mean
        self.free = _NONE if state_dependent else log_std
        self.outputs = len(self.bias)
        self.to_env = bounds

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal [*shape, A]."""
        return generator.standard_normal((*shape, self.noise_size), np.float32)

    def draw(self, params, noise, xp=np):
        """[N, 2A], standard normal [N, A] -> [N, A]."""
        size = self.action_size
        return params[:, :size] + xp.exp(params[:, size:]) * noise


class BetaSampler:
    """Sizes and the door to the environment, for a bounded Box; params [N, 2A].

    NumPy has no quantile of a Beta distribution, so draws are TensorFlow's (policy/distributions/beta.py).
    """

    in_numpy, mask_size = False, 0

    def __init__(self, bounds: Bounds):
        self.action_size = self.noise_size = len(bounds.low)
        self.size = self.outputs = 2 * self.action_size
        self.bias, self.free = np.zeros(self.size, np.float32), _NONE
        self.to_env = bounds

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform [*shape, A]."""
        return generator.random((*shape, self.noise_size), np.float32)


class CategoricalSampler:
    """argmax(logits + noise), params = logits [N, K] of all choices in a row, for Discrete and MultiDiscrete.

    The raw action [N, M] is the number of each of the M choices, from 0.

    Reference: the Gumbel-max trick.
    """

    in_numpy = True

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        sizes = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec).reshape(-1)
        self.sizes = sizes.astype(np.int64)  # [M], of each choice
        self._start = np.broadcast_to(space.start, space.shape).astype(np.int64)
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        self.action_size, longest = len(sizes), int(sizes.max())
        self.size = self.outputs = self.noise_size = self.mask_size = int(sizes.sum())
        self.bias, self.free = np.zeros(self.size, np.float32), _NONE
        # Choices of unequal sizes are put into a table [M, longest]; `_place` is where each logit stands in it.
        valid = np.arange(longest) < sizes[:, None]
        self._place = np.flatnonzero(valid)
        self._index = np.where(valid, np.cumsum(valid).reshape(valid.shape) - 1, self.size)
        self._equal = valid.all()

    def table(self, x, fill, xp=np):
        """[N, K] -> [N, M, longest], `fill` where a choice is shorter."""
        if not self._equal:
            x = take(join([x, xp.zeros_like(x[:, :1]) + fill], xp), self._index.reshape(-1), xp)
        return xp.reshape(x, [-1, *self._index.shape])

    def flat(self, table, xp=np):
        """What `table` was made of: [N, M, longest] -> [N, K]."""
        flat = xp.reshape(table, [-1, self._index.size])
        return flat if self._equal else take(flat, self._place, xp)

    def masked(self, params, mask, xp=np):
        """params [N, K] without the choices whose mask [N, K] is 0; where a mask leaves none, it counts as absent."""
        allowed = self.table(xp.where(xp.not_equal(mask, 0), np.int32(1), np.int32(0)), 0, xp)
        counted = xp.maximum(allowed, 1 - largest(allowed, xp))
        return xp.where(self.flat(counted, xp) > 0, params, xp.zeros_like(params) + NEVER)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard Gumbel [*shape, K]."""
        return generator.gumbel(size=(*shape, self.noise_size)).astype(np.float32)

    def draw(self, params, noise, xp=np):
        """[N, K], standard Gumbel [N, K] -> [N, M]."""
        return cast(xp.argmax(self.table(params + noise, NEVER, xp), -1), np.float32, xp)

    def to_env(self, raw_action, xp=np):
        """[N, M] -> [N, ...] integers, `start` added."""
        chosen = cast(xp.reshape(raw_action, [-1, *self._shape]), np.int64, xp)
        return cast(chosen + self._start, self._dtype, xp)


class BernoulliSampler:
    """1 where logit + noise > 0, params = logits [N, A], for MultiBinary of any shape."""

    in_numpy, mask_size = True, 0

    def __init__(self, space: gym.spaces.MultiBinary):
        self.action_size = self.size = self.outputs = self.noise_size = int(np.prod(space.shape))
        self.bias, self.free = np.zeros(self.size, np.float32), _NONE
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard logistic [*shape, A]."""
        return generator.logistic(size=(*shape, self.noise_size)).astype(np.float32)

    def draw(self, params, noise, xp=np):
        """[N, A], standard logistic [N, A] -> [N, A]."""
        return cast(params + noise > 0, np.float32, xp)

    def to_env(self, raw_action, xp=np):
        """[N, A] -> [N, ...] bits."""
        return cast(xp.reshape(raw_action, [-1, *self._shape]), self._dtype, xp)


def make_sampler(part: gym.Space, whole: gym.Space, config: PolicyConfig):
    """The sampler of one part of an action space.

    Args:
      part: neither Dict nor Tuple. whole: the space that it is a part of, for the message.
      config: action_distribution, rescale_action and init_log_std are read.

    Raises:
      UsageError: there is none.
    """
    if part.shape is not None and 0 in part.shape:
        raise UsageError(f"action space {whole} is not supported: {part} holds nothing to be chosen")
    if isinstance(part, gym.spaces.Box) and part.dtype.kind in "fiu":
        kind = config.action_distribution
        if kind == "auto":
            kind = "squashed_gaussian" if is_bounded(part) else "gaussian"
        squash = {"squashed_gaussian": "tanh", "beta": "unit"}.get(kind, "none")
        bounds = Bounds(part, squash, config.rescale_action or squash != "none")
        if kind == "beta":
            return BetaSampler(bounds)
        return GaussianSampler(bounds, config.init_log_std, kind == "gaussian_with_state_std")
    if isinstance(part, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return CategoricalSampler(part)
    if isinstance(part, gym.spaces.MultiBinary):
        return BernoulliSampler(part)
    raise UsageError(
        f"action space {whole} is not supported; Box of floats or integers, Discrete, MultiDiscrete, MultiBinary, and "
        "Dict and Tuple of them are"
    )
