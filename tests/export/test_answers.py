"""Served answers are the policy's, over REST, over gRPC, from C and from C++."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from export import check, client
from tests import exports
from tests.combinations import ALL, EACH, PAIRS
from tests.served import BINARY, OBS, ROWS, ask, serving, tf_serving
from tests.spaces_table import IMAGES, NETWORKS
from trpo_tf.serving.loaded_policy import LoadedPolicy

NATIVE = Path(client.__file__).parent / "native"


@pytest.fixture(scope="session")
def urls(exported):
    """Addresses by name: of the local server, and of TF Serving where there is one."""
    with serving(exported.path.parent) as (_, rest_port, grpc_port), contextlib.ExitStack() as stack:
        local = {"rest": f"http://127.0.0.1:{rest_port}", "grpc": f"grpc://127.0.0.1:{grpc_port}"}
        yield local | (stack.enter_context(tf_serving(exported.path.parent)) if shutil.which(BINARY) else {})


@pytest.mark.skipif("TF_SERVING_URL" not in os.environ, reason="TF_SERVING_URL names no server")
def test_a_server_that_is_named_answers_with_finite_numbers():
    policy = client.Policy(os.environ["TF_SERVING_URL"])
    inputs = policy.specs("serving_default")["inputs"]
    for bad in (0.5, np.nan, 1e39):
        asked = {
            name: np.full([4, *shape[1:]], bad if np.dtype(dtype).kind == "f" else 1, dtype)
            for name, (dtype, shape) in inputs.items()
        }
        for name, value in policy.predict(asked).items():
            assert np.isfinite(value).all(), name


@pytest.mark.parametrize("how", ["rest", "grpc", "TF Serving rest", "TF Serving grpc"])
def test_a_server_answers_as_the_policy(exported, urls, how):
    if how not in urls:
        pytest.skip(f"no {BINARY} on the PATH")
    policy = client.Policy(urls[how])
    exports.check(exported, lambda *request: ask(policy, exported, *request))
    assert policy.version == 1


def build(program, out):
    """Builds a program of export/native in a directory. The linker gold, where there is one, takes 2 s instead of 7."""
    command = ["make", "-C", str(NATIVE), f"PYTHON={sys.executable}", f"OUT={out}", f"{out}/{program}"]
    flags = ["LDFLAGS=-fuse-ld=gold"] if shutil.which("ld.gold") else []
    subprocess.run([*command, *flags], check=True, capture_output=True)
    return out / program


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc to build export/native with")
    out = tmp_path_factory.mktemp("native")
    return build("policy", out)


def test_a_c_program_answers_as_the_policy(exported, native):
    exports.check(exported, lambda *request: native_answer(native, exported, *request))


def native_answer(native, exported, signature, inputs):
    count = len(next(iter(inputs.values())))
    lines = np.concatenate([np.asarray(inputs[name], np.float64).reshape(count, -1) for name in sorted(inputs)], 1)
    text = "\n".join(" ".join(f"{x:.17g}" for x in line) for line in lines) + "\n"
    done = subprocess.run([native, exported.path, signature, "100"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [dict(part.split("=") for part in line.split()) for line in done.stdout.splitlines()]
    metadata = json.loads((exported.path / "assets.extra" / "policy.json").read_text())
    return {
        name: np.array([np.array(row[name].split(","), np.float64) for row in rows]).reshape(count, *info["shape"][1:])
        for name, info in metadata["signatures"][signature]["outputs"].items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ to build export/native with")
def test_a_cpp_program_answers_as_the_policy(base, tmp_path):
    done = subprocess.run([build("policy_cc", tmp_path), base / "1", *map(str, OBS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: re.findall(r"-?[\d.]+(?:e-?\d+)?", line) for line in done.stdout.splitlines()}
    expected = LoadedPolicy(base).predict(OBS)
    assert said.keys() == {"action", "value"}
    for name, numbers in said.items():
        np.testing.assert_allclose(np.array(numbers, float), np.ravel(expected[name]), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id="-".join(case), marks=() if case in EACH else pytest.mark.whole) for case in ALL],
)
def test_every_combination_is_served_as_the_policy_answers(case, native, tmp_path):
    action, observation, network = case
    rows = ROWS if case in PAIRS or observation not in IMAGES else ROWS // 10  # a thousand pictures are long texts
    exported = exports.build(observation, action, NETWORKS[network], tmp_path, rows)
    with serving(tmp_path) as (model, rest_port, grpc_port):
        exports.check(exported, lambda signature, inputs: model.get("policy").predict(signature, inputs))
        for url in (f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"):
            policy = client.Policy(url, deadline=60)
            exports.check(exported, lambda *request, policy=policy: ask(policy, exported, *request))
    loaded = LoadedPolicy(exported.path)
    exports.check(exported, lambda *request: ask(loaded, exported, *request))
    exports.check(exported, lambda *request: native_answer(native, exported, *request))
    if case in PAIRS:
        start = time.monotonic()
        reasons = {rule: reason for rule, reason in check.check(exported.path).items() if reason}
        assert not reasons
        assert time.monotonic() - start < 30
