"""The server for development: bad requests are told why, versions are exchanged, ports and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from aiohttp import web
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export import client
from tests import exports
from tests.served import OBS, made, post, serving
from trpo_tf.config import ServeConfig
from trpo_tf.errors import UsageError
from trpo_tf.serving import saved_model
from trpo_tf.serving.loaded_policy import LoadedPolicy
from trpo_tf.serving.server.serve import running

BAD = {
    "not_json": ("{", 400, "JSON Parse error"),
    "neither": ({}, 400, "instances"),
    "both": ({"instances": [OBS], "inputs": [OBS]}, 400, "instances"),
    "list": ([OBS], 400, "instances"),
    "empty": ({"instances": []}, 400, "something in it"),
    "empty_columns": ({"inputs": []}, 400, "shape"),
    "rank": ({"instances": [0.1]}, 400, "shape [1]; [-1, 3] is needed"),
    "width": ({"instances": [[0.1, 0.2]]}, 400, "shape [1, 2]; [-1, 3] is needed"),
    "ragged": ({"instances": [OBS, [0.1]]}, 400, "ragged"),
    "strings": ({"instances": [["a", "b", "c"]]}, 400, "something else than float32"),
    "null": ({"instances": [[None, 0.1, 0.2]]}, 400, "something else than float32"),
    "other_input": ({"instances": [{"image": OBS}]}, 400, "missing: [observation]; unknown: [image]"),
    "uneven": ({"instances": [{"observation": OBS}, {}]}, 400, "same inputs"),
    "signature": ({"signature_name": "mode", "instances": [OBS]}, 400, '"mode" not found'),
    "signature_type": ({"signature_name": 3, "instances": [OBS]}, 400, "has to be a string"),
    "rows_differ": ({"signature_name": "sample", "inputs": {"observation": [OBS], "seed": []}}, 400, "shape"),
    "seed_range": (
        {"signature_name": "sample", "inputs": {"observation": [OBS], "seed": [[2**40, 0]]}},
        400,
        "outside of int32",
    ),
    "deep": ("[" * 5_000, 400, "JSON Parse error"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_told_why_and_the_next_one_is_answered(address, kind):
    body, status, words = BAD[kind]
    got, answer = post(address.rest, body if isinstance(body, str) else json.dumps(body))
    assert got == status
    assert words in answer["error"] or not address.ours
    assert post(address.rest, json.dumps({"instances": [OBS]}))[0] == 200


def requests_over_grpc(change):
    """A sound request of serving_default over gRPC, changed."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "policy"
    request.inputs["observation"].CopyFrom(tf.make_tensor_proto([OBS]))
    change(request)
    return request


def observation(value, name="observation"):
    return lambda request: request.inputs[name].CopyFrom(tf.make_tensor_proto(value))


def a_million_rows_in_few_bytes(request):
    tensor = request.inputs["observation"]
    tensor.Clear()
    tensor.dtype, tensor.float_val[:] = 1, [0.5]
    for size in (10**7, 3):
        tensor.tensor_shape.dim.add(size=size)


BAD_OVER_GRPC = {
    "rank": (observation(np.float32(OBS)), "INVALID_ARGUMENT", "shape [3]"),
    "width": (observation(np.float32([OBS[:2]])), "INVALID_ARGUMENT", "shape [1, 2]"),
    "type": (observation(np.float64([OBS])), "INVALID_ARGUMENT", "float64"),
    "strings": (observation([["a", "b", "c"]]), "INVALID_ARGUMENT", "is string"),
    "empty": (observation(np.zeros((0, 3), np.float32)), "INVALID_ARGUMENT", "empty"),
    "missing": (lambda request: request.inputs.clear(), "INVALID_ARGUMENT", "missing: [observation]"),
    "unknown": (observation(np.float32([OBS]), "image"), "INVALID_ARGUMENT", "unknown: [image]"),
    "signature": (lambda r: setattr(r.model_spec, "signature_name", "mode"), "FAILED_PRECONDITION", '"mode" not found'),
    "model": (lambda r: setattr(r.model_spec, "name", "other"), "NOT_FOUND", "other"),
    "version": (lambda r: setattr(r.model_spec.version, "value", 7), "NOT_FOUND", "7"),
    "huge": (a_million_rows_in_few_bytes, "INVALID_ARGUMENT", "a request may have 10000"),
    "64_mib": (observation(np.zeros((1 << 24, 1), np.float32)), "RESOURCE_EXHAUSTED", "larger than max"),
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
        assert ask(requests_over_grpc(observation(np.float32([OBS])))).outputs["action"].tensor_shape.dim[0].size == 1


@pytest.mark.parametrize("number", ["1e39", "-1e39", str(2**30)])
def test_numbers_that_the_type_does_not_hold_are_refused(address, number):
    status, answer = post(address.rest, f'{{"instances": [[{number}, {number}, {number}]]}}')
    assert status == 400
    assert "float32 does not hold" in answer["error"] or not address.ours


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_get_a_finite_action_and_are_told(address, number):
    status, answer = post(address.rest, f'{{"instances": [[{number}, 0.2, 0.3]]}}')
    assert status == 200
    (row,) = answer["predictions"]
    assert row["valid"] is False
    assert np.isfinite(row["action"]).all()


def test_a_body_that_is_too_large_is_refused(address):
    status, answer = post(address.rest, b" " * (64 << 20))
    if address.ours:
        assert (status, answer["error"]) == (413, "a request may have 33554432 bytes")
    assert post(address.rest, json.dumps({"instances": [OBS]}))[0] == 200


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
    status, answer = post(address.rest, json.dumps({"instances": [OBS]}), path)
    assert status == expected
    assert answer["error"]


@pytest.mark.parametrize("number", [0, 2**63 - 1])
def test_the_least_and_the_greatest_version_are_served_by_their_numbers(base, tmp_path, number):
    (tmp_path / str(number)).symlink_to(base / "1")
    request = requests_over_grpc(observation(np.float32([OBS])))
    with serving(tmp_path) as (model, rest_port, grpc_port):
        assert model.number == number
        status, answer = post(
            rest_port, json.dumps({"instances": [OBS]}), f"/v1/models/policy/versions/{number}:predict"
        )
        assert (status, len(answer.get("predictions", []))) == (200, 1)
        for other in (number - 1, number + 1, "008", "9" * 5000):
            path = f"/v1/models/policy/versions/{other}:predict"
            assert post(rest_port, json.dumps({"instances": [OBS]}), path)[0] in (400, 404)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            ask = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            for asked in (None, number):
                if asked is not None:
                    request.model_spec.version.value = asked
                assert ask(request, timeout=30).model_spec.version.value == number
            request.model_spec.version.value = 7
            with pytest.raises(grpc.RpcError):
                ask(request, timeout=30)


def test_a_failure_of_the_server_is_not_laid_at_the_door_of_the_request(base, monkeypatch):
    async def failing(*_):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(web.UrlDispatcher, "resolve", failing)
    with serving(base) as (_, rest_port, _):
        assert post(rest_port, json.dumps({"instances": [OBS]})) == (500, {"error": "The server failed: odd"})


def test_rows_and_columns_have_the_same_answers(address):
    _, by_row = post(address.rest, json.dumps({"instances": [OBS, OBS[::-1]]}))
    _, by_column = post(address.rest, json.dumps({"inputs": [OBS, OBS[::-1]]}))
    for name, column in by_column["outputs"].items():
        assert [row[name] for row in by_row["predictions"]] == column


def another(exported, directory):
    """A version of a policy with other parameters and values than an export's, below a directory."""
    network, theta = exported.policy.network, exported.policy.network.theta()
    network.assign(0.5 * theta)
    try:
        return saved_model.save(exported.policy, 3 * exports.SCALE, exports.METADATA, directory)
    finally:
        network.assign(theta)


def test_a_version_is_exchanged_under_load_without_an_error(tmp_path, tmp_path_factory):
    exported, base = made("gaussian", tmp_path_factory), tmp_path / "base"
    shutil.copytree(exported.path, base / "1")
    changed = another(exported, tmp_path / "changed")
    obs = exported.obs["observation"][0]
    expected = {n: LoadedPolicy(path).predict(obs) for n, path in ((1, exported.path), (2, changed))}
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
        assert post(rest_port, json.dumps({"instances": [OBS]}))[0] == 200
        assert model.number == 1


def test_a_port_that_is_taken_is_named(base, address):
    with (
        pytest.raises(UsageError, match=f"rest_port={address.rest}"),
        running(ServeConfig(model_dir=base, rest_port=address.rest, grpc_port=0)),
    ):
        pass


@pytest.mark.slow
def test_the_command_says_what_it_is_and_ends_on_a_signal(base, tmp_path):
    (tmp_path / "0").symlink_to(base / "1")
    command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={tmp_path}", "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[0].startswith("For development:")
    assert lines[2].startswith("REST http://127.0.0.1:")
    assert lines[3] == "version 0\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
