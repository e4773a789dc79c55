"""Starts the analysis worker, with a deadline and bounded output. Only importer of subprocess.

The worker is a separate process that gives up all its privileges (crashd.edge.sandbox.confine). If
the daemon may not make namespaces, as in its hardened unit, systemd starts the same worker behind a
socket (Accept=yes), sealed by its unit: `ask_worker` instead of `run_worker`.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crashd.domain.cause.workerlines import PEAK_PREFIX, UNSEALED_STATUS
from crashd.edge.sandbox import workerlink
from crashd.errors import FormatError, reason_of

OUTPUT_MAX = 4 << 20
ERRORS_MAX = 8 << 10
# not resolved: in the packages it is a link beside the modules for this Python
_PACKAGE_DIR = Path(os.path.abspath(__file__)).parents[3]
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from crashd.analyzers.main import run; run()"
)
_ENVIRON = {
    "LC_ALL": "C.UTF-8",
    "DRGN_DISABLE_PLUGINS": "*",  # only drgn's own code
    "OMP_NUM_THREADS": "1",  # a sealed process cannot make threads
    "MALLOC_ARENA_MAX": "1",
}
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """How a worker ended."""

    output: bytes
    """The worker's output; complete if `failure` is None."""
    failure: str | None
    """Why there is no result."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


def run_worker(
    request: Mapping[str, Any],
    core_fd: int | None,
    timeout_seconds: float,
    extra_fds: Sequence[int] = (),
    other_fds: Sequence[int] = (),
) -> WorkerResult:
    """Run one worker to its end or to its deadline; blocks. The result reports every failure.

    `other_fds` are the cores of the request's "others". The caller keeps the descriptors. The
    worker gets nothing of the caller's environment, and at most OUTPUT_MAX of its output is read.
    """
    started = time.monotonic()
    try:
        fds = (*(() if core_fd is None else (core_fd,)), *extra_fds, *other_fds)
        given: dict[str, Any] = {"core_fd": core_fd, "extra_fds": list(extra_fds)}
        given["parent"] = os.getpid()
        if other_fds:
            given["others"] = workerlink.name_cores(request["others"], other_fds)
        process = _start({**request, **given}, fds)
    except OSError as e:
        return WorkerResult(b"", f"the worker cannot be started: {reason_of(e)}")
    output, errors = bytearray(), bytearray()
    stopped: str | None = "the daemon stopped waiting"
    try:
        stopped = _listen(process, output, errors, started + timeout_seconds)
    finally:
        if stopped is not None:
            # The whole session, because the first process only waits for the working one.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        status, cpu_seconds = _reap(process)
        peak_bytes = _take_peak(errors)
    return WorkerResult(
        bytes(output),
        stopped or _failure_of(status, bytes(errors)),
        round(time.monotonic() - started, 3),
        round(cpu_seconds, 3),
        peak_bytes,
    )


def ask_worker(
    request: Mapping[str, Any],
    core_fd: int | None,
    timeout_seconds: float,
    address: Path,
    extra_fds: Sequence[int] = (),
    other_fds: Sequence[int] = (),
) -> WorkerResult:
    """Have the service at `address`, a SOCK_STREAM socket owned by root, run a worker.

    Like run_worker(), but the worker is sealed by its unit, the files of the core's modules are
    opened here, its cost is unknown, and a late worker is only abandoned: its unit must end it
    (RuntimeMaxSec=).
    """
    started = time.monotonic()
    deadline = started + timeout_seconds
    output = bytearray()
    failure: str | None = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout_seconds)
            peer.connect(str(address))
            fds = [*(() if core_fd is None else (core_fd,)), *extra_fds, *other_fds]
            workerlink.send_request(peer, {**request, "core_fd": None, "parent": None}, fds)
            if "task" not in request:  # other tasks than the analysis need no files
                workerlink.answer_modules(peer, request)
            peer.shutdown(socket.SHUT_WR)
            while len(output) <= OUTPUT_MAX:
                peer.settimeout(max(deadline - time.monotonic(), 0.001))
                if not (data := peer.recv(_CHUNK)):
                    break
                output += data
    except TimeoutError:
        failure = "it did not end in time"
    except (EOFError, FormatError) as e:
        failure = f"it broke off: {reason_of(e)}"
    except OSError as e:
        failure = f"the worker cannot be reached: {reason_of(e)}"
    if len(output) > OUTPUT_MAX:
        failure = f"it printed more than {OUTPUT_MAX} bytes"
    elif failure is None and not output:
        failure = "it ended without a result"
    return WorkerResult(bytes(output), failure, round(time.monotonic() - started, 3))


def _start(request: Mapping[str, Any], fds: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    with open(os.memfd_create("request", os.MFD_CLOEXEC), "w+b") as file:
        file.write(json.dumps(request).encode())
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _PROGRAM, str(_PACKAGE_DIR)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=_ENVIRON,
            start_new_session=True,
            pass_fds=fds,
        )


def _listen(
    process: "subprocess.Popen[bytes]", output: bytearray, errors: bytearray, deadline: float
) -> str | None:
    """Read the worker's output until it closes both pipes; return why to stop it, or None."""
    sinks: dict[IO[bytes] | None, tuple[bytearray, int]] = {
        process.stdout: (output, OUTPUT_MAX + 1),
        process.stderr: (errors, ERRORS_MAX),
    }
    with selectors.DefaultSelector() as selector:
        for file in sinks:
            if file is not None:
                selector.register(file, selectors.EVENT_READ, sinks[file])
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(max(0.0, left))  # output already there still counts
            if left <= 0 and not ready:
                return "it did not end in time"
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                sink, limit = key.data
                sink += data[: max(0, limit - len(sink))]
                if not data:
                    selector.unregister(key.fileobj)
            if len(output) > OUTPUT_MAX:
                return f"it printed more than {OUTPUT_MAX} bytes"
    return None


def _take_peak(errors: bytearray) -> int:
    """Remove the worker's peak memory from its errors, and return it in bytes."""
    text, found, number = errors.rpartition(b"\n" + PEAK_PREFIX)
    if not found or not number.isdigit():
        return 0
    errors[:] = text
    return int(number[:15]) << 10


def _reap(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Wait for the process; return its status, and its CPU seconds including its child's."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    for file in (process.stdout, process.stderr):
        if file is not None:
            file.close()
    return process.returncode, usage.ru_utime + usage.ru_stime


def _failure_of(status: int, errors: bytes) -> str | None:
    """Return why a worker with this status has no result; None if it has one."""
    if status == 0:
        return None
    last = errors.strip().rpartition(b"\n")[2].decode("utf-8", "backslashreplace")[:200]
    if status == UNSEALED_STATUS:
        return last or "it could not be confined"
    number = -status if status < 0 else status - 128
    if number == signal.SIGKILL:
        return "it was killed: it exceeded its limit of CPU time or memory"
    if 0 < number < signal.NSIG:
        return f"it crashed ({signal.Signals(number).name})"
    return last or f"it ended with status {status}"
