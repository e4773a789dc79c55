"""What the handler starts for a large core: its file is the handler's, with the same limits."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.corehandler import Share, SparseCore
from crashd.daemon.capture.pump import StopError
from crashd.daemon.capture.spoolmemory import SpoolSink, read_head
from crashd.domain.elf.memorymap import DoubtError
from tests.builders.elfcore import CoreSegment, build_core

PAGE = 4096
CORE = build_core(segments=[CoreSegment(0x400000, b"\1" * 3 * PAGE)])


class Room(Share):
    """A spool with so much room, of which nobody has anything."""

    def __init__(self, free: int) -> None:
        self.free = free

    def used_bytes(self) -> int:
        return 0

    def free_bytes(self, scant: bool = False) -> int:
        return self.free


@pytest.fixture
def out(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "core", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_read_head_is_no_more_than_the_head(out: int) -> None:
    os.write(out, CORE)
    raw, head = read_head(out)
    assert head.expected_size == len(CORE)
    assert CORE.startswith(raw) and len(raw) < len(CORE)


@pytest.mark.parametrize("data", [b"", CORE[:63], CORE[:100], b"no core at all" * 99])
def test_read_head_that_is_not_there_is_a_doubt(out: int, data: bytes) -> None:
    os.write(out, data)
    with pytest.raises(DoubtError):
        read_head(out)


def test_sink_keeps_what_is_not_zeros(out: int) -> None:
    core = SparseCore(out, 1 << 30, Room(1 << 40))
    sink = SpoolSink(core)
    sink.write(memoryview(b"\1" * PAGE + bytes(5 * PAGE)))
    sink.hole(10 << 30)
    sink.write(memoryview(b"\2" * PAGE))
    assert core.received == (10 << 30) + 7 * PAGE
    assert sink.resident_bytes == 2 * PAGE
    assert os.pread(out, PAGE, (10 << 30) + 6 * PAGE) == b"\2" * PAGE
    assert os.fstat(out).st_blocks * 512 <= 64 * 1024


def test_sink_stops_at_the_limit_and_says_so(out: int) -> None:
    core = SparseCore(out, 3 * PAGE, Room(1 << 40))
    with pytest.raises(StopError, match="size limit"):
        SpoolSink(core).write(memoryview(b"\1" * 8 * PAGE))
    assert (core.received, core.kept) == (3 * PAGE, 3 * PAGE)


def test_sink_stops_where_the_disk_is_nearly_full(out: int) -> None:
    core = SparseCore(out, 1 << 40, Room(1 << 19))
    with pytest.raises(StopError, match="nearly full"):
        SpoolSink(core).write(memoryview(b"\1" * (4 << 20)))
    assert core.received == 1 << 16
