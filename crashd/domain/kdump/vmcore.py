"""A kernel dump by its first and last bytes: what crashed, when, and whether the dump is whole.

    compressed by      flattened by        the dump itself
    kdump-tools   ┐    makedumpfile -F  ┐
    gzip xz bzip2 ├──▶ 4096 bytes, then ├──▶ kdump-compressed (diskdump.py), or
    lz4 zstd      ┘    be64 offset,     ┘    ELF, as /proc/vmcore and makedumpfile -E have it
    (wrapped.py)       be64 size, data …
                       … 16 bytes 0xff

Either or both of the outer layers may be missing. Of a plain file, the head, the tail and whatever
says where it ends are read. A compressed one must be read to its end, which stream.py does. No name
is trusted: kdump-tools gives the name of a finished dump to a copy of the log, an error message, an
empty file or a cut one (TESTBED.md). Every byte may be hostile; work is linear in the head.

Over 400 lines because it is one idea: the verdict on a dump, from its outer layers to its head.

Source: makedumpfile IMPLEMENTATION, makedumpfile.h, libkdumpfile flatmap.c,
Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from crashd.domain.elf.headers import (
    ET_CORE,
    FILE_END_MAX,
    HEADER_MAX,
    MAGIC,
    PHDR_SIZE,
    PT_LOAD,
    PT_NOTE,
    SHDR_SIZE,
    Bits,
    ByteOrder,
    Header,
    Layout,
    find_phdrs,
    parse_header,
    parse_shdrs,
    split_notes,
)
from crashd.domain.kdump.compressed import (
    MemoryWantedError,
    Unwrapped,
    Unzstd,
    Wrapper,
    find_wrapper,
    is_ended,
    unwrap,
)
from crashd.domain.kdump.diskdump import (
    HEADER_SIZE,
    NOTES_MAX_BYTES,
    SIGNATURE,
    VMCOREINFO_MAX,
    Read,
    parse_diskdump,
    size_at_least,
)
from crashd.domain.kdump.flattened import (
    FLAT_END,
    FLAT_HEADER_SIZE,
    FLAT_MAGIC,
    FlatReader,
    read_flattened,
)
from crashd.domain.kdump.nodump import describe
from crashd.domain.kdump.stream import HEAD_SIZE as HEAD_SIZE
from crashd.domain.kdump.stream import Unpacked
from crashd.domain.text import printable
from crashd.errors import FormatError

TAIL_SIZE: Final = 4096
"""Bytes from the end of a dump; 16 are enough for everything but padded xz."""

VMCOREINFO_LINES_MAX: Final = 4096
VALUE_MAX: Final = 256
NOTE_SEGMENTS_MAX: Final = 16
PHDRS_MAX: Final = 2**16
SECTIONS_MAX: Final = 64
_NOBITS: Final = 8

# include/uapi/linux/elf.h
NT_PRPSINFO: Final = 3
DUMP_ELF_INCOMPLETE: Final = 0x1
"""A flag in e_flags, set by makedumpfile; crash's netdump.h."""

# EM_* of include/uapi/linux/elf-em.h to the names of uname(2); little-endian ppc64 is ppc64le.
_MACHINES = {3: "i686", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64"}
_MACHINES |= {183: "aarch64", 243: "riscv64", 258: "loongarch64"}
_FLAGGED_MACHINES = frozenset({8, 243})  # bit 0 of their own e_flags means something else

_PLAIN_KEY = re.compile(rb"[A-Z][A-Z0-9_-]{0,63}")
_TIME_MAX_S = 2**33  # the year 2242; ns fit in 63 bits


class DumpFormat(StrEnum):
    """The format of the dump itself, inside compression and flattening."""

    KDUMP = "kdump-compressed"
    ELF = "elf"


class Completeness(StrEnum):
    """Whether a dump can be used."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    """A dump that was cut: part of the memory may be there."""
    BOGUS = "bogus"
    """Not a dump at all, whatever its name says."""


@dataclass(frozen=True, slots=True)
class VmcoreHead:
    """The contents of a dump's head. Text is safe to print; "" and None stand for unknown values.

    ELF has no utsname, time or level of its own: VMCOREINFO then gives release and time.
    """

    format: DumpFormat
    bits: Bits
    byteorder: ByteOrder
    flattened: bool = False
    wrapped_by: Wrapper | None = None
    header_version: int | None = None
    release: str = ""
    """`uname -r`."""
    version: str = ""
    """`uname -v`."""
    machine: str = ""
    nodename: str = ""
    """Name of the host that crashed, which may be another one."""
    crash_time_ns: int | None = None
    """CRASHTIME of VMCOREINFO; without it, when the dump was begun. Whole seconds."""
    memory_bytes: int | None = None
    """End of the machine's physical memory: its RAM including holes."""
    dump_level: int | None = None
    """makedumpfile -d: 1 zero, 2 cache, 4 private cache, 8 user, 16 free pages left out."""
    compression: str | None = None
    """Compression of the pages: zlib, lzo, snappy, zstd; None: not compressed."""
    incomplete: bool = False
    """makedumpfile itself noted it (the disk was full)."""
    split: tuple[int, int] | None = None
    """First page frame of this part of a split dump, and the first one after it."""
    vmcoreinfo: Mapping[str, str] = field(default_factory=dict)
    """OSRELEASE, BUILD-ID, PAGESIZE, KERNELOFFSET, CRASHTIME …: those with a plain name, not
    SYMBOL(…), SIZE(…), OFFSET(…), LENGTH(…), NUMBER(…)."""
    build_id: str | None = None
    """Build-id of the vmlinux, in hex; kernels before 5.9 do not record it."""
    size_at_least: int = 0
    """Least size of the dump itself in bytes, neither flattened nor compressed."""
    ends_with: str = ""
    """What ends at `size_at_least`, in words."""
    end_told: bool = True
    """Everything that determines `size_at_least` could be read."""
    page_frames: int = 0
    """Page frames of the machine, including holes."""
    problems: tuple[str, ...] = ()
    """What was missing or absurd: a line each, without any text from the dump."""


@dataclass(frozen=True, slots=True)
class DumpVerdict:
    """Whether a dump can be used."""

    completeness: Completeness
    reason: str
    """Why it is incomplete, or why that is not sure; "" otherwise."""
    head: VmcoreHead | None = None
    """None when even the head could not be read."""
    sure: bool = True
    """False: nothing speaks against the dump, but its end could not be checked."""


@dataclass(frozen=True, slots=True)
class _Peeled:
    """The start of the dump itself, and the layers peeled off it."""

    data: bytes
    size: int | None
    """Whole size in bytes of what `data` begins; None: not known."""
    wrapper: Wrapper | None = None
    flattened: bool = False
    ended: bool | None = None
    """Whether the peeled layer has its end; None: nothing was peeled, or its end cannot be seen."""
    problems: tuple[str, ...] = ()
    read: Read | None = None
    """Reads the dump itself beyond `data`; None if that is not known to work."""
    why: str = ""
    """Why the end of the peeled layer is missing, or is not known."""
    least: tuple[int, str, bool] | None = None
    """The result of diskdump.size_at_least(), if it is known."""


def parse_vmcore(head: bytes, unzstd: Unzstd) -> VmcoreHead:
    """Parse the first bytes of a dump.

    Raises:
        FormatError: it is not a kernel dump, is cut inside its first header, or absurd.

    """
    return _parse_peeled(_peel(head, None, b"", unzstd))


def judge(
    head: bytes,
    size_bytes: int,
    tail: bytes,
    unzstd: Unzstd,
    *,
    unfinished: bool = False,
    read: Read | None = None,
    unpacked: Unpacked | str | None = None,
) -> DumpVerdict:
    """Judge a file with the name of a dump by its first bytes, its size, and its last bytes.

    `unfinished` means that its maker had not yet given it its final name: then only the end marker
    of the flattened format proves that everything was written. `read` reads the file if its head
    does not say where it ends. `unpacked` is the result of reading a compressed file to its end, or
    why it could not be read. Raises only what `read` raises.
    """
    if not size_bytes:
        return DumpVerdict(Completeness.INCOMPLETE if unfinished else Completeness.BOGUS, "empty")
    try:
        peeled = _peel(head, size_bytes, tail, unzstd)
    except MemoryWantedError as e:
        return DumpVerdict(Completeness.COMPLETE, str(e), sure=False)
    except FormatError as e:
        return DumpVerdict(Completeness.BOGUS, str(e))
    try:
        if peeled.wrapper is not None:
            peeled = _add_unpacked(peeled, unpacked)
        elif not peeled.flattened:
            peeled = replace(peeled, read=read)
        elif read is not None:
            peeled = _walk_flat(peeled, read, size_bytes)
        vmcore = _parse_peeled(peeled)
    except FormatError as e:
        return _judge_without_head(peeled, size_bytes, str(e))
    reason = _find_fault(peeled, vmcore)
    if reason:
        return DumpVerdict(Completeness.INCOMPLETE, reason, vmcore)
    proven = peeled.flattened and peeled.ended
    if unfinished and not proven:
        return DumpVerdict(Completeness.INCOMPLETE, "never given its final name", vmcore)
    if peeled.size is None:
        reason = f"the end of what {vmcore.wrapped_by} compressed was not checked"
        reason += f": {peeled.why}" if peeled.why else ""
    elif peeled.ended is None if peeled.flattened else not vmcore.end_told:
        reason = "where it ends could not be read"
    return DumpVerdict(Completeness.COMPLETE, reason, vmcore, sure=not reason)


def _add_unpacked(peeled: _Peeled, unpacked: Unpacked | str | None) -> _Peeled:
    """Add the result of reading a compressed file to its end."""
    if unpacked is None or isinstance(unpacked, str):
        return replace(peeled, why=unpacked or "")
    data = unpacked.head or peeled.data
    if unpacked.cut:
        return replace(peeled, data=data, size=None, ended=False, why=unpacked.why)
    return replace(
        peeled,
        data=data,
        size=unpacked.size_bytes,
        flattened=unpacked.flattened,
        ended=unpacked.flat_ended if unpacked.flattened else True,
        least=unpacked.least,
    )


def _walk_flat(peeled: _Peeled, read: Read, size_bytes: int) -> _Peeled:
    """Follow the records of a flattened dump: in the file's last bytes alone, memory full of ones
    looks like the end marker. With too many records, the verdict of those bytes stays.
    """
    data, ended = read_flattened(read, size_bytes, HEAD_SIZE)
    if not data.startswith((SIGNATURE, MAGIC)):
        data = peeled.data
    if ended is None and not peeled.data.startswith(MAGIC):
        ended = peeled.ended
    return replace(peeled, data=data, ended=ended)


def _find_fault(peeled: _Peeled, vmcore: VmcoreHead) -> str:
    if vmcore.incomplete:
        return "incomplete bit set by makedumpfile: it ran out of space"
    if peeled.ended is False and peeled.why:
        return peeled.why
    if peeled.ended is False:
        what = "the flattened format" if peeled.size is not None else vmcore.wrapped_by
        return f"no end marker of {what}"
    if not peeled.flattened and peeled.size is not None and peeled.size < vmcore.size_at_least:
        return (
            f"file ends before the end of its {vmcore.ends_with}: {peeled.size} of at least "
            f"{vmcore.size_at_least} bytes"
        )
    return ""


def _judge_without_head(peeled: _Peeled, size_bytes: int, error: str) -> DumpVerdict:
    data = peeled.data
    if peeled.wrapper is not None and not data and not peeled.flattened:
        if peeled.size is None:
            return DumpVerdict(
                Completeness.INCOMPLETE, f"cut at the start of what {peeled.wrapper} wrote"
            )
        return DumpVerdict(Completeness.BOGUS, f"empty inside {peeled.wrapper}")
    signed = data.startswith((SIGNATURE, MAGIC))
    if peeled.flattened and not peeled.ended and (signed or not data):
        return DumpVerdict(Completeness.INCOMPLETE, "no end marker of the flattened format")
    needed = HEADER_SIZE if data.startswith(SIGNATURE) else HEADER_MAX
    if signed and peeled.size is not None and peeled.size <= len(data) < needed:
        return DumpVerdict(Completeness.INCOMPLETE, "file ends before its header does")
    size = size_bytes if peeled.size is None else peeled.size
    return DumpVerdict(Completeness.BOGUS, error if signed else describe(data, size))


# ---- the layers around the dump ----


def _peel(head: bytes, size: int | None, tail: bytes, unzstd: Unzstd) -> _Peeled:
    """Remove compression and flattening; `size` and `tail` are the file's, None if not known."""
    wrapper = find_wrapper(head)
    ended: bool | None = None
    if wrapper is not None:
        inner = unwrap(head, wrapper, HEAD_SIZE, unzstd)
        ended = _is_wrapper_ended(wrapper, head, size, tail, inner)
        head, size, tail = inner.data, None, b""
        if inner.whole:
            size, tail = len(head), head[-TAIL_SIZE:]
    if not head.startswith(FLAT_MAGIC):
        return _Peeled(head, size, wrapper, ended=ended)
    problems: list[str] = []
    data, end = _unflatten(head, problems)
    if size is not None:
        ended = end == size if size <= len(head) else _ends_flat(tail, data)
    elif ended:
        ended = None  # the compressor saw its input end: that says nothing about makedumpfile
    return _Peeled(data, size, wrapper, flattened=True, ended=ended, problems=tuple(problems))


def _is_wrapper_ended(
    wrapper: Wrapper, head: bytes, size: int | None, tail: bytes, inner: Unwrapped
) -> bool | None:
    if inner.whole:
        return True
    if size is None:
        return None
    # The whole file is at hand, and decompressing it did not reach an end.
    if size <= len(head) and len(inner.data) < HEAD_SIZE and wrapper is not Wrapper.ZSTD:
        return False
    return is_ended(wrapper, head, tail)


def _ends_flat(tail: bytes, data: bytes) -> bool:
    """Distinguish the end marker from a cut bitmap: full of ones, it looks the same."""
    is_ones = data.startswith(SIGNATURE) and tail.endswith(FLAT_END + FLAT_END)
    return tail.endswith(FLAT_END) and not is_ones


def _unflatten(raw: bytes, problems: list[str]) -> tuple[bytes, int | None]:
    """Put the records at a flattened dump's start in order; zeros stand for later records.

    Also return where the end marker ends, None when it is not in `raw`.
    """
    kind, version = (int.from_bytes(raw[at : at + 8], "big") for at in (16, 24))
    if len(raw) >= FLAT_HEADER_SIZE and (kind, version) != (1, 1):
        problems.append(f"flattened format of type {kind}, version {version}")
    reader = FlatReader(HEAD_SIZE)
    reader.feed(raw)
    if reader.is_broken:
        problems.append("a record of the flattened format is absurd")
    return bytes(reader.head), reader.end_at


# ---- the dump itself ----


def _parse_peeled(peeled: _Peeled) -> VmcoreHead:
    if peeled.data.startswith(SIGNATURE):
        return _parse_kdump(peeled)
    if peeled.data.startswith(MAGIC):
        return _parse_elf(peeled)
    raise FormatError("file does not begin like a kernel dump")


def _parse_kdump(peeled: _Peeled) -> VmcoreHead:
    data = peeled.data
    dump = parse_diskdump(data)
    problems = [*peeled.problems, *dump.problems]
    at, size = dump.vmcoreinfo
    info = data[at : at + min(size, VMCOREINFO_MAX)]
    if not size:
        at, size = dump.notes  # QEMU and sadump have it only in the notes
        notes = data[at : at + min(size, NOTES_MAX_BYTES)]
        info = _notes_of(notes, dump.layout).get(b"VMCOREINFO", b"")
    if not info:
        problems.append("no VMCOREINFO in the head")
    vmcoreinfo = parse_vmcoreinfo(info)
    least, what, told = peeled.least or size_at_least(
        peeled.read or (lambda at, n: data[at : at + n]), dump
    )
    _, nodename, release, version, machine, _ = (printable(name) for name in dump.utsname)
    return VmcoreHead(
        format=DumpFormat.KDUMP,
        bits=dump.bits,
        byteorder=dump.byteorder,
        flattened=peeled.flattened,
        wrapped_by=peeled.wrapper,
        header_version=dump.header_version,
        release=vmcoreinfo.get("OSRELEASE") or release,
        version=version,
        machine=machine,
        nodename=nodename,
        crash_time_ns=_crash_time(vmcoreinfo, dump.time_s),
        memory_bytes=dump.max_mapnr * dump.block_size_bytes or None,
        dump_level=dump.dump_level,
        compression=dump.compression,
        incomplete=dump.incomplete,
        split=dump.split,
        vmcoreinfo=vmcoreinfo,
        build_id=_build_id(vmcoreinfo),
        size_at_least=least,
        ends_with=what,
        end_told=told,
        page_frames=dump.max_mapnr,
        problems=tuple(problems),
    )


def _parse_elf(peeled: _Peeled) -> VmcoreHead:
    # An ELF dump is at least as long as its farthest segment, or its program headers.
    data, problems = peeled.data, list(peeled.problems)
    header = _elf_header(data)
    layout = header.layout
    least, memory_end = header.phoff + header.phnum * PHDR_SIZE[layout.bits], 0
    if least > len(data):
        problems.append("program headers are cut")
    what = "program headers"
    notes: dict[bytes, bytes] = {}
    segments = 0
    for kind, _, offset, _, paddr, filesz, memsz, _ in find_phdrs(data, header, header.phnum):
        if offset + filesz > FILE_END_MAX or paddr + memsz > 2**64:
            problems.append("a segment lies past the end of any file or address space")
            continue
        if filesz and offset + filesz > least:
            least, what = offset + filesz, "memory" if kind == PT_LOAD else "notes"
        if kind == PT_LOAD:
            memory_end = max(memory_end, paddr + memsz)
        elif kind == PT_NOTE and (segments := segments + 1) <= NOTE_SEGMENTS_MAX:
            notes |= _notes_of(data[offset : offset + min(filesz, NOTES_MAX_BYTES)], layout)
    if (end := _sections_end(data, header)) > least:
        least, what = end, "sections"
    if b"VMCOREINFO" not in notes:
        if b"process" in notes:
            raise FormatError("the core of a process, not a kernel's dump")
        problems.append("no VMCOREINFO in the head")
    if not memory_end and least <= len(data):
        raise FormatError("ELF dump without any memory")
    vmcoreinfo = parse_vmcoreinfo(notes.get(b"VMCOREINFO", b"")[:VMCOREINFO_MAX])
    machine = _MACHINES.get(layout.machine, "")
    return VmcoreHead(
        format=DumpFormat.ELF,
        bits=layout.bits,
        byteorder=layout.byteorder,
        flattened=peeled.flattened,
        wrapped_by=peeled.wrapper,
        release=vmcoreinfo.get("OSRELEASE", ""),
        machine="ppc64le" if machine == "ppc64" and layout.byteorder == "little" else machine,
        crash_time_ns=_crash_time(vmcoreinfo, 0),
        memory_bytes=memory_end or None,
        incomplete=bool(header.flags & DUMP_ELF_INCOMPLETE)
        and layout.machine not in _FLAGGED_MACHINES,
        vmcoreinfo=vmcoreinfo,
        build_id=_build_id(vmcoreinfo),
        size_at_least=least,
        ends_with=what,
        problems=tuple(dict.fromkeys(problems)),
    )


def _sections_end(data: bytes, header: Header) -> int:
    """Return where the last section ends; QEMU puts the names of all behind the memory."""
    layout = header.layout
    size = SHDR_SIZE[layout.bits]
    if not header.shoff or header.shentsize != size or not 0 < header.shnum <= SECTIONS_MAX:
        return 0
    if header.sections_end > FILE_END_MAX:
        return 0
    table = data[header.shoff : header.sections_end]
    ends = (row.offset + row.size for row in parse_shdrs(table, layout) if row.type != _NOBITS)
    return max((end for end in ends if end <= FILE_END_MAX), default=0) or header.sections_end


def _elf_header(data: bytes) -> Header:
    """Parse the ELF header of a dump; at most PHDRS_MAX of its program headers count."""
    if len(data) < HEADER_MAX:
        raise FormatError(f"dump is cut inside its header, at {len(data)} bytes")
    header = parse_header(data)
    if header is None:
        raise FormatError("ELF header has an absurd class or byte order")
    if header.type != ET_CORE:
        raise FormatError(f"ELF file is of type {header.type}, not a core")
    sound = header.phentsize == PHDR_SIZE[header.layout.bits] and header.phnum
    if not sound or not header.ehsize <= header.phoff < 2**32:
        raise FormatError("ELF header has absurd program headers")
    return header._replace(phnum=min(header.phnum, PHDRS_MAX))


def _notes_of(blob: bytes, layout: Layout) -> dict[bytes, bytes]:
    """Return the VMCOREINFO note, and `process` if the notes are those of a process."""
    found: dict[bytes, bytes] = {}
    for name, kind, desc, _ in split_notes(blob, layout):
        if name == b"VMCOREINFO":
            found.setdefault(name, desc)
        elif name == b"CORE" and kind == NT_PRPSINFO:
            found[b"process"] = b""
    return found


def parse_vmcoreinfo(text: bytes) -> dict[str, str]:
    """Parse VMCOREINFO: lines `KEY=value` with a plain key; values are printable and cut."""
    found: dict[str, str] = {}
    for line in text.split(b"\n", VMCOREINFO_LINES_MAX)[:VMCOREINFO_LINES_MAX]:
        key, equals, value = line.partition(b"=")
        if equals and _PLAIN_KEY.fullmatch(key):
            found[key.decode()] = printable(value[:VALUE_MAX].strip(b" \0\r"))
    return found


def _crash_time(vmcoreinfo: Mapping[str, str], fallback_s: int) -> int | None:
    text = vmcoreinfo.get("CRASHTIME", "")
    # int() would accept spaces, signs, underscores and other scripts' digits.
    seconds = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else 0
    seconds = seconds or fallback_s
    return seconds * 10**9 if 0 < seconds < _TIME_MAX_S else None


def _build_id(vmcoreinfo: Mapping[str, str]) -> str | None:
    text = vmcoreinfo.get("BUILD-ID", "").lower()
    return text if re.fullmatch(r"(?:[0-9a-f]{2}){4,64}", text) else None
