"""Policy iteration and its relatives, followed exactly on finite MDPs: return and KL by update.

    python benchmarks/finite.py                       # a minute

Nothing is sampled: policies are evaluated by linear algebra. TRPO, the natural (NPG) and the plain policy gradient
(VPG) are steps of the training's own `policy_step` and `Objective`, on softmax logits and a batch that holds every
state and action with its probability. Each algorithm starts from the same policy, and takes steps of a good length and
of ten times that.

| algorithm | good step | ten times as long |
|---|---|---|
| policy iteration, of a policy that sees the state | | the same |
| approximate policy iteration: seeded errors in [-e, e] are added to advantages | e = 0.1 | e = 1 |
| conservative policy iteration | alpha that is best in equation 6 | 10 alpha, at most 1 |
| algorithm 1 of the TRPO paper | C of equation 9 | C / 10 |
| TRPO, constraint | max_kl = 0.01 | max_kl = 1 |
| TRPO, constraint and max_step | and max_step = 1 | and max_step = 10 |
| TRPO, penalty; the coefficient is fixed | 3 | 0.3 |
| NPG | 0.3 natural gradients of the surrogate | 3 |
| VPG | 1 gradient of the surrogate | 10 |

On `garnet` and `two_states` a policy sees the state. On `cliff` all states look the same (trpo_tf/finite/examples.py).
What has to hold, and is checked; the exit code is 1 where it does not:

1. Policy iteration, conservative policy iteration and algorithm 1 never lower the return, with the good step.
2. Where the policy sees the state, NPG, VPG and TRPO never lower the return, however long the step. A logit moves in
   the direction of its advantage. So sum_a new(a | s) A(s, a) >= 0 in every state, and equation 2 adds that up.
3. An update of approximate policy iteration lowers the return by at most 2 e / (1 - gamma), where e is the largest
   error of an advantage, that of states that look the same included. With e = 1 it does lower the return.
4. On `cliff`, TRPO, NPG and VPG with the long step lower the return. Nothing is known that forbids it.
5. The return is above the lower bounds of equations 8 and 9, after each update of every algorithm.
6. The mean KL of TRPO with a constraint is at most max_kl.
7. On `cliff`, TRPO with a constraint lowers the return near the top even with the good step, since a step always uses
   up max_kl. It does not with max_step, which makes steps short where the gradient is small.

Writes docs/finite.png and results/finite.json, which has about 60 updates of a run, and null for an infinite KL.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf
from absl import app, flags

from trpo_tf.config import PolicyConfig, TrustRegionConfig
from trpo_tf.finite.examples import EXAMPLES, Example
from trpo_tf.finite.lower_bound import kl_divergence, lower_bound, lower_bound_step
from trpo_tf.finite.mdp import Mdp, evaluate, expectation
from trpo_tf.finite.policy_iteration import advantage_error, conservative_step, policy_iteration_step
from trpo_tf.learner.objective import Objective, make_objective
from trpo_tf.learner.policy_step import policy_step
from trpo_tf.learner.step_limit import Constraint, Penalty, PlainLength
from trpo_tf.policy.distributions import ActionDistribution
from trpo_tf.types import Batch

ROOT = Path(__file__).resolve().parents[1]
FACTORS = 1.0, 10.0  # of the good step
MAX_KL, ERROR, INFINITE = 0.01, 0.1, np.float64(np.inf)
# Damping far below the eigenvalues that matter. Without it, rounding decides the step of a nearly deterministic policy.
EXACT_CG = TrustRegionConfig(cg_damping=1e-10, cg_tolerance=1e-24, cg_iterations=100)

if __name__ == "__main__":
    flags.DEFINE_integer("updates", 300, "updates of each run", lower_bound=10)


def softmax(theta: np.ndarray) -> np.ndarray:
    """Logits [O, A] to probabilities, none of which underflows to 0: KL(old || new) would be infinite."""
    e = np.exp(theta - theta.max(1, keepdims=True))
    return np.maximum(e / e.sum(1, keepdims=True), np.finfo(float).tiny)


def exact_batch(mdp: Mdp, policy: np.ndarray) -> Batch:
    """Every state and action, weighted such that weighted means are expectations under a policy [O, A]."""
    of = expectation(mdp, policy)
    return Batch(
        features=tf.one_hot(of.observation, mdp.observations, dtype=tf.float64),
        raw_action=tf.constant(of.action[:, None], tf.float32),
        behavior_logp=tf.constant(of.logp),
        advantage=tf.constant(of.advantage),
        weights=tf.constant(of.weights),
    )


def tabular_objective(batch: Batch, theta: tf.Tensor) -> Objective:
    """The objective of softmax logits, theta [O A], on one-hot features [N, O]."""
    observations = batch.features.shape[1]
    actions = theta.shape[0] // observations
    distribution = ActionDistribution(gym.spaces.Discrete(actions), PolicyConfig())
    return make_objective(lambda theta, x: x @ tf.reshape(theta, [observations, actions]), distribution, batch)


@tf.function(autograph=False)
def limited_step(theta: tf.Tensor, batch: Batch, limit: Any) -> tf.Tensor:
    """The logits [O A] after the policy step of training."""
    return policy_step(tabular_objective(batch, theta), limit, theta, EXACT_CG).theta


@tf.function(autograph=False)
def plain_step(theta: tf.Tensor, batch: Batch, length: tf.Tensor) -> tf.Tensor:
    """The logits [O A] after a step along the gradient of the surrogate."""
    return theta + length * tabular_objective(batch, theta).gradient(theta)[1]


Policies = Callable[[Example, float], Iterator[np.ndarray]]  # of an algorithm, on an example, with a factor of FACTORS


def on_policy(step: Callable[[Mdp, np.ndarray, float], np.ndarray]) -> Policies:
    """The policies of an algorithm that goes from policy [O, A] to policy."""

    def policies(example: Example, factor: float) -> Iterator[np.ndarray]:
        policy = example.policy
        while True:
            yield policy
            policy = step(example.mdp, policy, factor)

    return policies


def on_logits(step: Callable[..., tf.Tensor], length: Callable[[float], Any]) -> Policies:
    """The policies of softmax logits theta [O A] that step(theta, batch, length(factor)) moves."""

    def policies(example: Example, factor: float) -> Iterator[np.ndarray]:
        theta = tf.constant(np.log(example.policy).ravel())
        while True:
            policy = softmax(theta.numpy().reshape(example.policy.shape))
            yield policy
            theta = step(theta, exact_batch(example.mdp, policy), length(factor))

    return policies


def with_errors(example: Example, factor: float) -> Iterator[np.ndarray]:
    """The policies of approximate policy iteration."""
    rng, size = np.random.default_rng(0), factor * ERROR
    step = on_policy(lambda mdp, old, _: policy_iteration_step(mdp, old, rng.uniform(-size, size, old.shape)))
    return step(example, factor)


EXACT: dict[str, Policies] = {
    "policy iteration": on_policy(lambda mdp, old, factor: policy_iteration_step(mdp, old)),
    "conservative policy iteration": on_policy(lambda *given: conservative_step(*given).policy),
    "algorithm 1": on_policy(lambda mdp, old, factor: lower_bound_step(mdp, old, 1.0 / factor)),
}
GRADIENT: dict[str, Policies] = {
    "TRPO, constraint": on_logits(limited_step, lambda f: Constraint(MAX_KL * f**2, INFINITE)),
    "TRPO, constraint and max_step": on_logits(limited_step, lambda f: Constraint(MAX_KL * f**2, np.float64(f))),
    "TRPO, penalty": on_logits(limited_step, lambda f: Penalty(np.float64(3.0 / f), INFINITE)),
    "NPG": on_logits(limited_step, lambda f: PlainLength(np.float64(0.3 * f))),
    "VPG": on_logits(plain_step, np.float64),
}
APPROXIMATE = "approximate policy iteration"
ALGORITHMS = {APPROXIMATE: with_errors} | EXACT | GRADIENT


class Run(NamedTuple):
    """What an algorithm did on an MDP."""

    example: str
    algorithm: str
    factor: float
    eta: list[float]  # return of each policy, the first included
    kl: list[float]  # mean KL(old || new) of each update, over the visits of the old policy, nats
    above_bound: float  # smallest eta(new) - the bound of equation 8, which is at least that of equation 9
    above_error: float  # smallest eta(new) - eta(old) + 2 e / (1 - gamma)

    @property
    def falls(self) -> list[float]:
        """By how much updates lowered the return, where it was more than rounding."""
        return [-x for x in np.diff(self.eta).tolist() if x < -1e-10 * max(1.0, *np.abs(self.eta))]


def follow(name: str, algorithm: str, factor: float, updates: int) -> Run:
    """Runs an algorithm on an example."""
    mdp, first = EXAMPLES[name]()
    if algorithm == "policy iteration":
        mdp, first = mdp.observed(), mdp.by_state(first)
    policies = ALGORITHMS[algorithm](Example(mdp, first), factor)
    old, of, kl, above, errors = next(policies), evaluate(mdp, first), [], [], []
    eta = [of.eta]
    for new in itertools.islice(policies, updates):
        kl.append(float((1 - mdp.gamma) * of.observed_visits @ kl_divergence(old, new)))
        bound, error = lower_bound(mdp, old, new), advantage_error(mdp, of) + factor * ERROR
        assert bound.by_kl <= bound.by_total_variation + 1e-10
        old, of = new, evaluate(mdp, new)
        eta.append(of.eta)
        above.append(of.eta - bound.by_total_variation)
        errors.append(eta[-1] - eta[-2] + 2 * error / (1 - mdp.gamma))
    return Run(name, algorithm, factor, eta, kl, min(above), min(errors))


def claims(runs: list[Run]) -> dict[str, bool]:
    """Which of the docstring's statements hold."""
    falls = {(run.example, run.algorithm, run.factor): len(run.falls) for run in runs}
    seen = itertools.product(("garnet", "two_states"), GRADIENT, FACTORS)
    approximate = [run for run in runs if run.algorithm == APPROXIMATE]
    constraint = [run for run in runs if run.algorithm.startswith("TRPO, constraint")]
    return {
        "1, no fall with a guarantee": not any(falls[name, which, 1.0] for name in EXAMPLES for which in EXACT),
        "2, no fall of gradients where the policy sees the state": not any(falls[key] for key in seen),
        "3, falls by errors of at most 2 e / (1 - gamma)": all(run.above_error > -1e-10 for run in approximate)
        and all(run.falls for run in approximate if run.factor > 1),
        "4, falls of long gradient steps on the cliff": all(falls["cliff", which, 10.0] for which in GRADIENT),
        "5, lower bounds": all(run.above_bound > -1e-10 for run in runs),
        "6, the constraint": all(max(run.kl) <= MAX_KL * run.factor**2 * (1 + 1e-9) for run in constraint),
        "7, max_step": [falls["cliff", which, 1.0] > 0 for which in list(GRADIENT)[:2]] == [True, False],
    }


def show(runs: list[Run]) -> None:
    """Prints a line per run."""
    from rich.console import Console
    from rich.table import Table

    table = Table("MDP", "algorithm", "step", *(f"return {k}" for k in (0, 1, 10, 100, "last")))
    for title in ("falls", "largest", "largest KL"):
        table.add_column(title, justify="right")
    for run in runs:
        returns = (f"{run.eta[min(k, len(run.eta) - 1)]:.3f}" for k in (0, 1, 10, 100, len(run.eta)))
        falls = str(len(run.falls)), f"{max(run.falls, default=0.0):.2g}"
        table.add_row(run.example, run.algorithm, f"x {run.factor:g}", *returns, *falls, f"{max(run.kl):.2g}")
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def draw(runs: list[Run], path: Path) -> None:
    """A column per MDP: return, then KL, each with the good and the long step. An infinite KL is not drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 11), layout="constrained")
    axes = figure.subplots(4, len(EXAMPLES), sharex=True)
    for run in runs:
        row, column = FACTORS.index(run.factor), list(EXAMPLES).index(run.example)
        color, line = list(ALGORITHMS).index(run.algorithm), "-" if run.algorithm in GRADIENT else "--"
        style = {"color": f"C{color}", "linestyle": line, "linewidth": 0.6 if len(run.falls) > 9 else 1.5}
        axes[row, column].plot(run.eta, label=run.algorithm, **style)
        kl = [x if 1e-12 < x < np.inf else np.nan for x in run.kl]
        axes[row + 2, column].plot(range(1, len(kl) + 1), kl, **style)
    rows = "return, good step", "return, ten times as long", "KL(old || new), good step", "KL, ten times as long"
    for axis, title in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(title)
    for axis, name in zip(axes[0], EXAMPLES, strict=True):
        axis.set_title(name)
    for (row, column), axis in np.ndenumerate(axes):
        axis.set_xscale("symlog", linthresh=1)
        axis.grid(alpha=0.3)
        if row > 1:
            axis.set(yscale="log", ylim=(1e-9, 30), xlabel="update" if row == 3 else "")
        elif list(EXAMPLES)[column] == "cliff":
            axis.set_yscale("symlog", linthresh=3, linscale=2)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=85)


def record(run: Run) -> dict[str, Any]:
    """A run as it is in the file."""
    kept = sorted({0, *np.geomspace(1, len(run.kl), 60).astype(int).tolist()})
    eta = [round(run.eta[k], 6) for k in kept]
    kl = [None, *(float(f"{run.kl[k - 1]:.5g}") if run.kl[k - 1] < np.inf else None for k in kept[1:])]
    falls = {"falls": len(run.falls), "largest_fall": max(run.falls, default=0.0)}
    return run._asdict() | falls | {"update": kept, "eta": eta, "kl": kl}


def main(argv):
    """Follows all algorithms, draws, and checks what is stated. Returns the exit code."""
    del argv
    cases = itertools.product(EXAMPLES, ALGORITHMS, FACTORS)
    runs = [follow(*case, flags.FLAGS.updates) for case in cases]
    show(runs)
    held = claims(runs)
    for claim, holds in held.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    found = {"claims": held, "runs": [record(run) for run in runs]}
    (ROOT / "benchmarks" / "results" / "finite.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    draw(runs, ROOT / "docs" / "finite.png")
    return int(not all(held.values()))


if __name__ == "__main__":
    app.run(main)
