"""What one user, or one container, may cost others: real namespaces and uids, the real daemon."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.running import KEEPING_CONFIG, Daemon, wait_until
from tests.system.test_security import CRASH, NOBODY, become, caught, die_as, scrape

LIMITED = (
    '[http]\nlisten = "127.0.0.1:0"\n[analysis]\nenabled = false\n'
    "[limiter.site]\nfull = 4\nmini = 4\n[limiter.uid]\nfull = 6\nmini = 6\n"
)
FLOOD = "for i in $(seq 32); do /bin/sh -c 'kill -SEGV $$'; done"


@pytest.fixture
def root(core_pattern_owner: None, short_tmp: Path) -> Path:
    del core_pattern_owner
    short_tmp.chmod(0o755)
    return short_tmp


def kept(daemon: Daemon, count: int) -> Counter[str]:
    """Count what is kept of the crashes of sh, once there are so many."""
    found = [c for c in daemon.wait_for(count) if c["exe"].startswith("/usr/bin/")]
    return Counter(c["capture"]["disposition"] for c in found)


def run_as(uid: int, *command: str) -> None:
    subprocess.run(command, preexec_fn=lambda: become(uid), check=False, timeout=120)


@pytest.mark.parametrize("mode", ["pipe", "socket"])
def test_sec_83_crashes_in_a_container_cost_the_host_no_core(root: Path, mode: str) -> None:
    with Daemon(root, config=f'[capture]\nmode = "{mode}"\n' + LIMITED) as daemon:
        run_as(0, "unshare", "--mount", "/bin/sh", "-c", FLOOD)
        assert kept(daemon, 32)["metadata"] >= 16
        crash = caught(daemon, die_as(0, CRASH))
        assert crash["capture"]["disposition"] == "full"
        assert crash["mount_ns"] is None
        run_as(0, "/bin/sh", "-c", FLOOD)  # and the other way round
        daemon.wait_for(65)
        # takes the inode of the first one, which is free again
        first = subprocess.Popen(["unshare", "--mount", "sleep", "100"])
        try:
            wait_until(lambda: Path(f"/proc/{first.pid}/comm").read_text() == "sleep\n")
            pid = die_as(0, ["unshare", "--mount", *CRASH])
        finally:
            first.kill()
            first.wait()
        crash = caught(daemon, pid)
        assert (crash["capture"]["disposition"], crash["state"]) == ("full", "complete")
        assert isinstance(crash["mount_ns"], int)


def test_sec_83_namespaces_that_a_user_makes_are_no_more_room(root: Path) -> None:
    with Daemon(root, config=LIMITED) as daemon:
        for _ in range(16):
            run_as(NOBODY, "unshare", "--user", "--mount", *CRASH)
        crashes = daemon.wait_for(16)
        assert {crash["uid"] for crash in crashes} == {NOBODY}
        found = kept(daemon, 16)
        # fewer where the kernel gave the number of a namespace that was gone to another one
        assert found["full"] <= 6
        assert found["mini"] <= 6
        assert found["metadata"] >= 4


def test_sec_83_container_of_a_spooled_crash_is_known(root: Path) -> None:
    with Daemon(root, config=LIMITED) as daemon:
        daemon.stop(signal.SIGKILL)
        pid = die_as(0, ["unshare", "--mount", *CRASH])
        daemon.start()
        crash = caught(daemon, pid)
        assert crash["capture"]["mode"] == "spool"
        assert isinstance(crash["mount_ns"], int)
        assert crash["user_ns"] is None


def write_hook(daemon: Daemon, out: Path) -> None:
    """Have a hook write all that it is told into a file, and take its time."""
    daemon.paths.hooks.mkdir(parents=True)
    hook = daemon.paths.hooks / "10-note"
    hook.write_text(f"#!/bin/sh\ncat >>{out}\n")
    hook.chmod(0o755)


def told(out: Path) -> list[dict[str, Any]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [json.loads(line) for line in lines]


def test_sec_84_loop_of_one_user_mutes_nobody_elses_alert(root: Path) -> None:
    config = KEEPING_CONFIG + "[hooks]\nper_hour = 20\nper_signature = 5\n"
    daemon = Daemon(root, config=config)
    out = root / "told"
    write_hook(daemon, out)
    with daemon:
        run_as(NOBODY, "/bin/sh", "-c", FLOOD)
        run_as(NOBODY, "/bin/sh", "-c", FLOOD)
        daemon.wait_for(64)
        pids = {
            die_as(0, CRASH),
            die_as(NOBODY - 1, CRASH),
            die_as(NOBODY, ["perl", "-e", "kill 'SEGV', $$"]),
        }
        wait_until(lambda: pids <= {row["pid"] for row in told(out)}, 30, "all are told of")
        loop = [row for row in told(out) if row["pid"] not in pids]
        assert len(loop) == 5


def test_sec_84_crash_that_is_only_counted_is_neither_told_nor_analysed(root: Path) -> None:
    config = LIMITED.replace("[analysis]\nenabled = false\n", "") + '[hooks]\nwait = "60s"\n'
    daemon = Daemon(root, config=config)
    out = root / "told"
    write_hook(daemon, out)
    with daemon:
        run_as(NOBODY, "/bin/sh", "-c", FLOOD)
        counted = {
            c["id"] for c in daemon.wait_for(32) if c["capture"]["disposition"] == "metadata"
        }
        assert len(counted) == 24
        pid = die_as(0, CRASH)
        wait_until(lambda: pid in {row["pid"] for row in told(out)}, 60, "root's is told of")
        assert counted.isdisjoint(row["id"] for row in told(out))
        assert 'crashd_limited_total{scope="site"} 28' in scrape(daemon).replace(".0\n", "\n")


def analysing(daemon: Daemon) -> int | None:
    """Find the process that waits for an analysis, the first of its session."""
    for child in Path(f"/proc/{daemon.pid}/task").glob("*/children"):
        for pid in child.read_text().split():
            if b"\0-B\0-c\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def test_sec_84_analyses_of_one_user_that_take_long_delay_nobody_elses_alert(root: Path) -> None:
    config = '[http]\nlisten = "127.0.0.1:0"\n[analysis]\ntimeout = "40s"\n'
    daemon = Daemon(root, config=config + '[hooks]\nwait = "2s"\n')
    out = root / "told"
    write_hook(daemon, out)
    with daemon:
        slow = die_as(NOBODY, CRASH)
        wait_until(lambda: analysing(daemon) is not None, 20, "it is analysed")
        worker = analysing(daemon)
        assert worker is not None
        os.killpg(worker, signal.SIGSTOP)  # as slow as can be
        try:
            began = time.monotonic()
            pid = die_as(0, CRASH)
            wait_until(lambda: pid in {row["pid"] for row in told(out)}, 30, "it is told of")
            assert time.monotonic() - began < 20, "and not at the end of the other's analysis"
            assert {row["pid"]: row["analysis"] for row in told(out)} == {
                slow: {"state": "pending"},
                pid: {"state": "pending"},
            }
        finally:
            os.killpg(worker, signal.SIGCONT)
        wait_until(lambda: all(c["signature"] for c in daemon.seen()), 60, "all are analysed")
        last = die_as(0, ["perl", "-e", "kill 'SEGV', $$"])
        wait_until(lambda: last in {row["pid"] for row in told(out)}, 60, "the last is told of")
        assert [row["pid"] for row in told(out)] == [slow, pid, last], "none twice"
