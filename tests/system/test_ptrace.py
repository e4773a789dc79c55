"""Whose a crash is, beside what ptrace(2) itself answers: /proc/PID/mem of the process before it
crashes, opened by the user who later asks crashd for it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.running import DEFAULT_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit
from tests.system.test_security import NOBODY, as_nobody, caught

STRANGE_GROUP = 4242
PLAIN = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
RAW_SOCKETS = ["--inh-caps=+net_raw", "--ambient-caps=+net_raw"]
IN_STRANGE_GROUP = ["setpriv", f"--reuid={NOBODY}", f"--regid={STRANGE_GROUP}", "--clear-groups"]
OWN_NAMESPACE = [*PLAIN, "unshare", "--user", "--map-current-user"]
ENTER_ROOTS_NAMESPACE = f"""
import ctypes, os, sys
readable, writable = os.pipe()
parent = os.getpid()
if not (child := os.fork()):
    os.read(readable, 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{{parent}}/{{name}}", "w") as file:
            file.write("{NOBODY} {NOBODY} 1")
    os._exit(0)
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    raise OSError(ctypes.get_errno(), "unshare")
os.write(writable, b"x")
assert os.waitpid(child, 0)[1] == 0
os.setgroups([])
os.setresgid(*[{NOBODY}] * 3)
os.setresuid(*[{NOBODY}] * 3)
os.execvp(sys.argv[1], sys.argv[1:])
"""
ROOTS_NAMESPACE = ["/usr/bin/python3", "-c", ENTER_ROOTS_NAMESPACE]
"""As that user, in a user namespace that is root's, as container runtimes make them."""


@pytest.fixture
def daemon(core_pattern_lock: None) -> Iterator[Daemon]:
    root = Path(f"/tmp/cdp{os.getpid()}")
    root.mkdir(mode=0o755)
    with Daemon(root, config=DEFAULT_CONFIG) as running:
        yield running
    shutil.rmtree(root)


def crash_sleep(prefix: Sequence[str]) -> tuple[int, bool]:
    """Crash a `sleep`; return its pid, and whether nobody could open its memory before."""
    child = subprocess.Popen([*prefix, "sleep", "1000"], preexec_fn=raise_core_limit)
    comm = Path(f"/proc/{child.pid}/comm")
    wait_until(lambda: comm.read_bytes() == b"sleep\n", 20, f"{prefix} has started it")
    reader = [*PLAIN, "dd", f"if=/proc/{child.pid}/mem", "of=/dev/null", "count=0"]
    opened = subprocess.run(reader, capture_output=True, check=False).returncode == 0
    os.kill(child.pid, signal.SIGSEGV)
    assert child.wait(30) == -signal.SIGSEGV
    return child.pid, opened


def asked(daemon: Daemon, crash: dict[str, Any], output: Path) -> set[bool]:
    """Ask for a crash as nobody in each way there is; return whether it was answered."""
    listed = json.loads(as_nobody(daemon, "list", "--json").stdout)
    by_pid = as_nobody(daemon, "info", "--json", f"PID={crash['pid']}")
    return {
        crash["id"] in [row["id"] for row in listed],
        by_pid.returncode == 0,
        as_nobody(daemon, "info", crash["id"]).returncode == 0,
        as_nobody(daemon, "dump", crash["id"], "-o", str(output)).returncode == 0,
    }


@pytest.mark.parametrize(
    ("prefix", "theirs"),
    [
        (PLAIN, True),
        ([*PLAIN, *RAW_SOCKETS], False),
        (IN_STRANGE_GROUP, False),
        (OWN_NAMESPACE, True),
        (ROOTS_NAMESPACE, False),
    ],
    ids=["plain", "ambient", "group", "own-namespace", "roots-namespace"],
)
def test_sec_74_a_crash_is_its_users_where_ptrace_lets_that_user_attach(
    daemon: Daemon, prefix: Sequence[str], theirs: bool
) -> None:
    out = daemon.paths.root / "out"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    pid, attached = crash_sleep(prefix)
    crash = caught(daemon, pid)
    assert crash["uid"] == NOBODY, "to the eye it is a process of that user"
    assert attached is theirs, "the kernel's own answer"
    assert asked(daemon, crash, out / "core") == {theirs}
    assert daemon.crashctl("info", crash["id"]).returncode == 0, "root sees it"


def test_sec_74_a_reader_kept_in_a_user_namespace_sees_nothing_outside_of_it(
    daemon: Daemon,
) -> None:
    pid, _ = crash_sleep(PLAIN)
    crash = caught(daemon, pid)
    python = [sys.executable, "-m", "crashd.cli", "--root", str(daemon.paths.root)]
    for prefix, found in ((PLAIN, [crash["id"]]), (OWN_NAMESPACE, [])):
        done = subprocess.run(
            [*prefix, *python, "list", "--json"],
            capture_output=True,
            check=False,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert [row["id"] for row in json.loads(done.stdout)] == found, done.stderr
