"""Workers on Ray itself: what is killed, stopped, or hangs, and what is left of it."""

import contextlib
import functools
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY
from tests.rollout.helpers import NEEDS_ENVPOOL
from tests.rollout.workers.odd_envs import Fatal, Masked, Numbered, Pixels, Threaded
from trpo_tf.config import make_config
from trpo_tf.errors import EnvironmentFailure, UsageError
from trpo_tf.rollout.environments import Environments
from trpo_tf.rollout.workers.ray_cluster import RayCluster
from trpo_tf.session import Session
from trpo_tf.state import part

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def make():
    """Makes sessions with workers on Ray, of four environments each time, and closes them."""
    made = []

    def go(function=None, **changes):
        config = make_config(**(TINY | ({"env": "given"} if function else {}) | changes))
        made.append(Session(config, Environments(config.environment, function)))
        made[-1].total_steps = 10**7
        return made[-1]

    yield go
    for session in made:
        session.close()


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray is begun once for all sessions of this file."""
    from trpo_tf.config import WorkersConfig

    cluster = RayCluster(WorkersConfig(workers=8), 2**26)
    yield cluster
    cluster.close()


def crew_of(session):
    source = getattr(session.source, "_source", session.source)
    return source._crew if hasattr(source, "_crew") else source._collector._stepper._crew


def pids(session):
    """Of the workers that have begun."""
    workers = list(crew_of(session)._fleet._workers.values())
    return [where["pid"] for _, _, where in workers if where]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def below(pid):
    """Names of the processes below a process, by number."""
    above, names = {}, {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit():
                name, rest = (process / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
                above[int(process.name)], names[int(process.name)] = int(rest.split()[1]), name
    found = {pid}
    while new := {child for child, parent in above.items() if parent in found} - found:
        found |= new
    return {child: names[child] for child in found - {pid}}


def workers_of(pid):
    """Processes of workers below a process."""
    return [child for child, name in below(pid).items() if name.startswith("ray::Worker")]


class Killer(threading.Thread):
    """Kills a worker now and then, in a fragment that is not its first one, until it is stopped."""

    def __init__(self, session, count, every, seed=0):
        super().__init__(daemon=True)
        self.session, self.count, self.every = session, count, every
        self.rng, self.killed, self.over = np.random.default_rng(seed), set(), threading.Event()

    def run(self):
        crew = crew_of(self.session)
        while len(self.killed) < self.count and not self.over.wait(self.every * 2 * self.rng.random()):
            slot = self.rng.integers(len(crew._slots))
            if crew._slots[slot].state == "busy" and not crew._slots[slot].fruitless:
                with contextlib.suppress(KeyError, ProcessLookupError):  # it is replaced just now
                    pid = crew._fleet._workers[slot][2]["pid"]
                    os.kill(pid, signal.SIGKILL)
                    self.killed.add(pid)


SYNCHRONOUS = {
    "cartpole": ({}, 2),
    "half_cheetah": pytest.param(
        ({"env": "HalfCheetah-v5", "num_envs": 8, "steps_per_update": 256}, 4), marks=NEEDS_ENVPOOL
    ),
    "pipeline": ({"pipeline": True}, 4),
}


def kill_in_a_fragment(session, slot):
    """The slot's worker is killed while it steps the environments."""
    fleet = crew_of(session)._fleet
    sent = fleet.send

    def send(index, ticket, method, *args):
        sent(index, ticket, method, *args)
        if index != slot or method != "step":
            return
        [call] = [call for call, about in fleet._calls.items() if about[0] == slot]
        pid = fleet._workers[slot][2]["pid"]
        time.sleep(0.002)
        os.kill(pid, signal.SIGSTOP)
        if ray.wait([call], timeout=0.1)[0]:  # it has answered already: the next time
            os.kill(pid, signal.SIGCONT)
            return
        os.kill(pid, signal.SIGKILL)
        fleet.send = sent

    fleet.send = send


@pytest.mark.parametrize("case", SYNCHRONOUS.values(), ids=SYNCHRONOUS)
def test_synchronous_workers_are_one_process_to_the_bit_with_two_kills_over_a_boundary(eagerly, make, case):
    settings, workers = case
    local = make(**settings)
    for _ in range(7):
        local.step()
    session = make(workers=workers, workers_mode="synchronous", **settings)
    for update in range(7):
        if update in (1, 4):
            kill_in_a_fragment(session, update % workers)
        session.step()
    theirs, ours = local.checkpoint().arrays, session.checkpoint().arrays
    assert [name for name in theirs if theirs[name].tobytes() != ours[name].tobytes()] == []
    assert crew_of(session).deaths == 2


def test_after_twenty_kills_no_transition_is_learned_twice_and_none_is_missing_within_a_worker(make):
    session = make(functools.partial(Numbered, 0.001), workers=4, num_envs=8, steps_per_update=128)
    seen = []
    session.start()
    taken = session.source.next
    session.source.next = lambda: seen.append(taken()) or seen[-1]
    session.step()
    killer = Killer(session, 20, 0.35)
    killer.start()
    while killer.is_alive() or crew_of(session).deaths < 20:
        session.step()
    row = session.step()
    ledger = session.source.ledger
    trajectories = [rollout.trajectory for rollout in seen]
    obs = np.concatenate([x.obs["observation"][:-1].reshape(-1, 3) for x in trajectories])
    ids = [tuple(x) for x in obs[:, :2].astype(int)]
    assert len(set(ids)) == len(ids) == session.env_steps == ledger.steps
    by_seed = {seed: sorted(n for _, n in of) for seed, of in itertools.groupby(sorted(ids), key=lambda x: x[0])}
    assert all(numbers == list(range(len(numbers))) for numbers in by_seed.values()), "a hole, or a seed used twice"
    assert len(by_seed) > 8 + 15
    assert row["workers/deaths"] == 20
    assert row["workers/lost_fragments"] <= row["workers/deaths"]


def test_a_worker_that_is_stopped_is_replaced_and_what_it_gives_later_is_not_taken(eagerly, make):
    session = make(functools.partial(Numbered, 0.001), workers=2, fragment_timeout=2)
    session.step()
    wait_for(lambda: len(pids(session)) == 2)
    stopped = pids(session)[0]
    os.kill(stopped, signal.SIGSTOP)
    while crew_of(session).deaths == 0:
        row = session.step()
    while crew_of(session).alive < 2:
        row = session.step()
    wait_for(lambda: not Path(f"/proc/{stopped}").exists())
    assert row["workers/lost_fragments"] == 1
    assert stopped not in pids(session)
    session.source.ledger.check(session.env_steps)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "the licence server is gone.*max_env_restarts=0"),
        ("exit", "a rollout worker is gone.*3 workers in a row"),
        ("hang", "no answer within fragment_timeout=1 seconds.*3 workers in a row"),
    ],
)
def test_an_environment_that_cannot_work_in_workers_ends_the_run_in_bounded_starts(make, how, message, tmp_path):
    env = functools.partial(Fatal, how, os.getpid())
    session = make(env, workers=1, max_env_restarts=0, fragment_timeout=1 if how == "hang" else 30)
    with pytest.raises(EnvironmentFailure, match=message):
        session.step()
    assert session.source._totals["serial"] <= 4
    assert session.checkpoint().meta["update"] == 0


def test_with_a_slow_learner_staleness_fragments_that_wait_and_objects_of_ray_are_bounded(make, monkeypatch):
    before = objects_of_ray()
    session = make(Numbered, workers=4)
    session.step()
    update = session.learner.update
    monkeypatch.setattr(session.learner, "update", lambda *args: time.sleep(0.2) or update(*args))
    rows = [session.step() for _ in range(12)]
    assert max(row["stale/max_staleness"] for row in rows) <= 3
    assert session.source.ledger.waiting <= 2 * 4
    wait_for(lambda: objects_of_ray() - before < 8)  # of 13 versions of the weights


def objects_of_ray():
    """How many the store of this machine holds."""
    from ray._private.internal_api import node_stats

    [node] = ray.nodes()
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.num_local_objects


@pytest.mark.parametrize(
    ("env", "settings", "tensorflow"),
    [
        (Masked, {}, False),
        (Pixels, {"steps_per_update": 32, "chunk_size": 16}, True),
        (None, {"network": "gru", "sequence_length": 4}, True),
        (None, {"env_backend": "gymnasium", "wrappers": "FlattenObservation()"}, False),
        (None, {"env": "tests.rollout.workers.odd_envs:Numbered-v0", "allow_env_module": True}, False),
    ],
    ids=["masks", "pixels", "memory", "wrappers", "module"],
)
def test_what_workers_go_with(eagerly, make, env, settings, tensorflow):
    session = make(env, workers=2, **settings)
    for _ in range(3):
        row = session.step()
    assert np.isfinite(row["policy/kl"])
    assert row["workers/deaths"] == 0
    wait_for(lambda: len(pids(session)) == 2)
    where = [where for _, _, where in crew_of(session)._fleet._workers.values()]
    assert {x["tensorflow"] for x in where} == {tensorflow}


def test_agents_beside_each_other_have_workers_each_and_a_closed_one_begins_others(eagerly, make):
    """More workers than the Ray of this process was begun for."""
    first, second = make(workers=4), make(workers=4, seed=1)
    for session in (first, second):
        session.step()
    assert not set(pids(first)) & set(pids(second))
    deaths, before = crew_of(first).deaths, pids(first)
    first.close()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
    second.step()
    row = first.step()
    assert row["update"] == 2
    assert row["workers/deaths"] == deaths == 0
    assert first.source.ledger.steps == first.env_steps


def test_the_death_of_an_idle_worker_is_noticed(eagerly, make):
    """A whole batch waits, and nobody is asked for anything."""
    session = make(Numbered, workers=2)
    session.step()
    source = session.source
    wait_for(lambda: source.ledger.waiting == 2 and len(crew_of(session).ready()) == 2)
    for _ in range(3):
        deaths = crew_of(session).deaths
        os.kill(pids(session)[0], signal.SIGKILL)
        wait_for(lambda deaths=deaths: crew_of(session).deaths > deaths, 2.0)
        wait_for(lambda: len(crew_of(session).ready()) == 2)
    session.step()
    assert source.ledger.lost == 0


def test_what_a_stopped_worker_is_told_does_not_pile_up(eagerly, make):
    session = make(Numbered, workers=2)
    session.step()
    fleet, told = crew_of(session)._fleet, set()
    while 0 not in fleet._told:  # the other worker may have made the first batches by itself
        assert session.update < 100
        session.step()
    os.kill(pids(session)[0], signal.SIGSTOP)
    for version in range(10):
        session.source.publish(session.update + version, session.policy.get_weights())
        told.add(fleet._told[0])
        time.sleep(0.05)
    os.kill(pids(session)[0], signal.SIGCONT)
    assert len(told) <= 2
    session.step()
    assert session.step()["workers/deaths"] == 0


def test_weights_arrive_in_the_middle_of_fragments_and_each_environment_has_one_thread(eagerly, make):
    session = make(functools.partial(Threaded, 0.005), workers=2, steps_per_update=256)
    session.start()
    versions, threads = [], []
    for _ in range(4):
        session.source.publish(session.update, session.policy.get_weights())
        rollout = session.source.next()
        versions += [len(np.unique(column)) for column in rollout.version.T]
        assert (np.diff(rollout.version, axis=0) >= 0).all()
        assert (rollout.version <= session.update).all()
        threads.append(rollout.trajectory.obs["observation"][..., 2])
        session.step()
    assert max(versions) > 1
    assert len(np.unique(threads)) <= 2  # one thread in each worker


def test_synchronous_workers_step_environments_in_their_main_thread(eagerly, make):
    session = make(Threaded, workers=2, workers_mode="synchronous")
    session.start()
    session.source.publish(0, session.policy.get_weights())
    assert (session.source.next().trajectory.obs["observation"][..., 0] == 1).all()


def test_a_program_that_closes_nothing_ends(tmp_path):
    """And leaves no directory: the thread that sends workers out does not begin another Ray."""
    (tmp_path / "program.py").write_text(
        "import ray, trpo_tf\n"
        "agent = trpo_tf.TRPO('CartPole-v1', num_envs=4, steps_per_update=64, hidden_sizes=(8,), workers=2)\n"
        "agent.learn(100)\n"
        "from trpo_tf.rollout.workers.ray_cluster import RayCluster\n"
        "print(RayCluster._directory)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(done.stdout.split()[-1]).exists()


def test_an_exit_handler_of_before_may_close_an_agent(tmp_path):
    (tmp_path / "program.py").write_text(
        "import atexit, trpo_tf\n"
        "agents = []\n"
        "atexit.register(lambda: [agent.close() for agent in agents])\n"
        "agents.append(trpo_tf.TRPO('CartPole-v1', num_envs=4, steps_per_update=64, hidden_sizes=(8,), workers=2))\n"
        "agents[0].learn(100)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr


def test_an_environment_that_cannot_be_sent_is_a_line(make):
    lock = threading.Lock()
    session = make(lambda: Numbered(0.0 if lock else 1.0), workers=2)
    with pytest.raises(UsageError, match="cannot be sent to workers"):
        session.step()


def test_everything_listens_on_loopback_and_the_token_is_private(one_ray):
    """Of this process, and of all that it began."""
    directory = Path(RayCluster._directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "token").stat().st_mode) == 0o600
    addresses = [line.split()[1] for name in ("tcp", "tcp6") for line in _listening(name)]
    assert len(addresses) > 3
    for address in addresses:
        assert address.startswith(
            ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")
        )


def _listening(name):
    """Lines of /proc/net about listening sockets of this process and of all below it."""
    mine = set()
    for pid in (os.getpid(), *below(os.getpid())):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    mine.add(os.readlink(descriptor))
    for line in Path("/proc/net", name).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
            yield line


def test_who_has_no_token_is_refused(one_ray):
    address = one_ray.ray.get_runtime_context().gcs_address
    right = (Path(RayCluster._directory) / "token").read_text()
    assert joining(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=right) == "in"
    assert joining(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64) == "refused"
    assert joining(address, RAY_AUTH_MODE="disabled") == "refused"


def joining(address, **auth):
    """What a process says first that joins a Ray on loopback with these settings; refused, it would try on."""
    code = f"import ray; ray.init(address={address!r}, logging_level='ERROR'); print('in', flush=True)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | auth | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    limit = threading.Timer(60, process.kill)
    limit.start()
    try:
        for line in process.stdout:
            if line == "in\n" or "Unauthenticated" in line:
                return "in" if line == "in\n" else "refused"
    finally:
        limit.cancel()
        process.kill()
        process.wait()


COMMAND = [
    sys.executable, "-m", "trpo_tf.train", "--env=tests.rollout.workers.odd_envs:Numbered-v0", "--allow_env_module",
    "--workers=2", "--num_envs=4", "--steps_per_update=64", "--hidden_sizes=8", "--xla=off", "--checkpoint_every=2",
    "--eval_every=0", "--final_eval_episodes=0", "--notensorboard", "--noexport",
]  # fmt: skip


@pytest.fixture
def training(tmp_path):
    """A training command with workers, which has saved a checkpoint."""
    with contextlib.ExitStack() as stack:

        def go(*flags, saved=True):
            log = stack.enter_context(open(tmp_path / "log", "a+"))
            command = [*COMMAND, f"--run_dir={tmp_path / 'run'}", *flags]
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            checkpoints = tmp_path / "run" / "checkpoints"
            wait_for(lambda: not saved or len(list(checkpoints.glob("update_*"))) > 1, 60)
            return process

        yield go


def test_a_killed_learner_leaves_no_worker_and_its_run_goes_on(training, tmp_path):
    from trpo_tf.run import checkpoint

    process = training("--total_steps=100000000")
    wait_for(lambda: len(workers_of(process.pid)) == 2)
    left = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 10)
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints")
    ledger = part("source/ledger", saved.arrays)
    steps = int(part("session", saved.arrays)["env_steps"])
    assert steps == int(ledger["steps"])
    process = training("--resume", f"--total_steps={steps + 500}", saved=False)
    assert process.wait(60) == 0
    after = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert int(part("source/ledger", after.arrays)["steps"]) == int(part("session", after.arrays)["env_steps"]) > steps


@pytest.mark.parametrize("mode", ["asynchronous", "synchronous"])
def test_sigterm_saves_and_ends_with_42(training, tmp_path, mode):
    process = training("--total_steps=100000000", f"--workers_mode={mode}")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    assert code == 42, (tmp_path / "log").read_text()
    assert time.monotonic() - began < 15


def test_ctrl_c_is_the_learners(training, tmp_path):
    """The signal goes to the whole group, as from a terminal."""
    process = training("--total_steps=100000000")
    process.send_signal(signal.SIGINT)
    for pid in workers_of(process.pid):
        os.kill(pid, signal.SIGINT)
    assert process.wait(30) == 42


def test_training_goes_on_while_hosts_are_lost_and_join():
    """Three hosts: every six updates one goes without a word, with what its workers have finished; another joins."""
    settings = '{"xla": "off", "steps_per_update": 240, "hidden_sizes": [8], "value_epochs": 1}'
    program = [sys.executable, str(Path(__file__).parent / "hosts.py"), "--updates=24", f"--settings={settings}"]
    done = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["deaths"] >= 6, summary
    assert summary["steps"] == summary["env_steps"]
    assert summary["lost"] <= summary["deaths"]
    assert summary["fewest"] < 6, "the hosts were missed"
    assert summary["at_the_end"] == 6, "slots come back when a host joins"
    assert summary["longest_wait"] < 30, summary
