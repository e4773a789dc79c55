"""The program that analyses one core: started by crashd.edge.sandbox.start, it opens what it is to
read, takes everything else away from itself, and prints one JSON object.

    stdin    the request, one JSON object; its "core_fd" is the stored core's descriptor. Or a
             socket, as systemd gives it to a unit that is sealed already:
             crashd.edge.sandbox.workerlink
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
from collections.abc import Callable
from functools import partial
from typing import Any

from crashd.analyzers import kernel_core, kernel_log, probe, process_core
from crashd.domain.cause.analysis import UNSEALED_STATUS
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.elf.auxv import AT_PHDR
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox import confine, workerlink
from crashd.edge.sandbox.modulefiles import ModuleFile, open_modules
from crashd.edge.sandbox.workerlink import FILES_MAX
from crashd.errors import CrashdError, UnsupportedError, reason_of

REQUEST_MAX = 16 << 20
OUTPUT_MAX = 4 << 20
MAPPED_MAX = 4 << 30
"""Of a vmlinux, whose file is mapped as a whole."""


def main() -> int:
    """Run; return the exit status."""
    try:
        if stat.S_ISSOCK(os.fstat(0).st_mode):
            return _run_in_unit()
        return _run_alone()
    except UnsupportedError as e:
        sys.stderr.write(f"{e}\n")
        return UNSEALED_STATUS
    except CrashdError as e:
        return _print({"failed": reason_of(e)})
    except (EOFError, ConnectionError):
        return 0  # the daemon has gone: nobody wants the result any more


def _run_alone() -> int:
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read(REQUEST_MAX))
    isolation = confine.isolate(request["parent"])
    seal = partial(confine.seal, isolation=isolation)

    def open_files(found: list[Module]) -> list[ModuleFile]:
        return open_modules(found, FileSearch.from_json(request["search"]), FILES_MAX)

    return _work(request, open_files, seal)


def _run_in_unit() -> int:
    peer = socket.socket(fileno=1)  # where the result goes, too: it stays open behind the seal
    asked = False

    def ask(found: list[Module]) -> list[ModuleFile]:
        nonlocal asked
        asked = True
        return workerlink.ask_for_modules(peer, found)

    request = workerlink.receive_request(peer)
    try:
        return _work(request, ask, confine.seal_in_unit)
    except CrashdError:
        if not asked and request["core_fd"] is not None:
            ask([])  # the daemon waits for that first
        raise
    finally:
        peer.detach()


def _work(
    request: dict[str, Any],
    open_files: Callable[[list[Module]], list[ModuleFile]],
    seal: Callable[[confine.Limits, list[int]], None],
) -> int:
    if request.get("task") == "probe":
        seal(_limits(request), [1, 2])
        return _print(probe.probe(request))
    if request.get("task") == "kernel log":
        seal(_limits(request), [1, 2, request["core_fd"]])
        return _print(kernel_log.analyse(request["core_fd"]))
    if request.get("task") == "kernel symbols":
        core_fd, vmlinux_fd = request["core_fd"], request["extra_fd"]
        # mapped by elfutils: the page cache's, and none that the dump can make it use
        mapped = min(os.fstat(vmlinux_fd).st_size, MAPPED_MAX)
        seal(_limits(request, mapped_bytes=mapped), [1, 2, core_fd, vmlinux_fd])
        return _print(kernel_core.analyse(core_fd, vmlinux_fd, request["build_id"]))
    opened = process_core.open_core(request["core_fd"], open_files)
    keep = [1, 2, request["core_fd"], *opened.descriptors]
    python = _prepare_python(opened, request)
    scratch, size = (python[1], opened.core.size_bytes) if python else (0, 0)
    seal(_limits(request, scratch, size), keep)
    return _print(process_core.analyse(opened, python[0] if python else None))


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


def _limits(
    request: dict[str, Any], scratch: int = 0, file_bytes: int = 0, mapped_bytes: int = 0
) -> confine.Limits:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return confine.Limits(
        cpu_seconds=int(request["cpu_seconds"]),
        memory_bytes=now + int(request["memory_bytes"]) + mapped_bytes,
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
