"""Which Ray workers run on, whom it lets in, and what a process has after it."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.workers import ray_access, ray_cluster, ray_fleet
from trpo_tf.rollout.workers.fleet import Death
from trpo_tf.rollout.workers.ray_fleet import RayFleet, _said

ray = pytest.importorskip("ray")
ROOT = Path(__file__).parents[3]


# Without a Ray.


@pytest.mark.parametrize(
    ("lets_in", "insecure", "mode"),
    [
        (("disabled", "token"), True, "disabled"),
        (("disabled", "token"), False, "asks nobody for a token"),
        (("token",), False, "token"),
        (("token",), True, "token"),
        ((), True, "another token"),
    ],
)
def test_a_cluster_is_joined_with_a_token_or_where_the_user_says_without(monkeypatch, lets_in, insecure, mode):
    """Whatever its address: Ray at 127.0.0.1 listens on all others, too."""
    with _listener() as address:
        monkeypatch.setattr(ray_access, "_lets_in", lambda flag, address, mode: mode in lets_in)
        config = WorkersConfig(workers=1, ray_address=address, allow_insecure_ray=insecure)
        if mode in ("disabled", "token"):
            assert ray_access.auth_mode(config, address) == mode
            return
        with pytest.raises(UsageError, match=mode):
            ray_access.auth_mode(config, address)


@contextlib.contextmanager
def _listener():
    """The address of something that answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_nothing_answers_is_a_line(monkeypatch):
    with _listener() as address:
        monkeypatch.setattr(ray_access, "_PROBING", 2)
        with pytest.raises(UsageError, match="no Ray cluster answers there within 2 seconds"):
            ray_access.auth_mode(WorkersConfig(workers=1, ray_address=address), address)
    for nothing in (address, "127.0.0.1:port"):
        with pytest.raises(UsageError, match=f"^ray_address={nothing}: nothing answers at {nothing} ") as caught:
            ray_access.auth_mode(WorkersConfig(workers=1, ray_address=nothing), nothing)
        assert "\n" not in str(caught.value)


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("TRPO_A", "a")
    monkeypatch.delenv("TRPO_B", raising=False)
    with ray_cluster._environment({"TRPO_A": None, "TRPO_B": "b"}):
        assert "TRPO_A" not in os.environ
        assert os.environ["TRPO_B"] == "b"
    assert os.environ["TRPO_A"] == "a"
    assert "TRPO_B" not in os.environ


def test_a_fork_leaves_the_directory_to_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster.RayCluster, "_current", None)
    monkeypatch.setattr(ray_cluster.RayCluster, "_directory", str(tmp_path))
    ray_cluster._end(os.getpid() + 1)
    assert tmp_path.exists()
    ray_cluster._end(os.getpid())
    assert not tmp_path.exists()


def test_ray_goes_once_no_thread_calls_it_and_none_calls_it_again(monkeypatch):
    """Ray ends the process with a failure where a call is overtaken by its end."""
    in_call, done = threading.Event(), []
    context = types.SimpleNamespace(gcs_address="host:1", get_job_id=lambda: "1")
    module = types.SimpleNamespace(
        shutdown=lambda: done.append("shutdown"), is_initialized=lambda: True, get_runtime_context=lambda: context
    )
    held = ray_cluster._Held(module, ("host:1", "1"), True, False, contextlib.ExitStack())
    monkeypatch.setattr(ray_cluster.RayCluster, "_current", held)
    monkeypatch.setattr(ray_cluster.RayCluster, "_directory", "")
    cluster = types.SimpleNamespace(calls=threading.RLock())
    held.users.append(cluster)

    def calls_ray():
        lives = True
        while lives:
            with cluster.calls:
                in_call.set()
                time.sleep(0.1)
                done.append("call")
                lives = held.lives()

    thread = threading.Thread(target=calls_ray, daemon=True)
    thread.start()
    in_call.wait()
    ray_cluster._end(os.getpid())
    assert done[-2:] == ["call", "shutdown"]
    thread.join(2)
    assert not thread.is_alive(), "else whoever joins it, in an exit handler, waits for ever"
    assert done.count("call") == len(done) - 1
    assert done.index("shutdown") >= len(done) - 2, "at most the call that finds out follows"


def test_a_handler_that_python_did_not_install_stays(monkeypatch):
    installed = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append((number, handler)))
    with ray_cluster._quiet_signals():
        assert installed == []
    assert installed == [(signal.SIGINT, signal.SIG_DFL)]


def test_a_ray_without_a_name_that_is_needed_is_a_line():
    other = types.SimpleNamespace(__version__="9.0", _private=types.SimpleNamespace())
    with (
        pytest.raises(UsageError, match=r"Ray 9\.0 is not supported \(.*'auto_init_hook'.*pip install 'ray>="),
        ray_cluster._named(other, WorkersConfig(workers=1)),
    ):
        ray_cluster._no_other(other)


def test_what_a_worker_raised_is_said_rather_than_the_call():
    error = ray.exceptions.RayTaskError("answer", "Traceback", ValueError("the cause\nof it"))
    assert _said(error.as_instanceof_cause()) == "ValueError: the cause"
    text = "The actor died because of an error raised in its creation task, ray::Worker\n  line\nImportError: no gym\n"
    assert _said(RuntimeError(text)) == "ImportError: no gym"
    assert _said(RuntimeError()) == "RuntimeError"


class Double:
    """A cluster without Ray, whose calls fail where `fails` names them."""

    def __init__(self, local=True):
        self.local, self.alive, self.closed, self.fails, self.options = local, True, 0, set(), {}
        self.calls = threading.RLock()
        self.ray = types.SimpleNamespace(
            remote=self._remote, put=self._done("put"), wait=self._done("wait"), kill=self._done("kill")
        )

    def _remote(self, **options):
        self.options = options
        self._done("remote")()
        handle = types.SimpleNamespace(answer=types.SimpleNamespace(remote=self._done("send")))
        return lambda cls: types.SimpleNamespace(remote=lambda *args: self._done("start")() and handle)

    def _done(self, name):
        def call(*args, **options):
            if name in self.fails:
                raise RuntimeError(f"{name} failed")
            return name

        return call

    def lives(self):
        return self.alive

    def close(self):
        self.closed += 1


@pytest.fixture
def double(monkeypatch):
    """Makes a fleet on a double."""

    def make(*fails, local=True, **changes):
        cluster = Double(local)
        cluster.fails |= set(fails)
        monkeypatch.setattr(ray_fleet, "RayCluster", lambda config, store: made.append(cluster) or cluster)
        return RayFleet(WorkersConfig(workers=1, **changes), None, 0), cluster

    made = make.made = []
    return make


@pytest.mark.parametrize(("call", "error"), [("remote", RuntimeError), ("put", UsageError)])
def test_a_fleet_that_cannot_be_made_leaves_ray(double, call, error):
    with pytest.raises(error, match=f"{call} failed"):
        double(call)
    assert double.made[-1].closed == 1


@pytest.mark.parametrize(("local", "cpus"), [(True, 0), (False, 3)])
def test_workers_take_cores_of_a_ray_that_others_use(double, local, cpus):
    _, cluster = double(local=local, worker_cpus=3)
    assert cluster.options["num_cpus"] == cpus


@pytest.mark.parametrize("call", ["start", "send"])
def test_a_worker_that_cannot_be_asked_is_dead(double, call):
    fleet, cluster = double()
    cluster.fails.add(call)
    fleet.start(0, 7)
    assert fleet.wait(0) == [Death(0, 7, f"a rollout worker cannot be asked: {call} failed")]
    assert fleet.wait(0) == []
    fleet.close()
    assert cluster.closed == 1


def test_a_ray_that_fails_or_has_ended_is_a_line(double):
    fleet, cluster = double()
    fleet.start(0, 0)
    cluster.fails |= {"wait", "put"}
    for call in (lambda: fleet.wait(0), lambda: fleet.share(1)):
        with pytest.raises(EnvironmentFailure, match=r"Ray failed .*: (wait|put) failed"):
            call()
    cluster.alive = False
    fleet.start(0, 1)
    for call in (lambda: fleet.wait(0), lambda: fleet.share(1)):
        with pytest.raises(EnvironmentFailure, match="Ray was shut down"):
            call()
    fleet.close()
    assert cluster.closed == 1


# With one, in a process each.


def with_ray(test):
    """A test that begins processes of Ray."""
    return pytest.mark.slow(pytest.mark.xdist_group("ray")(test))


HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
HELPERS = """
import json, os, sys, types
from trpo_tf.config import WorkersConfig
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.workers.ray_cluster import RayCluster
from trpo_tf.rollout.workers.ray_fleet import RayFleet

def said(kind, call, *args, **options):
    try:
        call(*args, **options)
    except kind as error:
        assert chr(10) not in str(error)
        return str(error)
    return "nothing"

def cluster(**changes):
    return RayCluster(WorkersConfig(workers=1, **changes), 0)

def fleet(**changes):
    made = RayFleet(WorkersConfig(workers=1, **changes), types.SimpleNamespace(registered=None, make_actor=int), 0)
    made.start(0, 0)
    while not (found := made.wait(1)):
        pass
    assert found[0].reply.trouble is None, found
    return made

def auth():
    return {name: value for name, value in os.environ.items() if name[:4] == "RAY_" and name != "RAY_CLIENT_MODE"}
"""


@pytest.fixture(scope="module")
def home():
    """A short directory, and the environment of a user whose home it is."""
    with tempfile.TemporaryDirectory(prefix="trpo-") as directory:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mine = {"HOME": directory, "RAY_TMPDIR": directory, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        yield Path(directory), clean | mine | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def head(home):
    """Begins the head of a cluster with these settings; its address."""
    with contextlib.ExitStack() as stack:

        def begin(**auth):
            command, pipe = [sys.executable, "-c", HEAD], subprocess.PIPE
            process = subprocess.Popen(command, env=home[1] | auth, stdin=pipe, stdout=pipe, text=True)
            stack.callback(process.wait, 30)
            stack.callback(process.stdin.close)
            return process.stdout.readline().strip()

        yield begin


def told(home, program, *args, **settings):
    """What a program prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", HELPERS + program, *args],
        env=home[1] | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@with_ray
def test_a_cluster_without_a_token_is_refused_unless_the_user_allows_it(home, head):
    address = head(RAY_AUTH_MODE="disabled")
    program = """
address, token = sys.argv[1:]
refused = said(UsageError, cluster, ray_address=address)
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}  # that the user has one says nothing of the cluster
again = said(UsageError, cluster, ray_address=address)
made = cluster(ray_address=address, allow_insecure_ray=True)
mode = os.environ["RAY_AUTH_MODE"]
nodes = len(made.ray.nodes())
other = said(UsageError, cluster, ray_address="127.0.0.1:1")
here = said(UsageError, cluster)
twice = cluster(ray_address=address)
made.close()
still = made.ray.is_initialized() and twice.lives() and not twice.local
twice.close()
print(json.dumps([refused, again, mode, nodes, other, here, still, made.ray.is_initialized(), auth()]))
"""
    refused, again, mode, nodes, other, here, still, after, left = told(home, program, address, secrets.token_hex(32))
    assert refused == again
    assert refused.startswith(
        f"ray_address={address}: the cluster asks nobody for a token; begin it with RAY_AUTH_MODE"
    )
    assert (mode, nodes, still, after) == ("disabled", 1, True, False)
    assert other == f"ray_address=127.0.0.1:1: this process uses the Ray at {address} already; close what uses it first"
    assert here.startswith("ray_address=(none): this process uses the Ray at")
    assert left["RAY_AUTH_MODE"] == "token"


@with_ray
def test_a_cluster_with_a_token_is_joined_with_the_same_token_only(home, head):
    token = secrets.token_hex(32)
    address = head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    program = """
address, token = sys.argv[1:]
first = cluster()
first.close()
missing = said(UsageError, cluster, ray_address=address)
os.environ["RAY_AUTH_TOKEN"] = token[::-1]
wrong = said(UsageError, cluster, ray_address=address, allow_insecure_ray=True)
os.environ["RAY_AUTH_TOKEN"] = token
made = cluster(ray_address=address)
nodes = len(made.ray.nodes())
made.close()
local = cluster()
print(json.dumps([missing, wrong, nodes, local.local, local.ray.get_runtime_context().gcs_address]))
local.close()
"""
    missing, wrong, nodes, local, here = told(home, program, address, token)
    assert missing == wrong
    assert missing.startswith(f"ray_address={address}: the cluster has another token than this host")
    assert (nodes, local) == (1, True)
    assert here != address


@with_ray
def test_a_ray_that_the_user_began_is_used_and_stays(home):
    program = """
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**27)
address, before = ray.get_runtime_context().gcs_address, auth()
used = fleet()
same = cluster(ray_address=address)
other = said(UsageError, cluster, ray_address="127.0.0.1:1")
kept = auth() == before
taken = ray.available_resources()["CPU"]
same.close()
used.close()
works = ray.get(ray.put(3))
print(json.dumps([kept, taken, same.local, other, address, works, before == auth()]))
"""
    kept, taken, local, other, address, works, after = told(home, program)
    assert other == f"ray_address=127.0.0.1:1: this process uses the Ray at {address} already; close what uses it first"
    assert (kept, local, works, after) == (True, False, 3, True)
    assert taken == 1, "a worker takes worker_cpus of it"


@with_ray
def test_after_ours_the_user_has_what_he_would_have_without(home):
    """His token, his environment, a Ray for clusters, and one that calls begin by themselves."""
    program = """
before = auth()
used = fleet()
during = auth()
used.close()
after = auth()
import ray
constants = ray._private.ray_constants.ENABLE_RAY_CLUSTER, ray._private.auto_init_hook.enable_auto_connect
token = ray._raylet.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=2**27)
one = ray.get(ray.remote(lambda: 1).remote())
print(json.dumps([before == after, during == after, constants, token, one]))
"""
    token = secrets.token_hex(32)
    same, during, constants, seen, one = told(
        home, program, RAY_AUTH_TOKEN=token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="1"
    )
    assert (same, during, constants, seen, one) == (True, False, [True, True], token, 1)


@with_ray
def test_a_ray_that_the_user_ended_is_a_line_and_the_next_one_is_begun_anew(home):
    """He imported Ray before: no call begins another one."""
    program = """
import ray
used = fleet()
ray.shutdown()
line = said(EnvironmentFailure, used.wait, 0)
begins = said(Exception, used._ray.put, 1) != "nothing", ray.is_initialized()
again = fleet()
used.close()
lives = again._cluster.lives(), again._cluster.local
again.close()
print(json.dumps([line, begins, lives, ray.is_initialized(), auth()]))
"""
    line, (refused, begun), lives, left, after = told(home, program)
    assert line.startswith("Ray was shut down while rollout workers were needed")
    assert (refused, begun, lives, left) == (True, False, [True, True], False)
    assert not [name for name in after if name.startswith("RAY_AUTH")]
