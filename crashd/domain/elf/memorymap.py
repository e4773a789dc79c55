"""The memory engine's plan: which part of a process goes where in its core, made before any memory
is read. The module is one idea, because mappings, extents, ranges and pieces are the steps of that
plan.

The kernel writes a core's memory as elf_core_dump() finds it (fs/binfmt_elf.c, fs/coredump.c,
6.18): it copies each page of a segment, and writes zeros for a page that is not there or cannot be
faulted in. For anonymous memory the page table shows what is there (FOLL_DUMP never faults such a
page in); memory that a file backs is faulted in. So:

    ANONYMOUS   only pages that the page table has; zeros between them
    SHMEM       what the tmpfs file behind it has (memfd, shm_open, SysV, MAP_SHARED|MAP_ANONYMOUS);
                a private mapping has what the page table has, too; zeros between them, which the
                kernel allocates page by page and then writes
    BACKED      every page, as the kernel does; one that cannot be read is zeros
    GATE        the vsyscall page, which is in no mapping

In all but the last, guard regions (MADV_GUARD_INSTALL) are zeros.

A mapping of any other kind is a doubt, and then the kernel's own stream is read instead.

Over 400 lines, because it is one decision: how each mapping is read.
"""

import heapq
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from crashd.domain.elf.elfcore import CoreHead, Segment, build_trailer

ADDRESS_SPACE_HALF = 1 << 63
"""From here on addresses belong to the kernel, and a process has no mappings."""
_NAMES_OF_ANONYMOUS = (b"[heap]", b"[stack]")
_NAMES_BEFORE_COLON = (b"[anon:", b"[stack:")
_PF_R = 4
_GUARDS_BYTES_MIN = 1 << 20
"""From this size on, the kernel is asked for the guard regions of a mapping that a file backs."""


class DoubtError(Exception):
    """A core made from memory might be wrong, so the kernel must write it. The text says why."""


class Backing(IntEnum):
    """What backs a segment."""

    ANONYMOUS = 0
    BACKED = 1
    GATE = 2
    SHMEM = 3


class Behind(NamedTuple):
    """Where to find a mapping's file, and which part of it the mapping shows."""

    name: str
    """In /proc/PID/map_files: `START-END`, hexadecimal."""
    address: int
    """Address of the mapping's first byte."""
    file_offset: int
    """Offset of the same byte in the file."""
    private: bool
    """Whether pages that the process wrote belong to the process and not to the file."""


class Extent(NamedTuple):
    """One segment of the core with memory in it."""

    offset: int
    """In the core."""
    address: int
    size: int
    backing: Backing
    readable: bool
    """Whether the process itself may read it: if not, a failing read proves nothing."""
    behind: Behind | None = None
    """The file, for SHMEM."""

    @property
    def end(self) -> int:
        """Return the first address after it."""
        return self.address + self.size


class Range(NamedTuple):
    """Addresses of which only a part is read: the kernel is asked which part."""

    start: int
    end: int
    backing: Backing = Backing.ANONYMOUS
    behind: Behind | None = None


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    shared: bool
    file_offset: int
    device: bytes
    """`major:minor`, hex."""
    inode: int
    name: bytes


def parse_maps(raw: bytes) -> list[Mapping]:
    """Parse the whole of /proc/PID/maps.

    Raises:
        DoubtError: it is cut, or has a line that is not a mapping.

    """
    found: list[Mapping] = []
    if not raw.endswith(b"\n"):
        raise DoubtError("/proc/PID/maps is missing or was cut")
    try:
        for line in raw[:-1].split(b"\n"):
            addresses, perms, file_offset, device, rest = line.split(b" ", 4)
            start, _, end = addresses.partition(b"-")
            inode, _, name = rest.partition(b" ")
            found.append(
                Mapping(
                    int(start, 16),
                    int(end, 16),
                    perms[3:4] == b"s",
                    int(file_offset, 16),
                    device,
                    int(inode),
                    name.lstrip(b" "),
                )
            )
    except ValueError as e:
        raise DoubtError("/proc/PID/maps has a line that is not a mapping") from e
    return found


def plan_extents(
    head: CoreHead,
    maps: bytes,
    huge_devices: Collection[bytes],
    shmem_devices: Collection[bytes] = (),
) -> list[Extent]:
    """Plan what backs each segment with memory, in the order of the core's file.

    `huge_devices` are the devices of hugetlbfs, `shmem_devices` those of tmpfs, as /proc/PID/maps
    names them.

    Raises:
        DoubtError: the head is damaged, has segments of an unknown kind, or does not agree with the
            mappings.

    """
    if head.problems:
        raise DoubtError(f"the head of the core is odd: {head.problems[0]}")
    mappings = {mapping.start: mapping for mapping in parse_maps(maps)}
    extents: list[Extent] = []
    position = 0
    for segment in head.segments:
        if not segment.filesz:
            continue
        if segment.offset < position:
            raise DoubtError("segments of the core overlap in the file")
        position = segment.offset + segment.filesz
        mapping = _mapping_of(segment, mappings)
        backing = (
            Backing.GATE if mapping is None else _backing(mapping, huge_devices, shmem_devices)
        )
        extents.append(
            Extent(
                segment.offset,
                segment.vaddr,
                segment.filesz,
                backing,
                bool(segment.flags & _PF_R),
                _behind(mapping) if mapping is not None and backing is Backing.SHMEM else None,
            )
        )
    if position + len(build_trailer(head)) != head.expected_size:
        raise DoubtError("the core has more than memory after its notes")
    return extents


def _mapping_of(segment: Segment, mappings: dict[int, Mapping]) -> Mapping | None:
    """Find the mapping of a segment; None for the vsyscall page."""
    if segment.vaddr >= ADDRESS_SPACE_HALF:
        return None
    mapping = mappings.get(segment.vaddr)
    if (
        mapping is None
        or mapping.end - mapping.start != segment.memsz
        or segment.filesz > segment.memsz
    ):
        raise DoubtError(f"no mapping at {segment.vaddr:#x} of {segment.memsz} bytes")
    return mapping


def _backing(
    mapping: Mapping, huge_devices: Collection[bytes], shmem_devices: Collection[bytes]
) -> Backing:
    if mapping.device in huge_devices:
        # a missing page may still be in the page cache, and asking for it brings one in
        raise DoubtError(f"huge pages of hugetlbfs at {mapping.start:#x}")
    if mapping.inode and mapping.device in shmem_devices:
        return Backing.SHMEM
    # a special mapping ([vdso] and the like) has no inode and is not anonymous either
    anonymous = not mapping.inode and (
        not mapping.name
        or mapping.name in _NAMES_OF_ANONYMOUS
        or mapping.name.startswith(_NAMES_BEFORE_COLON)
    )
    return Backing.ANONYMOUS if anonymous and not mapping.shared else Backing.BACKED


def _behind(mapping: Mapping) -> Behind:
    name = f"{mapping.start:x}-{mapping.end:x}"
    return Behind(name, mapping.start, mapping.file_offset, not mapping.shared)


def scan_ranges(extents: Iterable[Extent]) -> list[Range]:
    """List the address ranges about which the kernel is asked, ascending.

    Two anonymous extents with only unmapped or undumped memory between them become one range, so
    that 65,000 small mappings take a few system calls.
    """
    ranges: list[Range] = []
    joined = False
    for extent in sorted(extents, key=lambda e: e.address):
        if extent.backing is not Backing.ANONYMOUS:
            joined = False
            if _is_asked_for(extent):
                ranges.append(Range(extent.address, extent.end, extent.backing, extent.behind))
        elif joined:
            ranges[-1] = ranges[-1]._replace(end=extent.end)
        else:
            ranges.append(Range(extent.address, extent.end))
            joined = True
    return ranges


def _is_asked_for(extent: Extent) -> bool:
    """Return whether the kernel is asked which part of an extent exists.

    Every page of a small extent that a file backs is read. It may have guard regions, but a few
    failed reads cost less than a question for each of thousands of libraries.
    """
    if extent.backing is Backing.BACKED:
        return extent.size >= _GUARDS_BYTES_MIN
    return extent.backing is not Backing.GATE


Runs = Iterable[tuple[int, int]]
"""Ranges of addresses [start, end), ascending and not empty."""


def overlap(first: Runs, second: Runs) -> Iterator[tuple[int, int]]:
    """Yield what lies in both; consume no more of either than needed."""
    others = iter(second)
    other = next(others, None)
    for start, end in first:
        while other is not None and other[1] <= start:
            other = next(others, None)
        if other is None:
            return
        while other is not None and other[0] < end:
            yield max(start, other[0]), min(end, other[1])
            if other[1] > end:
                break
            other = next(others, None)


def union(first: Runs, second: Runs) -> Iterator[tuple[int, int]]:
    """Yield what lies in one or both; join runs that touch."""
    run: tuple[int, int] | None = None
    for start, end in heapq.merge(first, second):
        if run is None:
            run = start, end
        elif start <= run[1]:
            run = run[0], max(run[1], end)
        else:
            yield run
            run = start, end
    if run is not None:
        yield run


class Piece(NamedTuple):
    """A part of the core: zeros (`address` is None), or bytes to read at `address`."""

    offset: int
    size: int
    address: int | None
    extent: Extent | None


def pieces(
    extents: Sequence[Extent], resident: Runs, start: int, piece_max: int
) -> Iterator[Piece]:
    """Cut the core from `start` on into pieces, in the order of the file and without a gap.

    `resident` lists the resident parts of `scan_ranges`, ascending. It is consumed step by step if
    the extents ascend, too, and held as a whole otherwise. A piece with bytes has at most
    `piece_max` of them.
    """
    ascending = all(a.end <= b.address for a, b in pairwise(extents))
    runs = _Ascending(resident) if ascending else _Sorted(resident)
    position = start
    for extent in extents:
        if extent.offset > position:
            yield Piece(position, extent.offset - position, None, None)
        elif extent.offset < position:
            raise DoubtError("a segment of the core begins inside its head")
        position = extent.offset + extent.size
        known = (
            runs.inside(extent.address, extent.end)
            if _is_asked_for(extent)
            else ((extent.address, extent.end),)
        )
        yield from _pieces_of(extent, known, piece_max)


def _pieces_of(extent: Extent, known: Iterable[tuple[int, int]], piece_max: int) -> Iterator[Piece]:
    at, shift = extent.address, extent.offset - extent.address
    for start, end in known:
        if start > at:
            yield Piece(at + shift, start - at, None, extent)
        for part in range(start, end, piece_max):
            yield Piece(part + shift, min(piece_max, end - part), part, extent)
        at = end
    if at < extent.end:
        yield Piece(at + shift, extent.end - at, None, extent)


class Spared:
    """Pieces within a budget: all bytes within `kept`, and the first ones outside of it."""

    def __init__(
        self, whole: Iterable[Piece], kept: Sequence[tuple[int, int]], budget_bytes: int
    ) -> None:
        """`kept` are ranges of the core, ascending; `budget_bytes` is for all bytes outside."""
        self._whole = whole
        self._kept = kept
        self._left = budget_bytes
        self.cut = False
        """Whether anything was left out so far."""

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._whole:
            if piece.address is None:
                yield piece
                continue
            at, end, shift = piece.offset, piece.offset + piece.size, piece.address - piece.offset
            index = max(0, bisect_right(self._kept, (at,)) - 1)
            for low, high in self._kept[index:]:
                if low >= end:
                    break
                if high > at:
                    yield from self._afford(piece, at, max(at, low))
                    at, low = min(high, end), max(at, low)
                    yield piece._replace(offset=low, size=at - low, address=low + shift)
            yield from self._afford(piece, at, end)

    def _afford(self, piece: Piece, start: int, end: int) -> Iterator[Piece]:
        """Yield what the budget allows of a part outside of the kept ranges, then a hole."""
        afforded = min(end, start + self._left)
        address = (piece.address or 0) + start - piece.offset
        self._left -= afforded - start
        if afforded > start:
            yield piece._replace(offset=start, size=afforded - start, address=address)
        if end > afforded:
            self.cut = True
            yield piece._replace(offset=afforded, size=end - afforded, address=None)


class _Ascending:
    """Runs that are asked for in ascending order: holds one at a time."""

    def __init__(self, resident: Runs) -> None:
        self._source = iter(resident)
        self._run = next(self._source, None)

    def inside(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of runs that lie in [start, end)."""
        while self._run is not None and self._run[0] < end:
            run = self._run
            if run[1] > start:
                yield max(run[0], start), min(run[1], end)
            if run[1] >= end:
                return
            self._run = next(self._source, None)


class _Sorted:
    """Runs that are asked for in any order (kernel.core_sort_vma): holds them all."""

    def __init__(self, resident: Runs) -> None:
        self._runs = list(resident)

    def inside(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of runs that lie in [start, end)."""
        for index in range(max(0, bisect_right(self._runs, (start,)) - 1), len(self._runs)):
            low, high = self._runs[index]
            if low >= end:
                return
            if high > start:
                yield max(low, start), min(high, end)
