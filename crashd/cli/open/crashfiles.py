"""Opens the files of a crash's modules for `bundle` and `debug`.

Only files that the crashed user could open are opened, regardless of who runs crashctl, and only
those with the build-ids of the crash.
"""

import os
from typing import NamedTuple

from crashd.domain.crash.model import Crash
from crashd.domain.crash.searchplan import plan_search
from crashd.domain.elf.auxv import AT_PHDR
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.elf.modules import find_modules
from crashd.edge.sandbox.modulefiles import ModuleFile, open_modules, read_own_mounts
from crashd.store.coreread import StoredCore, read_head
from crashd.store.paths import Paths

FILE_MAX = 4 << 30
"""Bytes of one file; a larger one is not copied."""
FILES_MAX = 400


class CrashFiles(NamedTuple):
    """The files of a crash's modules; the holder owns the descriptors."""

    files: list[ModuleFile]
    exe: bytes
    """The executable's name among them; in a container it may differ from the record's `exe`."""
    data: frozenset[bytes]
    """Names of mapped files that are not modules."""


def find_files(
    paths: Paths, crash: Crash, stored: int, build_id_dirs: tuple[bytes, ...] = ()
) -> CrashFiles:
    """Open the files of the modules of a stored core, as far as they exist. Files that were kept
    with the crash are for root only.

    Raises:
        FormatError: the file is not an ELF core.
    """
    core = StoredCore(stored)
    _, head = read_head(core)
    modules = find_modules(head, lambda at, size: _read_at(core, head, at, size))
    phdr = head.auxv.get(AT_PHDR, 0)
    exe = next(
        (module.name for module in modules if module.start <= phdr < module.end),
        crash.exe.removesuffix(b" (deleted)"),
    )
    data = {mapped.name for mapped in head.files} - {
        mapped.name for module in modules for mapped in module.files
    }
    kept = [os.fsencode(paths.crashes / crash.id)]
    search = plan_search(crash, build_id_dirs, kept, read_own_mounts())
    files = open_modules(modules, search, FILES_MAX)
    return CrashFiles(files, exe, frozenset(data))


def _read_at(core: StoredCore, head: CoreHead, address: int, size: int) -> bytes:
    for segment in head.segments:
        if segment.vaddr <= address < segment.vaddr + segment.filesz:
            room = segment.vaddr + segment.filesz - address
            return core.read(segment.offset + address - segment.vaddr, min(size, room))
    return b""
