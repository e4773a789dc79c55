"""The pid of a crashed process becomes another's before its handler looks at it: what an attacker
needs to have somebody else's core given to him (CVE-2025-4598, CVE-2025-5054, CVE-2020-15702).

The handler is held by a program before it, that stops itself; the crashed process is then killed,
and an impostor gets its pid.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CorePatternOwner
from tests.running import Daemon, wait_until
from tests.system import reuse
from tests.system.asuser import NOBODY, as_nobody
from tests.system.conftest import raise_core_limit

FULL = "%p %e %s %t %P %I %u %g %c %d %F %h"
OLD_KERNEL = "%p %e %s %t %P %I %u %g %c %d"
SHORT = "%p %e %s %t"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that nobody can run programs from."""
    path = Path(f"/tmp/cdr{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def held_handler(hold: Path, but: int = 0) -> int:
    """Wait for a handler that has stopped itself; give its pid."""
    found: list[int] = []

    def stopped() -> bool:
        for name in os.listdir("/proc"):
            try:
                command = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
                state = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if os.fsencode(hold) in command and state == "T" and int(name) != but:
                found.append(int(name))
        return bool(found)

    wait_until(stopped, 20, "the handler is held")
    return found[0]


def take_pattern(daemon: Daemon, public: Path, fields: str) -> Path:
    """Put a program before the handler that stops itself, and hand it what `fields` says."""
    hold = public / "hold"
    hold.write_text(f'#!/bin/sh\nkill -STOP $$\nexec "{daemon.paths.handler}" "$@"\n')
    hold.chmod(0o755)
    Path("/proc/sys/kernel/core_pattern").write_text(f"|{hold} {fields}")
    return hold


@contextmanager
def impostor(pid: int, *command: str) -> Iterator[None]:
    """Run a command as nobody, by this pid; it is killed at the end."""
    with subprocess.Popen(
        [sys.executable, reuse.__file__, str(pid), str(NOBODY), *command], stdout=subprocess.PIPE
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"made\n"
            yield
        finally:
            for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def wait_until_named(pid: int, name: str) -> None:
    """Wait until a process runs its program; its name is what execve(2) sets last."""
    comm = Path(f"/proc/{pid}/comm")
    wait_until(lambda: comm.read_text() == f"{name}\n", 10, f"{name} runs")


def crash_of(uid: int, program: Path) -> "subprocess.Popen[bytes]":
    """Crash a program that root or a user runs."""

    def become() -> None:
        raise_core_limit()
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

    victim = subprocess.Popen([program, "1000"], preexec_fn=become)
    wait_until_named(victim.pid, program.name)
    os.kill(victim.pid, signal.SIGSEGV)
    return victim


def copy_sleep(path: Path, mode: int = 0o755) -> Path:
    shutil.copy(shutil.which("sleep") or "", path)
    path.chmod(mode)
    return path


def check(daemon: Daemon, victim: int, owner: int) -> dict[str, Any]:
    """The record is the victim's, or says little; and nothing of it is the impostor's to read."""
    print(daemon.crashes(), daemon.log.read_text())
    (crash,) = daemon.wait_for(1)
    assert crash["comm"] == "victim"
    assert crash["pid"] in (victim, None)
    info = daemon.crashctl("info", "--json", crash["id"]).stdout
    assert "impostor" not in info
    assert crash["uid"] in (owner, None)
    directory = daemon.paths.crashes / crash["id"]
    for path in (directory, *directory.iterdir()):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 0)
        assert not stat.S_IMODE(found.st_mode) & 0o077, path
        assert "system.posix_acl_access" not in os.listxattr(path)
    return crash


def refuse(daemon: Daemon, crash_id: str) -> None:
    """The user whose the impostor is does not even learn that there is such a crash."""
    daemon.paths.root.parent.chmod(0o755)
    asked = as_nobody(daemon, "info", crash_id)
    assert asked.returncode == 1
    assert "victim" not in asked.stdout + asked.stderr


@pytest.mark.parametrize("fields", [FULL, OLD_KERNEL, SHORT])
@pytest.mark.parametrize("setuid", [False, True], ids=["root", "setuid"])
@pytest.mark.parametrize("prefix", [(), ("unshare", "-Urm")], ids=["same", "namespaces"])
def test_sec_02_impostor_gets_nothing_by_the_pid_of_the_crashed(
    daemon: Daemon,
    core_pattern_owner: CorePatternOwner,
    public: Path,
    fields: str,
    setuid: bool,
    prefix: tuple[str, ...],
) -> None:
    del core_pattern_owner  # puts the pattern back
    hold = take_pattern(daemon, public, fields)
    program = copy_sleep(public / "victim", 0o4755 if setuid else 0o755)
    victim = crash_of(NOBODY if setuid else 0, program)
    handler = held_handler(hold)
    victim.kill()
    victim.wait(20)
    with impostor(victim.pid, *prefix, str(copy_sleep(public / "impostor")), "1000"):
        wait_until(lambda: os.stat(f"/proc/{victim.pid}").st_uid == NOBODY, 30, "it is nobody's")
        os.kill(handler, signal.SIGCONT)
        crash = check(daemon, victim.pid, NOBODY if setuid else 0)
    assert crash["exe"] is None or crash["exe"].endswith("victim")
    refuse(daemon, crash["id"])


@pytest.mark.parametrize("fields", [FULL, OLD_KERNEL, SHORT])
def test_sec_02_impostor_that_crashes_too_gets_its_own_core_and_no_other(
    daemon: Daemon,
    core_pattern_owner: CorePatternOwner,
    public: Path,
    fields: str,
) -> None:
    del core_pattern_owner
    hold = take_pattern(daemon, public, fields)
    victim = crash_of(0, copy_sleep(public / "victim"))
    first = held_handler(hold)
    victim.kill()
    victim.wait(20)
    with impostor(victim.pid, str(copy_sleep(public / "impostor")), "1000"):
        wait_until_named(victim.pid, "impostor")
        os.kill(victim.pid, signal.SIGSEGV)
        second = held_handler(hold, but=first)
        os.kill(first, signal.SIGCONT)
        crash = check(daemon, victim.pid, 0)
        refuse(daemon, crash["id"])
        os.kill(second, signal.SIGCONT)
        crashes = {c["comm"]: c for c in daemon.wait_for(2)}
    assert crashes.keys() == {"victim", "impostor"}
    assert crashes["impostor"]["uid"] in (NOBODY, None)
