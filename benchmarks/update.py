"""Time of one update and of its parts over batch and network size, against sb3-contrib's and against the floor.

    make peers                                                    # their own environment, .venv-peers
    python benchmarks/update.py                                   # a quarter of an hour
    python benchmarks/update.py --rows=2048,16384 --hidden=64 --nopeer

Parts are compiled as the learner compiles them and timed in turns; the table has medians. The update is timed as it
comes, with 4096 rows or a fifth of the batch in its Fisher products, and with every row in them, as the peer's; the
parts have every row. With --reuse=2 half of the rows are new. A Fisher product is timed where it is used: the
difference between 20 and 10 iterations of conjugate gradient, over 10. Beside it stand its matrix products alone, of
the same shapes, in one compiled function that writes them all out. The peer is sb3-contrib's train() on the same number
of rows, 10 passes of its critic in minibatches of 128, like ours. Growth is the exponent of the batch between
neighbours. Writes results/update.json, .md and .png.
"""

import dataclasses
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags
from peers import ask

import trpo_tf
from trpo_tf.learner import conjugate_gradient, fisher, trpo
from trpo_tf.rollout.collector import aligned
from trpo_tf.trainer import Agent, use_threads
from trpo_tf.types import Trajectory

RESULTS = Path(__file__).resolve().parent / "results"
ENV, ENVS, EPOCHS = "HalfCheetah-v5", 16, 10

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "rows", ["2048", "8192", "16384", "32768", "65536", "131072"], "batch sizes, at the first of --hidden"
)
flags.DEFINE_list("hidden", ["64", "256", "1024"], "units of both layers, at the first of --rows")
flags.DEFINE_integer("repeats", 7, "measurements of each; the median counts", lower_bound=1)
flags.DEFINE_bool("peer", True, "measure sb3-contrib too")
flags.DEFINE_string("results", "update", "name of the files in results/")


def trajectory(agent: Agent, time_steps: int) -> Trajectory:
    """Random observations and rewards, and the policy's own draws for them: [T, B, ...]."""
    random, policy, shape = np.random.default_rng(0), agent.policy, (time_steps, ENVS)
    ((name, (of, dtype)),) = policy.specs.items()
    obs = aligned((time_steps + 1, ENVS, *of), dtype)
    obs[...] = random.standard_normal(obs.shape)
    rows = {name: obs[:-1].reshape(-1, *of)}
    params, action, _ = policy.act(rows, policy.family.noise([time_steps * ENVS], tf.constant([0, 1])))
    logp = policy.log_prob(params, action).numpy().reshape(shape)
    reward, never = random.standard_normal(shape).astype(np.float32), np.zeros(shape, bool)
    ended = random.random(shape) < 1e-3
    action, params = action.numpy().reshape(*shape, -1), params.numpy().reshape(*shape, -1)
    stale = (params, np.zeros(shape, np.int32))
    return Trajectory({name: obs}, action, logp, reward, never, ended, np.ones(shape, np.float32), *stale)


def compiled(function):
    """As the learner compiles; on a CPU the call returns when it is done."""
    return tf.function(function, autograph=False, jit_compile=True)


def parts(rows: int, hidden: int) -> dict:
    """Functions to time, by name."""
    config = trpo_tf.Config(
        env=ENV, num_envs=ENVS, steps_per_update=rows, hidden_sizes=(hidden, hidden), value_epochs=EPOCHS
    )
    use_threads(config)
    agent = Agent(config)
    every, adaptive, reuse = (
        Agent(dataclasses.replace(config, **changes)).learner
        for changes in ({"fisher_fraction": 1.0}, {"radius": "adaptive"}, {"reuse": 2, "steps_per_update": rows // 2})
    )
    learner, network, family = agent.learner, agent.policy.network, agent.policy.family
    given, half = (trajectory(agent, steps) for steps in (config.time_steps, config.time_steps // 2))
    tensors = tf.nest.map_structure(tf.constant, given)
    batch = learner._prepare(tensors)[0]
    weights = batch.mask / tf.reduce_sum(batch.mask)
    theta = network.theta()
    seed = tf.constant([0, 1])

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = trpo.surrogate(family, network(theta, batch.obs), batch, weights)
        return tape.gradient(value, theta)

    grad = tf.constant(compiled(gradient)())

    def solve(iterations):
        def product(v):
            return fisher.forward_product(lambda t: network(t, batch.obs), family, theta, weights, v) + 0.1 * v

        return lambda: conjugate_gradient.conjugate_gradient(product, grad, iterations, 0.0).direction

    def candidate():
        params = network(theta + 1e-3 * grad, batch.obs)
        return trpo.surrogate(family, params, batch, weights), trpo.mean_kl(family, params * 0.99, params, weights)

    shapes = [v.shape for v in network.model.trainable_variables if v.shape.rank == 2]

    inputs = [tf.random.stateless_normal([rows, inner], [0, inner]) for inner, _ in shapes]
    outputs = [tf.random.stateless_normal([rows, outer], [1, outer]) for _, outer in shapes]
    weights_of = [v.value for v in network.model.trainable_variables if v.shape.rank == 2]

    def floor():
        """A Fisher product's matrix products: two a layer forward, two back; the first layer's input has no tangent."""
        products = []
        for layer, (x, y, weight) in enumerate(zip(inputs, outputs, weights_of, strict=True)):
            products += [x @ weight, tf.matmul(x, y, transpose_a=True)]
            if layer:
                products += [x @ (weight + 1.0), tf.matmul(y, weight, transpose_b=True)]
        return products

    return {
        "update": lambda: learner.update(given, 1, 0.0)[1].result(),
        "update, all rows in Fisher products": lambda: every.update(given, 1, 0.0)[1].result(),
        "update, --radius=adaptive": lambda: adaptive.update(given, 1, 0.0)[1].result(),
        "update, --reuse=2": lambda: reuse.update(half, 1, 0.0)[1].result(),
        "values and advantages": lambda: learner._prepare(tensors),
        "gradient": compiled(gradient),
        "CG, 10": compiled(solve(10)),
        "CG, 20": compiled(solve(20)),
        "line search candidate": compiled(candidate),
        "value fit": lambda: learner._timed_fit(batch, None, None, seed, tf.constant(1e-3)),
        "its matrix products": compiled(floor),
    }


def timed(rows: int, hidden: int) -> dict[str, float]:
    """Medians in milliseconds."""
    functions = parts(rows, hidden)
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
        asked = {"rows": rows, "hidden": hidden, "num_envs": ENVS, "epochs": EPOCHS, "repeats": FLAGS.repeats}
        result["sb3-contrib update"] = statistics.median(ask(task="update", env=ENV, **asked))
    return result


def table(records: list[dict]) -> str:
    """A column per size."""
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
    """Times over the batch, both axes logarithmic."""
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
    axis.set_xlabel("rows")
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
