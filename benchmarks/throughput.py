"""Environment steps per second of whole training, against the peers and the simulator alone, in one run.

    make peers                                                    # their own environment, .venv-peers
    python benchmarks/throughput.py                               # every environment and system, half an hour
    python benchmarks/throughput.py --envs=HalfCheetah-v5 --repeats=5

The same for all: 2048 transitions per update, networks 64-64, 10 passes of the value fit in minibatches of 128. Only
tianshou's passes are over the whole batch: it would take a policy step for every minibatch. Systems take turns, each
measurement in a process of its own. Compilation and the first update are left out. The table has medians.

    trpo_tf:N              without periodic evaluation, as the peers are
    trpo_tf defaults       with all settings by default, as in flags/mujoco.flags, periodic evaluation included
    sb3-contrib:N          its TRPO with its own defaults, but for what is the same for all
    sb3-contrib rl-zoo     its TRPO with the recipe of RL Baselines3 Zoo for MuJoCo
    tianshou envpool:N     its TRPO on EnvPool
    simulator:N            EnvPool alone with random actions, stepped as its documentation does
    simulator bound:N      the same, each of its threads bound to a core of its own, as trpo_tf runs it
    ... our actions:N      either, with the actions of trpo_tf's policy halfway through its training; a step of
                           Humanoid-v5 takes a third longer with them

Writes results/throughput.json, .md and .png; what is not measured again stays in them.

trpo_tf with other settings (docs/off_policy.md), on a machine that does nothing else:

    python benchmarks/throughput.py --results=off_policy_cost --envs=HalfCheetah-v5 \\
      --systems='trpo_tf:16,trpo_tf:16 pipeline=true,trpo_tf:16 radius=adaptive,trpo_tf:8 reuse=2 steps_per_update=1024'
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from peers import ask, repeated, zoo

RESULTS = Path(__file__).resolve().parent / "results"
TRANSITIONS, EPOCHS, MINIBATCH = 2048, 10, 128
OURS, DEFAULTS = "trpo_tf", "trpo_tf defaults"
SB3, SB3_ZOO, TIANSHOU, SIMULATOR = "sb3-contrib", "sb3-contrib rl-zoo", "tianshou envpool", "simulator"

FLAGS = flags.FLAGS
flags.DEFINE_list("envs", ["HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "CartPole-v1"], "environments")
flags.DEFINE_list(
    "systems",
    [f"{OURS}:{n}" for n in (16, 64, 128)]
    + [DEFAULTS, f"{SB3}:1", f"{SB3}:16", SB3_ZOO, f"{TIANSHOU}:16"]
    + [f"{SIMULATOR}{how}:{n}" for how in ("", " bound") for n in (16, 64)]
    + [f"{SIMULATOR} our actions:16", f"{SIMULATOR} bound our actions:16"],
    "what to measure, name:environments; after trpo_tf:N also settings, name=value",
)
flags.DEFINE_string("results", "throughput", "name of the files in results/")
flags.DEFINE_integer("repeats", 3, "measurements of each; the median counts", lower_bound=1)
flags.DEFINE_float("seconds", 12.0, "about how long one measurement takes, start-up left out", lower_bound=1.0)
flags.DEFINE_string("measure", "", "internal: the system that this process measures")


def ours(env: str, seconds: float, settings: dict) -> float:
    """Steps per second of a whole run of the training command, by its progress.csv."""
    from trpo_tf.config import make_config
    from trpo_tf.run.metrics.csv import read_csv
    from trpo_tf.runs import run_training

    with tempfile.TemporaryDirectory() as directory:
        run_training(make_config(env=env, run_dir=directory, total_steps=int(seconds * 20_000), **settings))
        rows = read_csv(Path(directory) / "progress.csv")
    spent = float(rows[-1]["time/elapsed_seconds"]) - float(rows[0]["time/elapsed_seconds"])
    return (int(rows[-1]["env_steps"]) - int(rows[0]["env_steps"])) / spent


def our_actions(env: str, num_envs: int, steps: int) -> list:
    """The last 64 batches of actions of a policy after so many environment steps, half of its training."""
    import numpy as np

    import trpo_tf

    never = 10**9  # environments are rebuilt at checkpoints, and the record of actions then begins anew
    agent = trpo_tf.TRPO(env, num_envs=num_envs, total_steps=2 * steps, checkpoint_every=never)
    session = agent.session
    while session.env_steps < steps:
        session.step()
    session.learner.wait()
    raw_actions = session.source.state()["actions"][-64:]
    agent.close()
    return [session.policy.distribution.to_env(raw_action, np) for raw_action in raw_actions]


def simulator(env: str, seconds: float, num_envs: int, bound: bool, actions: list | None = None) -> float:
    """Steps per second of EnvPool alone, with a thread per core.

    Args:
      env, seconds, num_envs: of the measurement.
      bound: bind each thread to a core of its own.
      actions: taken one after the other, again and again; None: 64 random ones.
    """
    import envpool
    import numpy as np

    from trpo_tf.rollout.backends.base import usable_cores

    threads = len(usable_cores())
    offset = 0 if bound else -1
    pool = envpool.make_gymnasium(env, num_envs=num_envs, seed=0, num_threads=threads, thread_affinity_offset=offset)
    pool.reset()
    pool.action_space.seed(0)
    actions = actions or [np.stack([pool.action_space.sample() for _ in range(num_envs)]) for _ in range(64)]

    def update():
        for action in actions:
            pool.step(action)

    return repeated(update, 64 * num_envs, seconds / 4)


def setting(text: str):
    """The value of a setting: a number or truth value as JSON has it, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(system: str, env: str, seconds: float) -> float:
    """Steps per second of one system, in this process."""
    name, _, count = system.partition(":")
    if name == OURS:
        count, *options = count.split()
        settings = {"num_envs": int(count), "steps_per_update": TRANSITIONS, "value_epochs": EPOCHS, "eval_every": 0}
        settings |= {key: setting(text) for key, text in (option.split("=", 1) for option in options)}
        return ours(env, seconds, {"value_minibatch_size": MINIBATCH} | settings)
    num_envs = int(count or 0)
    if name == DEFAULTS:
        return ours(env, seconds, {})
    shared = {"task": "throughput", "env": env, "seconds": seconds, "rows": TRANSITIONS, "epochs": EPOCHS}
    if name == SB3:
        return ask(**shared, system="sb3-contrib", num_envs=num_envs)
    if name == SB3_ZOO:
        return ask(**shared | zoo(env), system="sb3-contrib")
    if name == TIANSHOU:
        return ask(**shared, system="tianshou", num_envs=num_envs)
    actions = our_actions(env, num_envs, int(seconds * 10_000)) if name.endswith("our actions") else None
    return simulator(env, seconds, num_envs, "bound" in name, actions)


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times as fast trpo_tf is at its best and with its defaults."""
    lines = [
        "| environment | system | steps/s | least, most | our best is | our defaults are |",
        "|---|---|---|---|---|---|",
    ]
    for env, systems in results.items():
        medians = {name: statistics.median(values) for name, values in systems.items() if values}
        best = max((x for name, x in medians.items() if name.startswith(f"{OURS}:") and " " not in name), default=None)
        for name, value in medians.items():
            ratios = [f"{mine / value:.2f} x" if mine else "" for mine in (best, medians.get(DEFAULTS))]
            spread = f"{min(systems[name]):,.0f}, {max(systems[name]):,.0f}"
            lines.append(f"| {env} | {name} | {value:,.0f} | {spread} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Bars of the medians, one panel per environment."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.5 * len(results), 3.5), squeeze=False, layout="constrained")
    for axis, (env, systems) in zip(axes[0], results.items(), strict=True):
        names = list(systems)[::-1]
        colors = ["tab:blue" if n.startswith("trpo_tf") else "0.8" if n.startswith(SIMULATOR) else "0.5" for n in names]
        axis.barh(names, [statistics.median(systems[name]) for name in names], color=colors)
        axis.set_title(env)
        axis.set_xlabel("environment steps per second")
    figure.savefig(path, dpi=120)


def main(argv):
    """Measures in turns and writes what was found."""
    del argv
    if FLAGS.measure:
        print(json.dumps(measure(FLAGS.measure, FLAGS.envs[0], FLAGS.seconds)))
        return
    results: dict[str, dict[str, list[float]]] = {env: {name: [] for name in FLAGS.systems} for env in FLAGS.envs}
    for turn in range(FLAGS.repeats):
        for env in FLAGS.envs:
            for system in FLAGS.systems:
                asked = {"measure": system, "envs": env, "seconds": FLAGS.seconds, "peer_python": FLAGS.peer_python}
                command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in asked.items())]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{system} on {env} failed:\n{done.stderr[-2000:]}")
                results[env][system].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{turn + 1}/{FLAGS.repeats} {env} {system}: {results[env][system][-1]:,.0f} steps/s", flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{FLAGS.results}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = earlier | {env: earlier.get(env, {}) | systems for env, systems in results.items()}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(results), encoding="utf-8")
    plot(results, path.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
