"""The image for Kubernetes catches a crash of a pod on this kernel, ships it, and indexes it."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import postgres
from tests.running import wait_until
from tests.system.conftest import raise_core_limit
from tests.vm.image import DIRECTORY, Image

UID, ID = "0a1b2c3d-1111-2222-3333-444455556666", "ab" * 32
GROUP = (
    "kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope"
)
ROOT = Path("/opt/crashd")


@pytest.fixture(scope="module")
def image(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image with the package of this checkout."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    made = Image.build(deb, tmp_path_factory.mktemp("image"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pod_group() -> Iterator[list[Path]]:
    """The control groups of a pod's container, as the kubelet and containerd make them."""
    bases = [Path("/sys/fs/cgroup", name) for name in ("", "unified", "systemd")]
    made = [base / GROUP for base in bases if (base / "cgroup.procs").exists()]
    for group in made:
        group.mkdir(parents=True)
    try:
        yield made
    finally:
        for group, base in zip(
            made, [b for b in bases if (b / "cgroup.procs").exists()], strict=True
        ):
            while group != base:
                group.rmdir()
                group = group.parent


@pytest.fixture
def node(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """The directories of a node, by the names of the DaemonSet's volumes."""
    if ROOT.exists():
        pytest.skip(f"{ROOT} exists: it must be the same inside and outside of the container")
    logs = tmp_path / "log"
    (logs / "pods" / f"shop_web-7d9_{UID}" / "nginx").mkdir(parents=True)
    (logs / "containers").mkdir()
    (logs / "containers" / f"web-7d9_shop_nginx-{ID}.log").touch()
    config = tmp_path / "config"
    config.mkdir()
    text = (DIRECTORY / "crashd.toml").read_text().replace("0.0.0.0:9816", "127.0.0.1:0")
    text = text.partition("\n#[fleet]")[0]
    text += f'\n[fleet]\nurl = "file://{tmp_path}/bucket"\ncores = "mini"\nlabels = ["zone=fra"]\n'
    (config / "crashd.toml").write_text(text)
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "bucket").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "run").mkdir()
    try:
        yield {
            "root": ROOT,
            "run": ROOT / "run/crashd",
            "containers": logs / "containers",
            "pods": logs / "pods",
            "ids": tmp_path / "run",
            "machine-id": tmp_path / "machine-id",
            "tmp": tmp_path / "tmp",
            "config": config,
        }
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)


def crash_in(groups: list[Path]) -> None:
    """Crash a process that is in a container's groups."""

    def enter() -> None:
        raise_core_limit()
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    child = subprocess.Popen(["sleep", "1000"], preexec_fn=enter)
    os.kill(child.pid, signal.SIGSEGV)
    assert child.wait(60) == -signal.SIGSEGV


def crashctl(image: Image, node: dict[str, Path], *words: str, mounts: Any = ()) -> Any:
    """Ask crashctl of the image, as `kubectl exec` does."""
    own = [(str(node["root"]), str(ROOT), False), *mounts]
    done = image.run(["crashctl", *words], own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("core_pattern_owner")
def test_image_catches_ships_and_indexes_the_crash_of_a_pod(
    image: Image, node: dict[str, Path], pod_group: list[Path], tmp_path: Path
) -> None:
    spec = yaml.safe_load((DIRECTORY / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    crashd, ship = spec["containers"]
    log = tmp_path / "crashd.log"
    bucket = [str(tmp_path / "bucket")]
    started = [
        image.start(crashd, node, log, []),
        image.start(ship, node, tmp_path / "ship.log", bucket),
    ]
    try:
        pattern = Path("/proc/sys/kernel/core_pattern")
        handler = f"|{ROOT}/"
        wait_until(lambda: pattern.read_text().startswith(handler), 60, "it is registered")
        crash_in(pod_group)

        def rows() -> Any:
            return crashctl(image, node, "--root", str(ROOT), "list", "--json")

        wait_until(lambda: any(row["signature"] for row in rows()), 120, "the crash is analysed")
        (listed,) = rows()
        row = crashctl(image, node, "--root", str(ROOT), "info", listed["id"], "--json")
        assert row["container_id"] == ID
        wanted = {"namespace": "shop", "name": "web-7d9", "container": "nginx", "node": "node-1"}
        assert row["pod"] == wanted
        assert row["comm"] == "sleep" and row["core"]["path"]
        found = (tmp_path / "bucket").rglob
        wait_until(lambda: any(found("*.core.zst")), 60, "record and core are sent")
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(90)
        print(log.read_text()[-3000:], (tmp_path / "ship.log").read_text())
    assert not pattern.read_text().startswith(handler), "the node has its own pattern back"
    index_and_ask(image, tmp_path, row)


def index_and_ask(image: Image, directory: Path, row: dict[str, Any]) -> None:
    """Index the bucket by the image's crashd-fleet, and ask that by its crashctl."""
    with postgres.running() as server:
        shared = [
            (path, path, False) for path in (str(directory / "bucket"), str(server.directory))
        ]
        url = f"file://{directory}/bucket"
        for words in (["init", "--url", url], ["index", "--once"]):
            done = image.run(["crashd-fleet", *words, "--dsn", server.dsn()], shared)
            assert done.returncode == 0, done.stderr
        words = [f"--fleet={server.dsn()}", "info", row["id"], "--json"]
        done = image.run(["crashctl", *words], shared)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["id"], found["pod"]) == (row["id"], row["pod"])
        assert found["labels"] == {"zone": "fra"}
