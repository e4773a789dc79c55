"""Mini cores: an ELF core with all headers and notes, but only the memory that a debugger needs to
name the functions on every thread's stack. Pure.

    Ehdr | Phdr … | notes | padding | stacks, loader's data, first pages of modules …

Memory that is left out still has a PT_LOAD without bytes in the file, so that a debugger reads what
it can from the executable and its libraries, and reports the rest as not saved.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from crashd.domain.elf.auxv import AT_PHDR, AT_PHENT, AT_PHNUM, AT_SYSINFO_EHDR
from crashd.domain.elf.elfcore import CoreHead, Segment
from crashd.domain.elf.headers import (
    HEADER_SIZE,
    PHDR_SIZE,
    PN_XNUM,
    PT_DYNAMIC,
    PT_LOAD,
    PT_NOTE,
    PT_PHDR,
    Layout,
    Phdr,
    build_header,
    build_phdrs,
    parse_phdrs,
)

PAGE: Final = 4096
MINI_MAX: Final = 64 << 20
"""Bytes of memory; the first ranges in `_wanted` are kept first."""
CRASHED_STACK_BYTES: Final = 1 << 20
STACK_BYTES: Final = 128 << 10
_RED_ZONE = 128
_GUARD_MAX = 1 << 20
_DATA_MAX = 1 << 20
_SMALL_MAX = 64 << 10
_AROUND_BYTES = 2 * PAGE
_LINK_MAPS_MAX = 4096
_NAME_BYTES = 512
_DYNAMIC_MAX = 512
_DT_DEBUG = 21
_PHNUM_MAX = PN_XNUM - 1
_PF_W = 2

ReadMemory = Callable[[int, int], bytes]
"""Takes address and size; returns fewer or no bytes if the memory cannot be read."""


class Kept(NamedTuple):
    """A range of memory in a mini core."""

    offset: int
    """In the mini core."""
    source: int
    """In the whole core."""
    address: int
    size: int
    segment: Segment


class MiniCore(NamedTuple):
    """A plan: the head's bytes, and what follows them."""

    head: bytes
    kept: tuple[Kept, ...]
    """In the order of both files."""
    size: int


def plan_mini(
    head: CoreHead, raw: bytes, read: ReadMemory | None, memory_max: int = MINI_MAX
) -> MiniCore:
    """Plan the mini core of a core with this head, whose bytes are `raw`.

    `read` reads the process's memory, to follow the loader's list of modules into the heap. Without
    it, modules loaded at run time may have no names.
    """
    ranges = _merge(_wanted(head, read), head.segments, memory_max)
    return _lay_out(head, raw, ranges)


# -- wanted ranges ---------------------------------------------------------------------------------


def _wanted(head: CoreHead, read: ReadMemory | None) -> Iterator[tuple[int, int]]:
    """Yield ranges of addresses, the most important first."""
    segments = sorted(head.segments, key=lambda s: s.vaddr)
    starts = [s.vaddr for s in segments]
    if head.threads:
        yield from _stack(head.threads[0].sp, CRASHED_STACK_BYTES, segments, starts)
    yield from _modules(head, segments)
    if read is not None:
        yield from _link_maps(head, read)
    for thread in head.threads[:1]:
        if thread.pc is not None:
            yield thread.pc - _AROUND_BYTES, thread.pc + _AROUND_BYTES
    if head.siginfo is not None and head.siginfo.address is not None:
        address = head.siginfo.address
        yield address - _AROUND_BYTES, address + _AROUND_BYTES
    for thread in head.threads[1:]:
        yield from _stack(thread.sp, STACK_BYTES, segments, starts)


def _stack(
    sp: int | None, size: int, segments: Sequence[Segment], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield a thread's stack from its pointer on, and its end, which holds the descriptor."""
    if sp is None:
        return
    index = bisect_right(starts, sp) - 1
    if index < 0 or sp >= segments[index].vaddr + segments[index].memsz:
        index += 1  # the pointer ran into the guard below the stack
    if index >= len(segments) or segments[index].vaddr - sp > _GUARD_MAX:
        return
    segment = segments[index]
    end = segment.vaddr + segment.memsz
    start = max(segment.vaddr, sp - _RED_ZONE)
    yield start, min(end, start + size)
    if segment.memsz <= 1 << 30:
        yield end - min(segment.memsz, 4 * PAGE), end


def _modules(head: CoreHead, segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    """Yield the first pages and data of mapped files, and the small memory between them, where the
    loader keeps its lists.
    """
    files = sorted((f.start, f.end) for f in head.files)
    starts = [start for start, _ in files]
    vdso = head.auxv.get(AT_SYSINFO_EHDR)
    low, high = (files[0][0], files[-1][1]) if files else (0, 0)
    for segment in segments:
        if not segment.filesz:
            continue
        start, end = segment.vaddr, segment.vaddr + segment.filesz
        index = bisect_right(starts, start) - 1
        of_file = index >= 0 and start < files[index][1]
        behind_file = index >= 0 and start == files[index][1]
        small = low <= start < high and segment.filesz <= _SMALL_MAX
        data = (of_file or behind_file) and segment.flags & _PF_W and segment.filesz <= _DATA_MAX
        if start == vdso or small or data or (behind_file and segment.filesz <= _SMALL_MAX):
            yield start, end


def _link_maps(head: CoreHead, read: ReadMemory) -> Iterator[tuple[int, int]]:
    """Follow r_debug of the executable to every module's struct link_map and name (link.h)."""
    layout = Layout(head.machine, head.bits, head.byteorder)
    word = head.bits // 8

    def pointer(at: int) -> int:
        raw = read(at, word)
        return int.from_bytes(raw, head.byteorder) if len(raw) == word else 0

    debug = _find_debug(head, layout, word, read)
    if not debug:
        return
    yield debug, debug + 8 * word
    entry, seen = pointer(debug + word), set[int]()
    while entry and entry not in seen and len(seen) < _LINK_MAPS_MAX:
        seen.add(entry)
        yield entry, entry + 8 * word
        name = pointer(entry + word)
        if name:
            yield name, name + _NAME_BYTES
        entry = pointer(entry + 3 * word)


def _find_debug(head: CoreHead, layout: Layout, word: int, read: ReadMemory) -> int:
    """Find the address of r_debug; 0 if the program is static or has not started yet."""
    phdr, count = head.auxv.get(AT_PHDR, 0), min(head.auxv.get(AT_PHNUM, 0), 64)
    size = PHDR_SIZE[head.bits]
    if not phdr or head.auxv.get(AT_PHENT) != size:
        return 0
    base = dynamic = 0
    for kind, _, _, vaddr, *_ in parse_phdrs(read(phdr, count * size), layout):
        if kind == PT_PHDR:
            base = phdr - vaddr
        elif kind == PT_DYNAMIC:
            dynamic = vaddr
    if not dynamic:
        return 0
    raw = read((base + dynamic) % (1 << head.bits), _DYNAMIC_MAX * 2 * word)
    pairs = layout.struct("QQ" if head.bits == 64 else "II")
    for tag, value in pairs.iter_unpack(raw[: len(raw) - len(raw) % (2 * word)]):
        if tag == _DT_DEBUG:
            return int(value)
        if tag == 0:
            break
    return 0


# -- kept ranges -----------------------------------------------------------------------------------


def _merge(
    wanted: Iterable[tuple[int, int]], segments: Sequence[Segment], left: int
) -> list[tuple[int, int]]:
    """Join ranges into whole pages, ascending, up to `left` bytes that the core has."""
    ordered = sorted((s.vaddr, s.vaddr + s.filesz) for s in segments if s.filesz)
    starts = [start for start, _ in ordered]
    ranges: list[tuple[int, int]] = []
    left &= -PAGE
    for start, end in wanted:
        low, high = start & -PAGE, -(-end // PAGE) * PAGE
        for index in range(max(0, bisect_right(starts, low) - 1), len(ordered)):
            first, last = ordered[index]
            if first >= high:
                break
            part = max(low, first), min(high, last, max(low, first) + left)
            if part[0] < part[1]:
                ranges.append(part)
                left -= part[1] - part[0]
    ranges.sort()
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _lay_out(head: CoreHead, raw: bytes, ranges: list[tuple[int, int]]) -> MiniCore:
    """Build the head, and give each range its place."""
    layout = Layout(head.machine, head.bits, head.byteorder)
    parts = [(segment, _cut(segment, ranges)) for segment in head.segments]
    if 1 + sum(len(pieces) for _, pieces in parts) > _PHNUM_MAX:
        parts = [(s, [p for p in pieces if p[2]]) for s, pieces in parts]
    notes = [raw[offset : offset + size] for offset, size in head.notes]
    count = 1 + sum(len(pieces) for _, pieces in parts)
    notes_at = HEADER_SIZE[head.bits] + count * PHDR_SIZE[head.bits]
    notes_size = sum(map(len, notes))
    position = notes_at + notes_size
    if any(there for _, pieces in parts for _, _, there in pieces):
        position = -(-position // PAGE) * PAGE
    table: list[Phdr] = [(PT_NOTE, 0, notes_at, 0, 0, notes_size, 0, 4)]
    kept: list[Kept] = []
    for segment, pieces in parts:
        for start, end, there in pieces:
            filesz = end - start if there else 0
            table.append((PT_LOAD, segment.flags, position, start, 0, filesz, end - start, PAGE))
            if there:
                source = segment.offset + start - segment.vaddr
                kept.append(Kept(position, source, start, filesz, segment))
                position += filesz
    head_bytes = b"".join([build_header(raw, layout, count), build_phdrs(layout, table), *notes])
    return MiniCore(head_bytes, tuple(kept), position)


def _cut(segment: Segment, ranges: list[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    """Cut a segment into kept and dropped parts: (start, end, kept)."""
    pieces: list[tuple[int, int, bool]] = []
    at, end = segment.vaddr, segment.vaddr + segment.memsz
    in_file = segment.vaddr + segment.filesz
    for index in range(max(0, bisect_right(ranges, (at,)) - 1), len(ranges)):
        low, high = max(ranges[index][0], at), min(ranges[index][1], in_file)
        if ranges[index][0] >= in_file:
            break
        if low >= high:
            continue
        if low > at:
            pieces.append((at, low, False))
        pieces.append((low, high, True))
        at = high
    if at < end:
        pieces.append((at, end, False))
    return pieces
