"""Requests per second and latency of a served policy, while a version is exchanged.

    python benchmarks/serving.py                                  # the local server, three minutes
    TF_SERVING_URL=http://127.0.0.1:8501 python benchmarks/serving.py      # that one too, of the model "policy"

A policy of Hopper's spaces with random weights, 64-64, is exported twice. Clients, each a process with a connection of
its own, ask for one observation after the other (batches: of 32) until the time is over; halfway the second version
appears. Errors are counted, not retried. Everything is on loopback and bounded in number and time. Writes
results/serving.md and .json.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from export import client

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 11  # of Hopper's observations

FLAGS = flags.FLAGS
flags.DEFINE_list("clients", ["1", "4", "16"], "how many ask at the same time")
flags.DEFINE_list("batches", ["1", "32"], "rows of a request")
flags.DEFINE_float("seconds", 10.0, "length of each measurement", lower_bound=1.0, upper_bound=120.0)


def export_twice(directory: Path) -> None:
    """Versions 1 and 2 of two policies, side by side: directory/1 and directory/later."""
    import gymnasium as gym

    from trpo_tf.config import Config
    from trpo_tf.policy.policy import Policy
    from trpo_tf.run import saved_model

    spaces = gym.spaces.Box(-np.inf, np.inf, (WIDTH,)), gym.spaces.Box(-1, 1, (3,))
    for seed, name in ((0, "1"), (1, "later")):
        made = saved_model.save(Policy(*spaces, Config(env="x"), seed), 1.0, {"env": "x"}, directory / "made")
        made.rename(directory / name)
    (directory / "made").rmdir()


def ask(url: str, rows: int, seconds: float, ready, found) -> None:
    """One client, from when all are ready: latencies in seconds, the versions that answered, errors."""
    obs = np.random.default_rng(os.getpid()).normal(size=(rows, WIDTH)).astype(np.float32)
    policy, latencies, versions, errors = client.Policy(url, deadline=30.0), [], set(), []
    policy.predict(obs)
    ready.wait(120)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.perf_counter()
        try:
            policy.predict(obs)
            latencies.append(time.perf_counter() - start)
            versions.add(policy.version)
        except client.ServingError as error:
            errors.append(str(error))
    found.put((latencies, versions, errors))


def measure(url: str, clients: int, rows: int, seconds: float, halfway) -> dict:
    """Runs the clients; halfway() is called when half of the time is over."""
    context = multiprocessing.get_context("spawn")
    found, ready = context.Queue(), context.Barrier(clients + 1)
    processes = [context.Process(target=ask, args=(url, rows, seconds, ready, found)) for _ in range(clients)]
    for process in processes:
        process.start()
    ready.wait(120)
    time.sleep(seconds / 2)
    halfway()
    answers = [found.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    latencies = sorted(x for values, _, _ in answers for x in values)
    return {
        "requests_per_second": len(latencies) / seconds,
        "p50_ms": 1e3 * statistics.median(latencies),
        "p99_ms": 1e3 * latencies[int(0.99 * (len(latencies) - 1))],
        "errors": sum(len(errors) for *_, errors in answers),
        "versions": sorted(set().union(*(versions for _, versions, _ in answers))),
    }


class LocalServer:
    """python -m trpo_tf.serve on a directory of its own, in which the later version appears once."""

    def __init__(self, directory: Path):
        self._directory = directory
        export_twice(directory)
        command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={directory}", "--rest_port=0", "--grpc_port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = next(line for line in self._process.stdout if line.startswith("REST"))
        _, rest, _, grpc = line.split()
        self.urls = {"REST": rest.partition("/v1/")[0], "gRPC": f"grpc://{grpc}"}

    def exchange(self) -> None:
        """Lets the next version appear, by a rename as the exporter does it."""
        numbers = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
        copy = self._directory / "copy"
        shutil.copytree(self._directory / "later", copy)
        copy.rename(self._directory / str(max(numbers) + 1))

    def close(self) -> None:
        """Ends the server."""
        self._process.terminate()
        self._process.wait(30)


def table(records: list[dict]) -> str:
    """One line per measurement."""
    lines = [
        "| server | interface | clients | rows | requests/s | p50 ms | p99 ms | errors | versions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        numbers = f"{r['requests_per_second']:,.0f} | {r['p50_ms']:.2f} | {r['p99_ms']:.2f} | {r['errors']}"
        versions = ", ".join(map(str, r["versions"]))
        lines.append(f"| {r['server']} | {r['interface']} | {r['clients']} | {r['rows']} | {numbers} | {versions} |")
    return "\n".join(lines) + "\n"


def main(argv):
    """Measures every combination and writes what was found."""
    del argv
    records = []
    with tempfile.TemporaryDirectory() as directory:
        local = LocalServer(Path(directory) / "models")
        servers = [("trpo_tf.serve", local.urls, local.exchange)]
        if os.environ.get("TF_SERVING_URL"):
            servers.append(("TF Serving", {"REST": os.environ["TF_SERVING_URL"]}, lambda: None))
        try:
            for server, urls, exchange in servers:
                for interface, url in urls.items():
                    for clients in map(int, FLAGS.clients):
                        for rows in map(int, FLAGS.batches):
                            found = measure(url, clients, rows, FLAGS.seconds, exchange)
                            record = {"server": server, "interface": interface, "clients": clients, "rows": rows}
                            records.append(record | found)
                            print(table(records[-1:]).splitlines()[-1], flush=True)
        finally:
            local.close()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "serving.md").write_text(table(records), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    app.run(main)
