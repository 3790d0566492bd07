"""Time of one answer: the SavedModel against the live policy and against stable-baselines3's predict.

    make peers                                # their own environment, .venv-peers
    python benchmarks/inference.py

All policies are untrained networks 64-64 for HalfCheetah-v5, answering deterministically, on fresh
observations; the peer in a process of its own, between two measurements of ours. Writes results/inference.md.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from peers import ask

import trpo_tf
from trpo_tf.policy.actor import Actor
from trpo_tf.trainer import Agent

RESULTS = Path(__file__).resolve().parent / "results"
ENV = "HalfCheetah-v5"

FLAGS = flags.FLAGS
flags.DEFINE_list("batches", ["1", "32", "1024"], "observations per call")
flags.DEFINE_integer("calls", 2000, "calls of each", lower_bound=10)
flags.DEFINE_bool("peer", True, "measure stable-baselines3 too")


def timed(answer, batch: int, batched: bool) -> list[float]:
    """Microseconds of each answer to a batch of observations; a single one comes without a batch unless `batched`."""
    random, times = np.random.default_rng(0), []
    for _ in range(FLAGS.calls + 50):
        obs = random.standard_normal((batch, 17)).astype(np.float32)
        given = obs if batched or batch > 1 else obs[0]
        start = time.perf_counter()
        answer(given)
        times.append(1e6 * (time.perf_counter() - start))
    return times[50:]


def live(policy):
    """Observations [N, D] to actions, without a SavedModel."""
    act = Actor(policy).player()
    return lambda obs: act({"observation": obs}, np.zeros(len(obs), bool))


def main(argv):
    """Measures and writes the table."""
    del argv
    agent = Agent(trpo_tf.Config(env=ENV))
    with tempfile.TemporaryDirectory() as directory:
        policy = trpo_tf.load_policy(agent.export(Path(directory)))
    answers = {
        "SavedModel, load_policy": policy.action,
        "live policy, as it acts in training": live(agent.policy),
    }
    lines = ["| observations | who | p50, us | p99, us |", "|---|---|---|---|"]
    for batch in map(int, FLAGS.batches):
        times = {name: timed(answer, batch, name.startswith("live")) for name, answer in answers.items()}
        if FLAGS.peer:
            times["stable-baselines3 predict"] = ask(task="predict", env=ENV, rows=batch, repeats=FLAGS.calls)
        for name, answer in answers.items():
            times[name] += timed(answer, batch, name.startswith("live"))
        for name, values in times.items():
            lines.append(f"| {batch} | {name} | {np.percentile(values, 50):.0f} | {np.percentile(values, 99):.0f} |")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inference.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
