"""The analysis worker's sandbox: what cannot be done in it, and how a worker ends."""

import contextlib
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crashd.edge.sandbox.loanedid import IDS
from crashd.edge.sandbox.start import OUTPUT_MAX, WorkerResult, run_worker
from tests.running import wait_until
from tests.yardstick import slowness

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
    assert min(result.cpu_seconds for result in results) < 0.3 * slowness()


def ids_of(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(n) for line in lines if line.startswith(("Uid:", "Gid:")) for n in line.split()[1:]}


def sealed_below(pid: int) -> list[int]:
    """The processes below one that are no longer root's."""
    found = []
    for worker in below(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ldconfig, by ctypes
            if 0 not in ids_of(worker):
                found.append(worker)
    return found


def has_sealed(pid: int) -> bool:
    return bool(sealed_below(pid))


def can_signal(pid: int, uid: int) -> bool:
    """Whether a process of `uid` may."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.kill(pid, 0)
            status = 0
        except PermissionError:
            status = 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


def test_sec_77_workers_share_their_id_with_nothing() -> None:
    """A process of nobody's id can neither kill nor trace one, nor can another worker."""
    waiting = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                probe(300, act="hang", cpu_seconds=300)
            finally:
                os._exit(1)
        waiting.append(child)
    try:
        sealed = []
        for child in waiting:
            wait_until(partial(has_sealed, child), 60, "the worker gave root up")
            sealed += sealed_below(child)
        first, second = map(ids_of, sealed)
        assert len(first) == len(second) == 1, "the group's number is the user's"
        assert first != second
        assert {*first, *second} <= set(IDS)
        for worker in sealed:
            assert not can_signal(worker, 65534)
        assert not can_signal(sealed[0], *second)
        assert can_signal(sealed[0], *first), "what the test would see without loaned ids"
    finally:
        for child in waiting:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    wait_until(lambda: not any(map(is_alive, sealed)), 20, "neither is left")
