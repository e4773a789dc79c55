"""What operators and users do with crashctl while a real daemon catches real crashes."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import PLAIN_CONFIG, Daemon
from tests.system.asuser import NOBODY, as_nobody
from tests.system.conftest import raise_core_limit


def crash_as_nobody() -> int:
    child = subprocess.Popen(
        ["sleep", "1000"], preexec_fn=raise_core_limit, user=NOBODY, group=NOBODY, extra_groups=[]
    )
    os.kill(child.pid, signal.SIGSEGV)
    assert child.wait(60) == -signal.SIGSEGV
    return child.pid


def test_user_sees_and_gets_his_own_crashes_and_no_others(
    daemon: Daemon, short_tmp: Path, crash_sleep: Callable[[], int]
) -> None:
    short_tmp.chmod(0o755)
    mine, roots = crash_as_nobody(), crash_sleep()
    found = {c["pid"]: c for c in daemon.wait_for(2)}
    listed = as_nobody(daemon, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [c["pid"] for c in json.loads(listed.stdout)] == [mine]
    info = as_nobody(daemon, "info", found[mine]["id"])
    assert info.returncode == 0, info.stderr
    assert f"PID: {mine}" in info.stdout
    out = short_tmp / "his"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    dump = as_nobody(daemon, "dump", found[mine]["id"], "-o", str(out / "core"))
    assert dump.returncode == 0, dump.stderr
    assert (out / "core").stat().st_size == found[mine]["core"]["size_bytes"]
    for arguments in (("info",), ("dump", "-o", str(out / "other"))):
        refused = as_nobody(daemon, arguments[0], found[roots]["id"], *arguments[1:])
        unknown = as_nobody(daemon, arguments[0], found[roots]["id"][:-1] + "0", *arguments[1:])
        assert refused.returncode == unknown.returncode == 1
        assert refused.stderr.replace(found[roots]["id"], "") == unknown.stderr.replace(
            found[roots]["id"][:-1] + "0", ""
        )
    for verb in ("pin", "delete", "reindex", "verify"):
        match = [] if verb in ("reindex", "verify") else [found[mine]["id"]]
        assert as_nobody(daemon, verb, *match).returncode == 3
    assert as_nobody(daemon, "status").returncode == 0
    assert not (out / "other").exists()


def test_follow_shows_crashes_as_they_happen(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    follow = subprocess.Popen(
        [sys.executable, "-m", "crashd.cli", "--root", str(daemon.paths.root), "follow", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with follow:
        assert follow.stdout is not None
        pids: list[int] = []
        try:
            for _ in range(10):  # nothing tells when it is connected
                pids.append(crash_sleep())
                if select.select([follow.stdout], [], [], 2)[0]:
                    break
            shown = json.loads(follow.stdout.readline())
        finally:
            follow.send_signal(signal.SIGINT)
        assert follow.wait(10) == 0
    assert shown["pid"] in pids
    assert shown["state"] == "complete"


@pytest.mark.parametrize("daemon", [PLAIN_CONFIG], indirect=True)
def test_doctor_finds_a_sound_installation_and_really_crashes(daemon: Daemon) -> None:
    done = daemon.crashctl("doctor", "--crash", "--json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (check,) = [check for check in json.loads(done.stdout) if check["name"] == "test crash"]
    assert "was captured completely" in check["text"]
    assert "; its stack: " in check["text"]
    assert "crash_child" in check["text"]
    (crash,) = daemon.wait_for(1)
    assert crash["state"] == "complete"
    Path("/proc/sys/kernel/core_pattern").write_text("core")
    done = daemon.crashctl("doctor", check=False)
    assert done.returncode == 1
    assert "core_pattern" in done.stdout


def test_delete_pin_and_verify_while_the_daemon_runs(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    for _ in range(3):
        crash_sleep()
    first, second, third = (c["id"] for c in daemon.wait_for(3))
    daemon.crashctl("pin", first)
    assert daemon.crashctl("delete", first, check=False).returncode == 1
    daemon.crashctl("delete", second, third[-8:])
    assert [c["id"] for c in daemon.crashes()] == [first]
    daemon.crashctl("unpin", first)
    daemon.crashctl("delete", first)
    assert daemon.crashes() == []
    daemon.crashctl("verify")
    crash_sleep()
    daemon.wait_for(1)


def test_debug_shows_the_stack_in_gdb(daemon: Daemon, crasher: Path) -> None:
    for directory in crasher.parents[:-2]:  # below /tmp
        directory.chmod(0o755)
    child = subprocess.Popen([crasher], preexec_fn=raise_core_limit)
    child.wait(60)
    daemon.wait_for(1)
    done = daemon.crashctl("debug", "-1", "-A", "-batch -ex bt -ex 'shell id -u'")
    assert "third" in done.stdout
    assert "second" in done.stdout
    assert done.stdout.rstrip().split("\n")[-1] not in ("", "0"), "not as root"
