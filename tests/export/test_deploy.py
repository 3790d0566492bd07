"""The files of export/deploy: those with a schema are parsed by it, the others say what the README says of them."""

from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from export import client

DEPLOY = Path(client.__file__).parent / "deploy"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_model_config_serves_what_its_labels_name():
    config = text_format.Parse(
        (DEPLOY / "config/models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("policy", "/models/policy", "tensorflow")
    assert set(model.version_labels) == {"stable", "canary"}
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def commands():
    (compose,) = documents("compose.yaml")
    deployment = documents("kubernetes.yaml")[0]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {"compose": compose["services"]["serving"]["entrypoint"], "kubernetes": container["command"]}


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_server_is_told_of_files_that_are_there(where):
    command = commands()[where]
    assert command[0] == "tensorflow_model_server"
    named = [flag.partition("=/config/")[2].split()[0] for flag in command if "=/config/" in flag]
    assert {"models.config", "batching.config", "monitoring.config"} == set(named)
    assert all((DEPLOY / "config" / name).is_file() for name in named)


def test_compose_is_unprivileged_and_on_loopback():
    (compose,) = documents("compose.yaml")
    for service in compose["services"].values():
        assert service["user"] == "65534:65534"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert "healthcheck" in compose["services"]["serving"]


def test_kubernetes_is_unprivileged_and_probed():
    deployment, service, network = documents("kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"readinessProbe", "livenessProbe"} <= container.keys()
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert network["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]


def test_batches_are_of_the_sizes_that_are_warmed_up():
    text = (DEPLOY / "config/batching.config").read_text()
    assert [int(line.split()[1]) for line in text.splitlines() if line.startswith("allowed_batch_sizes")] == [1, 8, 32]
    assert "max_execution_batch_size { value: 32 }" in text
    assert "enable_large_batch_splitting { value: true }" in text
