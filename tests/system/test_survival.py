"""Nothing is lost: daemon killed, stopped, full of work; sysctls always given back."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.test_daemon import metric
from tests.running import Daemon, crashctl, wait_until
from tests.system.conftest import raise_core_limit

SYSCTLS = ("kernel/core_pattern", "kernel/core_pipe_limit", "fs/suid_dumpable")


def sysctls() -> list[str]:
    return [Path("/proc/sys", name).read_text() for name in SYSCTLS]


def crash_many(count: int, at_once: int = 16, milliseconds: int = 0) -> list[int]:
    """Crash `count` sleeps, `at_once` at a time; give their pids when all are reaped."""
    pids: list[int] = []
    running: list[subprocess.Popen[bytes]] = []
    for _ in range(count):
        child = subprocess.Popen(["sleep", "1000"], preexec_fn=raise_core_limit)
        os.kill(child.pid, signal.SIGSEGV)
        pids.append(child.pid)
        running.append(child)
        if len(running) >= at_once:
            running.pop(0).wait(60)
        time.sleep(milliseconds / 1000)
    for child in running:
        child.wait(60)
    return pids


def test_sysctls_are_taken_and_given_back(core_pattern_owner: None, short_tmp: Path) -> None:
    before = sysctls()
    daemon = Daemon(short_tmp / "r")
    daemon.start()
    during = sysctls()
    assert during[0].startswith(f"|{daemon.paths.handler} %p %e %s %t %P")
    assert int(during[1]) > 0
    assert int(during[2]) == 2
    assert daemon.stop(signal.SIGINT) == 0
    assert sysctls() == before


def test_sysctls_are_given_back_by_the_run_after_one_that_was_killed(
    core_pattern_owner: None, short_tmp: Path
) -> None:
    before = sysctls()
    daemon = Daemon(short_tmp / "r")
    daemon.start()
    daemon.stop(signal.SIGKILL)
    assert sysctls() != before
    daemon.start()
    daemon.stop()
    assert sysctls() == before


def test_install_outlives_the_daemon_and_uninstall_gives_back(
    core_pattern_owner: None, short_tmp: Path
) -> None:
    before = sysctls()
    root = short_tmp / "r"
    with Daemon(root) as daemon:
        daemon.crashctl("install")
    assert sysctls() != before
    crashctl(root, "uninstall")
    assert sysctls() == before


def test_fault_25_another_tools_pattern_is_left_alone(daemon: Daemon) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern")
    assert metric(daemon, "crashd_core_pattern_owned ") == 1
    pattern.write_text("/tmp/of-another-tool")
    os.kill(daemon.pid, signal.SIGHUP)  # else it looks twice a minute
    wait_until(lambda: metric(daemon, "crashd_core_pattern_owned ") == 0, 20, "it is known")
    told = "kernel.core_pattern is no longer ours: another tool took it over"
    assert daemon.log.read_text().count(told) == 1
    assert daemon.crashctl("status", check=False).returncode == 1
    assert "core_pattern" in daemon.crashctl("doctor", check=False).stdout
    assert pattern.read_text() == "/tmp/of-another-tool\n", "nobody fights for it"
    daemon.stop()
    assert pattern.read_text() == "/tmp/of-another-tool\n"


def test_fault_02_kill_9_amid_fifty_crashes_leaves_fifty_rows(daemon: Daemon) -> None:
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.4; kill -9 {daemon.pid}"])
    pids = crash_many(50, at_once=8, milliseconds=10)
    killer.wait()
    assert daemon.process is not None
    assert daemon.process.wait(10) == -signal.SIGKILL
    daemon.start()
    found = daemon.wait_for(50, seconds=60)
    assert sorted(c["pid"] for c in found) == sorted(pids)
    assert len({c["id"] for c in found}) == 50
    for crash in found:
        assert crash["core"]["complete"] == (crash["state"] == "complete")
    daemon.crashctl("verify", "--deep")
    assert [c["state"] for c in found].count("complete") == 50, (
        "workers and handlers outlive the daemon"
    )


def test_fault_01_two_hundred_crashes_while_the_daemon_is_away(daemon: Daemon) -> None:
    daemon.crashctl("install")
    daemon.stop()
    pids = crash_many(200, at_once=24)
    daemon.start()
    found = daemon.wait_for(200, seconds=120)
    assert sorted(c["pid"] for c in found) == sorted(pids)
    assert {c["state"] for c in found} == {"complete"}
    assert {c["capture"]["mode"] for c in found} == {"spool"}
    assert all(c["exe"] for c in found)
    wait_until(
        lambda: not [n for n in os.listdir(daemon.paths.spool) if n[0].isdigit()],
        10,
        "spool is empty",
    )
    daemon.crashctl("verify")
    daemon.crashctl("uninstall")


def test_worker_killed_in_a_capture_costs_no_other_crash(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    children = subprocess.run(
        [
            "pgrep",
            "-g",
            str(os.getpgid(daemon.pid)),
            "-f",
            f"crashd run --root {daemon.paths.root}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    workers = [int(c) for c in children if int(c) != daemon.pid and parent_of(int(c)) != daemon.pid]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    pids = [crash_sleep() for _ in range(4)]
    found = daemon.wait_for(4)
    assert sorted(c["pid"] for c in found) == sorted(pids)
    assert {c["state"] for c in found} == {"complete"}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_fault_10_daemon_crash_starts_no_loop_and_the_next_crash_is_caught(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    daemon.crashctl("install")
    daemon.stop(signal.SIGSEGV)
    daemon.start()
    pid = crash_sleep()
    found = daemon.wait_for(1)
    assert [c["pid"] for c in found] == [pid], "the daemon itself dumps no core"
    daemon.crashctl("uninstall")


def test_second_daemon_on_one_root_is_refused(daemon: Daemon) -> None:
    second = Daemon(daemon.paths.root)
    try:
        second.start()
    except AssertionError as e:
        assert "another crashd" in str(e)
    assert second.stop() == 4
    assert daemon.crashctl("status").returncode == 0


def test_graceful_stop_finishes_what_is_in_flight(daemon: Daemon) -> None:
    children = []
    for _ in range(6):
        child = subprocess.Popen(
            ["sleep", "1000"], preexec_fn=raise_core_limit, cwd=daemon.paths.root
        )
        os.kill(child.pid, signal.SIGSEGV)
        children.append(child)
    wait_until(lambda: bool(os.listdir(daemon.paths.crashes)), 30, "a crash is recorded")
    assert daemon.stop() == 0
    for child in children:
        child.wait(60)
    daemon.start()
    found = daemon.wait_for(len(os.listdir(daemon.paths.crashes)))
    assert {c["state"] for c in found} == {"complete"}
