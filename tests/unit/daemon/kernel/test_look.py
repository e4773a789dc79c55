import pytest
import zstandard

from crashd.daemon.kernel.look import find_missing_part
from crashd.domain.kdump.vmcore import parse_vmcore
from tests.builders.kdumpdir import KdumpFormat


def unzstd(head: bytes, limit: int) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(head)[:limit]


@pytest.mark.parametrize(
    ("ranges", "missing"),
    [
        ([(0, 1000), (1000, 4096)], None),
        ([(1000, 4096), (0, 1000)], None),
        ([(0, 4096), (4096, 4096)], None),  # makedumpfile's second part of a small dump
        ([(0, 1000), (2000, 4096)], 1000),
        ([(0, 1000), (1000, 3000)], 3000),
        ([(1000, 4096)], 0),
        ([(0, 1000)], 1000),
    ],
)
def test_part_of_a_split_dump_that_is_missing_is_noticed(
    ranges: list[tuple[int, int]], missing: int | None
) -> None:
    heads = [parse_vmcore(KdumpFormat(split=split).build(), unzstd) for split in ranges]
    said = find_missing_part(heads)
    if missing is None:
        assert said == ""
    else:
        assert said == f"a part is missing: no file has the page frame {missing} of 4096"
