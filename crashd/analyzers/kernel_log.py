"""The log of a crashed kernel, from its dump: libkdumpfile, which drgn includes, reads the pages of
every format, and drgn walks the page tables. The parts of a split dump are read as one.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import drgn

from crashd.analyzers.kdumpfile import DumpParts
from crashd.domain.elf.headers import Bits, ByteOrder, split_notes
from crashd.domain.kdump.compressed import find_wrapper
from crashd.domain.kdump.diskdump import SIGNATURE, DiskDump, parse_diskdump
from crashd.domain.kdump.flattened import FLAT_MAGIC, read_flattened
from crashd.domain.kdump.vmcoreinfo import (
    PAGE,
    build_id_in,
    find_in_pages,
    find_vmcoreinfo,
    has_note,
    parse_elf_dump,
)
from crashd.domain.kernellog.printkring import Memory, parse_numbers, read_log
from crashd.errors import FormatError, reason_of

VERSION = 1
_HEAD = 16
_VMCOREINFO_MAX = 64 * 1024
_READ_MAX = 64 * 1024


_HEADERS_MAX = 1 << 20
_PHYSICAL_BITS = 56
_NT_PRSTATUS = 1
_SEARCH_CPU_SECONDS = 15.0
_ARCHITECTURES = {
    b"x86_64": drgn.Architecture.X86_64,
    b"i686": drgn.Architecture.I386,
    b"aarch64": drgn.Architecture.AARCH64,
    b"ppc64": drgn.Architecture.PPC64,
    b"ppc64le": drgn.Architecture.PPC64,
    b"riscv64": drgn.Architecture.RISCV64,
    b"s390x": drgn.Architecture.S390X,
}


@dataclass(frozen=True, slots=True)
class OpenedDump:
    """A dump, and the registers that drgn itself cannot find in it."""

    program: drgn.Program
    registers: tuple[bytes, ...] = ()
    """The NT_PRSTATUS of each CPU, if drgn does not read the notes."""


def analyse(fds: Sequence[int], library: ctypes.CDLL | None = None) -> dict[str, Any]:
    """Read the log from a dump; its files' descriptors stay the caller's. A split dump has several,
    which `library` (load_kdumpfile) reads.
    """
    failed: FormatError | None = None
    try:
        for opened in _open_each(fds, library):
            try:
                return _read(opened.program)
            except FormatError as e:
                failed = failed or e  # this text may only look like VMCOREINFO: try the next
    except FormatError as e:
        failed = failed or e
    return {"failed": reason_of(failed or FormatError("the dump cannot be opened"))}


def open_dump(
    fds: Sequence[int], build_id: str | None = None, library: ctypes.CDLL | None = None
) -> "OpenedDump":
    """Open the dump of a kernel, without any debug information. If it has no VMCOREINFO note, use
    the text found in memory, the one with the build-id if one is given.

    Raises:
        FormatError: drgn does not read the dump.

    """
    return next(_open_each(fds, library, build_id))


def _open_each(
    fds: Sequence[int], library: ctypes.CDLL | None, build_id: str | None = None
) -> "Iterator[OpenedDump]":
    """Open the dump with each text that may be its VMCOREINFO; most often there is one."""
    wrapper = find_wrapper(os.pread(fds[0], _HEAD, 0))
    if wrapper is not None:
        raise FormatError(f"{wrapper} compressed the dump as a whole: no page of it can be found")
    head, dump = _read_diskdump(fds[0])
    if dump is None:
        missing: list[bytes | None] = [*_missing_infos(fds[0], build_id)]
        for info in missing or [None]:
            yield OpenedDump(_open(fds[0], info))
        return
    can_ask = library is not None and hasattr(drgn.Program, "set_linux_kernel_custom")
    if len(fds) == 1 and dump.vmcoreinfo[1]:
        try:
            yield OpenedDump(_open(fds[0], None))
            return
        except FormatError:  # QEMU's kdump-zlib with -device vmcoreinfo: its pages can be read
            if not can_ask:
                raise
    if library is None or not can_ask:
        raise FormatError("this drgn reads no split dump, and none without VMCOREINFO")
    try:
        parts = DumpParts(library, fds)
    except ValueError as e:
        raise FormatError(f"the dump cannot be opened: {_text(e)}") from e
    registers = tuple(_saved_registers(head, dump))
    start, size = dump.vmcoreinfo
    infos: Iterable[bytes] = [head[start : start + min(size, _VMCOREINFO_MAX)]]
    for text in infos if size else _only(find_in_pages(_pages(parts, dump)), build_id):
        yield OpenedDump(_open_parts(parts, dump, text), registers)


def _saved_registers(head: bytes, dump: DiskDump) -> Iterator[bytes]:
    """Yield each NT_PRSTATUS in the dump's head, in the order of the CPUs."""
    at, size = dump.notes
    for name, kind, desc, whole in split_notes(head[at : at + size], dump.layout):
        if whole and kind == _NT_PRSTATUS and name == b"CORE":
            yield desc


def _read_diskdump(fd: int) -> tuple[bytes, DiskDump | None]:
    """Read the head of a kdump-compressed dump, flattened or not; None for another format."""

    def read(offset: int, size: int) -> bytes:
        return os.pread(fd, size, offset)

    head = read(0, _HEADERS_MAX)
    if head.startswith(FLAT_MAGIC):
        head = read_flattened(read, os.fstat(fd).st_size, _HEADERS_MAX)[0]
    return head, parse_diskdump(head) if head.startswith(SIGNATURE) else None


def _pages(parts: DumpParts, dump: DiskDump) -> Iterator[bytes]:
    """Yield the dump's pages, as far as a bounded search gets."""
    started = time.process_time()
    for frame in range(dump.max_mapnr):
        with contextlib.suppress(LookupError):
            yield parts.read(frame * PAGE, PAGE)
        if not frame % 1024 and time.process_time() - started > _SEARCH_CPU_SECONDS:
            return


def _missing_infos(fd: int, build_id: str | None = None) -> list[bytes]:
    """Find texts in memory that may be the VMCOREINFO of an ELF dump without such a note; empty if
    the dump has the note, or is not an ELF dump.
    """

    def read(offset: int, size: int) -> bytes:
        return os.pread(fd, size, offset)

    dump = parse_elf_dump(read)
    if dump is None or has_note(read, dump):
        return []
    return list(_only(find_vmcoreinfo(read, dump), build_id))


def _only(texts: Iterable[bytes], build_id: str | None) -> Iterator[bytes]:
    """Yield those with the build-id; fail if there is none."""
    number = 0
    for text in texts:
        if build_id in (None, build_id_in(text)):
            number += 1
            yield text
    if not number:
        raise FormatError("the dump has no VMCOREINFO, neither as a note nor in memory")


def _open(fd: int, info: bytes | None) -> drgn.Program:
    try:
        program = drgn.Program(vmcoreinfo=info)
        program.set_enabled_debug_info_finders([])
        program.set_core_dump(os.dup(fd))  # which it closes, at the latest if it fails
    except Exception as e:  # boundary: drgn has no narrower class for what libkdumpfile refuses
        raise FormatError(f"the dump cannot be opened: {_text(e)}") from e
    return program


def _open_parts(parts: DumpParts, dump: DiskDump, info: bytes) -> drgn.Program:
    """Open a dump of which drgn asks libkdumpfile for each page."""
    architecture = _ARCHITECTURES.get(dump.utsname[4])
    if architecture is None:
        raise FormatError(f"the dump is of a machine that is not known: {dump.utsname[4][:64]!r}")

    def read(address: int, size: int, offset: int, physical: bool) -> bytes:
        try:
            return parts.read(address, size)
        except LookupError as e:
            raise drgn.FaultError(str(e), address) from None

    try:
        program = drgn.Program(_platform(architecture, dump))
        program.set_enabled_debug_info_finders([])
        program.add_memory_segment(0, 1 << _PHYSICAL_BITS, read, True)
        program.set_linux_kernel_custom(info, False)
    except Exception as e:  # boundary: as above
        raise FormatError(f"the dump cannot be opened: {_text(e)}") from e
    return program


def _platform(architecture: drgn.Architecture, dump: DiskDump) -> drgn.Platform:
    flags = drgn.PlatformFlags(0)
    if dump.bits == 64:
        flags |= drgn.PlatformFlags.IS_64_BIT
    if dump.byteorder == "little":
        flags |= drgn.PlatformFlags.IS_LITTLE_ENDIAN
    return drgn.Platform(architecture, flags)


def _read(program: drgn.Program) -> dict[str, Any]:
    try:
        info: bytes = program["VMCOREINFO"].string_()
    except Exception as e:  # boundary: as above
        raise FormatError(f"the dump has no VMCOREINFO: {_text(e)}") from e
    if len(info) > _VMCOREINFO_MAX:
        raise FormatError(f"VMCOREINFO has {len(info)} bytes")
    platform = program.platform
    if platform is None:
        raise FormatError("the dump's machine is not known")
    bits: Bits = 64 if platform.flags & drgn.PlatformFlags.IS_64_BIT else 32
    little = platform.flags & drgn.PlatformFlags.IS_LITTLE_ENDIAN
    byteorder: ByteOrder = "little" if little else "big"

    def read(address: int, size: int) -> bytes:
        if not 0 <= size <= _READ_MAX or not 0 <= address <= (1 << bits) - 1 - size:
            raise LookupError("outside of the address space")
        try:
            data: bytes = program.read(address, size)
        except (drgn.FaultError, OSError, ValueError, OverflowError) as e:
            raise LookupError(_text(e)) from e
        return data

    log = read_log(Memory(read, bits, byteorder), parse_numbers(info))
    return {
        "version": VERSION,
        "log": log.text.decode("ascii"),
        "records": log.records,
        "skipped": log.skipped,
        "cut": log.cut,
        "build_id": build_id_in(info),
    }


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
