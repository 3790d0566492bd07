"""Draws the figures of docs/theory: what the equations say, on examples that are small enough to be solved exactly.

    python benchmarks/theory.py                       # half a minute
    python benchmarks/theory.py --only=vine.png

Policies are evaluated by trpo_tf.finite. Steps, conjugate gradient, Fisher products, advantages and effective sample
sizes are those of training. Every number drawn is the same in every run.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import tensorflow as tf
import theory_estimates
from absl import app, flags
from finite import (
    EXACT_CG,
    FACTORS,
    GRADIENT,
    INFINITE,
    exact_batch,
    follow,
    limited_step,
    plain_step,
    softmax,
    tabular_objective,
)
from matplotlib.figure import Figure
from theory_estimates import panels

from trpo_tf.config import PolicyConfig
from trpo_tf.finite.examples import cliff, two_states
from trpo_tf.finite.lower_bound import kl_divergence, lower_bound, mixture_bound
from trpo_tf.finite.mdp import Mdp, evaluate, make_mdp
from trpo_tf.finite.policy_iteration import conservative_step
from trpo_tf.learner.conjugate_gradient import conjugate_gradient
from trpo_tf.learner.objective import Objective, make_objective
from trpo_tf.learner.policy_step import damped_natural_gradient, policy_step
from trpo_tf.learner.step_limit import Constraint
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    flags.DEFINE_list("only", [], "names of the figures to draw; empty: all")


def grid_world(size: int, gamma: float) -> tuple[Mdp, np.ndarray]:
    """A square of cells with walls around it, and a policy that prefers right and up. It starts at the lower left."""
    moves, prefers = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]]), np.array([0.35, 0.35, 0.15, 0.15])
    cells = np.stack(np.divmod(np.arange(size * size), size), 1)
    after = (cells[:, None] + moves).clip(0, size - 1) @ [size, 1]
    mdp = make_mdp(np.eye(size * size)[after], np.zeros((size * size, 4)), gamma, np.eye(size * size)[0])
    return mdp, np.tile(prefers, (size * size, 1))


def visits() -> Figure:
    """Normalised visitation frequencies in a grid world by discount."""
    figure, axes = panels(3, height=3.1)
    for axis, gamma in zip(axes, (0.5, 0.9, 0.99), strict=True):
        rho = (1 - gamma) * evaluate(*grid_world(8, gamma)).visits
        axis.grid(False)
        image = axis.imshow(rho.reshape(8, 8), origin="lower", cmap="viridis", norm="log", vmin=1e-5, vmax=1)
        axis.set(title=f"gamma = {gamma}", xlabel="column", ylabel="row")
    figure.colorbar(image, ax=axes, label="(1 - gamma) rho(s)")
    return figure


def surrogate() -> Figure:
    """On the cliff the return, its surrogate and the lower bound, from far and from near."""
    mdp, first = cliff()
    eta_old, (_, old_run) = evaluate(mdp, first).eta, first[0]
    figure, axes = panels(2)
    for axis, changes, unit in zip(
        axes, (np.linspace(-0.049, 0.75, 200), np.linspace(-3e-5, 1e-4, 200)), (1, 1e5), strict=True
    ):
        policies = [np.array([[1 - old_run - change, old_run + change]]) for change in changes]
        bounds = [lower_bound(mdp, first, new) for new in policies]
        origin, shift = (0.0, old_run) if unit == 1 else (eta_old, 0.0)
        for y, style, name in (
            ([evaluate(mdp, new).eta for new in policies], "-", "return"),
            ([bound.surrogate for bound in bounds], "--", "surrogate L"),
            ([bound.by_kl for bound in bounds], "-", "lower bound L - C max KL"),
        ):
            axis.plot(unit * (changes + shift), unit * (np.array(y) - origin), style, label=name)
        axis.plot(shift, eta_old - origin, "ko", label="old policy")
    axes[0].set(ylim=(-20, 12), xlabel="probability to run", ylabel="return")
    axes[0].legend(loc="lower left")
    axes[1].set(xlabel="change of the probability to run, 1e-5", ylabel="change of the return, 1e-5")
    return figure


def mixture() -> Figure:
    """A conservative mixture: return, first order and lower bound by alpha."""
    mdp, old = cliff(length=3, fall=6.0, gamma=0.5)
    step, of, alphas = conservative_step(mdp, old), evaluate(mdp, old), np.linspace(0, 1, 101)
    figure, (axis,) = panels(1, 6.0, 3.6)
    mixed = [(1 - alpha) * old + alpha * step.other for alpha in alphas]
    axis.plot(alphas, [evaluate(mdp, policy).eta for policy in mixed], label="return of the mixture")
    axis.plot(alphas, of.eta + alphas * step.policy_advantage / (1 - mdp.gamma), "--", label="surrogate L")
    axis.plot(alphas, [mixture_bound(mdp, old, step.other, alpha) for alpha in alphas], label="lower bound")
    axis.plot(step.alpha, evaluate(mdp, step.policy).eta, "k^", label=f"conservative step, alpha = {step.alpha:.2f}")
    axis.set(xlabel="alpha, weight of the greedy policy", ylabel="return", ylim=(-2, 2.2))
    axis.legend(loc="lower right")
    return figure


def trust_region() -> Figure:
    """Two logits: the return, the trust region, and where gradient and natural gradient leave it."""
    mdp, old = two_states()
    theta = np.log(old)
    batch, start = exact_batch(mdp, old), theta[:, 0] - theta[:, 1]
    x, y = np.linspace(0.4, 2.4, 120), np.linspace(-2.6, 0.4, 120)
    weights = (1 - mdp.gamma) * evaluate(mdp, old).observed_visits
    policies = [[softmax(np.array([[a, 0], [b, 0]])) for a in x] for b in y]
    eta = np.array([[evaluate(mdp, new).eta for new in row] for row in policies])
    kl = np.array([[weights @ kl_divergence(old, new) for new in row] for row in policies])
    curvature = weights * old[:, 0] * old[:, 1]  # the Fisher matrix is diagonal
    model = 0.5 * (curvature[0] * (x[None] - start[0]) ** 2 + curvature[1] * (y[:, None] - start[1]) ** 2)
    figure, (axis,) = panels(1, 6.4, 5.0)
    figure.colorbar(axis.contourf(x, y, eta, 30, cmap="viridis"), label="return")
    axis.contour(x, y, kl, [0.01], colors="white")
    axis.contour(x, y, model, [0.01], colors="white", linestyles="dashed")
    axis.plot([], [], color="white", label="KL(old || new) = 0.01 nats")
    axis.plot([], [], "--", color="white", label="the same in the quadratic model")
    flat = tf.constant(theta.ravel())
    natural, plain = limited_step(flat, batch, Constraint(0.01, INFINITE)), plain_step(flat, batch, 1.0)
    for name, after, color in (("natural gradient", natural, "tab:red"), ("gradient", plain, "tab:orange")):
        move = np.diff(after.numpy().reshape(2, 2))[:, 0] * -1.0 - start
        move *= np.sqrt(0.02 / (curvature @ move**2))
        axis.annotate("", start + move, start, arrowprops={"color": color, "width": 1.5, "headwidth": 7})
        axis.plot([], [], color=color, label=name)
    axis.set(xlabel="logit to stay in the first state", ylabel="logit to stay in the second state")
    axis.legend(loc="upper right", facecolor="black", labelcolor="white", framealpha=0.6)
    return figure


def network_objective(rows: int) -> tuple[Objective, tf.Tensor]:
    """The objective of a Gaussian policy with a hidden layer of 16 units, on noisy advantages, and its theta [P]."""
    rng = np.random.default_rng(0)
    obs, noise = rng.normal(size=(rows, 8)) * np.geomspace(1, 0.1, 8), rng.normal(size=(rows, 3))

    def network(theta: tf.Tensor, obs: tf.Tensor) -> tf.Tensor:
        mean = tf.tanh(obs @ tf.reshape(theta[:128], [8, 16])) @ tf.reshape(theta[128:176], [16, 3])
        return tf.concat([mean, tf.zeros_like(mean) + theta[176:]], 1)

    theta = tf.constant(np.concatenate([0.4 * rng.normal(size=176), np.full(3, -0.5)]))
    distribution = ActionDistribution(gym.spaces.Box(-1, 1, (3,)), PolicyConfig())
    params, weights = network(theta, tf.constant(obs)), tf.ones(rows, tf.float64)
    action = params[:, :3] + np.exp(-0.5) * noise
    advantage = tf.constant(np.sin(obs[:, 0]) * noise[:, 0] + 0.5 * rng.normal(size=rows))
    batch = Batch(tf.constant(obs), action, distribution.log_prob(params, action), advantage, weights)
    return make_objective(network, distribution, batch), theta


def conjugate_gradients() -> Figure:
    """Residual by iteration, and what the step gains in the trust region, by damping."""
    objective, theta = network_objective(2000)
    _, gradient = objective.gradient(theta)
    product = tf.function(lambda v: objective.fisher_product(theta, v), autograph=False)
    fisher, g = np.stack([product(tf.constant(v)).numpy() for v in np.eye(len(theta))]), gradient.numpy()
    best, iterations = np.sqrt(g @ np.linalg.pinv(fisher, 1e-12) @ g), np.arange(31)
    figure, axes = panels(2)
    for damping in (0.0, 1e-3, 0.1):
        residual, gain = [], []
        for k in iterations.tolist():
            x = conjugate_gradient(lambda v, d=damping: product(v) + d * v, gradient, k, 0.0).direction.numpy()
            residual.append(np.linalg.norm(g - fisher @ x - damping * x) / np.linalg.norm(g))
            gain.append(g @ x / np.sqrt(x @ fisher @ x) / best if k else np.nan)
        axes[0].plot(iterations, residual, ".-", label=f"damping {damping:g}")
        axes[1].plot(iterations, gain, ".-")
    axes[0].set(yscale="log", xlabel="iteration", ylabel="|g - (F + damping I) x| / |g|")
    axes[1].set(xlabel="iteration", ylabel="predicted gain within the radius,\nrelative to that of F^-1 g")
    axes[0].legend(loc="lower left")
    return figure


def line_search() -> Figure:
    """Surrogate, model and KL along a step that is too long, and the candidates."""
    mdp, old = cliff()
    batch, theta = exact_batch(mdp, old), tf.constant(np.log(old).ravel())
    objective, max_kl = tabular_objective(batch, theta), 0.1
    value, gradient = objective.gradient(theta)
    x = damped_natural_gradient(objective, theta, gradient, EXACT_CG).direction
    full = x * np.sqrt(2 * max_kl / float(tf.tensordot(x, objective.fisher_product(theta, x), 1)))
    taken = float(policy_step(objective, Constraint(max_kl, INFINITE), theta, EXACT_CG).step_fraction)
    figure, axes = panels(2)
    params, grid = objective.params(theta), np.linspace(0, 1.3, 80)
    found = np.array([objective.surrogate_and_kl(theta + f * full, params) for f in grid])
    tried = [0.8**k for k in range(11) if 0.8**k >= taken - 1e-9]
    at = np.array([objective.surrogate_and_kl(theta + f * full, params) for f in tried])
    axes[0].plot(grid, found[:, 0] - float(value), label="surrogate")
    axes[0].plot(grid, grid * float(tf.tensordot(gradient, full, 1)), "--", label="linear model")
    axes[1].plot(grid, found[:, 1], label="KL(old || new)")
    axes[1].plot(grid, max_kl * grid**2, "--", label="quadratic model")
    axes[1].axhline(max_kl, color="grey", linewidth=0.8, label="max_kl")
    for axis, y in zip(axes, (at[:, 0] - float(value), at[:, 1]), strict=True):
        axis.plot(tried[:-1], y[:-1], "kx", label="rejected")
        axis.plot(tried[-1:], y[-1:], "ko", label="accepted")
        axis.set_xlabel("fraction of the full step")
        axis.legend(loc="upper left")
    axes[0].set_ylabel("improvement of the surrogate")
    axes[1].set_ylabel("nats")
    return figure


def relatives() -> Figure:
    """The algorithms on the cliff, with a good step and with one that is ten times as long."""
    figure, axes = panels(2, height=4.0)
    for axis, factor, title in zip(axes, FACTORS, ("good step", "ten times as long"), strict=True):
        for k, name in enumerate(("conservative policy iteration", "algorithm 1", *GRADIENT)):
            axis.plot(follow("cliff", name, factor, 40).eta, label=name, color=f"C{k}", linewidth=1)
        axis.set(xlabel="update", title=title)
    axes[0].set_ylabel("return")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


FIGURES = {
    "visits.png": visits,
    "surrogate.png": surrogate,
    "mixture.png": mixture,
    "trust_region.png": trust_region,
    "conjugate_gradient.png": conjugate_gradients,
    "line_search.png": line_search,
    "relatives.png": relatives,
    **theory_estimates.FIGURES,
}


def main(argv):
    """Draws them."""
    del argv
    for name in flags.FLAGS.only or FIGURES:
        path = ROOT / "docs" / "theory" / name
        FIGURES[name]().savefig(path, dpi=85, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    app.run(main)
