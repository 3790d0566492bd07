"""Time of one answer: the SavedModel against the live policy and against stable-baselines3's predict.

    pip install -e '.[benchmark]'
    python benchmarks/inference.py

All policies are untrained networks 64-64 for HalfCheetah-v5, answering deterministically, in turns in one process, on
fresh observations. Writes results/inference.md.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

import trpo_tf
from trpo_tf.policy.actor import Actor
from trpo_tf.trainer import Agent

RESULTS = Path(__file__).resolve().parent / "results"
ENV = "HalfCheetah-v5"

FLAGS = flags.FLAGS
flags.DEFINE_list("batches", ["1", "32", "1024"], "observations per call")
flags.DEFINE_integer("calls", 2000, "calls of each", lower_bound=10)
flags.DEFINE_bool("peer", True, "measure stable-baselines3 too")


def main(argv):
    """Measures and writes the table."""
    del argv
    agent = Agent(trpo_tf.Config(env=ENV))
    with tempfile.TemporaryDirectory() as directory:
        policy = trpo_tf.load_policy(agent.export(Path(directory)))
    answers = {
        "SavedModel, load_policy": policy.action,
        "live policy, as it acts in training": Actor(agent.policy).greedy,
    }
    if FLAGS.peer:
        from sb3_contrib import TRPO

        model = TRPO("MlpPolicy", ENV, policy_kwargs={"net_arch": [64, 64]}, device="cpu")
        answers["stable-baselines3 predict"] = lambda obs: model.predict(obs, deterministic=True)[0]
    lines = ["| observations | who | p50, us | p99, us |", "|---|---|---|---|"]
    random = np.random.default_rng(0)
    for batch in map(int, FLAGS.batches):
        times = {name: [] for name in answers}
        for call in range(FLAGS.calls + 50):
            obs = random.standard_normal((batch, 17)).astype(np.float32)
            for name, answer in answers.items():
                given = obs[0] if batch == 1 and not name.startswith("live") else obs
                start = time.perf_counter()
                answer(given)
                if call >= 50:
                    times[name].append(1e6 * (time.perf_counter() - start))
        for name, values in times.items():
            lines.append(f"| {batch} | {name} | {np.percentile(values, 50):.0f} | {np.percentile(values, 99):.0f} |")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inference.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
