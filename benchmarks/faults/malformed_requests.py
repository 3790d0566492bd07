"""Malformed requests to the server for development: all are refused, and good ones still get the right answer.

    python benchmarks/faults/malformed_requests.py [--requests=500] [--seed=0]

Crafted requests first, then good ones with random bytes changed, over REST and gRPC in turn. Prints the counts of
outcomes. Exit status 1 where a request was answered by a status 500 or above or not at all within 2 s, where a good
request that is sent after every 20 had no or another answer, or where the server's memory grew by more than 200 MiB.
"""

import collections
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from absl import app, flags
from tensorflow_serving.apis import predict_pb2

FLAGS = flags.FLAGS
SECONDS = 2.0  # for an answer
MOST_GROWTH = 200 << 20  # bytes of resident memory
EVERY = 20  # malformed requests between good ones
OBS = [0.1, 0.2, 0.3]
PATH = "/v1/models/policy:predict"
METHOD = "/tensorflow.serving.PredictionService/Predict"
GOOD = json.dumps({"instances": [OBS, OBS[::-1]]}).encode()


def http(body: bytes, path: str = PATH, method: str = "POST", headers: str = "", length: int | None = None) -> bytes:
    """A request as it is on the wire."""
    size = len(body) if length is None else length
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    """A request with a chunked body, as it is on the wire."""
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"".join(chunks)


def instances(text: str) -> bytes:
    """A request by row, whose instances are a text."""
    return http(f'{{"instances": {text}}}'.encode())


REST = {
    "empty": http(b""),
    "no JSON": http(b"{"),
    "not UTF-8": http(b'{"instances": "\xff\xfe"}'),
    "UTF-16": http(GOOD.decode().encode("utf-16")[:-1]),
    "null bytes": http(b"\0" * 1000),
    "deep lists": http(b"[" * 100_000),
    "deep objects": http(b'{"a":' * 100_000),
    "nested 900": instances("[" * 900 + "1" + "]" * 900),
    "huge integer": instances("[[" + "9" * 5000 + ", 0, 0]]"),
    "integer of 400 digits": instances("[[" + "9" * 400 + ", 0.5, 0]]"),
    "1e39": instances("[[1e39, 0, 0]]"),
    "no whole number": http(b'{"signature_name": "sample", "inputs": {"observation": [[0,0,0]], "seed": [[1e9,0]]}}'),
    "twice": http(b'{"instances": [[0,0,0]], "instances": [[1,1,1]]}'),
    "twice in a row": instances('[{"observation": [0,0,0], "observation": [0,0,0]}]'),
    "both": http(b'{"instances": [[0,0,0]], "inputs": [[0,0,0]]}'),
    "ragged": instances("[[0,0,0],[0]]"),
    "ragged in depth": instances("[[0,0,0],[[0],[0],[0]]]"),
    "strings": instances('[["a","b","c"]]'),
    "one long string among short ones": instances('["' + "a" * 100_000 + '"' + ',"b"' * 9000 + "]"),
    "booleans": instances("[[true,false,true]]"),
    "null": instances("[[null,0,0]]"),
    "objects": instances("[[{},{},{}]]"),
    "a million rows": instances("[" + "0," * 1_000_000 + "0]"),
    "a million objects": instances("[" + '{"a":0},' * 1_000_000 + '{"a":0}]'),
    "a million lists": http(b'{"inputs": [' + b"[]," * 1_000_000 + b"[]]}"),
    "50,000 rows": http(b'{"inputs": [' + b"[0,0,0]," * 50_000 + b"[0,0,0]]}"),
    "unknown input": instances('[{"image": [0,0,0]}]'),
    "long name": instances('[{"' + "x" * 100_000 + '": [0,0,0]}]'),
    "surrogate": http(b'{"signature_name": "\\ud800", "instances": [[0,0,0]]}'),
    "signature of a list": http(b'{"signature_name": [], "instances": [[0,0,0]]}'),
    "unknown signature": http(b'{"signature_name": "__saved_model_init_op", "instances": [[0,0,0]]}'),
    "gzip": http(b"\x1f\x8b" + b"\0" * 100, headers="Content-Encoding: gzip\r\n"),
    "unknown encoding": http(GOOD, headers="Content-Encoding: zstd\r\n"),
    "other model": http(GOOD, "/v1/models/other:predict"),
    "version 7": http(GOOD, "/v1/models/policy/versions/7:predict"),
    "version beyond int64": http(GOOD, f"/v1/models/policy/versions/{'9' * 30}:predict"),
    "version of other digits": http(GOOD, "/v1/models/policy/versions/%D9%A1:predict"),
    "version 0": http(GOOD, "/v1/models/policy/versions/0:predict"),
    "path not UTF-8": http(GOOD, "/v1/models/%ff%fe:predict"),
    "path with ..": http(GOOD, "/v1/models/../../etc/passwd"),
    "path with a newline": http(GOOD, "/v1/models/%0a%0d:predict"),
    "long path": http(GOOD, "/" + "x" * 100_000),
    "method": http(GOOD, method="DELETE"),
    "made-up method": http(GOOD, method="FETCH"),
    "method of bytes": b"\xff\xfe / HTTP/1.1\r\n\r\n",
    "HTTP/9": b"POST / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "long header": http(GOOD, headers=f"X: {'y' * 100_000}\r\n"),
    "many headers": http(GOOD, headers="X: y\r\n" * 5000),
    "header without colon": http(GOOD, headers="nothing\r\n"),
    "negative length": http(GOOD, length=-5),
    "length of letters": f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n".encode() + GOOD,
    "two lengths": http(GOOD, headers="Content-Length: 3\r\n"),
    "length and chunks": http(GOOD, headers="Transfer-Encoding: chunked\r\n"),
    "length that is too long": http(b"", length=1 << 40, headers="Expect: never\r\n"),
    "chunk of letters": chunked(b"zz\r\nabc\r\n"),
    "chunk of negative size": chunked(b"-5\r\nabc\r\n"),
    "chunk of another size": chunked(b"2\r\nabcdef\r\n0\r\n\r\n"),
    "40 MiB": http(b" " * (40 << 20)),
}  # fmt: skip

BROKEN_OFF = {"length that is too long"}


def proto(change: Callable[[predict_pb2.PredictRequest], object] = lambda request: None) -> bytes:
    """A good gRPC request, changed."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "policy"
    request.inputs["observation"].CopyFrom(tf.make_tensor_proto(np.float32([OBS])))
    change(request)
    return request.SerializeToString()


def tensor(dtype: int = 1, shape: tuple[int, ...] = (1, 3), name: str = "observation", **fields) -> bytes:
    """A gRPC request with a tensor of these fields."""

    def change(request):
        found = request.inputs[name]
        found.Clear()
        found.dtype = dtype
        for size in shape:
            found.tensor_shape.dim.add(size=size)
        for field, value in fields.items():
            setattr(found, field, value) if isinstance(value, bytes | bool) else getattr(found, field).extend(value)

    return proto(change)


def on_spec(field: str, value) -> bytes:
    """A gRPC request with another field of its model_spec."""
    return proto(lambda request: setattr(request.model_spec, field, value))


RPC = {
    "no message": b"\xff\xff\xff\xff",
    "empty": b"",
    "broken off": proto()[:-3],
    "2,000,000 rows of one value": tensor(shape=(2_000_000, 3), float_val=[0.5]),
    "shape that overflows": tensor(shape=(2**62, 2**62), float_val=[0.5]),
    "negative shape": tensor(shape=(-1, 3), float_val=[0.5]),
    "two negative sizes": tensor(shape=(-1, -3), float_val=[0.5]),
    "zero rows": tensor(shape=(0, 3)),
    "3,000 axes": tensor(shape=(1,) * 3000, float_val=[0.5]),
    "no shape": tensor(shape=(), float_val=[0.5]),
    **{
        f"type {number}": tensor(number, float_val=[0.5] * 3)
        for number in (0, 2, 3, 7, 9, 10, 14, 19, 20, 21, 23, 99, 101, 120, -1, 2**31 - 1)
    },
    "strings": tensor(7, string_val=[b"a", b"b", b"c"]),
    "content too short": tensor(tensor_content=b"\0" * 11),
    "content too long": tensor(tensor_content=b"\0" * 4000),
    "too many values": tensor(float_val=[0.5] * 100),
    "values of another kind": tensor(int_val=[1, 2, 3]),
    "no values": tensor(),
    "no input": proto(lambda request: request.inputs.clear()),
    "unknown input": tensor(name="image", float_val=[0.5]),
    "unknown output": proto(lambda request: request.output_filter.append("nothing")),
    "signature": on_spec("signature_name", "mode"),
    "initialisation": on_spec("signature_name", "__saved_model_init_op"),
    "model": on_spec("name", "other"),
    "label": on_spec("version_label", "stable"),
    "version": proto(lambda request: setattr(request.model_spec.version, "value", 7)),
    "negative version": proto(lambda request: setattr(request.model_spec.version, "value", -7)),
    "greatest version": proto(lambda request: setattr(request.model_spec.version, "value", 2**63 - 1)),
}


class Server:
    """A server in a process of its own, to be asked.

    Args:
      process: that runs trpo_tf.serve. rest, rpc: its ports.
    """

    def __init__(self, process, rest: int, rpc: int):
        self.process, self.rest = process, rest
        self._channel = grpc.insecure_channel(f"127.0.0.1:{rpc}", [("grpc.max_send_message_length", -1)])
        self._ask = self._channel.unary_unary(METHOD)

    def over_rest(self, request: bytes) -> str:
        """The status of the answer to bytes on the wire.

        What is no whole request has no answer: when the client ends its side, the server has to end the connection,
        `closed`. `late` where it does not.
        """
        answer = b""
        with socket.create_connection(("127.0.0.1", self.rest), SECONDS) as connection:
            with contextlib.suppress(OSError):  # the server may end the connection before it has read everything
                connection.sendall(request)
            for end in (lambda: connection.shutdown(socket.SHUT_WR), None):
                deadline = time.monotonic() + SECONDS
                try:
                    while not _whole(answer):
                        connection.settimeout(max(0.01, deadline - time.monotonic()))
                        if not (part := connection.recv(1 << 16)):
                            return _outcome(answer)
                        answer += part
                    return _outcome(answer)
                except TimeoutError:
                    if end is None:
                        return "late"
                    end()
                except OSError:
                    return _outcome(answer)
        raise AssertionError

    def over_grpc(self, request: bytes) -> str:
        """The name of the status of the answer, or `late`."""
        try:
            self._ask(request, timeout=SECONDS)
        except grpc.RpcError as error:
            name = error.code().name
            return "late" if name == "DEADLINE_EXCEEDED" else name
        return "OK"

    def good_answers(self) -> tuple[str, bytes]:
        """What good requests get, over REST and gRPC."""
        with socket.create_connection(("127.0.0.1", self.rest), 10) as connection:
            connection.sendall(http(GOOD))
            answer = b""
            while not _whole(answer):
                answer += connection.recv(1 << 16) or b"\r\n\r\n"
        response = predict_pb2.PredictResponse.FromString(self._ask(proto(), timeout=10))
        return answer.partition(b"\r\n\r\n")[2].decode(), response.outputs["value"].SerializeToString()

    def resident(self, line: str = "VmRSS") -> int:
        """Bytes of the server's memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(text.partition(f"{line}:")[2].split()[0])


def _whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(end) and len(body) >= (int(length[0]) if length else 0)


def _outcome(answer: bytes) -> str:
    """The status, `closed` where there is none; an error has to be one line of JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        return "closed"
    status = words[1].decode()
    if status >= "400":
        try:
            whole = len(json.loads(body)["error"].splitlines()) == 1
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        return status if whole else f"{status} without a reason"
    return status


def mutated(random_: random.Random, message: bytes) -> bytes:
    """A message with some bytes changed, removed, repeated or put in."""
    data = bytearray(message)
    for _ in range(random_.randint(1, 4)):
        at, length = random_.randrange(len(data)), random_.choice([1, 1, 2, 8])
        kind = random_.randrange(4)
        if kind == 0:
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 1 and len(data) > length + 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * random_.choice([1, 50])
        else:
            data[at:at] = random_.randbytes(length)
    return bytes(data)


def requests(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Interface, name and bytes of so many requests: the crafted ones, and then mutated good ones."""
    random_, made = random.Random(seed), 0
    for interface, crafted in (("REST", REST), ("gRPC", RPC)):
        for name, message in crafted.items():
            if made < count:
                yield interface, name, message
            made += 1
    while made < count:
        body = mutated(random_, GOOD)
        kinds = [("REST", http(body)), ("REST", mutated(random_, http(GOOD))), ("gRPC", mutated(random_, proto()))]
        interface, message = kinds[made % 3]
        yield interface, f"mutated {made}", message
        made += 1


def failed(interface: str, outcome: str) -> bool:
    """Whether an outcome is none that a request may have."""
    if interface == "REST":
        return outcome == "late" or "without" in outcome or outcome[0] == "5"
    return outcome in ("late", "UNKNOWN", "INTERNAL", "UNAVAILABLE")


def campaign(server: Server, asked: Iterator[tuple[str, str, bytes]]) -> tuple[collections.Counter, list[str]]:
    """Sends the requests; the counts of outcomes, and what was wrong."""
    counts: collections.Counter = collections.Counter()
    wrong: list[str] = []
    expected = server.good_answers()
    before = server.resident()
    for number, (interface, name, message) in enumerate(asked):
        outcome = server.over_rest(message) if interface == "REST" else server.over_grpc(message)
        counts[f"{interface} {outcome}"] += 1
        if failed(interface, outcome) or (outcome == "closed" and name in REST and name not in BROKEN_OFF):
            wrong.append(f"{interface} {name}: {outcome}")
        if number % EVERY == EVERY - 1 and server.good_answers() != expected:
            wrong.append(f"another answer to a good request after {name}")
    if server.good_answers() != expected:
        wrong.append("another answer to a good request at the end")
    grown = server.resident() - before
    if grown > MOST_GROWTH:
        wrong.append(f"resident memory grew by {grown >> 20} MiB")
    return counts, wrong


@contextlib.contextmanager
def serving(base: Path) -> Iterator[Server]:
    """A server of a directory of versions, at free ports."""
    command = [sys.executable, "-m", "trpo_tf.serve", f"--model_dir={base}", "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = ""
        while not line.startswith("REST "):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start")
        rest, rpc = (
            int(word.rpartition(":")[2].partition("/")[0]) for word in (line.split("/v1")[0], line.split()[-1])
        )
        process.stdout.readline()
        yield Server(process, rest, rpc)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def export(base: Path) -> None:
    """A version of an untrained policy."""
    import trpo_tf

    agent = trpo_tf.TRPO("Pendulum-v1", num_envs=1, steps_per_update=64, hidden_sizes=(8,))
    agent.export(base)
    agent.close()


def main(argv):
    """Prints counts and what was wrong; returns the exit status."""
    del argv
    with tempfile.TemporaryDirectory() as directory:
        export(Path(directory))
        with serving(Path(directory)) as server:
            before, start = server.resident(), time.monotonic()
            counts, wrong = campaign(server, requests(FLAGS.requests, FLAGS.seed))
            for outcome, count in sorted(counts.items()):
                print(f"{count:5}  {outcome}")
            print(f"{sum(counts.values())} requests in {time.monotonic() - start:.0f} s; resident memory ", end="")
            print(
                f"{before >> 20} MiB before, {server.resident() >> 20} after, {server.resident('VmHWM') >> 20} at most"
            )
    for line in wrong:
        print(f"FAILED {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    flags.DEFINE_integer("requests", 500, "malformed requests", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the mutated ones")
    app.run(main)
