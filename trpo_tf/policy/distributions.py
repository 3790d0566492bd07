"""Families of action distributions: one class each, and their product over the parts of an action space.

A class is called with parameters [N, K] and returns a TFP distribution over stored actions [N, A], which are float32
whatever they are in the environment. Besides that it knows
  outputs         how many numbers of a network it needs, and `bias`, what they start from
  free            parameters that no observation changes, their start; params = [outputs, free] and K = size
  action_size     A
  noise_size      how many random numbers a draw takes; `noise` makes them
  mask_size       how many choices an action mask may take away; 0 where `masked` does not exist
  in_numpy        whether `draw` takes arrays, too
  fisher_product  F(params) @ tangent, row by row, F the Fisher information of the family in its own parameters
  draw            from parameters and noise to stored actions
  bound           from any numbers to stored actions, and which rows were some already
  to_env          from stored actions to what the environment's step takes
  describe        the parameters by name, for the `distribution` signature
Functions with an argument xp take and return arrays with xp=np.
"""

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.config import Config, UsageError
from trpo_tf.policy import spaces

tfd = tfp.distributions

_NEVER = -1e9  # logit of a masked choice: its probability is 0 in float32 and float64, and 0 times it is 0
_LEAST = 1.0001  # of alpha and beta, so that the mode is there in float32
LAST_GAIN = 0.01  # of the last policy layer: the first policy hardly depends on the state (Andrychowicz et al. 2020)
_NOTHING = np.zeros(0, np.float32)
_EDGE = 1e-6  # how near a draw of a Beta comes to 0 and 1, where its density may be 0


class Bounds:
    """From stored actions [N, A] to a Box: squashed, then mapped to its bounds where it has some, then clipped to them.

    Args:
      space: any shape.
      squash: "none", "tanh" (onto -1..1) or "unit" (0..1 onto -1..1).
      rescale: map -1..1 to the bounds; without it, only clip.

    Raises:
      UsageError: a squashed action needs bounds, and the space lacks some.
    """

    def __init__(self, space: gym.spaces.Box, squash: str, rescale: bool):
        self.shape = space.shape
        self.low, self.high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        if squash != "none" and not bounded.all():
            raise UsageError(f"action space {space} is unbounded; --action_distribution=gaussian can act there")
        low, high = np.where(bounded & rescale, self.low, -1), np.where(bounded & rescale, self.high, 1)
        self._scale, self._shift = high / 2 - low / 2, high / 2 + low / 2  # the identity where not rescaled
        self._squash = squash

    def __call__(self, action, xp=tf):
        """[N, A] -> [N, ...]."""
        if self._squash == "tanh":
            action = xp.tanh(action)
        elif self._squash == "unit":
            action = 2 * action - 1
        mapped = action * self._scale + self._shift
        return xp.reshape(xp.minimum(xp.maximum(mapped, self.low), self.high), [-1, *self.shape])


class DiagonalGaussian:
    """Independent normals, params = [mean, log_std] of shape [N, 2A], for a Box of any shape.

    Squashed by tanh, the stored action is what tanh is taken of, and so are log-probability, entropy and KL: ratios,
    KL and Fisher matrix are the same on both sides of a function that can be undone.
    """

    in_numpy, mask_size = True, 0

    def __init__(self, bounds: Bounds, init_log_std: float, state_dependent: bool):
        self.action_size = self.noise_size = len(bounds.low)
        self.size = 2 * self.action_size
        log_std = np.full(self.action_size, init_log_std, np.float32)
        mean = np.zeros(self.action_size, np.float32)
        self.bias = np.concatenate([mean, log_std]) if state_dependent else mean
        self.free = log_std[: 0 if state_dependent else None]
        self.outputs = len(self.bias)
        self.to_env = bounds

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        mean, log_std = tf.split(params, 2, axis=-1)
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_std))

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(1 / std^2, 2) in (mean, log_std).

        Args:
          params: [N, 2A]. tangent: [N, 2A].

        Returns:
          [N, 2A].
        """
        _, log_std = tf.split(params, 2, axis=-1)
        return tf.concat([tf.exp(-2.0 * log_std), 2.0 * tf.ones_like(log_std)], -1) * tangent

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard normal [..., A] of rows [...]. seed: [2] int32."""
        return tf.random.stateless_normal([*rows, self.noise_size], seed)

    def draw(self, params, noise, xp=tf):
        """mean + std * noise: [N, 2A], [N, A] -> [N, A]."""
        size = self.action_size
        return params[:, :size] + xp.exp(params[:, size:]) * noise

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, A] made finite, at most 1e6 in size, and which rows [N] were."""
        known = tf.where(tf.math.is_nan(action), tf.zeros_like(action), tf.clip_by_value(action, -1e6, 1e6))
        return known, tf.reduce_all(known == action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """mean and std, [N, A]."""
        mean, log_std = tf.split(params, 2, axis=-1)
        return {"mean": mean, "std": tf.exp(log_std)}


class Beta:
    """Independent Betas on 0..1, for a bounded Box: alpha and beta are 1 + softplus of params [N, 2A].

    Both are above 1, so there is one mode, and no mass outside the bounds (Chou et al. 2017, section 4).
    """

    in_numpy, mask_size = False, 0

    def __init__(self, bounds: Bounds):
        self.action_size = self.noise_size = len(bounds.low)
        self.size = self.outputs = 2 * self.action_size
        self.bias, self.free = np.zeros(self.size, np.float32), _NOTHING
        self.to_env = bounds

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Beta(*tf.split(_LEAST + tf.nn.softplus(params), 2, axis=-1)), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(psi(a), psi(b)) - psi(a + b) in (a, b), psi trigamma, times sigmoid on both sides.

        Args:
          params: [N, 2A]. tangent: [N, 2A].

        Returns:
          [N, 2A].
        """
        concentration, slope = _LEAST + tf.nn.softplus(params), tf.sigmoid(params)
        moved = slope * tangent
        total, moved_total = (sum(tf.split(x, 2, axis=-1)) for x in (concentration, moved))
        joint = tf.math.polygamma(tf.ones_like(total), total) * moved_total
        own = tf.math.polygamma(tf.ones_like(concentration), concentration) * moved
        return slope * (own - tf.concat([joint, joint], -1))

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Uniform [..., A] of rows [...]. seed: [2] int32."""
        return tf.random.stateless_uniform([*rows, self.noise_size], seed)

    def draw(self, params, noise, xp=tf):
        """The quantile at the noise: [N, 2A], [N, A] -> [N, A]."""
        del xp
        drawn = tfp.math.betaincinv(*tf.split(_LEAST + tf.nn.softplus(params), 2, axis=-1), noise)
        return tf.clip_by_value(drawn, _EDGE, 1.0 - _EDGE)

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, A] put inside 0..1, and which rows [N] were there."""
        known = tf.where(tf.math.is_nan(action), 0.5, tf.clip_by_value(action, _EDGE, 1.0 - _EDGE))
        return known, tf.reduce_all(known == action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """alpha and beta, [N, A]."""
        alpha, beta = tf.split(_LEAST + tf.nn.softplus(params), 2, axis=-1)
        return {"alpha": alpha, "beta": beta}


class Categorical:
    """Independent choices, params = logits [N, K] of all of them in a row, for Discrete and MultiDiscrete.

    The stored action is the number of each choice, from 0; [N, M] for M choices.
    """

    in_numpy = True

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        sizes = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec).reshape(-1)
        self._sizes = sizes.astype(np.int64)
        self._start = np.broadcast_to(space.start, space.shape).astype(np.int64)
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        self.action_size, longest = len(sizes), int(sizes.max())
        self.size = self.outputs = self.noise_size = self.mask_size = int(sizes.sum())
        self.bias, self.free = np.zeros(self.size, np.float32), _NOTHING
        # Choices of unequal sizes are put into a table [M, longest]; `_place` is where each logit stands in it.
        valid = np.arange(longest) < sizes[:, None]
        self._place = np.flatnonzero(valid)
        self._index = np.where(valid, np.cumsum(valid).reshape(valid.shape) - 1, self.size)
        self._equal = valid.all()

    def _table(self, x, fill, xp=tf):
        """[N, K] -> [N, M, longest], `fill` where a choice is shorter."""
        if not self._equal:
            x = _take(_join([x, xp.zeros_like(x[:, :1]) + fill], xp), self._index.reshape(-1), xp)
        return xp.reshape(x, [-1, *self._index.shape])

    def _row(self, table, xp=tf):
        """The way back."""
        flat = xp.reshape(table, [-1, self._index.size])
        return flat if self._equal else _take(flat, self._place, xp)

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Categorical(self._table(params, _NEVER), dtype=tf.float32), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(p) - p p^T in the logits of each choice: p * (v - p.v).

        Args:
          params: [N, K]. tangent: [N, K].

        Returns:
          [N, K].
        """
        probs, v = tf.nn.softmax(self._table(params, _NEVER)), self._table(tangent, 0.0)
        return self._row(probs * (v - tf.reduce_sum(probs * v, -1, keepdims=True)))

    def masked(self, params, mask, xp=tf):
        """params [N, K] without the choices whose mask [N, K] is 0; where a mask leaves none, it counts as absent."""
        allowed = self._table(xp.where(xp.not_equal(mask, 0), np.int32(1), np.int32(0)), 0, xp)
        some = (np.max if xp is np else tf.reduce_max)(allowed, -1, keepdims=True)
        return xp.where(self._row(xp.maximum(allowed, 1 - some), xp) > 0, params, xp.zeros_like(params) + _NEVER)

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard Gumbel [..., K] of rows [...]. seed: [2] int32."""
        tiny = np.finfo(np.float32).tiny
        return -tf.math.log(-tf.math.log(tf.random.stateless_uniform([*rows, self.size], seed, tiny, 1.0)))

    def draw(self, params, noise, xp=tf):
        """argmax(logits + noise): [N, K], [N, K] -> [N, M]. Reference: the Gumbel-max trick."""
        return _float32(xp.argmax(self._table(params + noise, _NEVER, xp), -1), xp)

    def to_env(self, action, xp=tf):
        """[N, M] -> [N, ...] integers, `start` added."""
        chosen = xp.reshape(action, [-1, *self._shape])
        chosen = chosen.astype(np.int64) if xp is np else tf.cast(chosen, tf.int64)
        return _cast(chosen + self._start, self._dtype, xp)

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, M] made numbers of choices, and which rows [N] were."""
        known = tf.where(tf.math.is_nan(action), 0.0, tf.clip_by_value(tf.round(action), 0.0, self._sizes - 1.0))
        return known, tf.reduce_all(known == action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """logits and probs, [N, K]."""
        return {"logits": params, "probs": self._row(tf.nn.softmax(self._table(params, _NEVER)))}


class Bernoulli:
    """Independent bits, params = logits [N, A], for MultiBinary of any shape."""

    in_numpy, mask_size = True, 0

    def __init__(self, space: gym.spaces.MultiBinary):
        self.action_size = self.size = self.outputs = self.noise_size = int(np.prod(space.shape))
        self.bias, self.free = np.zeros(self.size, np.float32), _NOTHING
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)

    def __call__(self, params: tf.Tensor) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(params, dtype=tf.float32), 1)

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v with F = diag(p (1 - p)) in the logits. params, tangent: [N, A]. Returns [N, A]."""
        return tf.sigmoid(params) * tf.sigmoid(-params) * tangent

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """Standard logistic [..., A] of rows [...]. seed: [2] int32."""
        tiny = np.finfo(np.float32).tiny
        uniform = tf.random.stateless_uniform([*rows, self.size], seed, tiny, 1.0)
        return tf.math.log(uniform) - tf.math.log1p(-uniform)

    def draw(self, params, noise, xp=tf):
        """1 where logit + noise > 0: [N, A], [N, A] -> [N, A]."""
        return _float32(params + noise > 0, xp)

    def to_env(self, action, xp=tf):
        """[N, A] -> [N, ...] bits."""
        return _cast(xp.reshape(action, [-1, *self._shape]), self._dtype, xp)

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, A] made 0 or 1, and which rows [N] were."""
        known = tf.where(action > 0.5, tf.ones_like(action), tf.zeros_like(action))
        return known, tf.reduce_all(known == action, -1)

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """logits and probs, [N, A]."""
        return {"logits": params, "probs": tf.sigmoid(params)}


class Parameters(keras.layers.Layer):
    """From a network's outputs to a family's parameters, [N, outputs] -> [N, K]; holds those that are free."""

    def __init__(self, family: "Family", **kwargs):
        super().__init__(**kwargs)
        self._parts = [(part.outputs, len(part.free)) for part in family.parts.values()]
        self._start = np.concatenate([part.free for part in family.parts.values()])
        self.has_free = len(self._start) > 0

    def build(self, input_shape):
        """Creates the free parameters."""
        del input_shape
        if self.has_free:
            start = self._start
            self.free = self.add_weight(
                shape=start.shape, initializer=lambda shape, dtype: keras.ops.cast(start, dtype), name="free"
            )

    def call(self, x):
        """[N, outputs] -> [N, K]."""
        if not self.has_free:
            return x
        rows = (keras.ops.shape(x)[0], len(self._start))
        free = keras.ops.broadcast_to(keras.ops.convert_to_tensor(self.free), rows)
        return keras.ops.concatenate(self.interleave(x, free), axis=-1)

    def interleave(self, outputs, free) -> list:
        """What is to be joined: each part's columns of the outputs [N, ...], then its columns of free [N, ...]."""
        pieces, at, used = [], 0, 0
        for count, own in self._parts:
            pieces += [outputs[:, at : at + count], free[:, used : used + own]][: 2 if own else 1]
            at, used = at + count, used + own
        return pieces


class Family:
    """The distribution over an action space: the product of one family for each of its parts.

    The Fisher matrix is block-diagonal; log-probability, entropy and KL are sums. Interface as above, except that
    `log_prob`, `entropy`, `kl` and `mode` stand in for the TFP distribution.
    """

    def __init__(self, space: gym.Space, config: Config):
        self._space = spaces.nested(space)
        self.parts = {name: _part(part, space, config) for name, part in spaces.named(self._space, "action").items()}
        parts = list(self.parts.values())
        for name in ("size", "outputs", "action_size", "noise_size", "mask_size"):
            setattr(self, name, sum(getattr(part, name) for part in parts))
        self.bias = np.concatenate([part.bias for part in parts])
        self.in_numpy = all(part.in_numpy for part in parts)
        self._parts = parts

    def _split(self, x, kind: str):
        """Columns [N, ...] by part; kind: "size", "action_size" or "noise_size"."""
        if len(self._parts) == 1:
            return [x]
        ends = np.cumsum([getattr(part, kind) for part in self._parts])
        return [x[..., end - getattr(part, kind) : end] for part, end in zip(self._parts, ends, strict=True)]

    def _each(self, function, *columns):
        """function(part, its columns of each) for every part. columns: pairs of a tensor and its kind."""
        split = [self._split(x, kind) for x, kind in columns]
        return [function(*of_part) for of_part in zip(self._parts, *split, strict=True)]

    def log_prob(self, params: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
        """[N] of stored actions [N, A] under params [N, K]."""
        columns = (params, "size"), (action, "action_size")
        return _sum(self._each(lambda part, params, action: part(params).log_prob(action), *columns))

    def entropy(self, params: tf.Tensor) -> tf.Tensor:
        """[N], in nats."""
        return _sum(self._each(lambda part, params: part(params).entropy(), (params, "size")))

    def kl(self, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """KL(old || new) [N] of two rows of parameters [N, K]."""
        divergence = tfd.kl_divergence
        return _sum(self._each(lambda part, a, b: divergence(part(a), part(b)), (old, "size"), (new, "size")))

    def mode(self, params: tf.Tensor) -> tf.Tensor:
        """The likeliest stored action [N, A]."""
        return _join(self._each(lambda part, params: tf.cast(part(params).mode(), tf.float32), (params, "size")))

    def fisher_product(self, params: tf.Tensor, tangent: tf.Tensor) -> tf.Tensor:
        """F v, [N, K]."""
        return _join(self._each(lambda part, a, v: part.fisher_product(a, v), (params, "size"), (tangent, "size")))

    def masked(self, params, mask, xp=tf):
        """params [N, K] with the choices taken away whose mask [N, mask_size] is 0."""
        sizes = [part.mask_size for part in self._parts]
        masks = np.split(mask, np.cumsum(sizes)[:-1], -1) if xp is np else tf.split(mask, sizes, axis=-1)
        split = zip(self._parts, self._split(params, "size"), masks, strict=True)
        return _join([part.masked(p, m, xp) if part.mask_size else p for part, p, m in split], xp)

    def noise(self, rows: list[int], seed: tf.Tensor) -> tf.Tensor:
        """What the draws of rows [...] need, [..., noise_size]. seed: [2] int32."""
        seeds = [seed, *(tf.random.experimental.stateless_fold_in(seed, k) for k in range(1, len(self._parts)))]
        return _join([part.noise(rows, own) for part, own in zip(self._parts, seeds, strict=True)])

    def draw(self, params, noise, xp=tf):
        """[N, K], [N, noise_size] -> stored actions [N, A]."""
        columns = (params, "size"), (noise, "noise_size")
        return _join(self._each(lambda part, params, noise: part.draw(params, noise, xp), *columns), xp)

    def bound(self, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Stored actions [N, A] for any numbers, and which rows [N] were some."""
        known, usable = zip(*self._each(lambda part, action: part.bound(action), (action, "action_size")), strict=True)
        return _join(known), tf.reduce_all(tf.stack(usable), 0)

    def to_env(self, action, xp=tf):
        """Stored actions [N, A] -> what the environments' step takes, [N, ...] in the structure of the space."""
        parts = iter(self._each(lambda part, action: part.to_env(action, xp), (action, "action_size")))
        return spaces.rebuild(self._space, lambda _: next(parts))

    def named(self, action: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `to_env` gives, by the names in `structure`."""
        names, structure = [], self.structure()
        spaces.rebuild(structure, names.append)
        return dict(zip(names, spaces.named(self.to_env(action), "action").values(), strict=True))

    def structure(self):
        """The action space as nested dicts and tuples of names: `action`, or action_<part>."""
        names = []
        for part in self.parts:
            name = part if part.startswith("action") else f"action_{part}"
            while name in names:
                name += "_"
            names.append(name)
        remaining = iter(names)
        return spaces.rebuild(self._space, lambda _: next(remaining))

    def describe(self, params: tf.Tensor) -> dict[str, tf.Tensor]:
        """The parameters by name; with several parts, <part>_<name>."""
        described = zip(
            self.parts, self._each(lambda part, params: part.describe(params), (params, "size")), strict=True
        )
        single = len(self._parts) == 1
        return {key if single else f"{name}_{key}": value for name, part in described for key, value in part.items()}


def _part(part: gym.Space, whole: gym.Space, config: Config):
    """The family of one part of an action space.

    Raises:
      UsageError: there is none.
    """
    if isinstance(part, gym.spaces.Box) and part.dtype.kind == "f" and part.shape != (0,):
        kind = config.action_distribution
        squash = {"squashed_gaussian": "tanh", "beta": "unit"}.get(kind, "none")
        bounds = Bounds(part, squash, config.rescale_action or squash != "none")
        if kind == "beta":
            return Beta(bounds)
        return DiagonalGaussian(bounds, config.init_log_std, kind == "gaussian_with_state_std")
    if isinstance(part, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return Categorical(part)
    if isinstance(part, gym.spaces.MultiBinary):
        return Bernoulli(part)
    raise UsageError(
        f"action space {whole} is not supported; Box of floats, Discrete, MultiDiscrete, MultiBinary, and Dict and "
        "Tuple of them are"
    )


def _sum(parts: list[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.add_n(parts)


def _join(parts, xp=tf):
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, -1) if xp is np else tf.concat(parts, -1)


def _take(x, columns: np.ndarray, xp):
    return np.take(x, columns, -1) if xp is np else tf.gather(x, columns, axis=-1)


def _cast(x, dtype: np.dtype, xp):
    return x.astype(dtype) if xp is np else tf.cast(x, dtype)


def _float32(x, xp):
    return _cast(x, np.dtype(np.float32), xp)
