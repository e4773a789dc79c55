"""The manifests of packaging/kubernetes: what they name exists, and what must agree does."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from crashd.configuration.keys import Settings
from crashd.edge.capture.podnames import LOGS, NODE_VARIABLE
from crashd.edge.sandbox import loanedid
from crashd.store.paths import Paths

DIRECTORY = Path(__file__).parents[2] / "packaging/kubernetes"


def load(name: str) -> Any:
    """Read one manifest."""
    return yaml.safe_load((DIRECTORY / name).read_text())


@pytest.fixture
def pod() -> Any:
    """The DaemonSet's pod."""
    return load("daemonset.yaml")["spec"]["template"]["spec"]


def test_kustomization_has_all_files() -> None:
    found = load("kustomization.yaml")
    (config,) = found["configMapGenerator"]
    named = {*found["resources"], *config["files"], "kustomization.yaml"}
    assert named == {path.name for path in DIRECTORY.iterdir()} - {"Containerfile", "build.sh"}
    for resource in found["resources"]:
        assert {"apiVersion", "kind", "metadata"} <= load(resource).keys()


def test_daemonset_selects_its_own_pods() -> None:
    spec = load("daemonset.yaml")["spec"]
    selected = spec["selector"]["matchLabels"].items()
    assert selected <= spec["template"]["metadata"]["labels"].items()


def test_mounts_have_volumes_and_volumes_mounts(pod: Any) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
    assert mounted == volumes


def test_root_has_the_same_path_on_the_node(pod: Any) -> None:
    crashd, ship = pod["containers"]
    assert crashd["args"][1:] == ship["args"] == ["--root", "/opt/crashd"]
    paths = Paths(Path("/opt/crashd"))
    hosts = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in pod["volumes"]}
    for container in (crashd, ship):
        for mount in container["volumeMounts"]:
            if hosts[mount["name"]] not in (None, "/etc/machine-id"):
                assert mount["mountPath"] == hosts[mount["name"]]
    mounts = {mount["name"]: mount for mount in crashd["volumeMounts"]}
    assert mounts["config"]["mountPath"] == str(paths.config_file)
    assert mounts["machine-id"]["mountPath"] == str(paths.machine_id)
    assert mounts["machine-id"]["readOnly"] and hosts["machine-id"] == "/etc/machine-id"
    assert hosts["run"] == str(paths.runtime_dir)
    assert hosts["ids"] == str(loanedid.DIRECTORY.parent)
    assert hosts["containers"] == str(LOGS / "containers")
    assert hosts["pods"] == str(LOGS / "pods")
    assert mounts["containers"]["readOnly"]
    assert mounts["pods"]["readOnly"]
    assert len(f"|{paths.handler} %P %i %s %t") < 128


def test_only_the_daemon_is_privileged_and_only_the_shipper_has_credentials(pod: Any) -> None:
    crashd, ship = pod["containers"]
    assert pod["hostPID"]
    assert not pod.get("hostNetwork", False)
    assert crashd["securityContext"]["privileged"]
    assert ship["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert [mount["name"] for mount in ship["volumeMounts"]] == ["run", "tmp"]
    assert not pod["automountServiceAccountToken"]
    assert pod["serviceAccountName"] == load("serviceaccount.yaml")["metadata"]["name"]
    assert [variable["name"] for variable in crashd["env"]] == [NODE_VARIABLE]


def test_configuration_is_valid() -> None:
    text = (DIRECTORY / "crashd.toml").read_text()
    settings = Settings.model_validate(tomllib.loads(text))
    assert settings.http.listen.endswith(":9816")
    fleet = text.replace("#[fleet]", "[fleet]").replace("#url", "url")
    fleet = fleet.replace("#cores", "cores").replace("#labels", "labels")
    assert Settings.model_validate(tomllib.loads(fleet)).fleet.url.startswith("s3://")
