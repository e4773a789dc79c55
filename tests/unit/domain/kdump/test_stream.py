import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.kdump.diskdump import parse_diskdump, size_at_least
from crashd.domain.kdump.stream import HEAD_SIZE, DumpMeter, Unpacked
from tests.builders.kdumpdir import KdumpFormat, build_elf_vmcore, flatten

PLAIN = KdumpFormat().build()
FLAT = flatten(PLAIN)
LARGE = KdumpFormat(
    max_mapnr=2**23, pages=[random.Random(1).randbytes(4000) for _ in range(40)]
).build()
"""Its bitmaps, of 1 MiB each, lie behind what a head has."""


def measure(raw: bytes, cuts: list[int], *, cut: bool = False) -> Unpacked:
    """Feed a dump in pieces."""
    meter = DumpMeter()
    for start, end in pairwise([0, *sorted(cuts), len(raw)]):
        meter.feed(raw[start:end])
    return meter.finish(cut=cut)


@pytest.mark.parametrize("raw", [PLAIN, LARGE, KdumpFormat(split=(1, 4096)).build()])
@settings(max_examples=25)
@given(data=st.data())
def test_end_of_a_dump_is_what_reading_it_at_any_place_tells(
    raw: bytes, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20))
    end = data.draw(st.integers(464, len(raw)))
    found = measure(raw[:end], [cut for cut in cuts if cut <= end])
    assert (found.size_bytes, found.flattened) == (end, False)
    assert found.head == raw[:end][:HEAD_SIZE]
    dump = parse_diskdump(raw[:HEAD_SIZE])
    whole = size_at_least(lambda at, size: raw[at : at + size], dump)
    if end == len(raw):
        assert found.least == whole
    assert found.least is not None
    assert end >= found.least[0] or end < len(raw)
    if found.least[2]:
        assert found.least[0] == whole[0]


@given(
    cuts=st.lists(st.integers(0, len(FLAT)), max_size=20), chunk=st.sampled_from([17, 1000, 9999])
)
def test_flattened_dump_ends_with_its_marker_alone(cuts: list[int], chunk: int) -> None:
    raw = flatten(PLAIN, chunk)
    cuts = [min(cut, len(raw)) for cut in cuts]
    found = measure(raw, cuts)
    assert (found.flattened, found.flat_ended) == (True, True)
    assert found.head == PLAIN
    assert not measure(raw[:-1], [c for c in cuts if c < len(raw)]).flat_ended
    assert not measure(raw + b"\0", cuts).flat_ended
    assert not measure(raw + raw, cuts).flat_ended


def test_memory_full_of_ones_is_no_end_marker() -> None:
    raw = flatten(PLAIN + b"\xff" * 500, end=False)
    assert not measure(raw, []).flat_ended


def test_absurd_record_ends_the_walk() -> None:
    head = flatten(PLAIN)[:4096]
    for record in (b"\x80" + bytes(15), bytes(16), bytes(8) + b"\xff" * 8):
        assert not measure(head + record + b"\xff" * 16, []).flat_ended


def test_large_offset_of_a_record_costs_no_memory() -> None:
    head = flatten(PLAIN)[:4096]
    found = measure(head + (2**62).to_bytes(8, "big") + (4).to_bytes(8, "big") + b"page", [])
    assert found.head == b""


@pytest.mark.parametrize("raw", [b"", b"text", b"KDUMP   ", build_elf_vmcore()])
def test_what_is_no_kdump_compressed_dump_has_a_size_and_a_head(raw: bytes) -> None:
    found = measure(raw, [3] if len(raw) > 3 else [])
    assert (found.size_bytes, found.head, found.least) == (len(raw), raw, None)
