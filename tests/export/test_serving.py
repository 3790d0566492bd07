"""Served answers are the policy's, over REST, gRPC and from C; versions are exchanged; bad requests are told why."""

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export import check, client
from tests import exports
from tests.spaces_table import IMAGES, NETWORKS
from tests.test_combinations import ALL, PAIRS
from trpo_tf.config import ServeConfig, UsageError
from trpo_tf.run import saved_model, server

BINARY = "tensorflow_model_server"
NATIVE = Path(client.__file__).parent / "native"
ROWS = 1000


def serving(base, **settings):
    return server.running(ServeConfig(model_dir=base, rest_port=0, grpc_port=0, poll_seconds=0.1, **settings))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in exports.SLOWER else ()) for name in exports.CASES],
)
def exported(request, tmp_path_factory):
    return exports.make(request.param, tmp_path_factory.mktemp(request.param), ROWS)


@pytest.fixture(scope="module")
def urls(exported):
    """Addresses by name: of the local server, and of TF Serving where there is one."""
    with serving(exported.path.parent) as (_, rest_port, grpc_port), contextlib.ExitStack() as stack:
        local = {"rest": f"http://127.0.0.1:{rest_port}", "grpc": f"grpc://127.0.0.1:{grpc_port}"}
        yield local | (stack.enter_context(tf_serving(exported.path.parent)) if shutil.which(BINARY) else {})


@contextlib.contextmanager
def tf_serving(base):
    """The real server on a directory of versions; yields its addresses."""
    ports = [free_port(), free_port()]
    command = [BINARY, f"--rest_api_port={ports[0]}", f"--port={ports[1]}", "--model_name=policy"]
    process = subprocess.Popen([*command, f"--model_base_path={base}"], stderr=subprocess.DEVNULL)
    try:
        urls = {"TF Serving rest": f"http://127.0.0.1:{ports[0]}", "TF Serving grpc": f"grpc://127.0.0.1:{ports[1]}"}
        client.Policy(urls["TF Serving rest"], deadline=60).specs("serving_default")
        yield urls
    finally:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    exports.check(exported, lambda *request: served_answer(policy, exported, *request))
    assert policy.version == 1


def served_answer(policy, exported, signature, inputs):
    if signature == "initial_state":
        return policy.predict({"batch": inputs["batch"]}, signature)
    names = exported.policy.encoder.leaves
    obs, others = ({k: v for k, v in inputs.items() if (k in names) == wanted} for wanted in (True, False))
    return policy.predict(obs, signature, **others)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc to build export/native with")
    out = tmp_path_factory.mktemp("native")
    command = ["make", "-C", str(NATIVE), f"PYTHON={sys.executable}", f"OUT={out}", f"{out}/policy"]
    subprocess.run(command, check=True, capture_output=True)
    return out / "policy"


def test_a_c_program_answers_as_the_policy(exported, native):
    exports.check(exported, lambda *request: native_answer(native, exported, *request))


def native_answer(native, exported, signature, inputs):
    count = len(next(iter(inputs.values())))
    lines = np.concatenate([np.asarray(inputs[name], np.float64).reshape(count, -1) for name in sorted(inputs)], 1)
    text = "\n".join(" ".join(f"{x:.9g}" for x in line) for line in lines) + "\n"
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
    command = ["make", "-C", str(NATIVE), f"PYTHON={sys.executable}", f"OUT={tmp_path}", f"{tmp_path}/policy_cc"]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "policy_cc", base / "1", *map(str, ROW)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: re.findall(r"-?[\d.]+(?:e-?\d+)?", line) for line in done.stdout.splitlines()}
    expected = saved_model.LoadedPolicy(base).predict(ROW)
    assert said.keys() == {"action", "value"}
    for name, numbers in said.items():
        np.testing.assert_allclose(np.array(numbers, float), np.ravel(expected[name]), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, id="-".join(case), marks=() if case in PAIRS else pytest.mark.whole) for case in ALL]
)
def test_every_combination_is_served_as_the_policy_answers(case, native, tmp_path):
    action, observation, network = case
    rows = ROWS if case in PAIRS or observation not in IMAGES else ROWS // 10  # a thousand pictures are long texts
    exported = exports.build(observation, action, NETWORKS[network], tmp_path, rows)
    with serving(tmp_path) as (model, rest_port, grpc_port):
        exports.check(exported, lambda signature, inputs: model.get("policy").predict(signature, inputs))
        for url in (f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"):
            policy = client.Policy(url, deadline=60)
            exports.check(exported, lambda *request, policy=policy: served_answer(policy, exported, *request))
    loaded = saved_model.LoadedPolicy(exported.path)
    exports.check(exported, lambda *request: served_answer(loaded, exported, *request))
    exports.check(exported, lambda *request: native_answer(native, exported, *request))
    if case in PAIRS:
        start = time.monotonic()
        reasons = {rule: reason for rule, reason in check.check(exported.path).items() if reason}
        assert not reasons
        assert time.monotonic() - start < 30


# ---- One policy for what does not depend on its spaces. ----


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of one version of a Gaussian policy."""
    return exports.make("gaussian", tmp_path_factory.mktemp("base")).path.parent


class Address(NamedTuple):
    """The ports of a server of `base`, and whether it is ours, whose words are known."""

    rest: int
    grpc: int
    ours: bool = True


@pytest.fixture(scope="module", params=["local", BINARY])
def address(base, request):
    if request.param == BINARY:
        if not shutil.which(BINARY):
            pytest.skip(f"no {BINARY} on the PATH")
        with tf_serving(base) as urls:
            yield Address(*(int(url.rpartition(":")[2]) for url in urls.values()), False)
    else:
        with serving(base) as (_, rest_port, grpc_port):
            yield Address(rest_port, grpc_port)


def post(port, body, path="/v1/models/policy:predict"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body)
    response = connection.getresponse()
    status, text = response.status, response.read()
    connection.close()
    return status, json.loads(text)


ROW = [0.1, 0.2, 0.3]
BAD = {
    "not_json": ("{", 400, "JSON Parse error"),
    "neither": ({}, 400, "instances"),
    "both": ({"instances": [ROW], "inputs": [ROW]}, 400, "instances"),
    "list": ([ROW], 400, "instances"),
    "empty": ({"instances": []}, 400, "something in it"),
    "empty_columns": ({"inputs": []}, 400, "shape"),
    "rank": ({"instances": [0.1]}, 400, "shape [1]; [-1, 3] is needed"),
    "width": ({"instances": [[0.1, 0.2]]}, 400, "shape [1, 2]; [-1, 3] is needed"),
    "ragged": ({"instances": [ROW, [0.1]]}, 400, "ragged"),
    "strings": ({"instances": [["a", "b", "c"]]}, 400, "something else than float32"),
    "null": ({"instances": [[None, 0.1, 0.2]]}, 400, "something else than float32"),
    "other_input": ({"instances": [{"image": ROW}]}, 400, "missing: [observation]; unknown: [image]"),
    "uneven": ({"instances": [{"observation": ROW}, {}]}, 400, "same inputs"),
    "signature": ({"signature_name": "mode", "instances": [ROW]}, 400, '"mode" not found'),
    "signature_type": ({"signature_name": 3, "instances": [ROW]}, 400, "has to be a string"),
    "rows_differ": ({"signature_name": "sample", "inputs": {"observation": [ROW], "seed": []}}, 400, "shape"),
    "seed_range": (
        {"signature_name": "sample", "inputs": {"observation": [ROW], "seed": [[2**40, 0]]}},
        400,
        "outside of int32",
    ),
    "deep": ("[" * 100_000, 400, "JSON Parse error"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_told_why_and_the_next_one_is_answered(address, kind):
    body, status, words = BAD[kind]
    got, answer = post(address[0], body if isinstance(body, str) else json.dumps(body))
    assert got == status
    assert words in answer["error"] or not address.ours
    assert post(address[0], json.dumps({"instances": [ROW]}))[0] == 200


def requests_over_grpc(change):
    """A sound request of serving_default over gRPC, changed."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "policy"
    request.inputs["observation"].CopyFrom(tf.make_tensor_proto([ROW]))
    change(request)
    return request


def given(value, name="observation"):
    return lambda request: request.inputs[name].CopyFrom(tf.make_tensor_proto(value))


def a_million_rows_in_few_bytes(request):
    tensor = request.inputs["observation"]
    tensor.Clear()
    tensor.dtype, tensor.float_val[:] = 1, [0.5]
    for size in (10**7, 3):
        tensor.tensor_shape.dim.add(size=size)


BAD_OVER_GRPC = {
    "rank": (given(np.float32(ROW)), "INVALID_ARGUMENT", "shape [3]"),
    "width": (given(np.float32([ROW[:2]])), "INVALID_ARGUMENT", "shape [1, 2]"),
    "type": (given(np.float64([ROW])), "INVALID_ARGUMENT", "float64"),
    "strings": (given([["a", "b", "c"]]), "INVALID_ARGUMENT", "is object"),
    "empty": (given(np.zeros((0, 3), np.float32)), "INVALID_ARGUMENT", "empty"),
    "missing": (lambda request: request.inputs.clear(), "INVALID_ARGUMENT", "missing: [observation]"),
    "unknown": (given(np.float32([ROW]), "image"), "INVALID_ARGUMENT", "unknown: [image]"),
    "signature": (lambda r: setattr(r.model_spec, "signature_name", "mode"), "FAILED_PRECONDITION", '"mode" not found'),
    "model": (lambda r: setattr(r.model_spec, "name", "other"), "NOT_FOUND", "other"),
    "version": (lambda r: setattr(r.model_spec.version, "value", 7), "NOT_FOUND", "7"),
    "huge": (a_million_rows_in_few_bytes, "INVALID_ARGUMENT", "more than 33554432 bytes"),
    "64_mib": (given(np.zeros((1 << 24, 1), np.float32)), "RESOURCE_EXHAUSTED", "larger than max"),
}


@pytest.mark.parametrize("kind", BAD_OVER_GRPC)
def test_a_bad_request_over_grpc_is_told_why_and_the_next_one_is_answered(address, kind):
    change, status, words = BAD_OVER_GRPC[kind]
    with grpc.insecure_channel(f"127.0.0.1:{address.grpc}", [("grpc.max_send_message_length", -1)]) as channel:
        ask = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        with pytest.raises(grpc.RpcError) as raised:
            ask(requests_over_grpc(change), timeout=30)
        if address.ours:
            assert raised.value.code().name == status
            assert words in raised.value.details()
        assert ask(requests_over_grpc(given(np.float32([ROW])))).outputs["action"].tensor_shape.dim[0].size == 1


@pytest.mark.parametrize("number", ["1e39", "-1e39", str(2**30)])
def test_numbers_that_the_type_does_not_hold_are_refused(address, number):
    status, answer = post(address[0], f'{{"instances": [[{number}, {number}, {number}]]}}')
    assert status == 400
    assert "float32 does not hold" in answer["error"] or not address.ours


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_get_a_finite_action_and_are_told(address, number):
    status, answer = post(address[0], f'{{"instances": [[{number}, 0.2, 0.3]]}}')
    assert status == 200
    (row,) = answer["predictions"]
    assert row["valid"] is False
    assert np.isfinite(row["action"]).all()


def test_a_body_that_is_too_large_is_refused(address):
    status, answer = post(address[0], b" " * (64 << 20))
    if address.ours:
        assert (status, answer["error"]) == (413, "a request may have 33554432 bytes")
    assert post(address[0], json.dumps({"instances": [ROW]}))[0] == 200


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/other:predict", 404),
        ("/v1/models/policy/versions/7:predict", 404),
        ("/v1/models/policy/versions/0:predict", 404),
        ("/v1/nothing", 400),
        ("/v1/models/policy", 400),  # is asked by GET
    ],
)
def test_what_is_not_there_is_told(address, path, expected):
    status, answer = post(address[0], json.dumps({"instances": [ROW]}), path)
    assert status == expected
    assert answer["error"]


def test_rows_and_columns_have_the_same_answers(address):
    _, by_row = post(address[0], json.dumps({"instances": [ROW, ROW[::-1]]}))
    _, by_column = post(address[0], json.dumps({"inputs": [ROW, ROW[::-1]]}))
    for name, column in by_column["outputs"].items():
        assert [row[name] for row in by_row["predictions"]] == column


@pytest.mark.parametrize("how", [0, 1])
def test_the_client_tells_what_went_wrong(address, how):
    url = f"{('http', 'grpc')[how]}://127.0.0.1:{address[how]}"
    with pytest.raises(client.ServingError, match="404") as raised:
        client.Policy(url, model="other").action(ROW)
    assert raised.value.status == 404
    policy = client.Policy(url)
    with pytest.raises(client.ServingError, match="no signature mode; there is distribution"):
        policy.predict(ROW, "mode")
    with pytest.raises(TypeError, match="serving_default takes observation, not observation, seed"):
        policy.predict(ROW, seed=[0, 0])
    with pytest.raises(ValueError, match=r"observation has shape \(2,\), where \(3,\) is needed"):
        policy.action([0.1, 0.2])
    assert policy.action(np.full(3, np.nan)).shape == (2,)
    assert policy.predict(np.full(3, np.nan))["valid"] == np.False_


@pytest.mark.parametrize("how", [0, 1])
def test_a_row_is_answered_alone_as_in_a_batch_sampled_too(address, how):
    policy = client.Policy(f"{('http', 'grpc')[how]}://127.0.0.1:{address[how]}")
    obs = np.random.default_rng(0).normal(size=(33, 3)).astype(np.float32)
    seeds = np.stack([np.arange(33), np.arange(33)], 1)
    batch, modes = policy.sample(obs, seeds), policy.action(obs)
    for row in range(33):
        np.testing.assert_allclose(policy.sample(obs[row], seeds[row]), batch[row], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.action(obs[row]), modes[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server_is_one_line_within_the_deadline(scheme):
    start = time.monotonic()
    with pytest.raises(client.ServingError):
        client.Policy(f"{scheme}://127.0.0.1:9", deadline=0.5).action(ROW)
    assert time.monotonic() - start < 5


class Sluggish(http.server.BaseHTTPRequestHandler):
    """Answers everything after a while, and that it is somebody else."""

    def do_GET(self):
        time.sleep(0.8)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.answer)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def sluggish():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sluggish) as server_:
        server_.answer = json.dumps({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}).encode()
        threading.Thread(target=server_.serve_forever, daemon=True).start()
        yield server_
        server_.shutdown()


def test_the_deadline_is_that_of_all_that_a_call_asks(sluggish):
    start = time.monotonic()
    with pytest.raises(client.ServingError):
        client.Policy(f"http://127.0.0.1:{sluggish.server_port}", deadline=1.0).action(ROW)
    assert time.monotonic() - start < 1.7, "three answers take 2.4 s"


@pytest.mark.parametrize("answer", [b"[1]", b"{}", b"<html>", b'{"metadata": []}'])
def test_an_answer_of_something_else_is_a_serving_error(sluggish, answer):
    sluggish.answer = answer
    with pytest.raises(client.ServingError):
        client.Policy(f"http://127.0.0.1:{sluggish.server_port}", version=1, deadline=1.0).action(ROW)


def test_the_client_does_not_bend_numbers(address):
    policy = client.Policy(f"http://127.0.0.1:{address.rest}")
    for seed in ([2**40 + 5, 0], [0.5, 0], [float("nan"), 0]):
        with pytest.raises(ValueError, match="seed holds numbers that int32 does not"):
            policy.sample(ROW, seed)


def test_a_version_is_exchanged_under_load_without_an_error(tmp_path):
    made, base = exports.make("gaussian", tmp_path / "a"), tmp_path / "base"
    shutil.copytree(made.path, base / "1")
    made.policy.network.assign(0.5 * made.policy.network.theta())
    changed = saved_model.save(made.policy, 3 * exports.SCALE, exports.METADATA, tmp_path / "b")
    obs = made.obs["observation"][0]
    expected = {n: saved_model.LoadedPolicy(path).predict(obs) for n, path in ((1, made.path), (2, changed))}
    assert all(abs(expected[1][name] - expected[2][name]).min() > 1e-3 for name in ("action", "value"))
    swapped, failures, seen = threading.Event(), [], set()

    def ask(url):
        policy = client.Policy(url)
        try:
            while not (swapped.is_set() and policy.version == 2):
                answer = policy.predict(obs)
                seen.add((url[:4], policy.version))
                for name, value in expected[policy.version].items():
                    np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    with serving(base) as (model, rest_port, grpc_port):
        urls = 2 * [f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"]
        threads = [threading.Thread(target=ask, args=(url,)) for url in urls]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        changed.rename(base / "2")
        deadline = time.monotonic() + 30
        while model.number != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        swapped.set()
        for thread in threads:
            thread.join(30)
    assert not failures
    assert seen == {("http", 1), ("http", 2), ("grpc", 1), ("grpc", 2)}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(base, tmp_path, capsys):
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    with serving(copy) as (model, rest_port, _):
        (copy / "2").mkdir()
        (copy / "2" / "saved_model.pb").write_bytes(b"nothing")
        deadline = time.monotonic() + 20
        while "version 2 is not served" not in (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "version 2 is not served" in said
        assert post(rest_port, json.dumps({"instances": [ROW]}))[0] == 200
        assert model.number == 1


def test_a_port_that_is_taken_is_named(base, address):
    with (
        pytest.raises(UsageError, match=f"--rest_port={address[0]}"),
        server.running(ServeConfig(model_dir=base, rest_port=address[0], grpc_port=0)),
    ):
        pass


def test_the_command_says_what_it_is_and_ends_on_a_signal(base):
    command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={base}", "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[0].startswith("For development:")
    assert lines[2].startswith("REST http://127.0.0.1:")
    assert lines[3] == "version 1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_policy_driven_through_a_server_has_the_returns_of_the_policy_in_process(tmp_path):
    """Episode by episode, with the same seeds: the same numbers go in and come out."""
    import trpo_tf

    config = trpo_tf.Config(env="Hopper-v5", total_steps=4096, run_dir=tmp_path / "run", final_eval_episodes=0)
    path = trpo_tf.train(config).saved_model
    policy, env = trpo_tf.load_policy(path), gym.make("Hopper-v5")

    def in_process(episodes):
        for episode in range(episodes):
            obs, _ = env.reset(seed=5 + episode)
            total, ended = 0.0, False
            while not ended:
                obs, reward, terminated, truncated, _ = env.step(policy.action(obs))
                total, ended = total + float(reward), terminated or truncated
            yield total

    expected = list(in_process(20))
    with serving(path.parent) as (_, rest_port, grpc_port):
        for url in (f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"):
            asked = client.Policy(url)
            assert [total for total, _ in client.episodes(asked, env, 20, seed=5)] == expected
            for drawn in (False, True):
                again = [list(client.episodes(asked, env, 2, 5, drawn)) for _ in range(2)]
                assert again[0] == again[1]
