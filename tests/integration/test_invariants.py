"""The invariants hold of a daemon at work, and their checker sees when they do not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.configuration.keys import CaptureSection
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from tests import invariants
from tests.builders.crashes import build_crash
from tests.integration.test_daemon import children, crash
from tests.invariants import (
    assert_invariants,
    check_all,
    descendants,
    of_footprint,
    of_metrics,
    of_processes,
    of_store,
    read_footprint,
    scrape,
    started_at,
)
from tests.running import Daemon, wait_until


@pytest.fixture
def daemon(short_tmp: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, "--no-register") as running:
        usual = CaptureSection().worker_count(len(os.sched_getaffinity(0)))
        install_handler(running.paths)
        crash(running, 3)
        running.wait_for(3)
        wait_until(lambda: len(workers(running)) == usual, 30, "surplus workers have ended")
        yield running


def workers(daemon: Daemon) -> list[int]:
    return [pid for nursery in children(daemon.pid) for pid in children(nursery)]


def test_invariants_hold_of_a_daemon_that_captured(daemon: Daemon) -> None:
    scrape(daemon)
    before = read_footprint(daemon.pid)
    assert before.processes > 1
    assert before.resident_bytes > 10 << 20
    crash(daemon, 5)
    daemon.wait_for(8)
    assert_invariants(daemon, before=before)
    family = {pid: started_at(pid) for pid in (daemon.pid, *descendants(daemon.pid))}
    daemon.stop()
    assert of_processes(family) == []


def test_metrics_that_are_not_the_rows_are_seen(daemon: Daemon) -> None:
    assert of_metrics(daemon) == []
    with Index.open(daemon.paths.index) as index:
        index.put([build_crash(1, signature="s")])
    assert of_metrics(daemon) == [
        "metrics: entries of process: 3, not 4",
        f"metrics: bytes of process: {stored(daemon) - 1000}, not {stored(daemon)}",
        "metrics: process crashes: 3, not 4",
        "metrics: signatures: 0, not 1",
    ]
    assert check_all(daemon)[0].startswith("verify: no-entry: ")
    with Index.open(daemon.paths.index) as index:
        index.remove([build_crash(1).id, daemon.crashes()[-1]["id"]])
    assert "metrics: process crashes: 3, not 2" in of_metrics(daemon)
    assert not any("process crashes" in line for line in of_metrics(daemon, deleted=True))


def stored(daemon: Daemon) -> int:
    return sum(row["core"]["stored_bytes"] for row in daemon.crashes())


def test_store_with_a_strange_file_is_seen(daemon: Daemon) -> None:
    assert of_store(daemon) == []
    (daemon.paths.state_dir / "strange").touch()
    assert of_store(daemon) == ["verify: unknown-file: strange: is no file of crashd's"]


def test_descriptors_that_stay_open_are_seen(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariants, "LEAK_SECONDS", 1)
    before = read_footprint(daemon.pid)
    assert of_footprint(daemon.pid, before) == []
    follow = [sys.executable, "-m", "crashd.cli", "--root", str(daemon.paths.root), "follow"]
    with subprocess.Popen(follow, stdout=subprocess.DEVNULL) as client:
        sockets = before.files["socket"]  # not a file that is open for a moment
        wait_until(lambda: read_footprint(daemon.pid).files["socket"] > sockets, 30, "open")
        found = of_footprint(daemon.pid, before)
        client.kill()
    assert "leak: 1 more descriptors of socket" in found
    wait_until(lambda: not of_footprint(daemon.pid, before), 20, "closed")
    fewer = replace(before, processes=before.processes - 1, threads=before.threads - 1)
    assert {"leak: 1 more processes", "leak: 1 more threads"} <= {
        *of_footprint(daemon.pid, fewer),
    }


def test_processes_that_outlive_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "LEAK_SECONDS", 0.2)
    with subprocess.Popen(["sleep", "100"]) as child:
        family = {child.pid: started_at(child.pid), os.getpid(): "0", 2**30: started_at(2**30)}
        assert of_processes(family) == [f"leak: process {child.pid} outlives its daemon"]
        child.kill()
        child.wait()
        assert of_processes(family) == []
