"""The memory engine on a process that answers badly: late, never, in part, or not any more."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import pytest

from crashd.daemon.capture import engines, store_core
from crashd.daemon.capture.pump import Pump, StopError
from crashd.daemon.capture.source import CoreSource
from crashd.daemon.capture.timedread import Reader, StuckError
from crashd.domain.crash.model import Disposition
from crashd.domain.crash.record import Allowance
from crashd.domain.elf.elfcore import parse_head
from crashd.domain.elf.memorymap import Backing, DoubtError, Extent, Piece, Range
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.memory import PAGE_BYTES, GoneError, ProcessMemory, is_zeros
from tests.builders.elfcore import (
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_notes,
)
from tests.integration.test_capture import OPTIONS
from tests.integration.test_pump import Recorder

NO_LIMIT = 1 << 62
BASE = 0x10000


class Memory(ProcessMemory):
    """A process of 64 pages, each filled with its number; some of them odd."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.forced: set[int] = set()
        self.stuck: set[int] = set()
        self.answer = threading.Event()
        self.alive_for = NO_LIMIT
        self.zeros: set[int] = set()

    def resident(self, ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
        for wanted in ranges:
            yield wanted.start, wanted.end

    def held(self) -> bool:
        self.alive_for -= 1
        return self.alive_for >= 0

    def read(self, ranges: Sequence[tuple[int, int]], view: memoryview) -> int:
        done = 0
        for address, size in ranges:
            at = address
            while at < address + size:
                page = (at - BASE) // PAGE_BYTES
                if page in self.stuck:
                    self.answer.wait(20)
                if page in self.bad or page in self.forced:
                    return done
                part = min(PAGE_BYTES - at % PAGE_BYTES, address + size - at)
                view[done : done + part] = bytes([0 if page in self.zeros else page + 1]) * part
                done += part
                at += part
        return done

    def force(self, address: int, view: memoryview) -> int:
        page = (address - BASE) // PAGE_BYTES
        if page not in self.forced:
            return 0
        view[:PAGE_BYTES] = bytes([page + 1]) * PAGE_BYTES
        return PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[Memory]:
    found = Memory()
    yield found
    found.answer.set()


def plan(*ranges: tuple[int, int], readable: bool = True) -> list[Piece]:
    """Cut pages [first, last) into pieces, zeros between them."""
    extent = Extent(0, BASE, 64 * PAGE_BYTES, Backing.BACKED, readable)
    found: list[Piece] = []
    at = 0
    for first, last in ranges:
        if first > at:
            found.append(Piece(at * PAGE_BYTES, (first - at) * PAGE_BYTES, None, extent))
        address = BASE + first * PAGE_BYTES
        size = (last - first) * PAGE_BYTES
        found.append(Piece(first * PAGE_BYTES, size, address, extent))
        at = last
    return found


def copy(memory: Memory, pieces: list[Piece], timeout_ns: int = 10**10) -> tuple[bytes, str | None]:
    sink, reader = Recorder(), Reader()
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    deadline_ns = time.monotonic_ns() + 10**10
    blanks = engines.copy(memory, b"", pieces, pump, deadline_ns, timeout_ns, reader)
    pump.finish()
    return bytes(sink.data), blanks.reason()


def pages(data: bytes) -> list[int]:
    assert all(len({*data[at : at + PAGE_BYTES]}) == 1 for at in range(0, len(data), PAGE_BYTES))
    return list(data[::PAGE_BYTES])


def test_copy_reads_pieces_and_leaves_holes(memory: Memory) -> None:
    data, reason = copy(memory, plan((0, 3), (5, 6)))
    assert pages(data) == [1, 2, 3, 0, 0, 6]
    assert reason is None


@pytest.mark.parametrize("left", [1, PAGE_BYTES - 1, PAGE_BYTES])
@pytest.mark.parametrize(
    ("count", "stuck"), [*((n, set()) for n in range(13)), *((n, {5}) for n in (5, 7, 9, 12))]
)
def test_copy_is_cut_at_its_limit_wherever_holes_are(
    memory: Memory, count: int, left: int, stuck: set[int]
) -> None:
    """Once holes counted only where they were put in: with nothing left to read into, the worker
    spun until capture.deadline. Now they are not counted at all.
    """
    memory.stuck = stuck
    timeout_ns = 10**9 if stuck else 10**10
    sink, limit = Recorder(), count * PAGE_BYTES + left
    pump = Pump(sink, 1 << 20, limit, "RLIMIT_CORE")
    deadline_ns = time.monotonic_ns() + 2 * 10**10
    pieces = plan((0, 2), (5, 6), (8, 10), (12, 14))
    whole = [1, 2, 0, 0, 0, 0 if stuck else 6, 0, 0, 9, 10, 0, 0, 13, 14]
    cut = limit < sum(map(bool, whole)) * PAGE_BYTES
    with pytest.raises(StopError, match="RLIMIT_CORE") if cut else contextlib.nullcontext():
        engines.copy(memory, b"", pieces, pump, deadline_ns, timeout_ns, Reader())
    pump.finish()
    expected = b"".join(bytes([n]) * PAGE_BYTES for n in whole)
    assert expected.startswith(sink.data)
    assert sink.resident_bytes == limit if cut else sink.data == expected


def test_copy_zeros_take_no_place_in_the_buffer(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three GiB of zeros once filled buffer and spill, which took five times as long as reading."""
    monkeypatch.setattr(engines, "ZEROS_BYTES", 4 * PAGE_BYTES)
    monkeypatch.setattr(engines, "BATCH_BYTES", 4 * PAGE_BYTES)
    memory.zeros = {*range(4, 12), 14}
    sink = Recorder()
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    pieces = [piece for first in range(0, 16, 4) for piece in plan((first, first + 4))[-1:]]
    engines.copy(memory, b"", pieces, pump, time.monotonic_ns() + 10**10, 10**10, Reader())
    assert (pump.size_bytes, pump.data_bytes) == (16 * PAGE_BYTES, 8 * PAGE_BYTES)
    pump.finish()
    assert pages(bytes(sink.data)) == [1, 2, 3, 4, *[0] * 8, 13, 14, 0, 16]


def test_drain_zeros_take_no_place_in_the_buffer() -> None:
    read_fd, write_fd = os.pipe()
    stream = b"x" * 100 + bytes(4 << 20) + b"y" * 100

    def write() -> None:
        with open(write_fd, "wb") as file:
            file.write(stream)

    writer = threading.Thread(target=write)
    writer.start()
    sink, incoming = Recorder(), IncomingCore.from_pipe(read_fd, None)
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    try:
        engines.drain(incoming, b"", pump, time.monotonic_ns() + 10**10)
    finally:
        incoming.release()
        writer.join()
    assert pump.data_bytes <= len(stream) - (2 << 20)
    pump.finish()
    assert sink.data == stream


@pytest.mark.parametrize("size", [1, 2, 3, 4096, 1 << 20])
def test_zeros_are_told_from_what_has_one_byte_that_is_not(size: int) -> None:
    data = bytearray(size)
    assert is_zeros(memoryview(data))
    assert is_zeros(memoryview(data)[:0])
    for at in {0, size // 3, size // 2, size - 1}:
        data[at] = 1
        assert not is_zeros(memoryview(data))
        data[at] = 0


def test_copy_page_that_only_the_kernel_may_read_is_forced(memory: Memory) -> None:
    memory.forced = {1, 2}
    assert pages(copy(memory, plan((0, 4)))[0]) == [1, 2, 3, 4]


def test_copy_page_that_nobody_can_read_is_zeros(memory: Memory) -> None:
    memory.bad = {0, 2}
    data, reason = copy(memory, plan((0, 4)))
    assert pages(data) == [0, 2, 0, 4]
    assert reason is None, "the kernel writes zeros there, too"


def test_copy_page_that_proves_nothing_is_a_doubt(memory: Memory) -> None:
    memory.bad = {2}
    with pytest.raises(DoubtError, match="cannot be read"):
        copy(memory, plan((0, 4), readable=False))


def test_copy_process_that_is_gone_is_told(memory: Memory) -> None:
    memory.alive_for = 0
    with pytest.raises(GoneError):
        copy(memory, plan((0, 4)))


STACK_PAGE = 32
ALL = Allowance(NO_LIMIT, Disposition.FULL, None)


def core_of(memory: Memory) -> tuple[bytes, str | None]:
    """Copy a core of two mappings, the second of which is the stack."""
    core = build_core(
        notes=build_notes(CoreFormat(), threads=[CoreThread(100, sp=BASE + 40 * PAGE_BYTES)]),
        segments=[
            CoreSegment(BASE, bytes(4 * PAGE_BYTES)),
            CoreSegment(BASE + STACK_PAGE * PAGE_BYTES, bytes(16 * PAGE_BYTES)),
        ],
    )
    head, (read_fd, write_fd) = parse_head(core), os.pipe()
    os.close(write_fd)
    incoming = IncomingCore.from_pipe(read_fd, None)
    source = CoreSource(incoming, core[: head.segments[0].offset], head, OPTIONS, Reader())
    source.memory, source.estimate_bytes = memory, store_core.LONG_BYTES
    source.extents = [
        Extent(s.offset, s.vaddr, s.filesz, Backing.ANONYMOUS, True) for s in head.segments
    ]
    sink = Recorder()
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    deadline_ns = time.monotonic_ns() + 10**10
    with contextlib.ExitStack() as stack:
        stack.callback(incoming.release)
        reason = store_core.copy_memory(source, memory, head, pump, ALL, deadline_ns)
    pump.finish()
    assert len(sink.data) == head.expected_size
    return bytes(sink.data[head.segments[-1].offset :]), reason


def test_copy_process_that_is_killed_once_its_stacks_are_read_has_them(memory: Memory) -> None:
    memory.alive_for = 1
    stack, reason = core_of(memory)
    assert reason == "the process was killed while its core was taken"
    assert pages(stack)[-9:] == list(range(40, 49))


def test_copy_stacks_that_were_read_too_late_are_not_taken(memory: Memory) -> None:
    """Exiting threads write to their stacks."""
    memory.alive_for = 0
    with pytest.raises(DoubtError, match="killed before its memory was read"):
        core_of(memory)


def test_copy_page_that_never_comes_is_zeros_and_the_rest_is_kept(memory: Memory) -> None:
    memory.stuck = {5}
    data, reason = copy(memory, plan((0, 2), (5, 6), (8, 10)), timeout_ns=10**9)
    assert pages(data) == [1, 2, 0, 0, 0, 0, 0, 0, 9, 10]
    assert reason is not None
    assert f"{PAGE_BYTES} bytes from {BASE + 5 * PAGE_BYTES:#x}" in reason


def mapping(number: int, backing: Backing = Backing.BACKED, count: int = 8) -> list[Piece]:
    """Make the pages of one mapping of several, each page a piece."""
    size, offset = count * PAGE_BYTES, number * count * PAGE_BYTES
    extent = Extent(offset, BASE + offset, size, backing, True)
    return [
        Piece(offset + at, PAGE_BYTES, extent.address + at, extent)
        for at in range(0, size, PAGE_BYTES)
    ]


def test_copy_mapping_that_does_not_answer_is_given_up_alone(memory: Memory) -> None:
    memory.stuck = set(range(8, 16))
    data, reason = copy(memory, [*mapping(0), *mapping(1), *mapping(2)], timeout_ns=3 * 10**7)
    assert pages(data) == [*range(1, 9), *[0] * 8, *range(17, 25)]
    assert reason is not None and reason.startswith(f"{8 * PAGE_BYTES} bytes from")


def test_copy_of_one_piece_a_batch_gives_the_mapping_up_too(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BATCH_BYTES", PAGE_BYTES)
    memory.stuck = set(range(8, 16))
    start = time.monotonic()
    data, _ = copy(memory, [*mapping(0), *mapping(1), *mapping(2)], timeout_ns=10**8)
    assert pages(data) == [*range(1, 9), *[0] * 8, *range(17, 25)]
    assert time.monotonic() - start < 1.5, "waited for each page"


def test_copy_too_many_that_do_not_answer_cost_no_anonymous_memory(memory: Memory) -> None:
    memory.stuck = {page for page in range(64) if page // 8 % 2 == 0}
    kinds = (Backing.BACKED, Backing.ANONYMOUS)
    plan = [piece for number in range(8) for piece in mapping(number, kinds[number % 2])]
    data, reason = copy(memory, plan, timeout_ns=3 * 10**7)
    expected = [0 if page in memory.stuck else page + 1 for page in range(64)]
    assert pages(data) == expected
    assert reason is not None and reason.startswith(f"{32 * PAGE_BYTES} bytes from")


def test_copy_deadline_ends_it(memory: Memory) -> None:
    memory.stuck = {0}
    pump = Pump(Recorder(), 1 << 20, NO_LIMIT, None)
    deadline_ns = time.monotonic_ns() + 10**8
    with pytest.raises(DeadlineError):
        engines.copy(memory, b"", plan((0, 1)), pump, deadline_ns, 10**10, Reader())


@pytest.mark.parametrize("odd", [set(), {0}, {15}, {16}, {31}, {7, 8, 20}])
def test_copy_by_two_threads_is_what_one_would_read(
    memory: Memory, odd: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both halves the fast way may end at a page, which is then forced or becomes zeros."""
    monkeypatch.setattr(engines, "HALVE_BYTES", 4 * PAGE_BYTES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    readers: set[int] = set()
    plain_read = memory.read

    def read(ranges: Sequence[tuple[int, int]], view: memoryview) -> int:
        readers.add(threading.get_ident())
        return plain_read(ranges, view)

    monkeypatch.setattr(memory, "read", read)
    memory.bad, memory.forced = {page for page in odd if page % 2}, odd - {7, 15, 31}
    pieces = [
        piece._replace(extent=piece.extent._replace(backing=Backing.ANONYMOUS))
        for piece in plan((0, 3), (5, 24), (30, 33))
        if piece.extent is not None
    ]
    data, reason = copy(memory, pieces)
    there = {*range(3), *range(5, 24), *range(30, 33)} - memory.bad
    assert pages(data) == [page + 1 if page in there else 0 for page in range(33)]
    assert reason is None
    assert len(readers) == 2


def test_reader_runs_tasks_beside_each_other() -> None:
    reader, both = Reader(), threading.Barrier(2, timeout=10)
    for _ in range(2):
        reader.do(both.wait, 10, both.wait)  # neither ends without the other

    def fail() -> None:
        raise ZeroDivisionError

    done: list[int] = []
    with pytest.raises(ZeroDivisionError):
        reader.do(lambda: done.append(1), 10, fail)
    assert done == [1]
    never = threading.Event()
    with pytest.raises(StuckError):
        reader.do(lambda: done.append(2), 0.05, lambda: never.wait(20))
    assert reader.stuck == 1
    reader.do(both.wait, 10, both.wait)
    never.set()


def test_reader_without_a_second_thread_does_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, done, start = Reader(), list[str](), threading.Thread.start
    reader.do(lambda: done.append("before"), 10)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    reader.do(lambda: done.append("first"), 10, lambda: done.append("second"))
    assert done == ["before", "first", "second"]
    monkeypatch.setattr(threading.Thread, "start", start)


def test_reader_goes_on_after_a_task_that_does_not() -> None:
    reader, never, done = Reader(), threading.Event(), list[int]()

    def hang() -> None:
        never.wait(20)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(StuckError):
        reader.do(hang, 0.05)
    reader.do(lambda: done.append(1), 10)
    assert done == [1]
    assert reader.stuck == 1
    with pytest.raises(ZeroDivisionError):
        reader.do(fail, 10)
    never.set()
