"""The head of an ELF core: ELF header, program headers and notes, from its first bytes.

The kernel writes a core in this layout (fs/binfmt_elf.c, elf_core_dump):

    Ehdr | Phdr of the PT_NOTE | Phdr of each PT_LOAD … | notes | padding | memory … | [Shdr]

The Shdr at the end exists only for 65,535 program headers and more. It holds the real count, which
a reader of the stream therefore sees last. gdb's `gcore` puts the notes after the memory;
move_notes() builds the head that such a core would have if the kernel had written it.

Source: elf(5), core(5), include/uapi/linux/elf.h. Every byte here may be hostile: sizes and counts
are checked against the bytes at hand, and work is linear in them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from crashd.domain.elf.auxv import AT_PHDR
from crashd.domain.elf.elfnotes import (
    MappedFile,
    Notes,
    SigInfo,
    Thread,
    collect_notes,
)
from crashd.domain.elf.headers import (
    ET_CORE,
    FILE_END_MAX,
    HEADER_SIZE,
    PHDR_SIZE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    Bits,
    ByteOrder,
    Header,
    Layout,
    Phdr,
    Shdr,
    build_header,
    build_phdrs,
    build_shdr,
    find_build_id,
    find_phdrs,
    parse_header,
)
from crashd.errors import FormatError

__all__ = [
    "HEAD_MAX",
    "CoreHead",
    "MappedFile",
    "Segment",
    "SigInfo",
    "Thread",
    "build_trailer",
    "executable_range",
    "find_image_notes",
    "find_loads",
    "find_segment",
    "head_size",
    "move_notes",
    "parse_build_id",
    "parse_head",
]

HEAD_MAX: Final = 48 * 2**20
"""NT_FILE may have 16 MiB (kernel.core_file_note_size_limit), a thread's notes 11 KiB (AMX)."""

IMAGE_MAX: Final = 64 * 1024
"""Bytes of an executable's start that are searched for its build-id."""

IMAGE_PHDRS_MAX: Final = 64
NOTE_SEGMENTS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD program header: a range of memory, and its place in the core."""

    offset: int
    vaddr: int
    filesz: int
    memsz: int
    flags: int
    """PF_X 1, PF_W 2, PF_R 4."""


@dataclass(frozen=True, slots=True)
class CoreHead:
    """What the head of a core says."""

    machine: int
    """EM_* of include/uapi/linux/elf-em.h."""
    bits: Bits
    byteorder: ByteOrder
    segments: tuple[Segment, ...]
    """In the file's order, which is the order of addresses unless kernel.core_sort_vma is set."""
    expected_size: int
    """Size of the complete core."""
    threads: tuple[Thread, ...] = ()
    """The crashing thread first."""
    siginfo: SigInfo | None = None
    auxv: Mapping[int, int] = field(default_factory=dict)
    files: tuple[MappedFile, ...] = ()
    notes: tuple[tuple[int, int], ...] = ()
    """Offset and size of each note segment."""
    phdr_count: int = 0
    """Number of program headers, including the PT_NOTE's."""
    comm: bytes = b""
    """Name of the crashing thread, 15 bytes; the thread itself chooses it."""
    psargs: bytes = b""
    """The first 79 bytes of the arguments."""
    problems: tuple[str, ...] = ()
    """What was missing, damaged or absurd: one line each, without any text from the core."""


def head_size(head: bytes) -> int:
    """Return how many bytes from the start of a core belong to its head, as far as `head` says.

    Call it with more bytes until the result is no more than the bytes given. Notes after the memory
    (gcore) are not counted.

    Raises:
        FormatError: not an ELF core, or its head has more than HEAD_MAX.

    """
    if len(head) < 64:
        return 64
    header = _parse_header(head)
    count, end = _phdr_table(head, header)
    if count is None or len(head) < end:
        return end
    data_start = HEAD_MAX + 1
    notes: list[tuple[int, int]] = []
    for kind, _, offset, _, _, filesz, _, _ in find_phdrs(head, header, count):
        if kind == PT_LOAD and filesz and offset < data_start:
            data_start = offset
        elif kind == PT_NOTE:
            notes.append((offset, offset + filesz))
    end = max([end, *(stop for start, stop in notes if start < data_start)])
    if end > HEAD_MAX:
        raise FormatError(f"core has a head of {end} bytes, more than {HEAD_MAX}")
    return end


def move_notes(head: bytes, read: Callable[[int, int], bytes]) -> bytes:
    """Return a head whose notes directly follow the program headers, if some of them are not in
    `head`; otherwise `head`. `read` takes offset and size in the core, and may return fewer bytes.

    Offsets of memory stay as they are, so they may lie within the new head: it is for parsing, and
    not the start of a core.

    Raises:
        FormatError: as head_size().

    """
    header = _parse_header(head)
    count, end = _phdr_table(head, header)
    if count is None or len(head) < end or header.phnum == PN_XNUM:
        return head  # only the kernel makes such a core, and its notes precede memory
    phdrs = list(find_phdrs(head, header, count))
    places = [(offset, size) for kind, _, offset, _, _, size, _, _ in phdrs if kind == PT_NOTE]
    total = sum(size for _, size in places)
    if len(places) > NOTE_SEGMENTS_MAX or total > HEAD_MAX - end:
        return head
    if all(offset + size <= len(head) for offset, size in places):
        return head
    at = HEADER_SIZE[header.layout.bits] + len(phdrs) * PHDR_SIZE[header.layout.bits]
    table: list[Phdr] = []
    blobs: list[bytes] = []
    for phdr in phdrs:
        kind, flags, offset, vaddr, paddr, size, memsz, align = phdr
        if kind != PT_NOTE:
            table.append(phdr)
            continue
        blob = read(offset, size)
        if len(blob) == size:  # otherwise the core is cut here, and this shows
            blob += bytes(-size % 8)
        blobs.append(blob)
        table.append((kind, flags, at, vaddr, paddr, size, memsz, align))
        at += len(blob)
    start = build_header(head, header.layout, count)
    return b"".join([start, build_phdrs(header.layout, table), *blobs])


def _parse_header(head: bytes) -> Header:
    """Parse and check the ELF header of a core."""
    header = _sound_header(head)
    if header is None:
        raise FormatError("core does not begin with a sound ELF header")
    if header.type != ET_CORE:
        raise FormatError(f"ELF file is of type {header.type}, not a core")
    if not header.phnum:
        raise FormatError("core has no program headers")
    return header


def _sound_header(image: bytes) -> Header | None:
    """Parse an ELF header; None if its program headers cannot be where it says."""
    header = parse_header(image)
    if header is None or not header.phnum:
        return header
    bits = header.layout.bits
    sound = header.phentsize == PHDR_SIZE[bits] and header.phoff >= HEADER_SIZE[bits]
    return header if sound else None


def _phdr_table(head: bytes, header: Header) -> tuple[int | None, int]:
    """Find the number of program headers, None if `head` is too short to show it, and their end.

    From PN_XNUM on the ELF header does not hold the number. The kernel writes the PT_NOTE's header
    first, and the notes themselves right after the last header, so their offset shows the number.
    """
    size = PHDR_SIZE[header.layout.bits]
    count: int | None = header.phnum
    end = header.phoff + header.phnum * size
    if header.phnum == PN_XNUM:
        first_two = list(find_phdrs(head, header, 2))
        if len(first_two) == 2:
            (kind, _, end, *_), (_, _, load_offset, *_) = first_two
            count, rest = divmod(end - header.phoff, size)
            if kind != PT_NOTE or rest or count < PN_XNUM or load_offset < end:
                raise FormatError("core tells the number of its program headers only at its end")
        else:
            count, end = None, header.phoff + 2 * size
    if end > HEAD_MAX:
        raise FormatError(f"core has program headers up to byte {end}, more than {HEAD_MAX}")
    return count, end


def parse_head(head: bytes) -> CoreHead:
    """Parse the head of a core; bytes after it do no harm.

    A head that is cut or damaged after the ELF header gives what can be read, and `problems` says
    what could not.

    Raises:
        FormatError: as head_size().

    """
    header = _parse_header(head)
    count, end = _phdr_table(head, header)
    found = Notes()
    if count is None or len(head) < end:
        found.problem("program headers are cut")
    segments: list[Segment] = []
    notes: list[tuple[int, int]] = []
    # The section header that the kernel adds for PN_XNUM comes after all memory.
    expected = header.sections_end if header.phnum == PN_XNUM else end
    memory_end = 2**header.layout.bits
    for kind, flags, offset, vaddr, _, filesz, memsz, _ in find_phdrs(head, header, count or 0):
        stop = offset + filesz
        if stop > FILE_END_MAX or vaddr + memsz > memory_end:
            found.problem("a segment lies past the end of any file or address space")
            continue
        if stop > expected:
            expected = stop
        if kind == PT_LOAD:
            segments.append(Segment(offset, vaddr, filesz, memsz, flags))
        elif kind == PT_NOTE:
            notes.append((offset, filesz))
    notes = _bound(notes, found)
    _collect_segments(head, header.layout, notes, found)
    return CoreHead(
        machine=header.layout.machine,
        bits=header.layout.bits,
        byteorder=header.layout.byteorder,
        segments=tuple(segments),
        expected_size=min(expected, FILE_END_MAX),
        threads=tuple(found.threads),
        siginfo=found.siginfo,
        auxv=found.auxv,
        files=found.files,
        notes=tuple(notes),
        phdr_count=count or 0,
        comm=found.comm,
        psargs=found.psargs,
        problems=tuple(found.problems),
    )


def _bound(notes: list[tuple[int, int]], found: Notes) -> list[tuple[int, int]]:
    """Leave out note segments beyond NOTE_SEGMENTS_MAX, or beyond HEAD_MAX bytes in all.

    Segments that overlap would otherwise have the same bytes parsed and copied again and again.
    """
    if len(notes) > NOTE_SEGMENTS_MAX:
        found.problem(f"{len(notes)} note segments, more than {NOTE_SEGMENTS_MAX}")
    sizes = accumulate(size for _, size in notes)
    kept = [note for note, total in zip(notes, sizes, strict=True) if total <= HEAD_MAX]
    if len(kept) < min(len(notes), NOTE_SEGMENTS_MAX):
        found.problem(f"note segments of more than {HEAD_MAX} bytes in all")
    return kept[:NOTE_SEGMENTS_MAX]


def _collect_segments(
    head: bytes, layout: Layout, notes: list[tuple[int, int]], found: Notes
) -> None:
    for offset, filesz in notes:
        blob = head[offset : offset + filesz]
        collect_notes(blob, layout, found)
        if len(blob) < filesz:
            found.problem("notes are cut" if blob else "notes are not at the start of the core")
    if not found.threads:
        found.problem("no thread in the notes")


def find_segment(image: bytes, kind: int) -> int | None:
    """Find the first program header of a kind in an ELF image's first bytes; return its address,
    relative to where the image begins in memory.
    """
    header = _sound_header(image)
    if header is None:
        return None
    phdrs = list(find_phdrs(image, header, min(header.phnum, IMAGE_PHDRS_MAX)))
    base = next((vaddr - at for each, _, at, vaddr, *_ in phdrs if each == PT_LOAD), None)
    vaddr = next((vaddr for each, _, _, vaddr, *_ in phdrs if each == kind), None)
    return None if base is None or vaddr is None else vaddr - base


def build_trailer(head: CoreHead) -> bytes:
    """Build what the kernel writes after all memory: the section header that holds the number of
    program headers if the ELF header cannot (fill_extnum_info() of fs/binfmt_elf.c); mostly empty.
    """
    if head.phdr_count < PN_XNUM:
        return b""
    layout = Layout(head.machine, head.bits, head.byteorder)
    # sh_size counts the section headers, of which this is the only one
    return build_shdr(layout, Shdr(0, 0, 0, 0, 0, 1, 0, head.phdr_count, 0, 0))


def executable_range(head: CoreHead) -> tuple[int, int] | None:
    """Find where the core has the executable's own first bytes: offset in the core, and size.

    The kernel dumps the first page of a mapped ELF file even if it leaves out the rest
    (coredump_filter, core(5)). If it was not dumped, the same page may have been mapped again for
    the data of a small file. None if neither was dumped, or AT_PHDR is missing or wrong. The size
    is IMAGE_MAX at most.
    """
    phdr = head.auxv.get(AT_PHDR)
    if phdr is None:
        return None
    for start in _executable_starts(head, phdr):
        for segment in head.segments:
            skip = start - segment.vaddr
            if 0 <= skip < segment.filesz:
                return segment.offset + skip, min(segment.filesz - skip, IMAGE_MAX)
    return None


def _executable_starts(head: CoreHead, phdr: int) -> list[int]:
    """Return the addresses at which the executable's ELF header may be, the best first.

    Linkers put it right before the program headers, but patchelf and similar tools move these. If
    there is an NT_FILE, take the start of the file that holds AT_PHDR.
    """
    name = next((f.name for f in head.files if f.start <= phdr < f.end), None)
    starts = [f.start for f in head.files if f.name == name and not f.offset_bytes]
    first = max((at for at in starts if at <= phdr), default=phdr - HEADER_SIZE[head.bits])
    return [first, *sorted(at for at in starts if at > phdr)]


def find_loads(image: bytes) -> list[tuple[int, int]]:
    """Return address and offset in the file of each PT_LOAD, from the first bytes of an ELF image;
    empty if there is none.
    """
    header = _sound_header(image)
    if header is None:
        return []
    phdrs = find_phdrs(image, header, min(header.phnum, IMAGE_PHDRS_MAX))
    return [(vaddr, at) for kind, _, at, vaddr, *_ in phdrs if kind == PT_LOAD]


def parse_build_id(image: bytes) -> str | None:
    """Find the GNU build-id, hex, in the first bytes of an ELF image as it lies in memory.

    None if the image has no build-id, or the build-id lies past the end of `image`.
    """
    for blob, layout, align in find_image_notes(image):
        if found := find_build_id(blob, layout, align):
            return found
    return None


def find_image_notes(image: bytes) -> Iterator[tuple[bytes, Layout, int]]:
    """Yield each note segment in the first bytes of an ELF image, with layout and alignment."""
    header = _sound_header(image)
    if header is None:
        return
    phdrs = list(find_phdrs(image, header, header.phnum))
    base = next((vaddr - at for kind, _, at, vaddr, *_ in phdrs if kind == PT_LOAD), None)
    if base is None:
        return
    for kind, _, _, vaddr, _, filesz, _, align in phdrs[:IMAGE_PHDRS_MAX]:
        if kind == PT_NOTE and vaddr >= base:
            yield image[vaddr - base : vaddr - base + filesz], header.layout, 8 if align == 8 else 4
