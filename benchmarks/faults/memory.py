"""Whether long runs, and many runs in one process, keep their memory, file descriptors and threads.

    python benchmarks/faults/memory.py [--updates=3000] [--runs=20] [--xla=off]

First one run of CartPole-v1 with an evaluation every 50 updates and an export every 300; the slope of resident memory
over the updates after the first tenth, by least squares. Then runs of three updates each in one process, each with an
export; the growth per run after the third. Exit status 1 where the slope is above 5 KiB per update, the growth above
1 MiB per run, or where descriptors or threads grow.

With XLA, TensorFlow keeps the machine code of every compiled function as long as the process lives: 27 to 48 MiB for
each run (--xla=on shows it). A process that trains many times had better train with --xla=off.
"""

import ctypes
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import trpo_tf

FLAGS = flags.FLAGS
flags.DEFINE_integer("updates", 3000, "of the long run; 0: none", lower_bound=0)
flags.DEFINE_integer("runs", 20, "in one process; 0: none", lower_bound=0)
flags.DEFINE_enum("xla", "off", ["off", "on", "auto"], "as in training")
MOST_PER_UPDATE, MOST_PER_RUN = 5.0, 1024.0  # KiB
SMALL = {"num_envs": 8, "steps_per_update": 64, "hidden_sizes": (8,), "value_epochs": 2, "value_minibatch_size": 32}


def resident() -> int:
    """KiB of this process, after what is free was given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def held() -> tuple[int, int]:
    """Open file descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def long_run(directory: Path, updates: int) -> bool:
    """One run; whether its memory stays."""
    found = []

    def look(agent, row) -> None:
        del row
        if agent.update % max(1, updates // 100) == 0:
            found.append((agent.update, resident(), *held()))

    start = time.monotonic()
    agent = trpo_tf.TRPO("CartPole-v1", xla=FLAGS.xla, **SMALL)
    callbacks = [trpo_tf.Evaluate(every=50, episodes=2), trpo_tf.callbacks.Export(directory, every=300), look]
    agent.learn(updates * SMALL["steps_per_update"], callbacks)
    agent.close()
    update, memory, descriptors, threads = np.array([row for row in found if row[0] > updates / 10]).T
    slope = np.polyfit(update, memory, 1)[0]
    print(f"{update[-1]} updates in {time.monotonic() - start:.0f} s: {slope:.2f} KiB per update; ", end="")
    print(f"{memory[0]} KiB at update {update[0]}, {memory[-1]} at the end; ", end="")
    print(
        f"descriptors {descriptors.min()} to {descriptors.max()}, threads {threads.min()} to {threads.max()}",
        flush=True,
    )
    return slope <= MOST_PER_UPDATE and descriptors[-1] <= descriptors[0] and threads[-1] <= threads[0]


def many_runs(directory: Path, runs: int) -> bool:
    """Runs one after the other; whether their memory is given back."""
    found = []
    for run in range(runs):
        agent = trpo_tf.TRPO("CartPole-v1" if run % 2 else "Pendulum-v1", seed=run, xla=FLAGS.xla, **SMALL)
        agent.learn(3 * SMALL["steps_per_update"])
        agent.export(directory / f"run{run}")
        agent.close()
        del agent
        found.append((resident(), *held()))
    memory, descriptors, threads = np.array(found[min(2, runs - 1) :]).T
    growth = (memory[-1] - memory[0]) / max(1, len(memory) - 1)
    print(f"{runs} runs: {growth:.0f} KiB per run after the third; ", end="")
    print(
        f"descriptors {descriptors.min()} to {descriptors.max()}, threads {threads.min()} to {threads.max()}",
        flush=True,
    )
    return growth <= MOST_PER_RUN and descriptors[-1] <= descriptors[0] and threads[-1] <= threads[0]


def main(argv):
    """Prints what was found; returns the exit status."""
    del argv
    with tempfile.TemporaryDirectory() as directory:
        whole = [long_run(Path(directory) / "long", FLAGS.updates)] if FLAGS.updates else []
        whole += [many_runs(Path(directory), FLAGS.runs)] if FLAGS.runs else []
    return 0 if all(whole) else 1


if __name__ == "__main__":
    app.run(main)
