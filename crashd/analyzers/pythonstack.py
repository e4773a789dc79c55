"""The Python stacks of a crashed interpreter, by pystack. Only importer of pystack.

pystack reads a core by its path, and wants the interpreter's memory whole: its heap is one list of
objects after the other. So what a core has is unpacked, holes left out, into the sandbox's own
/work, with copies of the interpreter's files beside it.

Why pystack: it is a library, and so works where nothing can be executed; it tells a thread's tid
for every version of Python from 3.7 on. py-spy (0.4) reads cores, too, in a fifth of the time, but
is a program, opens the files that the core names by itself, and below Python 3.11 gives
pthread_self() instead of the tid, so that nobody can tell which thread crashed.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pystack.engine import NativeReportingMode, StackMethod, get_process_threads_for_core
from pystack.errors import PystackError
from pystack.types import PyThread

from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.modules import Module

FRAMES_MAX = 128
THREADS_MAX = 256
SLACK_BYTES = 1 << 20
_WORK = Path("/work")
_PYTHON = re.compile(rb"(?P<lib>lib)?python(3\.\d+)?[a-z]*(\.so[.\d]*)?")
_CHUNK = 1 << 20


def interpreter_files(
    files: Iterable[tuple[Module, int | None]],
) -> list[tuple[Module, int, bool]]:
    """Find the interpreter's executable and library: module, descriptor, is a library."""
    found: list[tuple[Module, int, bool]] = []
    for module, fd in files:
        match = _PYTHON.fullmatch(module.name.rpartition(b"/")[2])
        if match is not None and fd is not None:
            found.append((module, fd, match["lib"] is not None))
    return found


def scratch_bytes(image: CoreImage, files: Iterable[tuple[Module, int, bool]]) -> int:
    """Tell how much memory python_stacks() takes of /work."""
    core = sum(size for _, size in image.core.runs())
    return core + sum(os.fstat(fd).st_size for _, fd, _ in files) + SLACK_BYTES


def python_stacks(
    image: CoreImage, executable: int, files: list[tuple[Module, int, bool]]
) -> tuple[list[dict[str, Any]], str | None]:
    """Read the stacks of all threads that run Python, and why there are none. `executable` is the
    main program's descriptor, which embeds Python where it is not one of `files`.
    """
    core = _WORK / "core"
    try:
        _unpack(image, core)
        program = _copy(executable, _WORK / "program")
        for module, fd, is_library in files:
            if is_library:
                _copy(fd, _WORK / os.fsdecode(module.name.rpartition(b"/")[2]))
        threads = get_process_threads_for_core(
            core,
            program,
            library_search_path=str(_WORK),
            native_mode=NativeReportingMode.OFF,
            method=StackMethod.AUTO,
        )
        return [_thread(thread) for thread in threads[:THREADS_MAX]], None
    except (PystackError, RuntimeError, OSError, ValueError) as e:
        return [], f"Python stacks: {str(e).split(chr(10), 1)[0][:200]}"


def _unpack(image: CoreImage, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(image.core.size_bytes)
        for offset, size in image.core.runs():
            for at in range(offset, offset + size, _CHUNK):
                file.seek(at)
                file.write(image.core.read(at, min(_CHUNK, offset + size - at)))


def _copy(fd: int, path: Path) -> Path:
    with open(fd, "rb", closefd=False) as source, path.open("wb") as target:
        source.seek(0)
        shutil.copyfileobj(source, target, _CHUNK)
    return path


def _thread(thread: PyThread) -> dict[str, Any]:
    frames = list(_frames(thread))[::-1]
    return {
        "tid": thread.tid,
        "crashed": False,
        "name": thread.name,
        "frames": frames[:FRAMES_MAX],
        "cut": len(frames) > FRAMES_MAX,
    }


def _frames(thread: PyThread) -> Iterator[dict[str, Any]]:
    for frame in thread.frames:
        yield {
            "kind": "python",
            "function": frame.code.scope[:400],
            "file": frame.code.filename[-1024:],
            "line": frame.code.location.lineno,
            "module": None,
            "build_id": None,
            "offset": None,
            "pc": None,
        }
