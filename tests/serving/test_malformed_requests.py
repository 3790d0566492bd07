"""The crafted requests of benchmarks/faults/malformed_requests.py, and a client that is slow, to the server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks.faults import malformed_requests as malformed
from tests.served import OBS, post, serving
from trpo_tf.serving.server import rest

SOUND = json.dumps({"instances": [OBS]})


@pytest.fixture(scope="module")
def server(base):
    with serving(base) as (_, rest_port, grpc_port):
        yield malformed.Server(SimpleNamespace(pid=os.getpid()), rest_port, grpc_port)


def test_the_answers_are_compared_with_good_ones(server):
    text, value = server.good_answers()
    assert len(json.loads(text)["predictions"]) == 2
    assert value


@pytest.mark.parametrize("name", malformed.REST)
def test_a_malformed_request_over_rest_is_refused_at_once(server, name):
    outcome = server.over_rest(malformed.REST[name])
    assert outcome in ("400", "404", "413", "415", "417")


@pytest.mark.parametrize("name", malformed.RPC)
def test_a_malformed_request_over_grpc_is_refused_at_once(server, name):
    outcome = server.over_grpc(malformed.RPC[name])
    zeros = name in ("no values", "values of another kind")  # what a TensorProto does not state is 0
    assert outcome in (["OK"] if zeros else ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"])


def test_mutated_requests_leave_the_server_as_it_was(server):
    crafted = len(malformed.REST) + len(malformed.RPC)
    mutated = list(malformed.requests(crafted + 30, seed=1))[crafted:]
    _, wrong = malformed.campaign(server, iter(mutated))
    assert not wrong


def connected(port, text):
    """A connection on which a text was sent."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(text)
    return connection


@pytest.mark.parametrize("text", [b"", b"POST /v1/models/policy:predict HTTP/1.1\r\nHos"])
def test_a_connection_without_a_request_is_ended(base, monkeypatch, text):
    monkeypatch.setattr(rest, "HEADER_SECONDS", 0.3)
    with serving(base) as (_, rest_port, _), connected(rest_port, text) as connection:
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert 0.2 < time.monotonic() - start < 5
        assert post(rest_port, SOUND)[0] == 200


def test_a_body_that_does_not_arrive_is_refused(base, monkeypatch):
    monkeypatch.setattr(rest, "BODY_SECONDS", 0.3)
    half = malformed.http(b"{", length=100)
    with serving(base) as (_, rest_port, _), connected(rest_port, half) as connection:
        answer = connection.recv(1000)
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"has to arrive within" in answer


def test_a_connection_with_a_body_that_is_on_its_way_stays(base, monkeypatch):
    monkeypatch.setattr(rest, "HEADER_SECONDS", 0.2)
    request = malformed.http(malformed.GOOD)
    with serving(base) as (_, rest_port, _), connected(rest_port, request[:-5]) as connection:
        time.sleep(0.5)
        connection.sendall(request[-5:])
        assert b"200" in connection.recv(1000).split(b"\r\n")[0]


def test_connections_beyond_the_most_are_refused(base, monkeypatch):
    monkeypatch.setattr(rest, "CONNECTIONS", 3)
    with serving(base) as (_, rest_port, _):
        held = [connected(rest_port, b"") for _ in range(3)]
        with connected(rest_port, b"") as fourth:  # who sends at once may find the connection ended before it reads
            head, _, body = fourth.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body) == {"error": "too many connections"}
        held.pop().close()
        time.sleep(0.2)
        assert post(rest_port, SOUND)[0] == 200
        for connection in held:
            connection.close()


@pytest.mark.slow
def test_a_signal_ends_the_command_within_seconds_though_a_body_is_on_its_way(base):
    command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={base}", "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    lines = [process.stdout.readline() for _ in range(4)]
    port = int(lines[2].partition("/v1")[0].rpartition(":")[2])
    with connected(port, malformed.http(b"{", length=1000)), connected(port, b"POST / HT"):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
