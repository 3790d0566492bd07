"""The files of export/deploy/ray: what the manifests say, and what hosts.sh does with stand-ins for ray and python."""

import importlib.util
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from export import client
from trpo_tf import config

ROOT = Path(client.__file__).parents[1]
HERE = ROOT / "export/deploy/ray"
HOSTS = HERE / "hosts.sh"
FILES = sorted(path for path in HERE.iterdir() if path.is_file())
TOKEN = "0123456789abcdef" * 4


def cluster():
    return yaml.safe_load((HERE / "cluster.yaml").read_text())


def manifests():
    return {document["kind"]: document for document in yaml.safe_load_all((HERE / "kuberay.yaml").read_text())}


def groups():
    """The pod specifications of KubeRay's groups by role, each with one container."""
    spec = manifests()["RayCluster"]["spec"]
    (workers,) = spec["workerGroupSpecs"]
    pods = {"head": spec["headGroupSpec"]["template"]["spec"], "worker": workers["template"]["spec"]}
    assert all(len(pod["containers"]) == 1 for pod in pods.values())
    return pods


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def host(tmp_path):
    """Runs hosts.sh where `ray` and `python` print their arguments, with a token of mode 0600."""
    executable(
        tmp_path / "bin/ray", '[ "$1" = status ] && echo " 0.0/8.0 CPU" || echo ray "$@" "mode=$RAY_AUTH_MODE"\n'
    )
    executable(tmp_path / "bin/python", 'echo python "$@" "mode=$RAY_AUTH_MODE"\n')
    token = tmp_path / "home/.ray/auth_token"
    token.parent.mkdir(parents=True)
    token.touch(0o600)
    token.write_text(TOKEN)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("10.0.0.1:6379")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    places = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": f"{tmp_path}/home", "RAY_TMPDIR": str(tmp_path)}

    def run(*arguments, **env):
        done = subprocess.run(
            [HOSTS, *arguments], env=plain | places | env, cwd=tmp_path, capture_output=True, text=True, timeout=20
        )
        return done.returncode, done.stdout.split(), done.stderr

    run.token = token
    run.directory = tmp_path
    return run


def ports(words):
    """Ports by name in the arguments of `ray start`."""
    return {name: int(port) for name, port in re.findall(r"--([a-z-]*port)=(\d+)", " ".join(words))}


def opened():
    """The ports that the README's table of the firewall has open, and those that it has closed."""
    table = re.findall(r"^\| ([\d, -]+) \| (.+) \|$", (HERE / "README.md").read_text(), re.M)
    sets = {True: set(), False: set()}
    for numbers, who in table:
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            sets[who != "nobody"] |= set(range(int(low), int(high or low) + 1))
    return sets[True], sets[False]


def test_scripts_parse():
    pods = groups()
    texts = [HOSTS.read_text(), *(pod["containers"][0]["args"][0] for pod in pods.values())]
    for text in texts:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert HOSTS.stat().st_mode & 0o111


@pytest.mark.parametrize("command", [("head",), ("join", "10.0.0.1:6379"), ("learn", "--run_dir=r"), ("run", "ray")])
@pytest.mark.parametrize("fault", ["none", "readable by others", "short"])
def test_nothing_starts_without_a_token_of_ones_own(host, command, fault):
    if fault == "none":
        host.token.unlink()
    elif fault == "short":
        host.token.write_text("secret\n")
    else:
        host.token.chmod(0o640)
    code, out, err = host(*command)
    assert (code, out) == (2, [])
    assert "auth_token" in err
    assert TOKEN not in err


def test_a_token_of_the_environment_needs_no_file(host):
    host.token.unlink()
    assert host("head", RAY_AUTH_TOKEN=TOKEN)[0] == 0
    assert host("head", RAY_AUTH_TOKEN="short")[0] == 2


@pytest.mark.parametrize("arguments", [(), ("head-",), ("join",), ("join", "10.0.0.1"), ("learn",), ("run",)])
def test_wrong_usage_is_refused(host, arguments):
    code, out, err = host(*arguments)
    assert (code, out) == (2, [])
    assert err.startswith("hosts.sh: ")


def test_the_head_has_no_dashboard_and_no_cpu_for_workers(host):
    code, words, _ = host("head", "--num-cpus=4")
    assert code == 0
    assert words[:3] == ["ray", "start", "--head"]
    assert {"--include-dashboard=false", "--dashboard-host=127.0.0.1", "mode=token"} <= set(words)
    assert words.index("--num-cpus=0") < words.index("--num-cpus=4")  # the last one counts
    assert TOKEN not in " ".join(words)


def test_hosts_use_the_ports_that_the_readme_opens(host):
    head, node = ports(host("head")[1]), ports(host("join", "10.0.0.1:6379")[1])
    assert head.pop("port") == 6379
    unused = head.pop("ray-client-server-port")
    assert head == node
    low, high = node.pop("min-worker-port"), node.pop("max-worker-port")
    used = [6379, *node.values(), *range(low, high + 1)]
    assert len(used) == len(set(used))
    open_, closed = opened()
    assert set(used) == open_
    assert closed == {8265, unused}


def test_a_host_joins_by_the_address_of_the_head(host):
    code, words, _ = host("join", "10.0.0.1:6379", "--num-cpus=2")
    assert code == 0
    assert words[:3] == ["ray", "start", "--address=10.0.0.1:6379"]
    assert words[-2:] == ["--num-cpus=2", "mode=token"]


def test_learn_resumes_where_there_is_a_checkpoint(host):
    fresh = ["python", "-m", "trpo_tf.train", "--ray_address=10.0.0.1:6379", "--run_dir=run", "--workers=8"]
    assert host("learn", "--run_dir=run", "--workers=8")[1] == [*fresh, "mode=token"]
    (host.directory / "run/checkpoints/.update_000000050.tmp").mkdir(parents=True)  # a save that did not end
    assert host("learn", "--run_dir=run", "--workers=8")[1] == [*fresh, "mode=token"]
    (host.directory / "run/checkpoints/update_000000050").mkdir()
    assert host("learn", "--run_dir=run", "--workers=8")[1] == [*fresh, "--resume", "mode=token"]


def test_learn_needs_ray_on_its_host(host):
    (host.directory / "ray/ray_current_cluster").unlink()
    code, out, err = host("learn", "--run_dir=run")
    assert (code, out) == (2, [])
    assert "hosts.sh head" in err


def test_flags_of_training_exist():
    known = {field.name for _, field in config.settings()}
    commands = [
        line
        for path in FILES
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if re.search(r"trpo_tf\.train |hosts\.sh learn --", line)
    ]
    assert {"--workers", "--run_dir", "--env"} <= set(re.findall(r"--\w+", " ".join(commands)))
    for line in commands:
        given = re.findall(r"--(\w+)(?==| |`|$|\")", re.split(r"trpo_tf\.train|hosts\.sh learn", line)[1])
        assert set(given) <= known, line


def test_no_file_holds_a_token():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN=", text), path.name
        assert not re.search(r"from-literal|RAY_AUTH_MODE=disabled|allow_insecure", text), path.name


def test_the_launcher_file_fits_rays_schema():
    found = importlib.util.find_spec("ray")
    if found is None:
        pytest.skip("ray is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(cluster())] == []
    assert not validator.is_valid(cluster() | {"max_workers": "many"}), "the schema says nothing"


def test_the_launcher_has_workers_on_spot_instances_and_the_head_on_demand():
    types = cluster()["available_node_types"]
    head = types.pop(cluster()["head_node_type"])
    (worker,) = types.values()
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert worker["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert worker["node_config"] == head["node_config"]  # the same image: the same Python before uv
    assert 1 <= worker["min_workers"] <= worker["max_workers"] == cluster()["max_workers"]
    assert cluster()["idle_timeout_minutes"] > 0


def test_the_launcher_installs_the_lock_and_starts_ray_by_hosts_sh():
    launcher = cluster()
    mounts = launcher["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / local).exists() for local in mounts.values())
    setup = " ".join(launcher["setup_commands"])
    remote = set(re.findall(r"~/trpo_tf[\w./]*", setup + json.dumps([*launcher["head_start_ray_commands"]])))
    assert remote <= {*mounts, "~/trpo_tf"}
    assert "-r ~/trpo_tf/requirements.lock" in setup
    assert "RAY_AUTH_MODE=token" in setup
    head, worker = (launcher[f"{role}_start_ray_commands"] for role in ("head", "worker"))
    assert head[0] == worker[0] == "~/trpo_tf/hosts.sh stop"
    assert head[1].endswith("hosts.sh head --autoscaling-config=$HOME/ray_bootstrap_config.yaml")
    assert worker[1].endswith("hosts.sh join $RAY_HEAD_IP:6379")
    assert all("#" not in line for line in head + worker)  # the launcher puts a bracket after each line


def test_one_python_and_one_ray_everywhere():
    image = (HERE / "Dockerfile").read_text()
    python = re.search(r"^ARG PYTHON=([\d.]+)$", image, re.M)[1]
    assert re.search(rf"uv venv --quiet --python {re.escape(python)} ", " ".join(cluster()["setup_commands"]))
    ray = re.search(r"^ray==([\d.]+)$", (ROOT / "requirements.lock").read_text(), re.M)[1]
    assert manifests()["RayCluster"]["spec"]["rayVersion"] == ray
    names = {pod["containers"][0]["image"] for pod in groups().values()}
    assert names == {f"trpo_tf:ray-{ray}"}
    assert f"-t {names.pop()} ." in image


def test_the_image_is_of_the_lock_and_of_an_ordinary_user():
    lines = (HERE / "Dockerfile").read_text().splitlines()
    assert lines[-1] == f"USER {groups()['head']['securityContext']['runAsUser']}"
    assert any(line.startswith("RUN pip install") and line.endswith("-r requirements.lock") for line in lines)
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if word[:2] != "--"]
    assert "export/deploy/ray/hosts.sh" in sources
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_pod_has_the_token_and_no_privilege(role):
    pod = groups()[role]
    (container,) = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "trpo-ray-token", "key": "auth_token"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_probes_ask_the_ports_of_hosts_sh(host):
    wanted = {"head": 6379, "worker": ports(host("join", "10.0.0.1:6379")[1])["node-manager-port"]}
    for role, pod in groups().items():
        for probe in ("readinessProbe", "livenessProbe"):
            assert pod["containers"][0][probe]["tcpSocket"]["port"] == wanted[role]


def test_only_pods_of_the_cluster_reach_each_other():
    policy, ray = manifests()["NetworkPolicy"]["spec"], manifests()["RayCluster"]
    own = {"matchLabels": {"ray.io/cluster": ray["metadata"]["name"]}}  # KubeRay's label
    assert policy == {"podSelector": own, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": own}]}]}
    assert ray["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    named = [port["containerPort"] for pod in groups().values() for port in pod["containers"][0].get("ports", [])]
    assert named == [6379]  # the ports of the head's service


def expressions(role):
    required = groups()[role]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    return terms, {term["key"] for group in terms for term in group}


def test_workers_are_on_spot_nodes_and_the_head_is_not():
    (head, head_keys), (worker, worker_keys) = expressions("head"), expressions("worker")
    assert head_keys == worker_keys
    assert len(head) == 1  # every expression of a term has to hold
    assert {term["operator"] for term in head[0]} <= {"DoesNotExist", "NotIn"}
    assert all(len(term) == 1 and term[0]["operator"] == "In" for term in worker)  # one of the terms has to hold
    assert "tolerations" in groups()["worker"]
    assert "tolerations" not in groups()["head"]


def test_a_run_is_on_a_volume_and_has_cpus_for_its_workers():
    head, ray = groups()["head"], manifests()["RayCluster"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in head["volumes"] if volume["name"] == "runs"}
    assert claims == {manifests()["PersistentVolumeClaim"]["metadata"]["name"]}
    (script,) = head["containers"][0]["args"]
    (mount,) = [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "runs"]
    assert re.search(r"--run_dir=(\S+)", script)[1].startswith(f"{mount}/")
    (group,) = ray["spec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    cpus = int(re.search(r"--num-cpus=(\d+)", groups()["worker"]["containers"][0]["args"][0])[1])
    each = int(re.search(r"--worker_cpus=(\d+)", script)[1])
    assert int(re.search(r"--workers=(\d+)", script)[1]) * each == group["replicas"] * cpus
    assert groups()["worker"]["containers"][0]["resources"]["requests"]["cpu"] == str(cpus)
    assert ray["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"  # or KubeRay starts Ray itself


def head_container(tmp_path, learner):
    """The head's container script with `learner` in the place of the learner."""
    executable(tmp_path / "bin/hosts.sh", f'[ "$1" = head ] && exit 0\n{learner}\n')
    container = groups()["head"]["containers"][0]
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    return subprocess.Popen(
        [*container["command"], *container["args"]], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_the_heads_container_ends_with_the_code_of_the_learner(tmp_path):
    process = head_container(tmp_path, "exit 1")
    assert process.wait(10) == 1


def test_sigterm_reaches_the_learner_which_saves(tmp_path):
    learner = 'trap "sleep 0.2; echo saved; kill $!; exit 42" TERM; echo up; sleep 60 >/dev/null & wait'
    process = head_container(tmp_path, learner)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)  # to the container's first process alone
    assert process.wait(10) == 42
    assert process.stdout.read() == "saved\n"


def test_a_finished_learner_is_not_started_again(tmp_path):
    process = head_container(tmp_path, "echo done")
    assert process.stdout.readline() == "done\n"
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_readme_names_every_file():
    text = (HERE / "README.md").read_text()
    assert all(f"({path.name})" in text for path in FILES if path.name != "README.md")
