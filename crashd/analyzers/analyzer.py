"""The base class of all analyzers, and the opened core that they read.

An analyzer reads one kind of facts from a core: the native stacks, or the stacks of one interpreted
language. Each is a class, listed in crashd.analyzers.languages, with three steps:

    applies   whether this core has what the analyzer reads
    prepare   before the seal: import what facts() needs, and return the space that it takes
    facts     behind the seal: read, and return the part of the result that it knows

The daemon gets the facts of each analyzer as soon as they are there. An analyzer that raises an
exception, or takes the whole worker down, loses its own facts but not those of earlier analyzers.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from crashd.analyzers.coreimage import CoreImage, FilePart
from crashd.domain.elf.modules import MODULES_MAX, Module, find_modules, name_files
from crashd.edge.sandbox.modulefiles import ModuleFile, copy_with_unwind, foreign_unwind_size
from crashd.errors import FormatError
from crashd.store.coreread import StoredCore, read_head

COPIED_BYTES_MAX = 192 << 20
"""Total size of files that are copied because of their unwind sections; libLLVM has 110 MB."""
PROBLEMS_MAX = 20
"""Number of problems that one analyzer reports at most."""


@dataclass(frozen=True, slots=True)
class OpenedCore:
    """A core and the files of its modules."""

    core: StoredCore
    raw_head: bytes
    image: CoreImage
    files: list[ModuleFile]
    options: Mapping[str, Any]
    """The request: the configuration for the analyzers."""
    problems: tuple[str, ...] = ()
    """What was left out, one line each."""

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that must stay open."""
        return [fd for file in self.files for fd in file.descriptors]


@dataclass(frozen=True, slots=True)
class _ReadCore:
    """A core whose files are not open yet."""

    core: StoredCore
    raw_head: bytes
    image: CoreImage
    modules: list[Module]
    options: Mapping[str, Any]


def open_cores(
    request: Mapping[str, Any], open_files: Callable[[list[Module]], list[ModuleFile]]
) -> list[OpenedCore | None]:
    """Open a stored core, and the files of its modules that can be found; also the request's other
    cores, whose modules are the same files. None for one of those that is damaged, or has modules
    that are too many for one worker.

    Raises:
        FormatError: the first is not an ELF core, or too short to hold a thread.

    """
    wanted: dict[_Key, Module] = {}
    read: list[_ReadCore | None] = [_read_core(request, wanted)]
    for other in request.get("others") or ():
        try:
            more = dict(wanted)
            found = _read_core({**request, **other}, more)
        except FormatError:
            found = None
        else:
            if len(more) > MODULES_MAX:
                found = None
            else:
                wanted = more
        read.append(found)
    files, problems = _with_unwind_sections(open_files(list(wanted.values())))
    by_key = dict(zip(wanted, files, strict=True))
    return [_add_files(each, by_key, problems) if each is not None else None for each in read]


_Key = tuple[bytes, str | None, bytes]


def _key(module: Module) -> _Key:
    """Return what identifies a module's file in the cores of one program."""
    return module.name, module.build_id, b"" if module.build_id else module.image


def _read_core(request: Mapping[str, Any], wanted: dict[_Key, Module]) -> _ReadCore:
    """Read the head of a core, and add its modules to those wanted."""
    core = StoredCore(request["core_fd"])
    raw, head = read_head(core)
    if not head.threads:
        raise FormatError(f"core has no thread: {'; '.join(head.problems)[:200]}")
    if maps := str(request.get("maps") or ""):
        head = replace(head, files=name_files(head.files, maps.encode("latin-1", "replace")))
    image = CoreImage(core, head)
    modules = find_modules(head, image.read)
    for module in modules:
        wanted.setdefault(_key(module), module)
    return _ReadCore(core, raw, image, modules, request)


def _add_files(
    read: _ReadCore, by_key: Mapping[_Key, ModuleFile], copied: Sequence[str]
) -> OpenedCore:
    problems = list(copied)
    if len(read.modules) == MODULES_MAX:
        first = f"more than {MODULES_MAX} modules: those on no stack were left out first"
        problems.insert(0, first)
    files = [replace(by_key[_key(module)], module=module) for module in read.modules]
    read.image.add_files(
        [
            FilePart(mapped.start, mapped.end, mapped.offset_bytes, file.fd)
            for file in files
            if file.fd is not None
            for mapped in file.module.files
        ]
    )
    return OpenedCore(read.core, read.raw_head, read.image, files, read.options, tuple(problems))


def _with_unwind_sections(files: list[ModuleFile]) -> tuple[list[ModuleFile], list[str]]:
    """Copy the files whose unwind information drgn does not read (copy_with_unwind)."""
    left = COPIED_BYTES_MAX
    out: list[ModuleFile] = []
    problems: list[str] = []
    for file in files:
        size = foreign_unwind_size(file.fd) if file.fd is not None else None
        if file.fd is None or size is None:
            out.append(file)
        elif size > left:
            name = file.module.name.rpartition(b"/")[2].decode("utf-8", "backslashreplace")
            problems.append(f"{name}: its unwind information is not read: {size} bytes to copy")
            out.append(file)
        else:
            left -= size
            out.append(replace(file, fd=copy_with_unwind(file.fd)))
            os.close(file.fd)
    return out, problems


class Analyzer(ABC):
    """One kind of facts in a core."""

    name: ClassVar[str]
    """For messages."""

    def __init__(self, opened: OpenedCore) -> None:
        self.opened = opened

    @abstractmethod
    def applies(self) -> bool:
        """Return whether this core has something for this analyzer to read."""

    def prepare(self) -> int:
        """Import what facts() needs; return how many bytes of /work it uses."""
        return 0

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Read the facts: keys of the worker's result, with `problems` for what went wrong."""
