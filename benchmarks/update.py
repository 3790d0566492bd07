"""Time of one update and of its parts over batch size and network size, and beside it the peer's update.

    make peers                                                    # their own environment, .venv-peers
    python benchmarks/update.py                                   # a quarter of an hour
    python benchmarks/update.py --rows=2048,16384 --hidden=64 --nopeer

Every part is compiled as the learner compiles it. The parts are timed in turns, and the table has medians. "update" is
one with the defaults: its Fisher products use 4096 transitions or a fifth of the batch, whichever is more. "update, all
rows in Fisher products" uses every transition, as the peer does, and so do the parts. With --reuse=2, half of the
transitions are new.

The time of a Fisher product is the difference between 20 and 10 iterations of conjugate gradient, over 10. "its matrix
products" are those of a Fisher product alone, of the same shapes, in one compiled function that writes out all of their
results: a floor under its time. The peer's update is sb3-contrib's train() on as many transitions, with 10 passes of
its critic in minibatches of 128, as here.

The last line of the table is the exponent of the batch size in the time of an update, between neighbouring sizes.
Writes results/update.json, .md and .png. In them, rows are transitions.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags
from peers import ask

import trpo_tf
from trpo_tf.learner.objective import make_objective
from trpo_tf.learner.policy_step import damped_natural_gradient
from trpo_tf.policy.policy import Policy
from trpo_tf.rollout.stepper import aligned
from trpo_tf.types import Rollout, Trajectory

RESULTS = Path(__file__).resolve().parent / "results"
ENV, ENVS, EPOCHS = "HalfCheetah-v5", 16, 10

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "rows", ["2048", "8192", "16384", "32768", "65536", "131072"], "transitions of a batch, at the first of --hidden"
)
flags.DEFINE_list("hidden", ["64", "256", "1024"], "units of both layers, at the first of --rows")
flags.DEFINE_integer("repeats", 7, "measurements of each; the median counts", lower_bound=1)
flags.DEFINE_bool("peer", True, "measure sb3-contrib too")
flags.DEFINE_string("results", "update", "name of the files in results/")


def random_rollout(policy: Policy, time_steps: int) -> Rollout:
    """Random observations and rewards, and the policy's own draws for them: [T, B, ...]."""
    random, shape = np.random.default_rng(0), (time_steps, ENVS)
    ((name, (of, dtype)),) = policy.specs.items()
    obs = aligned((time_steps + 1, ENVS, *of), dtype)
    obs[...] = random.standard_normal(obs.shape)
    noise = policy.distribution.noise([time_steps * ENVS], tf.constant([0, 1]))
    params, raw_action, _ = policy.act({name: obs[:-1].reshape(-1, *of)}, noise)
    logp = policy.log_prob(params, raw_action).numpy().reshape(shape)
    reward, never = random.standard_normal(shape).astype(np.float32), np.zeros(shape, bool)
    truncated, mask = random.random(shape) < 1e-3, np.ones(shape, np.float32)
    params, raw_action = (x.numpy().reshape(*shape, -1) for x in (params, raw_action))
    trajectory = Trajectory({name: obs}, raw_action, logp, reward, never, truncated, mask)
    return Rollout(trajectory, params, np.zeros(shape, np.int32), reward, [], [], [], 0)


def compiled(function: Callable[[], Any]) -> Callable[[], Any]:
    """As the learner compiles; on a CPU the call returns when it is done."""
    return tf.function(function, autograph=False, jit_compile=True)


def make_agent(transitions: int, hidden: int, **settings: Any) -> trpo_tf.TRPO:
    """An agent of so many transitions per update, with two hidden layers of so many units."""
    sizes = {"num_envs": ENVS, "steps_per_update": transitions, "hidden_sizes": (hidden, hidden)}
    return trpo_tf.TRPO(ENV, **sizes | {"value_epochs": EPOCHS} | settings)


def updates(transitions: int, hidden: int) -> dict[str, Callable[[], Any]]:
    """Whole updates by name. Each returns when its value fit is done, too."""
    variants: dict[str, dict[str, Any]] = {
        "update": {},
        "update, all rows in Fisher products": {"fisher_fraction": 1.0},
        "update, --radius=adaptive": {"radius": "adaptive"},
        "update, --reuse=2": {"reuse": 2, "steps_per_update": transitions // 2},
    }

    def update(settings: dict[str, Any]) -> Callable[[], Any]:
        agent = make_agent(transitions, hidden, **settings)
        learner, rollout = agent.session.learner, random_rollout(agent.session.policy, agent.config.time_steps)
        return lambda: learner.update(rollout, 0, 0.0)[1].result()

    return {name: update(settings) for name, settings in variants.items()}


def parts(transitions: int, hidden: int) -> dict[str, Callable[[], Any]]:
    """The parts of an update by name, all on the same batch."""
    agent = make_agent(transitions, hidden)
    learner, policy, config = agent.session.learner, agent.session.policy, agent.config.trust_region
    rollout = random_rollout(policy, agent.config.time_steps)
    trajectory = tf.nest.map_structure(tf.constant, rollout.trajectory)
    discounted_return = tf.constant(rollout.discounted_return)
    prepared = learner._prepare(trajectory, discounted_return)
    objective = make_objective(policy.params, policy.distribution, prepared.batch)
    theta, seed, learning_rate = policy.network.theta(), tf.constant([0, 1]), tf.constant(1e-3)
    gradient = compiled(lambda: objective.gradient(theta)[1])
    grad, params_old = tf.constant(gradient()), objective.params(theta)

    def solve(iterations: int) -> Callable[[], Any]:
        settings = dataclasses.replace(config, cg_iterations=iterations, cg_tolerance=0.0)
        return compiled(lambda: damped_natural_gradient(objective, theta, grad, settings).direction)

    return {
        "values and advantages": lambda: learner._prepare(trajectory, discounted_return),
        "gradient": gradient,
        "CG, 10": solve(10),
        "CG, 20": solve(20),
        "line search candidate": compiled(lambda: objective.surrogate_and_kl(theta + 1e-3 * grad, params_old)),
        "value fit": lambda: learner._timed_fit(prepared.value_batch, prepared.constants, seed, learning_rate),
        "its matrix products": compiled(matrix_products(policy, transitions)),
    }


def matrix_products(policy: Policy, transitions: int) -> Callable[[], list[tf.Tensor]]:
    """A function of a Fisher product's matrix products: two per layer forward, two back.

    The input of the first layer has no tangent, and no gradient is needed for it.
    """
    kernels = [v.value for v in policy.network.model.trainable_variables if v.shape.rank == 2]
    inputs = [tf.random.stateless_normal([transitions, kernel.shape[0]], [0, kernel.shape[0]]) for kernel in kernels]
    outputs = [tf.random.stateless_normal([transitions, kernel.shape[1]], [1, kernel.shape[1]]) for kernel in kernels]

    def floor() -> list[tf.Tensor]:
        products = []
        for layer, (x, y, kernel) in enumerate(zip(inputs, outputs, kernels, strict=True)):
            products += [x @ kernel, tf.matmul(x, y, transpose_a=True)]
            if layer:
                products += [x @ (kernel + 1.0), tf.matmul(y, kernel, transpose_b=True)]
        return products

    return floor


def timed(transitions: int, hidden: int) -> dict[str, float]:
    """Medians in milliseconds."""
    functions = updates(transitions, hidden) | parts(transitions, hidden)
    times = {name: [] for name in functions}
    for turn in range(FLAGS.repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    result = {name: statistics.median(values) for name, values in times.items()}
    result["Fisher product"] = (result.pop("CG, 20") - result["CG, 10"]) / 10
    if FLAGS.peer:
        asked = {"rows": transitions, "hidden": hidden, "num_envs": ENVS, "epochs": EPOCHS, "repeats": FLAGS.repeats}
        result["sb3-contrib update"] = statistics.median(ask(task="update", env=ENV, **asked))
    return result


def table(records: list[dict]) -> str:
    """One column per size of batch and network."""
    sizes = [f"{r['rows']:,} x {r['hidden']}" for r in records]
    lines = [f"| ms | {' | '.join(sizes)} |", "|---|" + "---|" * len(sizes)]
    names = [name for name in records[0]["ms"] if name != "sb3-contrib update"]
    for name in names + ["sb3-contrib update"] * ("sb3-contrib update" in records[0]["ms"]):
        lines.append(f"| {name} | " + " | ".join(f"{r['ms'][name]:.2f}" for r in records) + " |")
    ratios = {
        "Fisher product / gradient": ("Fisher product", "gradient"),
        "Fisher product / its matrix products": ("Fisher product", "its matrix products"),
        "sb3-contrib / ours": ("sb3-contrib update", "update"),
        "sb3-contrib / ours, all rows": ("sb3-contrib update", "update, all rows in Fisher products"),
    }
    for label, (a, b) in ratios.items():
        if a in records[0]["ms"]:
            lines.append(f"| {label} | " + " | ".join(f"{r['ms'][a] / r['ms'][b]:.2f}" for r in records) + " |")
    growth = []
    for before, now in zip([None, *records], records, strict=False):
        same = before is not None and before["hidden"] == now["hidden"] and before["rows"] < now["rows"]
        ratio = same and math.log(now["ms"]["update"] / before["ms"]["update"]) / math.log(now["rows"] / before["rows"])
        growth.append(f"{ratio:.2f}" if same else "")
    return "\n".join([*lines, f"| growth of the update with the batch | {' | '.join(growth)} |"]) + "\n"


def plot(records: list[dict], path: Path) -> None:
    """Times over the size of the batch, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = [r for r in records if r["hidden"] == records[0]["hidden"]]
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in records[0]["ms"]:
        whole = "update" in name
        axis.loglog(
            [r["rows"] for r in records], [r["ms"][name] for r in records], "-o", lw=2 if whole else 1, label=name
        )
    axis.set_xlabel("transitions")
    axis.set_ylabel("milliseconds")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main(argv):
    """Measures one size after the other and writes what was found."""
    del argv
    rows, hidden = [int(x) for x in FLAGS.rows], [int(x) for x in FLAGS.hidden]
    records = []
    for size in [(n, hidden[0]) for n in rows] + [(rows[0], h) for h in hidden[1:]]:
        records.append({"rows": size[0], "hidden": size[1], "ms": timed(*size)})
        print(records[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{FLAGS.results}.json"
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(records), encoding="utf-8")
    plot(records, path.with_suffix(".png"))
    print(table(records))


if __name__ == "__main__":
    app.run(main)
