"""Figures of docs/theory about estimates, their bias and variance; benchmarks/theory.py draws them."""

import numpy as np
import tensorflow as tf
from finite import INFINITE, exact_batch, limited_step, softmax
from matplotlib.figure import Figure

from trpo_tf.finite.examples import garnet
from trpo_tf.finite.mdp import Mdp, evaluate
from trpo_tf.learner import staleness
from trpo_tf.learner.estimate.gae import generalized_advantage
from trpo_tf.learner.step_limit import Constraint


def panels(columns: int, width: float = 8.4, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes in a row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def sampled(mdp: Mdp, policy: np.ndarray, rng: np.random.Generator, time: int, envs: int) -> tuple[np.ndarray, ...]:
    """States [T+1, B] and actions [T, B]; the first states are drawn evenly."""
    states, actions = [rng.integers(len(mdp.start), size=envs)], []
    for _ in range(time):
        actions.append((rng.random((envs, 1)) > policy[states[-1]].cumsum(1)).sum(1))
        cumulative = mdp.transition[states[-1], actions[-1]].cumsum(1)
        states.append((rng.random((envs, 1)) > cumulative[:, :-1]).sum(1))
    return np.array(states), np.array(actions)


def expected_gae(mdp: Mdp, policy: np.ndarray, values: np.ndarray, lam: float) -> np.ndarray:
    """The mean [S, A] of generalised advantages by values [S] that may be wrong: sum_k (gamma lambda)^k E[delta_k]."""
    delta = mdp.reward + mdp.gamma * mdp.transition @ values - values[:, None]
    system = np.eye(len(values)) - mdp.gamma * lam * np.einsum("sa,sat->st", policy, mdp.transition)
    return delta + mdp.gamma * lam * mdp.transition @ np.linalg.solve(system, (policy * delta).sum(1))


def gae() -> Figure:
    """Bias and variance of generalised advantages by lambda, with exact and with wrong values."""
    mdp, policy = garnet(1, gamma=0.95)
    of, rng = evaluate(mdp, policy), np.random.default_rng(0)
    states, actions = sampled(mdp, policy, rng, 150, 4000)
    reward, no = mdp.reward[states[:-1], actions], np.zeros(actions.shape, bool)
    lambdas = np.array([0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0])
    figure, axes = panels(2)
    for axis, wrong, title in zip(axes, (0.3, 2.0), ("values nearly right", "values wrong"), strict=True):
        values, errors = of.values + wrong * np.random.default_rng(1).normal(size=8), []
        for lam in lambdas:
            mean = expected_gae(mdp, policy, values, lam)
            tensors = (tf.constant(a) for a in (reward, values[states], no, no, 1.0 - no))
            estimate = generalized_advantage(*tensors, mdp.gamma, lam).numpy()[0]
            bias = mean - (policy * mean).sum(1, keepdims=True) - of.advantage
            errors.append([(bias**2).mean(), ((estimate - mean[states[0], actions[0]]) ** 2).mean()])
        square, variance = np.array(errors).T
        for y, name in ((square, "bias squared"), (variance, "variance"), (square + variance, "sum")):
            axis.plot(lambdas, y, ".-", label=name)
        axis.set(xlabel="lambda", title=f"{title}: errors of {wrong:g}", yscale="log", ylim=(1e-3, 40))
    axes[0].set_ylabel("squared units of reward")
    axes[0].legend(loc="upper left")
    return figure


def effective_size(ratio: np.ndarray, weights: np.ndarray, rho: float = 1e9) -> float:
    """The effective sample size of training, as a fraction."""
    zero = tf.zeros(len(ratio), tf.float64)
    seen = staleness.Seen(tf.constant(weights), tf.constant(ratio), zero, zero, tf.zeros(len(ratio), tf.int32))
    return float(staleness.diagnostics(seen, 0, rho)["stale/effective_sample_size"])


def importance() -> Figure:
    """Effective sample size by KL and by length, and by staleness."""
    figure, axes = panels(2)
    kls, rng = np.geomspace(1e-4, 1, 25), np.random.default_rng(0)
    for length in (1, 10, 100):
        axes[0].plot(kls, np.exp(-2 * length * kls), label=f"{length} actions" if length > 1 else "1 action")
        d = np.sqrt(2 * kls[::3, None] * length)
        found = [effective_size(r, np.ones(10_000)) for r in np.exp(d * rng.normal(size=(len(d), 10_000)) - d**2 / 2)]
        axes[0].plot(kls[::3], found, "k.", markersize=4)
    axes[0].set(
        xscale="log", yscale="log", ylim=(1e-4, 1.5), xlabel="KL of one action, nats", ylabel="effective fraction"
    )
    axes[0].legend(loc="lower left", title="ratio of")
    mdp, first = garnet()
    seen = exact_batch(mdp, first)
    for max_kl in (0.01, 0.03):
        theta, policy, sizes = tf.constant(np.log(first).ravel()), first, []
        for _ in range(13):
            ratio = (policy / first).ravel()
            sizes.append([effective_size(ratio, seen.weights.numpy(), rho) for rho in (1e9, 1.0)])
            theta = limited_step(theta, exact_batch(mdp, policy), Constraint(max_kl, INFINITE))
            policy = softmax(theta.numpy().reshape(first.shape))
        for y, name, style in zip(np.array(sizes).T, ("", ", ratios at most 1"), ("-", "--"), strict=True):
            axes[1].plot(y, style, color=f"C{int(max_kl > 0.02)}", label=f"max_kl {max_kl:g}{name}")
    axes[1].set(xlabel="staleness, updates", ylim=(0, 1.05))
    axes[1].legend(loc="lower left")
    return figure


def coupled(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The joint probabilities of two draws that invert their distribution functions at one random number."""
    a, b = np.concatenate([[0], p.cumsum()]), np.concatenate([[0], q.cumsum()])
    return (np.minimum.outer(a[1:], b[1:]) - np.maximum.outer(a[:-1], b[:-1])).clip(0)


def moments(mdp: Mdp, policy: np.ndarray, values: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [S, A] and covariances [S, A, A] of Q-hat, for rollouts of `steps` steps with common random numbers."""
    states, actions = mdp.reward.shape
    pairs = [(i, j) for i in np.ndindex(states, actions) for j in np.ndindex(states, actions)]
    later = {(i, j): coupled(mdp.transition[i], mdp.transition[j]) for i, j in pairs}
    chosen = np.array([[coupled(p, q) for q in policy] for p in policy])  # [S, S, A, A]
    mean, second = values, np.outer(values, values)  # of one rollout from a state; of the product of two, from two
    product = np.zeros((states, actions, states, actions))
    for _ in range(steps):
        r, q = mdp.reward, mdp.reward + mdp.gamma * mdp.transition @ mean
        for i, j in pairs:
            product[i + j] = r[i] * q[j] + r[j] * q[i] - r[i] * r[j] + mdp.gamma**2 * (later[i, j] * second).sum()
        mean, second = (policy * q).sum(1), np.einsum("stab,satb->st", chosen, product)
    return q, np.einsum("sasb->sab", product) - q[:, :, None] * q[:, None]


def vine() -> Figure:
    """The standard deviation of what a state says of a candidate policy, by the length of the rollouts."""
    mdp, old = garnet(2, states=5)
    of, rng = evaluate(mdp, old), np.random.default_rng(0)
    new = softmax(np.log(old) + 0.3 * rng.normal(size=old.shape))
    change, ratio, lengths = new - old, new / old - 1, (1, 2, 3, 5, 8, 12, 20, 30)
    found: dict[str, list[float]] = {}
    for steps in lengths:
        q, common = moments(mdp, old, of.values, steps)
        independent = common * np.eye(3)
        square = np.einsum("saa->sa", common) + q**2
        exact = (change * q).sum(1)
        v = of.values[:, None]
        cases = {
            "single path": (old * ratio**2 * square).sum(1) - exact**2,
            "single path, less V(s)": (old * ratio**2 * (square - 2 * v * q + v**2)).sum(1) - exact**2,
            "vine, all actions": np.einsum("sa,sab,sb->s", change, independent, change),
            "vine, common random numbers": np.einsum("sa,sab,sb->s", change, common, change),
        }
        for name, variance in cases.items():
            found.setdefault(name, []).append(float((1 - mdp.gamma) * of.visits @ variance))
    figure, axes = panels(2)
    for name, y in found.items():
        cost = np.array(lengths) * 3 if "vine" in name else 1
        axes[0].plot(lengths, np.sqrt(y), ".-", label=name)
        axes[1].plot(lengths, np.sqrt(y * cost), ".-")
    axes[0].set_ylabel("standard deviation of a state")
    axes[1].set_ylabel("sd x sqrt(steps per state)")
    for axis in axes:
        axis.set(xlabel="H, steps of a rollout", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def directions() -> Figure:
    """How well random directions find a gradient, by their number and that of the parameters."""
    figure, (axis,) = panels(1, 6.0, 3.6)
    rng, counts = np.random.default_rng(0), np.geomspace(1, 1000, 13).astype(int)
    for parameters in (33, 330, 3300):
        delta = rng.normal(size=(counts[-1], parameters))
        steps = (delta[:, :1] * delta).cumsum(0)  # the gradient is the first unit vector
        cosine = [steps[n - 1, 0] / np.linalg.norm(steps[n - 1]) for n in counts]
        (line,) = axis.plot(counts, np.sqrt(counts / (counts + parameters)), label=f"P = {parameters}")
        axis.plot(counts, cosine, ".", color=line.get_color())
    axis.set(xscale="log", xlabel="N, pairs of rollouts", ylabel="cosine with the gradient", ylim=(-0.05, 1.05))
    axis.legend(loc="upper left")
    return figure


FIGURES = {"gae.png": gae, "importance.png": importance, "vine.png": vine, "directions.png": directions}
