"""A learner on a Ray cluster whose hosts come and go; each "host" is a node of Ray's test cluster on this machine.

    python tests/rollout/workers/hosts.py --env=Hopper-v5 --updates=60 --every=6

Every few updates a host is taken away, without a word to anybody, and another one joins. Prints a line of JSON.
"""

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

DIRECTORY = tempfile.mkdtemp(prefix="hosts-")
TOKEN = Path(DIRECTORY, "token")
TOKEN.touch(0o600)
TOKEN.write_text(secrets.token_hex(32))
os.environ |= {
    "HOME": DIRECTORY,
    "RAY_TMPDIR": DIRECTORY,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(TOKEN),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

from ray.cluster_utils import Cluster  # noqa: E402

import trpo_tf  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--every", type=int, default=6, help="updates between hosts that are lost")
    parser.add_argument("--settings", default="{}", help="of TRPO, as JSON")
    given = parser.parse_args()
    started = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
    hosts = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(3)]
    settings = {"num_envs": 12, "workers": 6, "ray_address": cluster.address, "seed": 1} | json.loads(given.settings)
    agent = trpo_tf.TRPO(given.env, **settings)
    rows, alive, waited = [], [], 0.0
    for row in agent.iterate(until=10**9):
        rows.append(dict(row))
        alive.append(row["workers/alive"])
        waited = max(waited, row["time/collect_seconds"])
        if len(rows) >= given.updates:
            break
        if len(rows) % given.every == 0:  # a host with its workers, and what they have finished and nobody has fetched
            cluster.remove_node(hosts.pop(0), allow_graceful=False)
        elif len(rows) % given.every == given.every // 2 and len(hosts) < 3:
            hosts.append(cluster.add_node(num_cpus=2, object_store_memory=2**27))
    end = time.monotonic() + 60
    while agent.session.source._crew.alive < 6 and time.monotonic() < end:
        agent.session.step()
    ledger = agent.session.source.ledger
    summary = {
        "updates": len(rows),
        "deaths": agent.session.source._totals["deaths"],
        "lost": ledger.lost,
        "steps": ledger.steps,
        "env_steps": agent.env_steps,
        "fewest": min(alive),
        "at_the_end": agent.session.source._crew.alive,
        "longest_wait": waited,
        "episode_return": [rows[0]["env/episode_return"], rows[-1]["env/episode_return"]],
        "seconds": time.monotonic() - started,
    }
    agent.session.close()
    print(json.dumps(summary), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    main()
