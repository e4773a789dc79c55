"""drgn's program over a core: its memory, and the files of its modules."""

import os
from bisect import bisect_right
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import _drgn_util.elf
import _drgn_util.plugins
import _drgn_util.typingutils  # noqa: F401  drgn imports these later, when it no longer can
import drgn

from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.modules import Module

DEBUG_BYTES_MAX: Final = 1 << 30
"""Debug information that is read, for all of a core's modules together."""
DRGN_ERRORS: Final = (
    LookupError, ValueError, OverflowError, OSError, NotImplementedError, drgn.FaultError,
    drgn.BadDataError,
)  # fmt: skip
"""What drgn raises for a core or a file that is not as it should be."""


def _read(image: CoreImage, address: int, size: int, offset: int, physical: bool) -> bytes:
    """Read memory for drgn."""
    del offset, physical
    data = image.read(address, size)
    if len(data) < size:
        raise drgn.FaultError("not in the core", address + len(data))
    return data


class DrgnProgram:
    """A drgn program over a core's image and the files of its modules."""

    def __init__(self, raw_head: bytes, image: CoreImage, modules: list[Module]) -> None:
        self.image = image
        self.modules = modules
        self._starts = [module.start for module in modules]
        self._fd = os.memfd_create("head", os.MFD_CLOEXEC)
        os.pwrite(self._fd, raw_head, 0)
        self.program = drgn.Program()
        self.refused: str | None = None
        """Why drgn does not accept this core; each thread then has only one frame."""
        try:
            self.program.set_core_dump(self._fd)
        except Exception as e:  # boundary: drgn has no narrower class for what libelf refuses
            self.refused = f"stacks cannot be walked: {text_of(e)}"
        self.program.set_enabled_debug_info_finders([])
        self._by_module: dict[int, drgn.Module] = {}
        self.files: list[tuple[Module, int | None, int | None]] = []
        self.loaded: dict[int, int | None] = {}
        """Descriptors of the modules' files, by the modules' starts."""
        self.debug: dict[int, int | None] = {}
        """Descriptors of their files with debug information."""
        self.alternates: dict[int, int | None] = {}
        """Files with debug information that modules share."""
        self.debug_loaded = False
        read = partial(_read, image)  # not a method: drgn's program would never be freed
        for segment in image.segments:
            if segment.memsz and self.refused is None:
                self.program.add_memory_segment(segment.vaddr, segment.memsz, read)

    def load(self, files: Iterable[tuple[Module, int | None, int | None]]) -> list[str]:
        """Give drgn the files of the modules, without debug information; return the problems. The
        descriptors are duplicated.
        """
        self.files = list(files)
        if self.refused is not None:
            return [self.refused]
        problems: list[str] = []
        known = {module.start: (fd, debug) for module, fd, debug in self.files}
        self.debug = {start: debug for start, (_, debug) in known.items()}
        self.loaded = {start: fd for start, (fd, _) in known.items()}
        try:
            for module, _ in self.program.loaded_modules():
                self._load_module(module, known, problems)
        except DRGN_ERRORS as e:
            problems.append(f"the loader's list of modules cannot be read: {text_of(e)}")
        for module in self.modules:
            if module.start not in self._by_module and module.start in known:
                self._add_module(module, known[module.start][0], problems)
        return problems

    def _load_module(
        self,
        module: "drgn.Module",
        known: dict[int, tuple[int | None, int | None]],
        problems: list[str],
    ) -> None:
        ranges = module.address_ranges
        start = ranges[0][0] if ranges else None
        own = self.module_at(start) if start is not None else None
        if own is None or start is None:
            return
        self._by_module[own.start] = module
        fd, _ = known.get(own.start, (None, None))
        if fd is not None and not isinstance(module, drgn.VdsoModule):
            self._try(module, own, fd, problems)

    def _add_module(self, own: Module, fd: int | None, problems: list[str]) -> None:
        """Create a module that the loader's list lacks: it is static, or the list is broken."""
        if fd is None:
            return
        try:
            name = own.name.decode("utf-8", "backslashreplace")
            module = self.program.extra_module(name, own.start, create=True)
            module.address_range = (own.start, own.end)
            if own.build_id:
                module.build_id = bytes.fromhex(own.build_id)
        except DRGN_ERRORS as e:
            problems.append(text_of(e))
            return
        self._by_module[own.start] = module
        self._try(module, own, fd, problems)

    def _try(self, module: "drgn.Module", own: Module, fd: int, problems: list[str]) -> None:
        name = own.name.decode("utf-8", "backslashreplace")
        try:
            module.debug_file_status = drgn.ModuleFileStatus.DONT_WANT
            module.try_file(name, fd=os.dup(fd))
        except DRGN_ERRORS as e:
            problems.append(f"{name}: {text_of(e)}")

    def load_debug_info(self, threads: list[dict[str, Any]]) -> tuple[bool, list[str]]:
        """Load debug information of the modules on these stacks; return whether there was any, and
        the problems.
        """
        starts = {
            frame["start"]
            for thread in threads
            for frame in thread["frames"]
            if frame["start"] is not None
        }
        self.debug_loaded = True
        loaded, left, problems = False, DEBUG_BYTES_MAX, list[str]()
        for start in sorted(starts):
            module, own = self._by_module.get(start), self.module_at(start)
            if module is None or own is None:
                continue
            for fd in (self.debug.get(start), self.loaded.get(start)):
                if fd is None or isinstance(module, drgn.VdsoModule):
                    continue
                left -= os.fstat(fd).st_size
                if left < 0:
                    problems.append("more debug information than is looked into")
                    return loaded, problems
                if self._want_debug(module, own, fd, problems):
                    loaded = True
                    break
        return loaded, problems

    def _want_debug(self, module: "drgn.Module", own: Module, fd: int, problems: list[str]) -> bool:
        name = own.name.decode("utf-8", "backslashreplace")
        try:
            module.debug_file_status = drgn.ModuleFileStatus.WANT
            module.try_file(name, fd=os.dup(fd))
            alternate = self.alternates.get(own.start)
            if (
                module.debug_file_status == drgn.ModuleFileStatus.WANT_SUPPLEMENTARY
                and alternate is not None
            ):
                module.try_file(name, fd=os.dup(alternate))
            if module.debug_file_status == drgn.ModuleFileStatus.WANT_SUPPLEMENTARY:
                self.program.find_standard_debug_info([module])
        except DRGN_ERRORS as e:
            problems.append(f"{name}: {text_of(e)}")
        return bool(module.debug_file_status == drgn.ModuleFileStatus.HAVE)

    def has_debug_info(self, start: int) -> bool:
        """Return whether debug information of a module is loaded."""
        module = self._by_module.get(start)
        return module is not None and module.debug_file_status == drgn.ModuleFileStatus.HAVE

    def module_at(self, address: int) -> Module | None:
        """Find the module that contains an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.modules[index].end:
            return None
        return self.modules[index]

    def symbol_address(self, name: str) -> int | None:
        """Find a data symbol of any module."""
        if self.refused is not None:
            return None
        try:
            return int(self.program.symbol(name).address)
        except DRGN_ERRORS:
            return None


def text_of(error: Exception) -> str:
    """Return the first line of what drgn says."""
    return str(error).split("\n", 1)[0][:200]
