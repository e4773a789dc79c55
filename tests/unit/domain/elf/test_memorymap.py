"""The memory engine's plan: what is read and what is zeros, without a gap and without a doubt."""

from itertools import accumulate, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.elf.elfcore import CoreHead, Segment, build_trailer
from crashd.domain.elf.memorymap import (
    ADDRESS_SPACE_HALF,
    Backing,
    Behind,
    DoubtError,
    Extent,
    Piece,
    Range,
    Spared,
    overlap,
    parse_maps,
    pieces,
    plan_extents,
    scan_ranges,
    union,
)

PAGE = 4096
RW, R, NONE = 6, 4, 0
MAPS = b"""\
400000-401000 r-xp 00000000 08:01 123 /usr/bin/a b
401000-403000 rw-p 00000000 00:00 0 [heap]
500000-502000 rw-s 00000000 00:01 9 /dev/zero (deleted)
600000-602000 ---p 00000000 00:00 0 [anon:stacks]
7f0000000000-7f0000002000 r-xp 00000000 00:00 0 [vdso]
"""
SEGMENTS = (
    Segment(0x1000, 0x400000, 0x1000, 0x1000, R),
    Segment(0x2000, 0x401000, 0x2000, 0x2000, RW),
    Segment(0x4000, 0x500000, 0x2000, 0x2000, RW),
    Segment(0x6000, 0x600000, 0x2000, 0x2000, NONE),
    Segment(0x8000, 0x7F0000000000, 0x2000, 0x2000, R),
    Segment(0xA000, 0xFFFFFFFFFF600000, 0x1000, 0x1000, 1),
)


def head_of(segments: tuple[Segment, ...], expected: int | None = None) -> CoreHead:
    end = max((s.offset + s.filesz for s in segments), default=0)
    return CoreHead(62, 64, "little", segments, end if expected is None else expected)


def test_plan_extents_tells_what_is_behind_each_segment() -> None:
    found = plan_extents(head_of(SEGMENTS), MAPS, ())
    assert [e.backing for e in found] == [
        Backing.BACKED,
        Backing.ANONYMOUS,
        Backing.BACKED,
        Backing.ANONYMOUS,
        Backing.BACKED,
        Backing.GATE,
    ]
    assert [e.readable for e in found] == [True, True, True, False, True, False]
    assert [(e.offset, e.address, e.size) for e in found] == [
        (s.offset, s.vaddr, s.filesz) for s in SEGMENTS
    ]


@pytest.mark.parametrize(
    ("segments", "maps", "words"),
    [
        (SEGMENTS, b"", "missing or was cut"),
        (SEGMENTS, MAPS[:-1], "missing or was cut"),
        (SEGMENTS, MAPS + b"nonsense\n", "not a mapping"),
        (SEGMENTS, MAPS.replace(b"401000-403000", b"401000-404000"), "no mapping at 0x401000"),
        (SEGMENTS, MAPS.replace(b"600000-", b"5ff000-"), "no mapping at 0x600000"),
        ((SEGMENTS[1], SEGMENTS[0]), MAPS, "overlap"),
    ],
)
def test_plan_extents_what_does_not_agree_is_a_doubt(
    segments: tuple[Segment, ...], maps: bytes, words: str
) -> None:
    with pytest.raises(DoubtError, match=words):
        plan_extents(head_of(segments), maps, ())


def test_plan_extents_more_than_memory_behind_the_notes_is_a_doubt() -> None:
    with pytest.raises(DoubtError, match="more than memory"):
        plan_extents(head_of(SEGMENTS, expected=0xC000), MAPS, ())


def test_plan_extents_hugetlbfs_is_a_doubt() -> None:
    with pytest.raises(DoubtError, match="hugetlbfs at 0x500000"):
        plan_extents(head_of(SEGMENTS), MAPS, {b"00:01"})


def test_parse_maps_keeps_spaces_and_newlines_escaped_in_names() -> None:
    assert parse_maps(MAPS)[0].name == b"/usr/bin/a b"
    assert parse_maps(MAPS)[2].shared


def test_build_trailer_holds_the_count_that_the_header_cannot() -> None:
    head = CoreHead(62, 64, "little", (), 0, phdr_count=70_000)
    trailer = build_trailer(head)
    assert len(trailer) == 64
    assert int.from_bytes(trailer[44:48], "little") == 70_000
    assert build_trailer(head_of(SEGMENTS)) == b""


def test_scan_ranges_joins_what_only_unused_memory_lies_between() -> None:
    found = plan_extents(head_of(SEGMENTS), MAPS, ())
    assert scan_ranges(found) == [Range(0x401000, 0x403000), Range(0x600000, 0x602000)]
    assert scan_ranges([e for e in found if e.backing is Backing.ANONYMOUS]) == [
        Range(0x401000, 0x602000)
    ]


def test_plan_extents_memory_of_tmpfs_is_asked_for_by_its_file() -> None:
    maps = MAPS.replace(b"rw-s 00000000 00:01 9", b"rw-s 00003000 00:01 9")
    found = plan_extents(head_of(SEGMENTS), maps, (), {b"00:01"})
    assert [e.backing for e in found].count(Backing.SHMEM) == 1
    behind = Behind("500000-502000", 0x500000, 0x3000, private=False)
    assert found[2].behind == behind
    assert scan_ranges(found)[1] == Range(0x500000, 0x502000, Backing.SHMEM, behind)
    private = plan_extents(head_of(SEGMENTS), maps.replace(b"rw-s", b"rw-p"), (), {b"00:01"})
    assert private[2].behind == behind._replace(private=True)


def test_plan_extents_special_mapping_is_on_no_file_system() -> None:
    found = plan_extents(head_of(SEGMENTS), MAPS, (), {b"00:00"})
    assert Backing.SHMEM not in [e.backing for e in found]


def test_scan_ranges_asks_only_for_large_mappings_of_files() -> None:
    small = Extent(0, 0x10000, PAGE, Backing.BACKED, True)
    large = Extent(PAGE, 0x20000, 1 << 20, Backing.BACKED, True)
    gate = Extent(0, ADDRESS_SPACE_HALF, 1 << 20, Backing.GATE, True)
    assert scan_ranges([small, large, gate]) == [Range(0x20000, 0x120000, Backing.BACKED)]


_RUNS = st.sets(st.integers(0, 40)).map(
    lambda starts: [(start * 3, start * 3 + 1 + start % 3) for start in sorted(starts)]
)


@given(_RUNS, _RUNS)
def test_overlap_and_union_are_those_of_sets(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    shifted = [(start + 1, end + 1) for start, end in second]
    mine, theirs = _numbers(first), _numbers(shifted)
    for made, wanted in (
        (list(overlap(first, shifted)), mine & theirs),
        (list(union(first, shifted)), mine | theirs),
    ):
        assert _numbers(made) == wanted
        assert all(a[1] <= b[0] for a, b in pairwise(made)), "ascending"
        assert all(start < end for start, end in made)


def _numbers(runs: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in runs for number in range(start, end)}


def _extents(sizes: list[tuple[int, int, bool]]) -> list[Extent]:
    found, address, offset = [], 0x10000, 3 * PAGE
    for gap, pages, anonymous in sizes:
        address += gap * PAGE
        backing = Backing.ANONYMOUS if anonymous else Backing.BACKED
        found.append(Extent(offset, address, pages * PAGE, backing, True))
        address += pages * PAGE
        offset += pages * PAGE
    return found


_SIZES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans()), min_size=1, max_size=8
)


@given(
    _SIZES,
    st.sets(st.integers(0, 120)),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_pieces_cover_the_core_and_read_no_more_than_is_there(
    sizes: list[tuple[int, int, bool]],
    present: set[int],
    piece_pages: int,
    random: Random,
    shuffled: bool,
) -> None:
    extents = _extents(sizes)
    if shuffled:  # kernel.core_sort_vma
        order = list(extents)
        random.shuffle(order)
        offset, extents = 3 * PAGE, []
        for extent in order:
            extents.append(extent._replace(offset=offset))
            offset += extent.size
    runs = [(0x10000 + p * PAGE, 0x10000 + (p + 1) * PAGE) for p in sorted(present)]
    position = 100
    read: set[int] = set()
    for piece in pieces(extents, runs, position, piece_pages * PAGE):
        assert piece.offset == position
        assert piece.size > 0
        position += piece.size
        if piece.address is not None:
            assert piece.size <= piece_pages * PAGE
            assert piece.extent is not None
            assert piece.address - piece.extent.address == piece.offset - piece.extent.offset
            read.update(range(piece.address, piece.address + piece.size, PAGE))
    assert position == extents[-1].offset + extents[-1].size
    resident = {start for start, _ in runs}
    for extent in extents:
        of_extent = set(range(extent.address, extent.end, PAGE))
        wanted = of_extent & resident if extent.backing is Backing.ANONYMOUS else of_extent
        assert read & of_extent == wanted


def test_pieces_that_begin_inside_the_head_are_a_doubt() -> None:
    with pytest.raises(DoubtError):
        list(pieces(_extents([(0, 1, True)]), [], 4 * PAGE, PAGE))


# -- a core that is cut ----------------------------------------------------------------------------

_EXTENT = Extent(0, 0x10000, 1 << 20, Backing.ANONYMOUS, True)


def spare(
    data: list[tuple[int, int]], kept: list[tuple[int, int]], budget: int
) -> tuple[list[tuple[int, int, bool]], bool]:
    """Give (offset, end, has data) of each piece, neighbours of a kind joined, and whether any
    was left out.
    """
    spared = Spared(
        [Piece(low, high - low, 0x10000 + low, _EXTENT) for low, high in data], kept, budget
    )
    found: list[tuple[int, int, bool]] = []
    for piece in spared:
        assert piece.size > 0
        assert piece.address in (None, 0x10000 + piece.offset)
        there = piece.address is not None
        if found and found[-1][1:] == (piece.offset, there):
            found[-1] = (found[-1][0], piece.offset + piece.size, there)
        else:
            found.append((piece.offset, piece.offset + piece.size, there))
    return found, spared.cut


def test_spared_within_its_budget_is_whole() -> None:
    assert spare([(0, 50), (50, 100)], [(80, 90)], 90) == ([(0, 100, True)], False)


def test_spared_beyond_its_budget_keeps_the_ranges_and_what_comes_first() -> None:
    found, cut = spare([(0, 50), (50, 100)], [(20, 30), (80, 90)], 25)
    assert found == [(0, 35, True), (35, 80, False), (80, 90, True), (90, 100, False)]
    assert cut


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.lists(st.integers(1, 25), max_size=12),
    st.integers(0, 300),
)
def test_spared_gives_every_byte_once_and_no_more_data_than_allowed(
    sizes: list[int], steps: list[int], budget: int
) -> None:
    ends = list(accumulate(sizes))
    marks = list(accumulate(steps))
    kept = list(zip(marks[::2], marks[1::2], strict=False))
    data = list(zip([0, *ends[:-1]], ends, strict=True))
    found, cut = spare(data, kept, budget)
    assert [f[0] for f in found] == [0, *(f[1] for f in found[:-1])]
    assert found[-1][1] == ends[-1]
    there = {at for low, high, has in found if has for at in range(low, high)}
    inside = {at for low, high in kept for at in range(low, min(high, ends[-1]))}
    assert inside <= there
    assert len(there - inside) == min(budget, ends[-1] - len(inside))
    assert cut == (len(there) < ends[-1])
