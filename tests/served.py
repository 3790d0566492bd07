"""Exported policies and servers of them, shared by the tests of a process."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from export import client
from tests import exports
from trpo_tf.config import ServeConfig
from trpo_tf.serving.server.serve import running

BINARY = "tensorflow_model_server"
ROWS = 1000
OBS = [0.1, 0.2, 0.3]  # an observation of the policy of `base`
_MADE = {}


def made(case, tmp_path_factory):
    """A case of exports.py with many observations, made once in a process. Tests leave it as it is."""
    if case not in _MADE:
        rows = ROWS // 10 if case == "pixels" else ROWS  # images are long as JSON
        _MADE[case] = exports.make(case, tmp_path_factory.mktemp(case), rows)
    return _MADE[case]


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=() if name in exports.FAST else pytest.mark.slow) for name in exports.CASES],
)
def exported(request, tmp_path_factory):
    """Each case: a policy with random weights, observations with states by name, its SavedModel."""
    return made(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The directory of one version of a Gaussian policy."""
    return made("gaussian", tmp_path_factory).path.parent


def serving(base, **settings):
    """Our server on a directory of versions, at free ports."""
    return running(ServeConfig(model_dir=base, rest_port=0, grpc_port=0, poll_seconds=0.1, **settings))


@contextlib.contextmanager
def tf_serving(base):
    """TF Serving on a directory of versions; yields its addresses."""
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
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Address(NamedTuple):
    """The ports of a server of `base`, and whether it is ours, whose messages are known."""

    rest: int
    grpc: int
    ours: bool = True

    def url(self, scheme):
        """For the client; scheme: http or grpc."""
        return f"{scheme}://127.0.0.1:{self.rest if scheme == 'http' else self.grpc}"


@pytest.fixture(scope="session", params=["local", BINARY])
def address(base, request):
    """Our server of `base`, and TF Serving where it is installed."""
    if request.param == BINARY:
        if not shutil.which(BINARY):
            pytest.skip(f"no {BINARY} on the PATH")
        with tf_serving(base) as urls:
            yield Address(*(int(url.rpartition(":")[2]) for url in urls.values()), False)
    else:
        with serving(base) as (_, rest_port, grpc_port):
            yield Address(rest_port, grpc_port)


def post(port, body, path="/v1/models/policy:predict"):
    """Status and JSON of a REST answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body)
    response = connection.getresponse()
    status, text = response.status, response.read()
    connection.close()
    return status, json.loads(text)


def ask(policy, exported, signature, inputs):
    """predict(obs, signature, **others) of a LoadedPolicy or a client, from all inputs of a signature by name."""
    if signature == "initial_state":
        return policy.predict({"batch": inputs["batch"]}, signature)
    names = exported.policy.encoder.leaves
    obs, others = ({k: v for k, v in inputs.items() if (k in names) == wanted} for wanted in (True, False))
    return policy.predict(obs, signature, **others)


def split(exported, given):
    """Observations, and the recurrent states as keyword arguments."""
    states = exported.policy.states
    return tuple({k: v for k, v in given.items() if (k in states) == wanted} for wanted in (False, True))


def assert_close(ours, theirs, **how):
    """Equal nested arrays up to rounding."""
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, **how), ours, theirs)
