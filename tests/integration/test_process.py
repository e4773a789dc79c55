"""One look at /proc/PID: what it finds, that it finds it once, and whose it is."""

import fcntl
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.corehandler import PROC_FILES, PROC_LINKS
from crashd.domain.crash.procfs import OWN_NAMESPACE
from crashd.edge.capture.process import pidfd_pid, read_proc_files, read_snapshot

THREADS = """
import threading, time
for number in range(3):
    threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
"""
ENDED = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture(params=["one thread", "threads"])
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    program = "print('ready', flush=True); import time; time.sleep(1000)"
    if request.param == "threads":
        program = THREADS
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as found:
        assert found.stdout is not None and found.stdout.readline() == b"ready\n"
        try:
            yield found
        finally:
            found.kill()


@pytest.fixture
def pidfd(child: subprocess.Popen[bytes]) -> Iterator[int]:
    fd = os.pidfd_open(child.pid)
    yield fd
    os.close(fd)


def test_read_snapshot_is_what_proc_says(child: subprocess.Popen[bytes], pidfd: int) -> None:
    found = read_snapshot(pidfd)
    proc = Path(f"/proc/{child.pid}")
    for name in PROC_FILES:
        if name not in ("status", "stat"):  # those move
            assert found[name] == (proc / name).read_bytes(), name
    assert found["status"].startswith(b"Name:\t") and found["status"].endswith(b"\n")
    assert found["stat"].startswith(b"%d (" % child.pid) and found["stat"].endswith(b"\n")
    assert found["exe"] == os.fsencode(os.readlink(proc / "exe"))
    assert found["comm"] == (proc / "comm").read_bytes().rstrip(b"\n")
    assert set(found) >= {*PROC_LINKS, *PROC_FILES}
    tids = sorted(os.listdir(proc / "task"), key=int)
    threads = [(tid, (proc / "task" / tid / "comm").read_text().strip()) for tid in tids]
    assert found["threads"].decode() == "\n".join(f"{tid} {name}" for tid, name in threads)
    fds = sorted(os.listdir(proc / "fd"), key=int)
    assert found["fd_count"] == b"%d" % len(fds)
    assert found["open_fds"].startswith(b"0:" + os.fsencode(os.readlink(proc / "fd/0")))
    assert found["user_ns_owner"] == OWN_NAMESPACE


def test_read_snapshot_reads_nothing_twice(pidfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    opened, listed = os.open, os.listdir

    def open_and_count(path: str, *arguments: int, dir_fd: int | None = None) -> int:
        names.append(path)
        return opened(path, *arguments, dir_fd=dir_fd)

    def list_and_count(path: str) -> list[str]:
        names.append(path.rpartition("/")[2])
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_count)
        patch.setattr(os, "listdir", list_and_count)
        found = read_snapshot(pidfd)
    # the first thread's name is the process's own, too: both are read where there are several
    assert max(Counter(names).values()) == 1, Counter(names)
    assert {"maps", "comm", "fd"} <= set(names)
    assert ("task" in names) == (b"\nThreads:\t1\n" not in found["status"])


def test_read_snapshot_whose_first_thread_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDED], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        pidfd = os.pidfd_open(child.pid)
        try:
            status = Path(f"/proc/{child.pid}/status")
            while "State:\tZ" not in status.read_text():
                os.sched_yield()
            found = read_snapshot(pidfd)
            facts = read_proc_files(pidfd, ("status", "mountinfo"))
        finally:
            child.kill()
            os.close(pidfd)
    assert b"libc" in found["maps"]
    assert found["cmdline"].startswith(os.fsencode(sys.executable))
    assert b"State:\tZ" not in facts["status"] and facts["mountinfo"]


def test_pidfd_pid_of_what_is_reaped_or_no_pidfd_is_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    pidfd = os.pidfd_open(child.pid)
    assert pidfd_pid(pidfd) == child.pid
    child.wait()
    assert pidfd_pid(pidfd) is None
    os.close(pidfd)
    with open("/dev/null", "rb") as file:
        assert pidfd_pid(file.fileno()) is None
    assert pidfd_pid(pidfd) is None


def test_pidfd_pid_where_the_kernel_has_no_ioctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(25, "ENOTTY")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    pidfd = os.pidfd_open(os.getpid())
    assert pidfd_pid(pidfd) == os.getpid()
    os.close(pidfd)
