"""The native handler with AddressSanitizer and UndefinedBehaviorSanitizer, given any arguments.

A daemon of sorts takes what it is offered, and refuses every other time, so that the way into the
Python handler (which is nothing here) is walked, too.
"""

import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from crashd.corehandler import QUEUED, RECEIPT
from crashd.store.handlerfile import NATIVE
from crashd.store.paths import Paths

FOUND = 99
"""Exit status of a sanitizer that found something."""
_OPTIONS = f"exitcode={FOUND}"


class SanitizerError(Exception):
    """A sanitizer found something."""


@functools.cache
def _prepare() -> Paths:
    """Build it in a root of its own, with the daemon that it looks for."""
    directory = Path(tempfile.mkdtemp(prefix="cdf", dir="/tmp"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    paths = Paths(directory)
    paths.handler.parent.mkdir(parents=True)
    paths.runtime_dir.mkdir(parents=True)
    checks = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = NATIVE.with_suffix(".c")
    subprocess.run(["gcc", "-std=c11", *checks, "-o", paths.handler, source], check=True)
    paths.handler_fallback.symlink_to(shutil.which("true") or "/bin/true")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(paths.handoff_socket))
    server.listen(16)
    threading.Thread(target=_answer, args=(server,), daemon=True).start()
    return paths


def _answer(server: socket.socket) -> None:
    number = 0
    while True:
        peer, _ = server.accept()
        number += 1
        with peer:
            _, descriptors, _, _ = socket.recv_fds(peer, 1 << 16, 4)
            for fd in descriptors:
                os.close(fd)
            if number % 3:
                peer.send(QUEUED)
            if number % 2:
                peer.send(RECEIPT)


def run_handler(raw: bytes) -> None:
    """Run it with the arguments in `raw`, each ended by NUL.

    Raises:
        SanitizerError: what is wrong with it, in its words.

    """
    paths = _prepare()
    arguments = raw[: 1 << 16].split(b"\0")[:40]
    done = subprocess.run(
        [os.fsencode(paths.handler), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"ASAN_OPTIONS": _OPTIONS, "UBSAN_OPTIONS": _OPTIONS},
        check=False,
    )
    if done.returncode != 0:
        raise SanitizerError(done.stderr.decode("utf-8", "backslashreplace")[:2000])


def seeds() -> list[bytes]:
    """Give the arguments of the registered pattern, whole and cut, with values of every kind."""
    _prepare()  # before the clock of the fuzzer runs
    pid = str(os.getpid())
    whole = ["7", "name", "11", "1800000000", pid, pid, "0", "0", "9", "1", "3", "h"]
    found = [whole, whole[:4], [], [*whole, "more"], [*whole[:10], "", "h"]]
    found += [[*whole[:4], "x" * 5000, *whole[5:]], [*whole[:10], "9" * 30, "h"]]
    return ["\0".join(arguments).encode() for arguments in found]
