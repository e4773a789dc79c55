from pathlib import Path

import pytest
import zstandard

from crashd.base.files import read_at
from crashd.daemon.kernel.look import (
    LOG_MAX,
    find_missing_part,
    judge_parts,
    look_into,
    order_parts,
)
from crashd.domain.kdump.vmcore import Completeness, DumpVerdict, judge, parse_vmcore
from crashd.store.kerneldumps import DumpRoot
from tests.builders.kdumpdir import KdumpFormat
from tests.builders.kdumps import kernel_log


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


def judged(split: tuple[int, int] | None, cut: int = 0) -> DumpVerdict:
    raw = KdumpFormat(split=split).build()
    raw = raw[: len(raw) - cut]
    return judge(raw, len(raw), raw[-4096:], unzstd)


def test_parts_are_named_in_the_order_of_their_page_frames() -> None:
    files = {b"vmcore1": judged((1000, 4096)), b"vmcore2": judged((0, 1000)), b"x": judged(None)}
    assert order_parts(files) == (b"vmcore2", b"vmcore1")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([judged((0, 1000)), judged((1000, 4096))], Completeness.COMPLETE),
        ([judged((0, 1000), cut=1), judged((1000, 4096))], Completeness.INCOMPLETE),
        ([judged((0, 1000)), judged((1000, 4096), cut=700)], Completeness.INCOMPLETE),
        ([judged((0, 1000))], Completeness.INCOMPLETE),
        # makedumpfile --reassemble wrote into the same directory, and has not finished
        ([judged(None, cut=1), judged((0, 1000)), judged((1000, 4096))], Completeness.COMPLETE),
        # a part that ends before its header does says of no split
        ([judged((0, 4096)), DumpVerdict(Completeness.BOGUS, "empty")], Completeness.BOGUS),
    ],
)
def test_dump_in_parts_is_whole_when_all_parts_are(
    files: list[DumpVerdict], expected: Completeness
) -> None:
    named = {b"vmcore%d" % number: file for number, file in enumerate(files)}
    newest = next(file for file in files if file.head is not None and file.head.split)
    assert judge_parts(newest, named).completeness is expected


def test_of_a_huge_log_only_the_ends_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 MB that were read as a whole would hold up the dumps' thread, and fill its memory."""
    directory = tmp_path / "202601010101"
    directory.mkdir()
    log = directory / "dmesg.202601010101"
    with log.open("wb") as file:
        file.seek(200_000_000)
        file.write(b"\n" + kernel_log())
    log.chmod(0o600)
    amounts: list[int] = []

    def count(fd: int, size: int, offset: int) -> bytes:
        amounts.append(size)
        return read_at(fd, size, offset)

    monkeypatch.setattr("crashd.store.kerneldumps.read_at", count)
    with DumpRoot(tmp_path) as root:
        (seen,) = root.list()
        told = root.classify(seen)
        assert told is not None
        look = look_into(root, seen, told, growing=False)
    assert look.analysis is not None
    assert look.analysis.title.startswith("general protection fault in ")
    assert 0 < sum(amounts) <= 2 * LOG_MAX
