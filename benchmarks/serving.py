"""Requests per second and latency of a served policy, while the server takes over a new version.

    python benchmarks/serving.py                                  # python -m trpo_tf.serve; three minutes
    TF_SERVING_URL=http://127.0.0.1:8501 python benchmarks/serving.py     # a TF Serving with a model "policy", too

Two policies of Hopper's spaces with random weights, 64-64, are exported. Each client is a process with a connection of
its own. It sends one request after the other until the time is over, with 1 observation or with 32. Halfway the server
finds a new version. A request that fails is counted, not repeated. All connections are on loopback. Writes
results/serving.md and .json. In them, rows are observations of a request.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from export import client

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 11  # of Hopper's observations

FLAGS = flags.FLAGS
flags.DEFINE_list("clients", ["1", "4", "16"], "how many ask at the same time")
flags.DEFINE_list("batches", ["1", "32"], "observations of a request")
flags.DEFINE_float("seconds", 10.0, "length of each measurement", lower_bound=1.0, upper_bound=120.0)
flags.DEFINE_string("results", "serving", "name of the files in results/")


def export_twice(directory: Path) -> None:
    """Versions 1 and 2 of two policies, side by side: directory/1 and directory/later."""
    import gymnasium as gym

    from trpo_tf.config import PolicyConfig
    from trpo_tf.policy.policy import Policy
    from trpo_tf.serving import saved_model

    spaces = gym.spaces.Box(-np.inf, np.inf, (WIDTH,)), gym.spaces.Box(-1, 1, (3,))
    for seed, name in ((0, "1"), (1, "later")):
        made = saved_model.save(Policy(*spaces, PolicyConfig(), seed), 1.0, {"env": "x"}, directory / "made")
        made.rename(directory / name)
    (directory / "made").rmdir()


def ask(url: str, batch: int, seconds: float, ready, found) -> None:
    """One client, from when all are ready. Puts latencies in seconds, the versions that answered, and errors."""
    obs = np.random.default_rng(os.getpid()).normal(size=(batch, WIDTH)).astype(np.float32)
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


def measure(url: str, clients: int, batch: int, seconds: float, halfway: Callable[[], None]) -> dict[str, Any]:
    """Runs the clients; halfway() is called when half of the time is over."""
    context = multiprocessing.get_context("spawn")
    found, ready = context.Queue(), context.Barrier(clients + 1)
    processes = [context.Process(target=ask, args=(url, batch, seconds, ready, found)) for _ in range(clients)]
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
    """python -m trpo_tf.serve on a directory of its own.

    Attributes:
      urls: of the server, by interface.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        export_twice(directory)
        command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={directory}", "--rest_port=0", "--grpc_port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = next(line for line in self._process.stdout if line.startswith("REST"))
        _, rest, _, grpc = line.split()
        self.urls = {"REST": rest.partition("/v1/")[0], "gRPC": f"grpc://{grpc}"}

    def exchange(self) -> None:
        """Makes the next version appear, by a rename as the exporter does."""
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
                        for batch in map(int, FLAGS.batches):
                            found = measure(url, clients, batch, FLAGS.seconds, exchange)
                            record = {"server": server, "interface": interface, "clients": clients, "rows": batch}
                            records.append(record | found)
                            print(table(records[-1:]).splitlines()[-1], flush=True)
        finally:
            local.close()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{FLAGS.results}.json"
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(records), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    app.run(main)
