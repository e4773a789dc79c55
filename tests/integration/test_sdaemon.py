"""systemd's protocols with a process of its own that was given real descriptors."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
# Descriptors 3 and up are given as systemd gives them: by number, after fork and before exec.
GIVE = """
import os, sys
fds = [int(n) for n in sys.argv[1].split(",")]
high = [os.dup2(fd, 200 + n) for n, fd in enumerate(fds)]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n)
os.closerange(3 + len(fds), 300)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(fds))
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
TAKE = """
import gc, json, os, sys
from crashd.edge.host.sdaemon import listen_fds
from crashd.errors import UnavailableError
before = {n for n in os.environ if n.startswith("LISTEN_")}
try:
    found, error = listen_fds(os.environ), None
except UnavailableError as e:
    found, error = {}, str(e)
    number = os.open("/", os.O_RDONLY)  # whoever still thinks that it is his would close it
if error:
    gc.collect()
    os.close(number)
print(json.dumps({
    "before": sorted(before),
    "after": sorted(n for n in os.environ if n.startswith("LISTEN_")),
    "error": error,
    "sockets": {
        name: [s.fileno(), s.type, s.get_inheritable(), s.getblocking(), str(s.getsockname())]
        for name, s in found.items()
    },
    "open": [fd for fd in range(3, 10) if os.path.exists(f"/proc/self/fd/{fd}")],
    "loaded": "systemd" in sys.modules,
}))
"""


def run_given(fds: list[int], code: str, **environ: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", GIVE, ",".join(map(str, fds)), code],
        env={"PYTHONPATH": str(REPOSITORY), **environ},
        pass_fds=fds,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture
def sockets(short_tmp: Path) -> Any:
    handoff = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handoff.bind(str(short_tmp / "handoff"))
    metrics = socket.create_server(("127.0.0.1", 0))
    handoff.listen()
    with handoff, metrics:
        yield handoff, metrics


def test_listen_fds_gives_sockets_by_name(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    handoff, metrics = sockets
    said = run_given([handoff.fileno(), metrics.fileno()], TAKE, LISTEN_FDNAMES="handoff:metrics")
    assert said["before"] == ["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"]
    assert said["after"] == []
    assert said["error"] is None
    assert said["sockets"] == {
        "handoff": [3, socket.SOCK_SEQPACKET, False, False, handoff.getsockname()],
        "metrics": [4, socket.SOCK_STREAM, False, False, str(metrics.getsockname())],
    }
    assert said["loaded"] is False


@pytest.mark.parametrize("names", ["", "a:b", "a:b:c"])
def test_listen_fds_names_that_do_not_fit_name_none(
    sockets: tuple[socket.socket, socket.socket], names: str
) -> None:
    said = run_given([sockets[0].fileno()], TAKE, LISTEN_FDNAMES=names)
    assert list(said["sockets"]) == ["unknown"]


def test_listen_fds_two_of_one_name_are_refused_and_closed(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    fds = [s.fileno() for s in sockets]
    said = run_given(fds, TAKE, LISTEN_FDNAMES="metrics:metrics")
    assert "two sockets named 'metrics'" in said["error"]
    assert said["open"] == []


def test_listen_fds_file_is_refused_and_all_closed(
    sockets: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        said = run_given([sockets[0].fileno(), fd], TAKE, LISTEN_FDNAMES="handoff:control")
    finally:
        os.close(fd)
    assert "passed by systemd as 'control', is not a socket" in said["error"]
    assert said["open"] == []


NOTIFY = """
import os, sys
if sys.argv[1] == "absent":
    sys.modules["systemd"] = None  # an import of it fails
from crashd.edge.host.sdaemon import Notifier
notifier = Notifier(os.environ)
assert notifier.watchdog_interval_ns == 5 * 10**8
assert notifier.reloading() and notifier.ready("up") and notifier.watchdog()
assert notifier.stopping()
assert "systemd" not in sys.modules or sys.argv[1] == "absent"
assert Notifier({"NOTIFY_SOCKET": "vsock:4294967295:1"}).ready("up") is False  # not to the other
# not a unix socket, and nobody there: whatever the library does with it
os.environ["NOTIFY_SOCKET"] = "vsock:4294967295:1"
assert Notifier(os.environ).ready("up") is False
assert ("systemd.daemon" in sys.modules) == (sys.argv[1] == "present")
"""


@pytest.mark.parametrize("library", ["present", "absent"])
def test_notifier_speaks_to_a_manager_with_and_without_the_library(
    short_tmp: Path, library: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_tmp / "notify"))
        manager.settimeout(10)
        environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000"}
        done = subprocess.run(
            [sys.executable, "-c", NOTIFY, library],
            env={"PYTHONPATH": str(REPOSITORY), **environ},
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        said = [manager.recv(4096).split(b"\n") for _ in range(4)]
    assert said[0][0] == b"RELOADING=1"
    assert said[0][1].startswith(b"MONOTONIC_USEC=")
    assert said[1:] == [[b"READY=1", b"STATUS=up"], [b"WATCHDOG=1"], [b"STOPPING=1"]]
