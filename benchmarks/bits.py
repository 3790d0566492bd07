"""Which bits training gives: SHA-256 of every checkpoint array and every column of progress.csv after 20 updates.

    python benchmarks/bits.py --output=before.json --tree=../before     # at a commit
    python benchmarks/bits.py --compare=before.json                     # at another, on the same machine

A change that should not change results leaves every hash as it was. Names may change: an array or column whose name is
gone is looked for by its hash. Several new ones may have that hash, all zeros for example. Then the one with the most
similar name is taken, so lines about what moved have to be read. Time columns are left out, and so is what stands in
the checkpoint's manifest.

Bits depend on the CPU, on the number of usable cores and on the installed packages: only records of one machine can be
compared. The source tree may be another one, the interpreter and the flags below are the same for both.
"""

import csv
import difflib
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
    "pixels": ["--env=Pong-v5", "--chunk_size=100", "--steps_per_update=256", "--num_envs=4", "--value_epochs=2"],
    "reuse": [*HOPPER, "--reuse=2"],
    "lag": [*HOPPER, "--behavior_lag=2"],
    "adaptive": [*HOPPER, "--radius=adaptive"],
    "penalty": [*HOPPER, "--objective=penalty"],
    "pipeline": [*HOPPER, "--pipeline", "--reuse=2", "--reuse_weights=optimal"],
    "beta": ["--env=HalfCheetah-v5", "--action_distribution=beta", "--fisher_product=reverse"],
    "lstm": [
        "--env=CartPole-v1", "--network=lstm", "--share_torso", "--layer_norm=both", "--env_backend=gymnasium",
        "--num_envs=4", "--steps_per_update=512",
    ],
}  # fmt: skip
FIXED = [
    f"--checkpoint_every={UPDATES}", "--eval_every=10", "--eval_episodes=2", "--final_eval_episodes=0", "--noexport",
    "--notensorboard", "--keep_checkpoints=3", "--run_dir=run",
]  # fmt: skip

_KINDS = flags.DEFINE_list("kinds", [], "which kinds of run; empty: all, or those of --compare")
_OUTPUT = flags.DEFINE_string("output", "", "write the hashes to this JSON file")
_COMPARE = flags.DEFINE_string("compare", "", "compare with the hashes in this JSON file; exit 1 where they differ")
_TREE = flags.DEFINE_string("tree", str(Path(__file__).parents[1]), "the source tree that trains")
flags.register_validator(
    "kinds", lambda kinds: set(kinds) <= set(KINDS), f"--kinds have to be among {', '.join(KINDS)}"
)
flags.register_validator(
    "tree", lambda tree: (Path(tree) / "trpo_tf" / "train.py").is_file(), "--tree has to hold trpo_tf/train.py"
)


def digest(data: bytes) -> str:
    """The first half of SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()[:32]


def hashes(kind: str) -> dict[str, str]:
    """Trains one kind of run, and returns hashes by "array/<name>" and "column/<name>".

    Raises:
      subprocess.CalledProcessError: the run failed; its messages went to stderr.
    """
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
        [path] = (run / "checkpoints" / f"update_{UPDATES:09d}").glob("state*.safetensors")
        arrays = safetensors.numpy.load(path.read_bytes())
        with open(run / "progress.csv", encoding="utf-8") as file:
            table = list(csv.DictReader(file))[:UPDATES]
    found = {f"array/{name}": digest(f"{x.shape}{x.dtype}".encode() + x.tobytes()) for name, x in arrays.items()}
    columns = [name for name in table[0] if not name.startswith("time/")]
    return found | {f"column/{name}": digest("\n".join(row[name] for row in table).encode()) for name in columns}


def differences(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """Lines about what differs or is gone, and about what moved or is new."""
    gone = {name: value for name, value in before.items() if name not in after}
    new = {name: value for name, value in after.items() if name not in before}
    moved = matched(gone, new)
    changed = [f"differs: {name}" for name in before if name in after and before[name] != after[name]]
    changed += [f"gone: {name}" for name in gone if name not in moved]
    others = [f"moved: {name} -> {moved[name]}" for name in gone if name in moved]
    return changed, others + [f"new: {name}" for name in new if name not in moved.values()]


def matched(gone: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Names to new names with the same hash, one to one; where there is a choice, the most similar pair first."""
    pairs = [(name, there) for name in gone for there in new if gone[name] == new[there]]
    pairs.sort(key=lambda pair: difflib.SequenceMatcher(None, *pair).ratio(), reverse=True)
    found: dict[str, str] = {}
    for name, there in pairs:
        if name not in found and there not in found.values():
            found[name] = there
    return found


def main(_) -> None:
    """Trains the kinds, writes or compares."""
    before = json.loads(Path(_COMPARE.value).read_text(encoding="utf-8")) if _COMPARE.value else {}
    kinds = _KINDS.value or [kind for kind in KINDS if kind in before] or list(KINDS)
    if unknown := sorted(set(kinds) - set(before)) if _COMPARE.value else []:
        sys.exit(f"--compare={_COMPARE.value}: has no {', '.join(unknown)}; name others by --kinds")
    found, different = {}, False
    for kind in kinds:
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
