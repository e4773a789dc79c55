"""The program that analyses one core. crashd.edge.sandbox.start starts it; it opens the files that
it needs, gives up access to everything else, and prints JSON.

    stdin    the request, one JSON object; its "core_fd" is the stored core's descriptor. Or a
             socket, as systemd gives it to a unit that is sealed already:
             crashd.edge.sandbox.workerlink
    stdout   the result: a line for each analyzer, one JSON object; the last line has "whole". The
             lines before stay good when a later analyzer takes the worker down, and a line with its
             name, before its facts, says which one did. Then the same for
             the request's "others", cores of the same program, each after a line with its number

Everything needed is imported before seal(), because afterwards there are no files to import from;
only what the task needs, because most of the time of a small core's analysis is imports.
"""

import contextlib
import gc
import json
import os
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from crashd.analyzers.analyzer import PROBLEMS_MAX, Analyzer, OpenedCore, open_cores
from crashd.analyzers.languages import analyzers_of
from crashd.domain.cause.workerlines import OTHER_MARK, UNSEALED_STATUS
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox import confine, workerlink
from crashd.edge.sandbox.modulefiles import ModuleFile, open_modules
from crashd.edge.sandbox.workerlink import FILES_MAX
from crashd.errors import CrashdError, FormatError, UnsupportedError, reason_of

REQUEST_MAX = 16 << 20
OUTPUT_MAX = (4 << 20) - 4096  # room for the lines that say what went wrong
_END_BYTES = 200
"""At least as long as the last line of a core's facts."""
MAPPED_MAX = 4 << 30
"""Size limit of a vmlinux and its modules, whose files are mapped as a whole."""


def main() -> int:
    """Run the analysis; return the exit status."""
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
        return 0  # the daemon is gone: nothing waits for the result


def _run_alone() -> int:
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read(REQUEST_MAX))
    isolation = confine.isolate(request["parent"])
    seal = partial(confine.seal, isolation=isolation)

    def open_files(found: list[Module]) -> list[ModuleFile]:
        return open_modules(found, FileSearch.from_json(request["search"]), FILES_MAX)

    return _work(request, open_files, seal)


def _run_in_unit() -> int:
    peer = socket.socket(fileno=1)  # the result goes here, too: it stays open after the seal
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
        from crashd.analyzers import probe

        seal(_limits(request), [1, 2])
        return _print(probe.probe(request))
    if str(request.get("task")).startswith("kernel "):
        return _work_kernel(request, seal)
    first, *others = open_cores(request, open_files)
    if first is None:
        raise FormatError("core cannot be read")
    chosen, scratch, problems = _prepare(first, int(request["memory_bytes"]))
    if scratch:
        others = []  # each needs as much space: they are analysed one by one
    keep = {fd for core in (first, *others) if core is not None for fd in core.descriptors}
    cores = [request["core_fd"], *(other["core_fd"] for other in request.get("others") or ())]
    seal(_limits(request, scratch, first.core.size_bytes if scratch else 0), [1, 2, *cores, *keep])
    room = _print_facts(first, chosen, problems, OUTPUT_MAX)
    del first, chosen
    gc.freeze()  # what is there now is not looked at again
    for number in range(len(others)):
        core, others[number] = others[number], None  # its memory is free after its turn
        if core is not None and room > 0:
            room = _print_other(number, core, room)
            del core
            gc.collect()
    return 0


def _print_other(number: int, opened: OpenedCore, room: int) -> int:
    """Print the facts of another core, after a line with its number; return the room left."""
    chosen, scratch, problems = _prepare(opened, 1)
    if scratch or problems:
        return room
    mark = OTHER_MARK % number
    _write(mark)
    return _print_facts(opened, chosen, problems, room - len(mark))


def _work_kernel(request: dict[str, Any], seal: Callable[[confine.Limits, list[int]], None]) -> int:
    """Read a kernel's dump; `extra_fds` are, in this order: the other parts of a split dump (as
    many as `parts` says), and for symbols the vmlinux, and the files of `modules`.
    """
    extra = list(request["extra_fds"])
    keep = [1, 2, request["core_fd"], *extra]
    parts = [request["core_fd"], *(extra.pop(0) for _ in range(request.get("parts", 0)))]
    if request["task"] == "kernel dump":
        from crashd.analyzers import kernel_dump

        lz4 = kernel_dump.load_lz4()
        room = int(request.get("unpacked_max", 0))
        target = kernel_dump.Target(extra[0], room) if extra else None
        seal(_limits(request, file_bytes=room), keep)
        return _print(kernel_dump.analyse(parts[0], lz4, target))
    from crashd.analyzers.kdumpfile import load_kdumpfile

    library = load_kdumpfile()
    if request["task"] == "kernel log":
        from crashd.analyzers import kernel_log

        seal(_limits(request), keep)
        return _print(kernel_log.analyse(parts, library))
    from crashd.analyzers import kernel_core

    # elfutils maps them: pages of the page cache, which a hostile dump cannot increase
    mapped = min(sum(os.fstat(fd).st_size for fd in extra), MAPPED_MAX)
    modules = dict(zip(request.get("modules", ()), extra[1:], strict=True))
    seal(_limits(request, mapped_bytes=mapped), keep)
    files = kernel_core.KernelFiles(parts, extra[0], modules)
    return _print(kernel_core.analyse(files, request["build_id"], library))


def _prepare(opened: OpenedCore, memory_bytes: int) -> tuple[list[Analyzer], int, list[str]]:
    """Choose the analyzers that apply and fit; return them, their total room, and the problems."""
    chosen: list[Analyzer] = []
    problems: list[str] = []
    scratch = 0
    for kind in analyzers_of(opened):
        analyzer = kind(opened)
        if not analyzer.applies():
            continue
        wanted = analyzer.prepare()
        if scratch + wanted > memory_bytes:
            problems.append(f"{kind.name}: they take {wanted} bytes of memory")
            continue
        scratch += wanted
        chosen.append(analyzer)
    return chosen, scratch, problems


def _print_facts(opened: OpenedCore, chosen: list[Analyzer], problems: list[str], room: int) -> int:
    """Print the facts of each analyzer on one line, so that a later failure cannot lose them.
    Return how much may still be printed.
    """
    started = time.process_time()
    for analyzer in chosen:
        if analyzer is not chosen[0]:
            begun = _line({"begun": analyzer.name})
            room -= len(begun)
            _write(begun)
        try:
            found = analyzer.facts()
        except Exception as e:  # boundary: a library may raise anything on a hostile core
            if analyzer is chosen[0]:
                raise
            found = {"problems": [f"{analyzer.name}: {type(e).__name__}: {str(e)[:200]}"]}
        found["problems"] = [*found.get("problems", ()), *problems][:PROBLEMS_MAX]
        problems = []
        raw = _line(found)
        if len(raw) > room:
            reason = f"{analyzer.name}: the result has {len(raw)} bytes"
            raw = _line({"failed": reason} if analyzer is chosen[0] else {"problems": [reason]})
        room -= len(raw)
        _write(raw)
    _write(
        _line(
            {
                "cpu_seconds": round(time.process_time() - started, 3),
                "unpacked_bytes": opened.core.unpacked_bytes,
                "whole": True,
            }
        )
    )
    return room - _END_BYTES


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
    raw = _line(result)
    if len(raw) > OUTPUT_MAX:
        raw = _line({"failed": f"the result has {len(raw)} bytes"})
    _write(raw)
    return 0


def _line(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _write(raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(1, view) :]


def run() -> None:
    """Run as a program: report any failure on stderr, and exit."""
    status = 70
    try:
        status = main()
    except MemoryError:
        sys.stderr.write("out of memory\n")
    except Exception:  # boundary: what a hostile core provokes is reported, and ends here
        sys.stderr.write(traceback.format_exc(limit=-3)[-2000:])
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
