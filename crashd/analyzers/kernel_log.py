"""The log of a crashed kernel, from its dump: libkdumpfile, which drgn includes, reads the pages of
every format, and drgn walks the page tables.
"""

import os
from typing import Any

import drgn

from crashd.domain.elf.headers import Bits, ByteOrder
from crashd.domain.kdump.compressed import find_wrapper
from crashd.domain.kdump.vmcoreinfo import (
    build_id_in,
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


def analyse(fd: int) -> dict[str, Any]:
    """Read the log from the dump at a descriptor, which stays the caller's."""
    try:
        return _analyse(fd)
    except FormatError as e:
        return {"failed": reason_of(e)}


def open_dump(fd: int, build_id: str | None = None) -> drgn.Program:
    """Open the dump of a kernel, without any debug information. If it has no VMCOREINFO note, use
    the text found in memory, the one with the build-id if one is given.

    Raises:
        FormatError: drgn does not read the dump.

    """
    return _open(fd, next(iter(_missing_infos(fd, build_id)), None))


def _missing_infos(fd: int, build_id: str | None = None) -> list[bytes]:
    """Find texts in memory that may be the VMCOREINFO of an ELF dump without such a note; empty if
    the dump has the note, or is not an ELF dump.
    """

    def read(offset: int, size: int) -> bytes:
        return os.pread(fd, size, offset)

    dump = parse_elf_dump(read)
    if dump is None or has_note(read, dump):
        return []
    found = [text for text in find_vmcoreinfo(read, dump) if build_id in (None, build_id_in(text))]
    if not found:
        raise FormatError("the dump has no VMCOREINFO, neither as a note nor in memory")
    return found


def _open(fd: int, info: bytes | None) -> drgn.Program:
    wrapper = find_wrapper(os.pread(fd, _HEAD, 0))
    if wrapper is not None:
        raise FormatError(f"{wrapper} compressed the dump as a whole: no page of it can be found")
    try:
        program = drgn.Program(vmcoreinfo=info)
        program.set_enabled_debug_info_finders([])
        program.set_core_dump(fd)
    except Exception as e:  # boundary: drgn has no narrower class for what libkdumpfile refuses
        raise FormatError(f"the dump cannot be opened: {_text(e)}") from e
    return program


def _analyse(fd: int) -> dict[str, Any]:
    failed: FormatError | None = None
    infos: list[bytes | None] = [*_missing_infos(fd)] or [None]
    for info in infos:
        try:
            return _read(_open(fd, info))
        except FormatError as e:
            failed = failed or e  # this text may only look like VMCOREINFO: try the next
    raise failed or FormatError("the dump cannot be opened")


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
