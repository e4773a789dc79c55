"""The Python stacks of a crashed interpreter, by pystack. Only importer of pystack.

pystack reads a core by its path, and needs all of the interpreter's memory, because the heap is
linked lists of objects. So the core is unpacked without its holes into the sandbox's own /work,
next to copies of the interpreter's files.

Why pystack: it is a library, so it works where nothing can be executed, and it returns a thread's
tid for every version of Python from 3.7 on. py-spy (0.4) also reads cores, in a fifth of the time,
but it is a program, opens the files that the core names, and below Python 3.11 returns
pthread_self() instead of the tid, which does not show which thread crashed.
"""

import contextlib
import os
import re
import resource
import shutil
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashd.analyzers.analyzer import Analyzer
from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.auxv import AT_PHDR
from crashd.domain.elf.modules import Module

if TYPE_CHECKING:
    from pystack.types import PyThread

FRAMES_MAX = 128
THREADS_MAX = 256
SLACK_BYTES = 1 << 20
_STACK_BYTES = 96 << 20
"""For pystack, which recurses once per frame, 1.8 KB each. Linux keeps at least 128 MiB below a
process's stack free, whatever its limit was at the start (mmap_base() of arch/x86/mm/mmap.c)."""
_WORK = Path("/work")
_PYTHON = re.compile(rb"(?P<lib>lib)?python(3\.\d+)?[a-z]*(\.so[.\d]*)?")
_CHUNK = 1 << 20


class PythonStacks(Analyzer):
    """The stacks of all threads that run Python."""

    name = "Python stacks"

    def applies(self) -> bool:
        """Return whether the modules' files include an interpreter's and the main program's."""
        return bool(self.opened.options.get("python") and self._files) and self._main is not None

    def prepare(self) -> int:
        """Import pystack, and make room for it on the stack: a script that died of its recursion
        has tens of thousands of frames. Return the size of the unpacked core and the copied files.
        """
        import pystack.engine
        import pystack.errors  # noqa: F401

        _let_stack_grow()
        core = sum(size for _, size in self.opened.core.runs())
        copies = sum(os.fstat(fd).st_size for _, fd, _ in self._files)
        return core + copies + SLACK_BYTES

    def facts(self) -> dict[str, Any]:
        """Read the stacks, or report why there are no stacks."""
        from pystack.engine import NativeReportingMode, StackMethod, get_process_threads_for_core
        from pystack.errors import PystackError

        core = _WORK / "core"
        try:
            _unpack(self.opened.image, core)
            program = _copy(self._main or 0, _WORK / "program")
            for module, fd, is_library in self._files:
                if is_library:
                    _copy(fd, _WORK / os.fsdecode(module.name.rpartition(b"/")[2]))
            threads = get_process_threads_for_core(
                core,
                program,
                library_search_path=str(_WORK),
                native_mode=NativeReportingMode.OFF,
                method=StackMethod.AUTO,
            )
            return {"interpreted": [_thread(thread) for thread in threads[:THREADS_MAX]]}
        except (PystackError, RuntimeError, OSError, ValueError) as e:
            return {"problems": [f"{self.name}: {str(e).split(chr(10), 1)[0][:200]}"]}

    @property
    def _main(self) -> int | None:
        """The main program's descriptor; the program embeds Python if it is not the interpreter."""
        phdr = self.opened.image.head.auxv.get(AT_PHDR, 0)
        return next(
            (f.fd for f in self.opened.files if f.module.start <= phdr < f.module.end), None
        )

    @cached_property
    def _files(self) -> list[tuple[Module, int, bool]]:
        """The interpreter's executable and library: module, descriptor, whether it is a library."""
        found: list[tuple[Module, int, bool]] = []
        for file in self.opened.files:
            match = _PYTHON.fullmatch(file.module.name.rpartition(b"/")[2])
            if match is not None and file.fd is not None:
                found.append((file.module, file.fd, match["lib"] is not None))
        return found


def _let_stack_grow() -> None:
    """Raise the stack's soft limit; where that is not permitted, deep scripts have no stack."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    unlimited = resource.RLIM_INFINITY
    wanted = _STACK_BYTES if hard == unlimited else min(_STACK_BYTES, hard)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


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


def _thread(thread: "PyThread") -> dict[str, Any]:
    frames = deque(_frames(thread), FRAMES_MAX + 1)  # the innermost come last
    return {
        "tid": thread.tid,
        "crashed": False,
        "name": thread.name,
        "frames": list(frames)[: -FRAMES_MAX - 1 : -1],
        "cut": len(frames) > FRAMES_MAX,
    }


def _frames(thread: "PyThread") -> Iterator[dict[str, Any]]:
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
