"""Time of one answer: of a SavedModel, of the policy as it acts in training, and of stable-baselines3's predict.

    make peers                                # their own environment, .venv-peers
    python benchmarks/inference.py

All policies are untrained networks 64-64 for HalfCheetah-v5. They answer deterministically, to new observations in
every call. The peer is measured in a process of its own, between two measurements of the others. Writes
results/inference.md.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from peers import ask

import trpo_tf
from trpo_tf.acting.stateful import stateful_act
from trpo_tf.policy.policy import Policy
from trpo_tf.policy.tensor_actor import make_actor

RESULTS = Path(__file__).resolve().parent / "results"
ENV = "HalfCheetah-v5"

FLAGS = flags.FLAGS
flags.DEFINE_list("batches", ["1", "32", "1024"], "observations per call")
flags.DEFINE_integer("calls", 2000, "calls of each", lower_bound=10)
flags.DEFINE_bool("peer", True, "measure stable-baselines3 too")
flags.DEFINE_string("results", "inference", "name of the file in results/")


def timed(answer: Callable[[np.ndarray], Any], batch: int, batched: bool) -> list[float]:
    """Microseconds of each answer to `batch` observations; a single one has no batch axis unless `batched`."""
    random, times = np.random.default_rng(0), []
    for _ in range(FLAGS.calls + 50):
        obs = random.standard_normal((batch, 17)).astype(np.float32)
        given = obs if batched or batch > 1 else obs[0]
        start = time.perf_counter()
        answer(given)
        times.append(1e6 * (time.perf_counter() - start))
    return times[50:]


def live(policy: Policy) -> Callable[[np.ndarray], Any]:
    """A function from observations [N, D] to actions, without a SavedModel."""
    act = stateful_act(make_actor(policy, live=True))
    return lambda obs: act({"observation": obs}, np.zeros(len(obs), bool))


def main(argv):
    """Measures and writes the table."""
    del argv
    agent = trpo_tf.TRPO(ENV)
    with tempfile.TemporaryDirectory() as directory:
        policy = trpo_tf.load_policy(agent.export(Path(directory)))
    answers = {
        "SavedModel, load_policy": policy.action,
        "live policy, as it acts in training": live(agent.session.policy),
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
    (RESULTS / f"{FLAGS.results}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
