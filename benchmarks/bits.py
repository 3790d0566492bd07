"""Which bits training gives: SHA-256 of every checkpoint array and every column of progress.csv after 20 updates.

    python benchmarks/bits.py --output=before.json --tree=../before     # at a commit
    python benchmarks/bits.py --compare=before.json                     # at another, on the same machine

A change that should not change results leaves every hash as it was. Names may move: an array or column whose name is gone
is looked for by its hash. Bits depend on the CPU, so only records of one machine can be compared.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.numpy
from absl import app, flags

UPDATES = 20
HOPPER = ["--env=Hopper-v5"]
KINDS = {
    "hopper": HOPPER,
    "half_cheetah": ["--env=HalfCheetah-v5"],
    "cartpole": ["--env=CartPole-v1"],
    "gru": ["--env=CartPole-v1", "--network=gru", "--steps_per_update=1024"],
    "pixels": ["--env=Pong-v5", "--fisher_chunk=100", "--steps_per_update=256", "--num_envs=4", "--value_epochs=2"],
    "reuse": [*HOPPER, "--reuse=2"],
    "lag": [*HOPPER, "--behavior_lag=2"],
    "adaptive": [*HOPPER, "--radius=adaptive"],
    "penalty": [*HOPPER, "--objective=penalty"],
}
FIXED = [
    f"--checkpoint_every={UPDATES}", "--eval_every=10", "--eval_episodes=2", "--final_eval_episodes=0", "--noexport",
    "--notensorboard", "--keep_checkpoints=3", "--run_dir=run",
]  # fmt: skip

_KINDS = flags.DEFINE_list("kinds", list(KINDS), "which kinds of run")
_OUTPUT = flags.DEFINE_string("output", "", "write the hashes to this JSON file")
_COMPARE = flags.DEFINE_string("compare", "", "compare with the hashes in this JSON file; exit 1 where they differ")
_TREE = flags.DEFINE_string("tree", str(Path(__file__).parents[1]), "the source tree that trains")


def digest(data: bytes) -> str:
    """The first half of SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()[:32]


def hashes(kind: str) -> dict[str, str]:
    """Trains one kind of run, and returns hashes by "array/<name>" and "column/<name>"."""
    arguments = [*KINDS[kind], *FIXED]
    rows = next((int(x.split("=")[1]) for x in arguments if x.startswith("--steps_per_update=")), 2048)
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-m", "trpo_tf.train", *arguments, f"--total_steps={UPDATES * rows}"],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(Path(_TREE.value).resolve())},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        run = Path(directory) / "run"
        path = run / "checkpoints" / f"update_{UPDATES:09d}" / "state.safetensors"
        arrays = safetensors.numpy.load(path.read_bytes())
        with open(run / "progress.csv", encoding="utf-8") as file:
            table = list(csv.DictReader(file))[:UPDATES]
    found = {f"array/{name}": digest(f"{x.shape}{x.dtype}".encode() + x.tobytes()) for name, x in arrays.items()}
    columns = [name for name in table[0] if not name.startswith("time/")]
    return found | {f"column/{name}": digest("\n".join(row[name] for row in table).encode()) for name in columns}


def differences(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """Lines about what differs or is gone, and about what moved or is new."""
    changed = [f"differs: {name}" for name in before if name in after and before[name] != after[name]]
    gone = [name for name in before if name not in after]
    new = {name: value for name, value in after.items() if name not in before}
    moved = []
    for name in gone:
        there = next((key for key, value in new.items() if value == before[name]), None)
        if there is None:
            changed.append(f"gone: {name}")
        else:
            moved.append(f"moved: {name} -> {there}")
            del new[there]
    return changed, moved + [f"new: {name}" for name in new]


def main(_) -> None:
    """Trains the kinds, writes or compares."""
    before = json.loads(Path(_COMPARE.value).read_text(encoding="utf-8")) if _COMPARE.value else {}
    found, different = {}, False
    for kind in _KINDS.value:
        found[kind] = hashes(kind)
        line = f"{kind}: {len(found[kind])} hashes, all: {digest(json.dumps(found[kind], sort_keys=True).encode())}"
        if kind in before:
            changed, others = differences(before[kind], found[kind])
            same = len(before[kind]) - len(changed)
            different = different or bool(changed)
            line = f"{kind}: {same} of {len(before[kind])} as before\n" + "\n".join(f"  {x}" for x in changed + others)
        print(line.rstrip(), flush=True)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    app.run(main)
