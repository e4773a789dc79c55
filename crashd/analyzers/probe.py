"""A worker that tries to break out of the sandbox and reports what worked: for tests, and to check
whether the sandbox holds on this host.
"""

import ctypes
import mmap
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

FORBIDDEN = (
    "/etc/shadow",
    "/etc/passwd",
    "/home",
    "/root",
    "/run",
    "/proc/self/status",
    "/tmp",
    "/var",
    "/dev/null",
)


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Try everything; `could` lists what worked but must not, `ids` the user and group ids."""
    if request.get("act"):
        _act(str(request["act"]))
    attempts: dict[str, Callable[[], object]] = {
        f"open {path}": _opening(path) for path in (*FORBIDDEN, *request.get("paths", ()))
    }
    attempts |= {
        "write /": lambda: os.open("/x", os.O_CREAT | os.O_WRONLY),
        "mkdir /x": lambda: os.mkdir("/x"),
        "fork": _fork,
        "exec": lambda: os.execv("/usr/bin/true", ["true"]),
        "socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "kill parent": lambda: os.kill(os.getppid() or 1, 0),
        "setuid": lambda: os.setuid(0),
        "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "unshare": lambda: _libc("unshare", 0x10000000),
        "mount": lambda: _libc("mount", b"tmpfs", b"/", b"tmpfs", 0, None),
        "ptrace": lambda: _libc("ptrace", 0, 0, 0, 0),
        "chroot": lambda: os.chroot("/"),
        "memory": lambda: bytearray(1 << 40),
    }
    could = [name for name, attempt in attempts.items() if _works(attempt)]
    return {
        "could": could,
        "ids": [*os.getresuid(), *os.getresgid()],
        "root": sorted(os.listdir("/")),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "environ": sorted(os.environ),
    }


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def _opening(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _libc(name: str, *arguments: object) -> None:
    if int(getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)) < 0:
        raise OSError(ctypes.get_errno(), name)


def _act(act: str) -> None:
    """Misbehave like a worker that a hostile core has taken over or brought down."""
    if act == "crash":
        ctypes.string_at(0)
    elif act == "hang":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass
    elif act == "eat memory":
        bytearray(1 << 34)
    elif act == "print":
        while True:
            os.write(1, b"x" * 65536)
