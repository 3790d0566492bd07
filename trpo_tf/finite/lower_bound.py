"""The lower bounds on the return that TRPO stands on, and the policy iteration that maximises one of them."""

from typing import NamedTuple

import numpy as np

from trpo_tf.finite.mdp import Mdp, evaluate

_BISECTIONS, _SECTIONS, _POINTS = 48, 6, 24
_SMALLEST = 1e-200  # probability


def total_variation(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """[O] of two policies [O, A]: 1/2 sum_a |old - new|."""
    return 0.5 * np.abs(old - new).sum(-1)


def kl_divergence(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """[O] of two policies [O, A]: KL(old || new) = sum_a old log(old / new), nats; infinite where only new has a 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(old > 0, old * (np.log(old) - np.log(new)), 0.0).sum(-1).clip(0.0)


class LowerBound(NamedTuple):
    """What is known of eta(new) from an evaluation of the old policy."""

    surrogate: float  # L_old(new) = eta(old) + sum_s rho(s) sum_a new(a | s) A(s, a)
    total_variation: float  # largest of an observation
    kl: float  # largest KL(old || new) of an observation, nats
    coefficient: float  # C = 4 epsilon gamma / (1 - gamma)^2, epsilon = max_{s, a} |A(s, a)|
    by_total_variation: float  # L - C total_variation^2 <= eta(new), equation 8
    by_kl: float  # L - C kl <= by_total_variation, equation 9


def lower_bound(mdp: Mdp, old: np.ndarray, new: np.ndarray) -> LowerBound:
    """The lower bounds of theorem 1 on eta(new), for policies [O, A].

    Reference: Schulman et al. 2015, equations 3, 7, 8 and 9. Values and advantages are those of the old policy.
    """
    of = evaluate(mdp, old)
    surrogate = of.eta + of.visits @ (mdp.by_state(new) * of.advantage).sum(1)
    coefficient = 4.0 * np.abs(of.advantage).max() * mdp.gamma / (1.0 - mdp.gamma) ** 2
    tv, kl = total_variation(old, new).max(), kl_divergence(old, new).max()
    by_kl = surrogate - (coefficient * kl if coefficient else 0.0)
    numbers = surrogate, tv, kl, coefficient, surrogate - coefficient * tv**2, by_kl
    return LowerBound(*(float(x) for x in numbers))


def mixture_bound(mdp: Mdp, old: np.ndarray, other: np.ndarray, alpha: float) -> float:
    """The lower bound on eta((1 - alpha) old + alpha other): L - 2 epsilon gamma alpha^2 / (1 - gamma)^2.

    Here epsilon = max_s |sum_a other(a | s) A(s, a)|, and L is that of the mixture.

    Reference: Schulman et al. 2015, equation 6, after Kakade and Langford 2002, theorem 4.1.
    """
    of = evaluate(mdp, old)
    advantage = (mdp.by_state(other) * of.advantage).sum(1)
    penalty = 2.0 * np.abs(advantage).max() * mdp.gamma * alpha**2 / (1.0 - mdp.gamma) ** 2
    return float(of.eta + alpha * of.visits @ advantage - penalty)


def lower_bound_step(mdp: Mdp, old: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """The policy [O, A] that maximises L_old(new) - C max KL(old || new): one iteration of TRPO's algorithm 1.

    For a given largest KL k every observation has its own problem, maximise g . p subject to KL(q || p) <= k, with
    q the old probabilities and g = rho A. Its solution is p = m q / (v - g), where v > max g, and m is such that p sums
    to 1. m is the derivative of the optimum with respect to k. So the sum of m over observations is C at the best k.

    v is found by bisection, v - max g relative to 1e-11, and k relative to 1e-6: the objective is flat in k there.
    Probabilities below 1e-200 are set to it. Exact ones are above 0, and one that underflowed to 0 would stay 0.

    Reference: Schulman et al. 2015, algorithm 1.

    Args:
      old: [O, A], all of it above 0.
      factor: of C. The guarantee that eta does not fall is of a factor of at least 1.
    """
    of = evaluate(mdp, old)
    gain = of.observed_visits[:, None] * of.observed_advantage
    gain = gain - (old * gain).sum(1, keepdims=True)  # 0 but for rounding
    if np.abs(gain).max() <= 1e-12 * max(1.0, abs(of.eta)):
        return old
    penalty, low, high = factor * lower_bound(mdp, old, old).coefficient, -60.0, 6.0
    for _ in range(_SECTIONS):
        log_k = np.linspace(low, high, _POINTS)
        above = int((_within(old, gain, np.exp(log_k))[1].sum(1) > penalty).sum())
        low, high = log_k[max(above - 1, 0)], log_k[min(above, _POINTS - 1)]
    return _within(old, gain, np.exp([low]))[0][0]


def _within(q: np.ndarray, gain: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximises gain . p subject to KL(q || p) <= k, by observation, for each of k [J].

    The unknown is the distance of v from max gain, in multiples of the largest gain.

    Args:
      q: [O, A]. gain: [O, A], with q . gain = 0.

    Returns:
      p [J, O, A], and the multiplier of the constraint, [J, O].
    """
    most = gain.max(1, keepdims=True)

    def solution(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        v = most + distance[..., None]
        x = gain / v
        left = (distance[..., None] + (most - gain)) / v  # 1 - x, without cancellation
        more = (q * x * (x / left)).sum(-1)  # sum_a q / (1 - x) is 1 + more, since q . x = 0
        log_left = np.where(np.abs(x) < 0.5, np.log1p(-np.minimum(x, 0.5)), np.log(left))
        kl = (q * log_left).sum(-1) + np.log1p(more)
        return q / left / (1.0 + more)[..., None], v[..., 0] / (1.0 + more), kl

    low, high = np.full((len(k), len(q)), -600.0), np.full((len(k), len(q)), 40.0)
    scale = np.abs(gain).max()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        far = solution(scale * np.exp(middle))[2] > k[:, None]
        low, high = np.where(far, middle, low), np.where(far, high, middle)
    p, multiplier, _ = solution(scale * np.exp(0.5 * (low + high)))
    return np.maximum(p / p.sum(-1, keepdims=True), _SMALLEST), multiplier
