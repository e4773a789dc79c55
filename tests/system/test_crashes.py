"""Crashes that the kernel really delivers, caught whole and told right."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from crashd.domain.crash.corepattern import build_pattern
from tests.running import DEFAULT_CONFIG, PLAIN_CONFIG, Daemon, wait_until
from tests.system.conftest import PYTHON_CRASH, raise_core_limit, run_crasher

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def test_three_programs_are_caught_whole(
    daemon: Daemon, crash_sleep: Callable[[], int], crasher: Path
) -> None:
    pids = [crash_sleep(), run_crasher(crasher)]
    python = subprocess.Popen(PYTHON_CRASH, preexec_fn=raise_core_limit)
    python.wait(60)
    pids.append(python.pid)
    found = {c["pid"]: c for c in daemon.wait_for(3)}
    assert set(found) == set(pids)
    for crash in found.values():
        assert crash["state"] == "complete"
        assert crash["core"]["complete"]
        assert crash["core"]["size_bytes"] > 100_000
        assert crash["core"]["stored_bytes"] < crash["core"]["size_bytes"]
        assert crash["signal_name"] == "SIGSEGV"
        assert crash["uid"] == os.getuid()
        small = crash["core"]["size_bytes"] <= 1 << 20
        assert crash["capture"]["engine"] == ("stream" if small else "memory")
        assert crash["capture"]["mode"] == "pipe"
        assert 0 < crash["capture"]["hold_seconds"] < 10
        assert crash["build_id"]
    null = found[pids[1]]
    assert (null["fault_address"], null["si_code"]) == ("0x0", 1)
    assert null["exe"] == str(crasher)
    assert "NULL pointer dereference" in null["title"]
    info = json.loads(daemon.crashctl("info", null["id"], "--json").stdout)
    assert len(info["threads"]) == 4
    assert info["threads"][0]["crashed"]
    assert info["capture"]["identity"] == "kernel"
    readelf = subprocess.run(["readelf", "-n", crasher], capture_output=True, text=True, check=True)
    assert null["build_id"] in readelf.stdout


@pytest.mark.parametrize("namespace", [False, True])
def test_pattern_of_four_arguments_is_enough(
    daemon: Daemon, crash_sleep: Callable[[], int], namespace: bool
) -> None:
    short = build_pattern(str(daemon.paths.handler), extended=False)
    CORE_PATTERN.write_text(short)
    assert CORE_PATTERN.read_text().strip() == short
    if namespace:
        script = "sleep 1000 & echo $!; sleep 0.1; kill -SEGV $!; wait $!; exit 0"
        outer = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script],
            capture_output=True,
            preexec_fn=raise_core_limit,
            check=True,
        )
        ns_pid = int(outer.stdout)
    else:
        ns_pid = crash_sleep()
    (crash,) = daemon.wait_for(1)
    assert crash["state"] == "complete"
    info = json.loads(daemon.crashctl("info", crash["id"], "--json").stdout)
    assert info["ns_pid"] == ns_pid
    assert (crash["pid"] != ns_pid) is namespace
    assert crash["exe"] == os.path.realpath("/bin/sleep")
    assert crash["uid"] == 0
    assert crash["comm"] == "sleep"
    assert info["owner_uid"] is None, "four arguments do not vouch for %d"


def _execed(cmdline: Path) -> bool:
    return b"setpriv" not in cmdline.read_bytes()


def test_other_users_crash_has_its_uid_and_only_a_safe_one_is_the_users(
    daemon: Daemon, short_tmp: Path
) -> None:
    suid = short_tmp / "s"
    suid.write_bytes(Path("/bin/sleep").read_bytes())
    suid.chmod(0o4755)
    short_tmp.chmod(0o755)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    pids = []
    for program in ("sleep", str(suid)):
        child = subprocess.Popen([*as_nobody, program, "1000"], preexec_fn=raise_core_limit)
        cmdline = Path(f"/proc/{child.pid}/cmdline")
        wait_until(partial(_execed, cmdline), 30, "setpriv has started it")
        os.kill(child.pid, signal.SIGSEGV)
        child.wait(60)
        pids.append(child.pid)
    found = {c["pid"]: c for c in daemon.wait_for(2)}
    assert [found[p]["uid"] for p in pids] == [65534, 65534]
    owners = [
        json.loads(daemon.crashctl("info", found[p]["id"], "--json").stdout)["owner_uid"]
        for p in pids
    ]
    assert owners == [65534, None]


@pytest.mark.parametrize(
    "daemon", [DEFAULT_CONFIG + '[capture]\nengine = "stream"\n'], indirect=True
)
def test_stored_core_is_what_the_kernel_sent_to_the_byte(daemon: Daemon, crasher: Path) -> None:
    """A tee between kernel and handler keeps a copy of the very stream."""
    copy = daemon.paths.root / "copy"
    tee = daemon.paths.root / "tee"
    tee.write_text(f'#!/bin/sh\nexec 3>&-\n/usr/bin/tee {copy} | {daemon.paths.handler} "$@"\n')
    tee.chmod(0o755)
    CORE_PATTERN.write_text(f"|{tee} %p %e %s %t")
    run_crasher(crasher)
    (crash,) = daemon.wait_for(1)
    stored = daemon.paths.crashes / crash["id"] / "core.zst"
    plain = subprocess.run(["zstd", "-dcq", stored], capture_output=True, check=True).stdout
    assert plain == copy.read_bytes()
    assert crash["core"]["size_bytes"] == len(plain)
    dumped = daemon.paths.root / "dumped"
    daemon.crashctl("dump", crash["id"], "-o", str(dumped))
    assert dumped.read_bytes() == plain
    assert dumped.stat().st_blocks * 512 <= len(plain)


def frames(executable: Path, core: Path) -> list[str]:
    out = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "bt", str(executable), str(core)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line.partition(" in ")[2] or line for line in out.splitlines() if line.startswith("#")]


def test_gdb_sees_the_stack_that_the_kernels_own_file_has(
    daemon: Daemon, crasher: Path, short_tmp: Path
) -> None:
    run_crasher(crasher)
    (crash,) = daemon.wait_for(1)
    ours = short_tmp / "ours"
    daemon.crashctl("dump", crash["id"], "-o", str(ours))
    pattern = CORE_PATTERN.read_text()
    try:
        CORE_PATTERN.write_text(str(short_tmp / "kernels"))
        run_crasher(crasher)
    finally:
        CORE_PATTERN.write_text(pattern)
    expected = frames(crasher, short_tmp / "kernels")
    assert any("third" in frame for frame in expected)
    assert frames(crasher, ours) == expected


def test_rlimit_core_of_zero_keeps_metadata_only(daemon: Daemon) -> None:
    child = subprocess.Popen(["sh", "-c", "ulimit -c 0; exec sleep 1000"])
    wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", 30, "exec")
    os.kill(child.pid, signal.SIGSEGV)
    child.wait(60)
    (crash,) = daemon.wait_for(1)
    assert crash["state"] == "metadata-only"
    assert crash["core"]["path"] is None
    assert "RLIMIT_CORE" in crash["capture"]["reason"]
    assert daemon.crashctl("dump", crash["id"], "-o", "-", check=False).returncode == 1


def test_rlimit_core_of_one_leaves_a_record_of_the_loss(daemon: Daemon) -> None:
    limit = (1, resource.getrlimit(resource.RLIMIT_CORE)[1])
    child = subprocess.Popen(
        ["sleep", "1000"], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, limit)
    )
    os.kill(child.pid, signal.SIGSEGV)
    child.wait(60)
    (crash,) = daemon.wait_for(1)
    assert (crash["state"], crash["pid"], crash["comm"]) == ("lost", child.pid, "sleep")
    assert "RLIMIT_CORE of the process was 1" in crash["capture"]["reason"]


def test_fault_19_hostile_names_stay_data(daemon: Daemon, short_tmp: Path) -> None:
    evil = short_tmp / "\x1b[2J-p1 $(id)\n.."
    evil.symlink_to("/bin/sleep")
    program = short_tmp / b"e\xff vil\n".decode("utf-8", "surrogateescape")
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    code = (
        "import ctypes,os,signal;"
        "ctypes.CDLL(None).prctl(15, b'../../x\\n=');"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    subprocess.run([sys.executable, "-c", code], preexec_fn=raise_core_limit, check=False)
    child = subprocess.Popen([program, "1000"], preexec_fn=raise_core_limit)
    os.kill(child.pid, signal.SIGSEGV)
    child.wait(60)
    found = {c["pid"]: c for c in daemon.wait_for(2)}
    assert {c["comm"] for c in found.values()} >= {"../../x\n="}
    names = [p.name for p in daemon.paths.crashes.iterdir()]
    assert sorted(names) == sorted(c["id"] for c in found.values())
    for arguments in (("list",), ("info", found[child.pid]["id"]), ("list", "-r")):
        out = daemon.crashctl(*arguments).stdout
        assert "\x1b" not in out
        assert "\\x0a" in out
    info = json.loads(daemon.crashctl("info", found[child.pid]["id"], "--json").stdout)
    assert info["exe_base64"]


def test_environment_secrets_are_not_stored(daemon: Daemon) -> None:
    child = subprocess.Popen(
        ["sleep", "1000"],
        preexec_fn=raise_core_limit,
        env={"DB_PASSWORD": "hunter2hunter2", "LANG": "C", "PATH": "/bin"},
    )
    os.kill(child.pid, signal.SIGSEGV)
    child.wait(60)
    (crash,) = daemon.wait_for(1)
    raw = (daemon.paths.crashes / crash["id"] / "crash.json").read_text()
    assert "LANG=C" in raw
    assert "DB_PASSWORD=" in raw
    assert "hunter2" not in raw


@pytest.mark.parametrize("daemon", [PLAIN_CONFIG], indirect=True)
def test_fault_26_killed_while_dumping_is_truncated_and_said_so(daemon: Daemon) -> None:
    code = (
        "import mmap, os, time; m = mmap.mmap(-1, 400 << 20); "
        "m.write(os.urandom(1 << 20) * 400); print(flush=True); time.sleep(100)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=raise_core_limit
    )
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGSEGV)
    wait_until(
        lambda: bool(list(daemon.paths.crashes.glob("*/core.zst.partial"))), 20, "capture begins"
    )
    os.kill(child.pid, signal.SIGKILL)
    child.wait(60)
    child.stdout.close()
    (crash,) = daemon.wait_for(1)
    assert crash["state"] == "truncated"
    assert not crash["core"]["complete"]
    assert crash["capture"]["reason"]
    assert crash["core"]["resident_bytes"] < 400 << 20, "the rest is missing, or zeros"
    analyzed = daemon.crashctl("analyze", crash["id"])
    assert analyzed.returncode == 0, analyzed.stderr
    info = json.loads(daemon.crashctl("info", crash["id"], "--json").stdout)
    assert info["analysis"]["state"] == "done"
    assert info["frames"][0]["module"], "its registers came first"
    started = time.monotonic()
    assert daemon.crashctl("verify").returncode == 0
    assert time.monotonic() - started < 20
