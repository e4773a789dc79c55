"""The program that analyses one core: started by crashd.edge.sandbox, it opens what it is to read,
takes everything else away from itself, and prints one JSON object.

    stdin    the request, one JSON object; its "core_fd" is the stored core's descriptor. Or a
             socket, as systemd gives it to a unit: the descriptor comes with the request
    stdout   the result; its end, and exit status 0, say that it is whole

All that it may need is imported first: behind seal() there are no files to import from.
"""

import contextlib
import json
import os
import socket
import stat
import sys
import traceback
from typing import Any

from crashd.analyzers import kernel_log, probe, process_core
from crashd.domain.analysis import UNSEALED_STATUS
from crashd.domain.procfs import AT_PHDR
from crashd.edge import confine
from crashd.errors import CrashdError, UnsupportedError

REQUEST_MAX = 16 << 20
OUTPUT_MAX = 4 << 20
FILES_MAX = 800


def main() -> int:
    """Run; return the exit status."""
    request = _read_request()
    try:
        mapped = confine.isolate(request["parent"])
        if request.get("task") == "probe":
            confine.seal(_limits(request), [1, 2], mapped=mapped)
            return _print(probe.probe(request))
        if request.get("task") == "kernel log":
            confine.seal(_limits(request), [1, 2, request["core_fd"]], mapped=mapped)
            return _print(kernel_log.analyse(request["core_fd"]))
        opened = process_core.open_core(request["core_fd"], request, FILES_MAX)
        keep = [1, 2, request["core_fd"], *opened.descriptors]
        python = _prepare_python(opened, request)
        scratch, size = (python[1], opened.core.size_bytes) if python else (0, 0)
        confine.seal(_limits(request, scratch, size), keep, mapped=mapped)
    except UnsupportedError as e:
        sys.stderr.write(f"{e}\n")
        return UNSEALED_STATUS
    except CrashdError as e:
        return _print({"failed": str(e)})
    return _print(process_core.analyse(opened, python[0] if python else None))


def _read_request() -> dict[str, Any]:
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        own: dict[str, Any] = json.loads(sys.stdin.buffer.read(REQUEST_MAX))
        return own
    with socket.socket(fileno=os.dup(0)) as peer:
        raw, fds, _, _ = socket.recv_fds(peer, REQUEST_MAX, 1)
        while len(raw) <= REQUEST_MAX and (more := peer.recv(1 << 16)):
            raw += more
    request: dict[str, Any] = json.loads(raw)
    request["core_fd"] = fds[0]
    return request


def _prepare_python(
    opened: process_core.OpenedCore, request: dict[str, Any]
) -> tuple[process_core.PythonReader, int] | None:
    """Make what reads an interpreter's stacks, and tell the room that it takes; None where there is
    no interpreter, or no room for it.
    """
    if not request.get("python"):
        return None
    from crashd.analyzers import pythonstack

    phdr = opened.image.head.auxv.get(AT_PHDR, 0)
    files = pythonstack.interpreter_files((f.module, f.fd) for f in opened.files)
    main = next((f.fd for f in opened.files if f.module.start <= phdr < f.module.end), None)
    if not files or main is None:
        return None
    wanted = pythonstack.scratch_bytes(opened.image, files)
    if wanted > int(request["memory_bytes"]):
        return lambda: ([], f"Python stacks: they take {wanted} bytes of memory"), 0
    return lambda: pythonstack.python_stacks(opened.image, main, files), wanted


def _limits(request: dict[str, Any], scratch: int = 0, file_bytes: int = 0) -> confine.Limits:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return confine.Limits(
        cpu_seconds=int(request["cpu_seconds"]),
        memory_bytes=now + int(request["memory_bytes"]),
        scratch_bytes=scratch,
        file_bytes=file_bytes,
    )


def _print(result: dict[str, Any]) -> int:
    raw = json.dumps(result, ensure_ascii=True, separators=(",", ":")).encode()
    if len(raw) > OUTPUT_MAX:
        raw = json.dumps({"failed": f"the result has {len(raw)} bytes"}).encode()
    view = memoryview(raw)
    while view:
        view = view[os.write(1, view) :]
    return 0


def run() -> None:
    """Run as a program, and end without any more ado."""
    status = 70
    try:
        status = main()
    except MemoryError:
        sys.stderr.write("out of memory\n")
    except Exception:  # boundary: whatever a hostile core provokes is told, and ends here
        sys.stderr.write(traceback.format_exc(limit=-3)[-2000:])
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
