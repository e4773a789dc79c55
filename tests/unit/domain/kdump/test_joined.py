"""Parts put together; that makedumpfile does the same: tests/integration/test_makedumpfile.py."""

import random
from collections.abc import Sequence

import pytest

from crashd.domain.kdump.diskdump import Read, parse_diskdump, size_at_least
from crashd.domain.kdump.joined import join, parse_part
from crashd.errors import FormatError
from tests.builders.kdumpdir import KdumpFormat

NOISE = random.Random(3)


def reader(raw: bytes) -> Read:
    return lambda at, size: raw[at : at + size]


def joined(parts: Sequence[bytes]) -> bytes:
    return b"".join(join([parse_part(reader(part)) for part in parts]))


def part(start: int, end: int) -> bytes:
    pages = [NOISE.randbytes(3000) for _ in range(10)]
    return KdumpFormat(split=(start, end), pages=pages).build()


def test_part_of_another_dump_or_a_cut_one_is_refused() -> None:
    one, two = part(0, 5), part(5, 4096)
    with pytest.raises(FormatError, match="different dumps"):
        other = KdumpFormat(split=(5, 4096), max_mapnr=2**20).build()
        joined([one, other])
    with pytest.raises(FormatError, match="is none, or is cut"):
        joined([one, KdumpFormat().build()])
    end = parse_part(reader(two)).data[1]
    for size in [*range(500, end, 997), end - 1]:
        with pytest.raises(FormatError):
            joined([one, two[:size]])


def test_parts_become_one_dump_in_the_order_of_their_pages() -> None:
    one, two = part(0, 5), part(5, 4096)
    whole = joined([two, one])
    dump = parse_diskdump(whole)
    assert dump.split is None
    size, what, told = size_at_least(reader(whole), dump)
    assert (size, what, told) == (len(whole), "pages", True)
    assert whole.endswith(two[slice(*parse_part(reader(two)).data)])
    assert joined([one, two]) == whole


def test_absurd_descriptors_are_refused() -> None:
    raw = bytearray(part(0, 4096))
    at = parse_diskdump(bytes(raw)).descriptors_at
    raw[at : at + 8] = b"\xff" * 8
    with pytest.raises(FormatError, match="absurd"):
        joined([bytes(raw)])
