"""A crashed process that has namespaces of its own, and in them all that a collector may call."""

import subprocess
import sys
from pathlib import Path

import pytest

from crashd.store.paths import Paths
from tests.conftest import CorePatternOwner
from tests.running import KEEPING_CONFIG, Daemon
from tests.system.conftest import raise_core_limit

SOCKETS = (
    "crashd/handoff.sock",
    "crashd/control.sock",
    "crashd/analyze.sock",
    "crashd/hooks.sock",
    "systemd/journal/socket",
    "systemd/journal/stdout",
    "systemd/coredump",
    "systemd/private",
    "dbus/system_bus_socket",
    "nscd/socket",
    "user/0/bus",
)
LURE = """
import os, select, socket, subprocess, sys
runs, names = sys.argv[1].split(":"), sys.argv[2:]
KINDS = {"crashd/handoff.sock": socket.SOCK_SEQPACKET, "systemd/journal/socket": socket.SOCK_DGRAM}
listening, callers = [], []
for run in runs:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", run], check=True)
    for name in names:
        os.makedirs(os.path.dirname(f"{run}/{name}"), exist_ok=True)
        kind = KINDS.get(name, socket.SOCK_STREAM)
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(f"{run}/{name}")
        if kind != socket.SOCK_DGRAM:
            made.listen(16)
        listening.append((made, kind, f"{run}/{name}"))
poll = select.poll()
for made, _, _ in listening:
    poll.register(made, select.POLLIN)
if os.fork() == 0:
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={runs[0]}/user/0/bus"
    os.kill(os.getpid(), 11)
os.wait()
print(len(poll.poll(2000)), flush=True)
for made, kind, path in listening:
    caller = socket.socket(socket.AF_UNIX, kind)
    caller.connect(path)
    if kind == socket.SOCK_DGRAM:
        caller.send(b"x")
    callers.append(caller)
print(len(poll.poll(2000)) == len(listening))
"""


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner, short_tmp: Path) -> Path:
    """A root for a daemon that may take core_pattern."""
    del core_pattern_owner
    return short_tmp / "r"


def test_sec_04_40_nothing_in_the_namespaces_of_the_crashed_is_called(root: Path) -> None:
    """Neither by the handler nor by the daemon, an analysis included; and it is caught."""
    with Daemon(root, config=KEEPING_CONFIG.replace("enabled = false", "enabled = true")) as daemon:
        runs = f"/run:{Paths(root).runtime_dir.parent}"
        done = subprocess.run(
            ["unshare", "-Urpfm", "--mount-proc", sys.executable, "-c", LURE, runs, *SOCKETS],
            preexec_fn=raise_core_limit,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split() == ["0", "True"], "none called; and all would have been seen"
        (crash,) = daemon.wait_for(1)
        assert (crash["state"], crash["uid"]) == ("complete", 0)
        assert crash["pid"] != 2, "the host's pid, not that of its namespace"
