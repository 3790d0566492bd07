"""Throughput and staleness of rollout workers on Ray, and what deaths of workers cost.

    python benchmarks/workers.py                          # all parts, about 15 minutes
    python benchmarks/workers.py --parts=efficiency --workers=1,4

Trains on environments that sleep for 5 ms a step (lognormal), so that more workers than cores can be measured. Parts:
  efficiency  transitions per second, by the number of workers, against one process that does nothing but collect
  peers       8 environments: workers against gymnasium's SyncVectorEnv and AsyncVectorEnv
  stragglers  16 workers of which 1 % of the fragments take 5 times as long: asynchronous against synchronous
  kills       4 workers, 20 of them killed in a minute, against 4 that live; nothing is learned from twice
  start       seconds until a worker is ready, and its private memory, of a MLP policy on EnvPool

Rates are of the time from the end of the first update to that of the last. The results go to results/workers.json,
which benchmarks/workers_simulation.py --measured compares with a simulation.
"""

import collections
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from absl import app, flags
from sleeping import Sleeping

import trpo_tf
from trpo_tf.rollout.collector import Collector
from trpo_tf.rollout.stepper import LocalStepper

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("efficiency", "peers", "stragglers", "kills", "start")
STEP, SIGMA = 0.005, 0.5

FLAGS = flags.FLAGS
flags.DEFINE_list("parts", list(PARTS), "what to measure")
flags.DEFINE_list("workers", ["1", "4", "8", "16", "20"], "numbers of workers, of the part efficiency")
flags.DEFINE_integer("time_steps", 128, "of a fragment", lower_bound=1)
flags.DEFINE_float("seconds", 30.0, "of each measurement", lower_bound=1.0)
flags.DEFINE_string("output", str(RESULTS / "workers.json"), "where the results go")
flags.register_validator("parts", lambda parts: set(parts) <= set(PARTS), f"--parts has to be among {', '.join(PARTS)}")


def agent_of(env, envs: int, time_steps: int, **settings) -> trpo_tf.TRPO:
    """An agent whose updates have time_steps transitions of each environment."""
    return trpo_tf.TRPO(env, num_envs=envs, steps_per_update=envs * time_steps, checkpoint_every=10**6, **settings)


def measured(agent: trpo_tf.TRPO, seconds: float, least: int = 10) -> dict:
    """Trains for so long, and `least` updates; rates from the end of the first update on."""
    rows, began = [], 0.0
    for row in agent.iterate(until=10**9):
        rows.append(dict(row))
        if len(rows) == 1:
            began = time.perf_counter()
        elif len(rows) > least and time.perf_counter() - began > seconds:
            break
    took, after = time.perf_counter() - began, rows[1:]
    found = {
        "transitions_per_second": (rows[-1]["env_steps"] - rows[0]["env_steps"]) / took,
        "updates": len(after),
        "update_seconds": float(np.mean([row["time/update_seconds"] for row in after])),
        "wait_share": sum(row["time/collect_seconds"] for row in after) / took,
    }
    if "stale/mean_staleness" in rows[0]:
        found["mean_staleness"] = float(np.mean([row["stale/mean_staleness"] for row in after]))
        found["max_staleness"] = max(row["stale/max_staleness"] for row in after)
        found["fastest_share"] = rows[-1]["workers/fastest_share"]
    return found


def alone(env, time_steps: int, seconds: float) -> float:
    """Transitions per second of one environment in this process that does nothing but collect."""
    agent = agent_of(env, 1, time_steps)
    session, policy = agent.session, agent.session.policy
    actor = agent._actor
    stepper = LocalStepper(lambda update: session.environments.training(update), actor)
    collector = Collector(stepper, actor, 0.99, 0)
    rng, steps, began = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        rollout = collector.collect(actor.noise(rng, (time_steps, 1)), lambda *x: policy.log_prob(*x).numpy())
        steps += int(rollout.trajectory.mask.sum())
    rate = steps / (time.perf_counter() - began)
    collector.close()
    return rate


def setting(workers: int, time_steps: int, rate: float, found: dict, asynchronous: bool, straggle: float) -> dict:
    """What the simulation is given for a measurement."""
    return {
        "workers": workers,
        "envs_per_worker": 1,
        "time_steps": time_steps,
        "step_seconds": STEP,
        "step_sigma": SIGMA,
        "straggler_share": straggle,
        "straggler_factor": 5.0,
        "act_seconds": max(0.0, 1.0 / rate - STEP),
        "update_seconds": found["update_seconds"],
        "update_seconds_per_transition": 0.0,
        "asynchronous": asynchronous,
    }


def point(workers: int, time_steps: int, rate: float, asynchronous: bool, straggle: int = 0) -> dict:
    """One measurement of training with workers."""
    env = functools.partial(Sleeping, STEP, SIGMA, straggle, time_steps)
    mode = "asynchronous" if asynchronous else "synchronous"
    agent = agent_of(env, workers, time_steps, workers=workers, workers_mode=mode)
    # a straggler comes to each worker once in `straggle` fragments: all of them are to have their turn, twice
    found = measured(agent, FLAGS.seconds, max(10, 2 * straggle))
    agent.close()
    share = 1 / straggle if straggle else 0.0
    return {
        "workers": workers,
        "asynchronous": asynchronous,
        "stragglers": bool(straggle),
        "efficiency": found["transitions_per_second"] / (workers * rate),
        "mean_staleness": 0.0,
        "max_staleness": 0,
        "setting": setting(workers, time_steps, rate, found, asynchronous, share),
    } | found


def efficiency(rate: float) -> dict:
    """By the number of workers."""
    points = [point(int(workers), FLAGS.time_steps, rate, True) for workers in FLAGS.workers]
    for one in points:
        show(one)
    by = {one["workers"]: one["transitions_per_second"] for one in points}
    most = max(by)
    return {"points": points, "speedup": {str(most): by[most] / by[1]} if 1 in by else {}}


def peers(rate: float) -> dict:
    """8 environments in workers, in gymnasium's processes, and in this process."""
    del rate
    make, mode = functools.partial(Sleeping, STEP, SIGMA), gym.vector.AutoresetMode.NEXT_STEP
    found = {}
    for name, kind in (("SyncVectorEnv", gym.vector.SyncVectorEnv), ("AsyncVectorEnv", gym.vector.AsyncVectorEnv)):
        envs = kind([make] * 8, autoreset_mode=mode)
        found[name] = measured(agent_of(envs, 8, 32), FLAGS.seconds, 5)["transitions_per_second"]
        envs.close()
    agent = agent_of(make, 8, FLAGS.time_steps, workers=8)
    found["workers"] = measured(agent, FLAGS.seconds)["transitions_per_second"]
    agent.close()
    return found | {f"workers / {name}": found["workers"] / found[name] for name in list(found)[:2]}


def stragglers(rate: float) -> dict:
    """16 workers, 1 % of the fragments 5 times slower."""
    points = [point(16, 64, rate, asynchronous, 100) for asynchronous in (False, True)]
    for one in points:
        show(one)
    synchronous, asynchronous = (one["transitions_per_second"] for one in points)
    return {"points": points, "asynchronous / synchronous": asynchronous / synchronous}


def kills(rate: float) -> dict:
    """4 workers for a minute, undisturbed and with 20 kills."""
    del rate
    calm = agent_of(functools.partial(Sleeping, STEP, SIGMA), 4, FLAGS.time_steps, workers=4)
    undisturbed = measured(calm, 60)
    calm.close()
    agent = agent_of(functools.partial(Sleeping, STEP, SIGMA), 4, FLAGS.time_steps, workers=4)
    source, seen = _watched(agent)
    killer = _Killer(source, 20, 2.9)
    killer.start()
    disturbed = measured(agent, 60)
    killer.over.set()
    killer.join()
    ids = [tuple(x) for obs in seen for x in obs.reshape(-1, 2).astype(int)]
    ledger, deaths, lost = source.ledger, source._totals["deaths"], source.ledger.lost
    agent.close()
    return {
        "kills": killer.kills,
        "undisturbed": undisturbed["transitions_per_second"],
        "disturbed": disturbed["transitions_per_second"],
        "ratio": disturbed["transitions_per_second"] / undisturbed["transitions_per_second"],
        "learned_twice": len(ids) - len(set(ids)),
        "deaths": deaths,
        "fragments_lost": lost,
        "env_steps": agent.env_steps,
        "steps_in_fragments": ledger.steps,
        "noticed_seconds": _quantiles(killer.noticed),
        "replaced_seconds": _quantiles(killer.replaced),
    }


def _watched(agent: trpo_tf.TRPO) -> tuple:
    """The agent's source, and a list of the observations [T, B, 2] that are learned from."""
    agent.session.start()
    source, seen = agent.session.source, []
    taken = source.next

    def next_rollout():
        rollout = taken()
        seen.append(rollout.trajectory.obs["observation"][:-1])
        return rollout

    source.next = next_rollout
    return source, seen


class _Killer(threading.Thread):
    """Kills a worker every so many seconds; how long until it is noticed, and until there are as many again."""

    def __init__(self, source, count: int, every: float):
        super().__init__(daemon=True)
        self.source, self.count, self.every = source, count, every
        self.kills, self.over = 0, threading.Event()
        self.noticed: list[float] = []
        self.replaced: list[float] = []

    def run(self):
        rng, due = np.random.default_rng(0), time.perf_counter()
        while self.kills < self.count and not self.over.wait(max(0.0, due - time.perf_counter())):
            due += self.every
            crew = self.source._crew
            pids = [where["pid"] for _, _, where in list(crew._fleet._workers.values()) if where] if crew else []
            if len(pids) < 4:
                continue
            before, began = crew.deaths, time.perf_counter()
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
            self.kills += 1
            self.noticed.append(self._until(lambda crew=crew, before=before: crew.deaths > before, began))
            self.replaced.append(self._until(lambda crew=crew: crew.alive == 4, began))

    @staticmethod
    def _until(condition, began: float) -> float:
        while not condition() and time.perf_counter() - began < 30:
            time.sleep(0.002)
        return time.perf_counter() - began


def _quantiles(values: list[float]) -> dict[str, float | list[float]]:
    return {"median": float(np.median(values)), "all": sorted(values)} if values else {}


def start(rate: float) -> dict:
    """Of a MLP policy on EnvPool."""
    del rate
    agent = agent_of("HalfCheetah-v5", 16, 128, workers=2)
    began = time.perf_counter()
    agent.session.start()
    agent.session.source.publish(0, agent.session.policy.get_weights())
    with_ray = _Killer._until(lambda: agent.session.source._crew.alive == 2, began)
    list(zip(range(5), agent.iterate(until=10**9), strict=False))
    crew = agent.session.source._crew
    found: collections.defaultdict = collections.defaultdict(list)
    for _ in range(3):
        _Killer._until(lambda: bool(crew._fleet._workers[0][2]), time.perf_counter())
        *_, where = crew._fleet._workers[0]
        found["private_mib"].append(_private(where["pid"]))
        found["tensorflow"].append(where["tensorflow"])
        deaths, began = crew.deaths, time.perf_counter()
        os.kill(where["pid"], signal.SIGKILL)
        _Killer._until(lambda deaths=deaths: crew.deaths > deaths, began)
        noticed = time.perf_counter()
        _Killer._until(lambda: crew.alive == 2, noticed)
        found["start_seconds"].append(time.perf_counter() - noticed)
        for _, row in zip(range(8), agent.iterate(until=10**9), strict=False):
            del row
    agent.close()
    return {"first_two_with_ray_seconds": with_ray} | dict(found)


def _private(pid: int) -> float:
    """Private memory of a process, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) / 1024


def show(one: dict) -> None:
    """A line about a measurement."""
    mode = "asynchronous" if one["asynchronous"] else "synchronous"
    print(
        f"{one['workers']} {mode} workers{', stragglers' if one['stragglers'] else ''}: "
        f"{one['transitions_per_second']:.0f} transitions/s, efficiency {one['efficiency']:.3f}, staleness "
        f"{one['mean_staleness']:.2f}, at most {one['max_staleness']}, {one['updates']} updates",
        flush=True,
    )


def main(_) -> None:
    """Measures, and writes what was found."""
    path = Path(FLAGS.output)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rate = alone(functools.partial(Sleeping, STEP, SIGMA), FLAGS.time_steps, min(10.0, FLAGS.seconds))
    print(f"one process that does nothing but collect: {rate:.1f} transitions/s", flush=True)
    results["alone"] = rate
    for part in FLAGS.parts:
        found = globals()[part](rate)
        results[part] = found
        print(part, json.dumps({name: x for name, x in found.items() if name != "points"}), flush=True)
        every = [one for name in ("efficiency", "stragglers") for one in results.get(name, {}).get("points", [])]
        results["points"] = every
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
