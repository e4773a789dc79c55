"""The analysis worker's sandbox: what cannot be done in it, and how a worker ends."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from crashd.edge.sandbox import OUTPUT_MAX, WorkerResult, run_worker
from tests.running import wait_until

MIB = 1 << 20


def probe(seconds: float = 20, **more: Any) -> WorkerResult:
    request = {"task": "probe", "cpu_seconds": 10, "memory_bytes": 256 * MIB, **more}
    return run_worker(request, None, seconds)


def test_sec_62_sandbox_lets_nothing_through(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.environ["CRASHD_TEST_SECRET"] = "secret"
    try:
        result = probe(paths=[str(secret), "/usr/bin/true", "/lib", "/proc/1/environ", "/sys"])
    finally:
        del os.environ["CRASHD_TEST_SECRET"]
    assert result.failure is None
    found = json.loads(result.output)
    assert found["could"] == []
    assert 0 not in found["ids"]
    assert set(found["root"]) <= {"usr"}
    assert found["nice"] == 19
    assert "CRASHD_TEST_SECRET" not in found["environ"]


def test_sandbox_leaves_no_mount_and_no_process_behind() -> None:
    mounts, before = Path("/proc/self/mountinfo").read_bytes(), children()
    for act in (None, "crash"):
        probe(act=act)
    assert Path("/proc/self/mountinfo").read_bytes() == mounts
    assert children() - before == set()


def children() -> set[str]:
    """The pids of our children."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("crash", "it crashed (SIGSEGV)"),
        ("eat memory", "out of memory"),
        ("print", f"it printed more than {OUTPUT_MAX} bytes"),
    ],
)
def test_worker_that_misbehaves_is_a_result(act: str, reason: str) -> None:
    result = probe(act=act)
    assert result.failure == reason
    assert result.seconds < 10


def test_worker_that_hangs_is_ended_at_its_deadline() -> None:
    result = probe(1.0, act="hang")
    assert result.failure == "it did not end in time"
    assert result.seconds < 5


def test_worker_that_computes_too_long_is_ended_by_the_kernel() -> None:
    result = probe(act="hang", cpu_seconds=1)
    assert result.failure is not None
    assert "CPU" in result.failure
    assert result.seconds < 10


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 3, 4, 6, 8, 10, 15, 100])
def test_worker_dies_with_whoever_waits_for_it(delay_ms: int) -> None:
    """A daemon that is killed leaves no worker behind, however far that has come."""
    child = os.fork()
    if child == 0:
        try:
            probe(300, act="hang", cpu_seconds=300)
        finally:
            os._exit(1)
    try:
        wait_until(lambda: len(below(child)) == 2, 60, "one that waits, and one that works")
        workers = below(child)
        time.sleep(delay_ms / 1000)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        wait_until(lambda: not any(map(is_alive, workers)), 20, "neither is left")
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)


def below(pid: int) -> list[int]:
    """The pids of a process's children, and of theirs."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [p for child in found for p in (int(child), *below(int(child)))]


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sandbox_costs_little() -> None:
    results = [probe() for _ in range(3)]
    assert min(result.cpu_seconds for result in results) < 0.3
