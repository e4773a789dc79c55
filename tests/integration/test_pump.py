"""The buffer between reading and storing: what comes out is what went in, whatever the sizes."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.daemon.capture.pace import STORER_NICE, Pace, PaceGate, lower_storer
from crashd.daemon.capture.pump import BASE_BYTES, HOLE_COST_SHIFT, RECOUNT_BYTES, Pump, StopError
from crashd.daemon.capture.spill import SCRATCH_BYTES, Spill
from crashd.daemon.capture.timedread import Reader
from crashd.edge.capture.memory import PAGE_BYTES

NO_LIMIT = 1 << 62


class Recorder:
    """A sink that keeps what it gets, and can fail or wait."""

    def __init__(self, fail_after: int = NO_LIMIT) -> None:
        self.data = bytearray()
        self.fail_after = fail_after
        self.go_on = threading.Event()
        self.go_on.set()

    def write(self, data: memoryview) -> None:
        self.go_on.wait(20)
        if len(self.data) + len(data) > self.fail_after:
            raise StopError("no room on the disk")
        self.data += data

    def hole(self, size: int) -> None:
        self.write(memoryview(bytes(size)))

    @property
    def resident_bytes(self) -> int:
        return sum(map(bool, self.data))


class Sizes:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.size = self.resident_bytes = 0

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        self.resident_bytes += len(data) if any(data[:64]) else 0

    def hole(self, size: int) -> None:
        self.size += size


def wait() -> float:
    return 20.0


def fill(pump: Pump, size: int, seed: int) -> bytes:
    """Read `size` bytes in, as an engine does."""
    made = bytes((seed + i * 7) & 0xFF or 1 for i in range(size))
    done = 0
    while done < size:
        view = pump.room(size - done, wait)
        assert 0 < len(view) <= size - done
        view[:] = made[done : done + len(view)]
        pump.put(len(view))
        done += len(view)
    return made


_STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "bytes", "hole"]), st.integers(1, 90_000)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(_STEPS, st.sampled_from([1, 1 << 16, 200_000, 1 << 21]))
def test_what_goes_in_comes_out(steps: list[tuple[str, int]], ring: int) -> None:
    sink = Recorder()
    pump = Pump(sink, ring, NO_LIMIT, None)
    expected = b""
    for number, (kind, size) in enumerate(steps):
        if kind == "read":
            expected += fill(pump, size, number)
        elif kind == "bytes":
            expected += bytes([number + 1]) * size
            pump.put_bytes(bytes([number + 1]) * size)
        else:
            expected += bytes(size)
            pump.hole(size)
    assert pump.size_bytes == len(expected)
    assert pump.data_bytes == sum(size for kind, size in steps if kind != "hole")
    pump.finish()
    assert sink.data == expected


def test_nothing_is_stored_while_there_is_room() -> None:
    sink = Recorder()
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    fill(pump, 900_000, 1)
    assert not sink.data
    pump.finish()
    assert len(sink.data) == 900_000


def test_large_core_is_stored_by_a_thread_of_its_own() -> None:
    sink = Recorder()
    pump = Pump(sink, BASE_BYTES * 3, NO_LIMIT, None)
    made = fill(pump, BASE_BYTES * 2, 1)
    pump.finish()
    assert sink.data == made


def test_buffer_is_faulted_in_not_far_ahead_of_the_reader() -> None:
    """Of a grant of gigabytes a process with zeros may use nothing."""
    pump = Pump(Recorder(), 1 << 30, NO_LIMIT, None)
    pump.room(1, wait)
    before = resident()
    time.sleep(1.2)
    assert resident() - before < 200 << 20
    pump.finish()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def test_reader_waits_for_a_slow_disk_and_no_longer_than_it_may() -> None:
    sink = Recorder()
    sink.go_on.clear()
    pump = Pump(sink, 1 << 16, NO_LIMIT, None)

    def impatient() -> float:
        raise TimeoutError

    fill(pump, 1 << 16, 1)
    with pytest.raises(TimeoutError):
        pump.room(1, impatient)
    sink.go_on.set()
    fill(pump, 300_000, 2)
    pump.finish()
    assert len(sink.data) == (1 << 16) + 300_000


@pytest.mark.parametrize("kind", ["read", "bytes"])
def test_limit_cuts_at_its_byte(kind: str) -> None:
    sink = Recorder()
    pump = Pump(sink, 1 << 20, 1000, "capture.max_core is 1000 bytes")
    fill(pump, 900, 1)
    with pytest.raises(StopError, match="max_core"):
        if kind == "read":
            fill(pump, 200, 2)
        else:
            pump.put_bytes(bytes(200))
    assert pump.full
    pump.finish()
    assert len(sink.data) == 1000


def test_limit_that_is_met_exactly_is_no_stop() -> None:
    pump = Pump(Recorder(), 1 << 20, 1000, "limit")
    fill(pump, 400, 1)
    pump.hole(20_000)
    fill(pump, 600, 1)
    assert pump.full
    pump.finish()


def test_holes_count_as_what_they_take_in_the_store() -> None:
    sink = Sizes()
    pump = Pump(sink, 1 << 20, 1000, "limit")
    pump.hole(900 << HOLE_COST_SHIFT)
    fill(pump, 100, 1)
    assert pump.full
    with pytest.raises(StopError, match="limit"):
        pump.hole(2 << HOLE_COST_SHIFT)
    pump.finish()
    assert sink.size == (901 << HOLE_COST_SHIFT) + 100 - 1


def test_zeros_that_were_read_count_as_holes_once_they_are_stored() -> None:
    sink, limit = Sizes(), 5 << 20
    pump = Pump(sink, 2 << 20, limit, "limit")
    part = RECOUNT_BYTES
    for _ in range(50):
        view = pump.room(part, wait)
        size = len(view)
        view[:] = bytes(size)
        pump.put(size)
    with pytest.raises(StopError, match="limit"):
        fill(pump, 2 * limit, 1)
    pump.finish()
    assert limit - part <= sink.resident_bytes <= limit


def test_disk_that_refuses_stops_the_reader() -> None:
    pump = Pump(Recorder(fail_after=100_000), 1 << 16, NO_LIMIT, None)
    with pytest.raises(StopError, match="no room"):
        for number in range(20):
            fill(pump, 50_000, number)
    with pytest.raises(StopError, match="no room"):
        pump.finish()


def test_deserted_buffer_is_not_used_again() -> None:
    sink = Recorder()
    pump = Pump(sink, 1 << 20, NO_LIMIT, None)
    made = fill(pump, 1000, 1)
    left = pump.room(500, wait)
    pump.desert()
    made += fill(pump, 2000, 2)
    left[:] = b"x" * len(left)
    pump.finish()
    assert sink.data == made


@contextmanager
def spill_of(most_bytes: int, least_free_bytes: int = 0) -> Iterator[Spill]:
    with tempfile.TemporaryFile() as file:
        spill = Spill(
            os.dup(file.fileno()), most_bytes=most_bytes, least_free_bytes=least_free_bytes
        )
        yield spill
        spill.close()


@settings(max_examples=60, deadline=None)
@given(_STEPS, st.sampled_from([1, 1 << 16, 200_000]), st.sampled_from([0, 1, 150_000, 1 << 30]))
def test_what_goes_in_comes_out_by_the_spill_too(
    steps: list[tuple[str, int]], ring: int, most: int
) -> None:
    sink = Recorder()
    with spill_of(most) as spill:
        pump = Pump(sink, ring, NO_LIMIT, None, spill)
        expected = b""
        for number, (kind, size) in enumerate(steps):
            if kind == "read":
                expected += fill(pump, size, number)
            elif kind == "bytes":
                expected += bytes([number + 1]) * size
                pump.put_bytes(bytes([number + 1]) * size)
            else:
                expected += bytes(size)
                pump.hole(size)
        assert pump.size_bytes == len(expected)
        pump.finish()
        assert sink.data == expected
        assert spill.written_bytes <= most


def test_reader_waits_for_no_disk_where_it_may_spill() -> None:
    sink = Recorder()
    sink.go_on.clear()

    def never() -> float:
        raise AssertionError("waited for what is stored")

    with spill_of(1 << 30) as spill:
        pump = Pump(sink, 1 << 16, NO_LIMIT, None, spill)
        for _ in range(20):
            view = pump.room(SCRATCH_BYTES, never)
            view[:] = b"x" * len(view)
            pump.put(len(view))
        assert not sink.data
        assert spill.written_bytes == pump.size_bytes - (1 << 16)
        sink.go_on.set()
        pump.finish()
        assert len(sink.data) == pump.size_bytes
        assert os.fstat(spill.fd).st_blocks == 0, "what is stored has no second copy"


def test_spill_leaves_the_space_free_that_it_must() -> None:
    with spill_of(1 << 30, least_free_bytes=1 << 60) as spill:
        pump = Pump(Recorder(), 1 << 16, NO_LIMIT, None, spill)
        made = fill(pump, 300_000, 1)
        pump.finish()
        assert spill.written_bytes == 0
        assert pump.size_bytes == len(made)


def test_spill_whose_disk_refuses_in_the_midst_loses_nothing() -> None:
    class Full(Spill):
        def _write(self, offset: int, data: memoryview) -> bool:
            super()._write(offset, data[: len(data) // 2])
            return self.written_bytes < 100_000 and super()._write(offset, data)

    sink = Recorder()
    with tempfile.TemporaryFile() as file:
        spill = Full(os.dup(file.fileno()), most_bytes=1 << 30, least_free_bytes=0)
        pump = Pump(sink, 1 << 16, NO_LIMIT, None, spill)
        made = b"".join(fill(pump, 50_000, number) for number in range(12))
        pump.finish()
        assert sink.data == made
        assert spill.written_bytes < len(made) - (1 << 16)
        spill.close()


def test_deserted_scratch_is_not_used_again() -> None:
    sink = Recorder()
    with spill_of(1 << 30) as spill:
        pump = Pump(sink, 1 << 16, NO_LIMIT, None, spill)
        made = fill(pump, 1 << 16, 1)
        left = pump.room(500, wait)
        pump.desert()
        made += fill(pump, 2000, 2)
        left[:] = b"x" * len(left)
        pump.finish()
        assert sink.data == made


def test_pump_that_is_abandoned_stores_nothing_more() -> None:
    sink = Recorder()
    pump = Pump(sink, 1 << 16, NO_LIMIT, None)
    fill(pump, 1 << 18, 1)
    pump.abandon()
    stored = len(sink.data)
    time.sleep(0.05)
    assert len(sink.data) == stored
    assert not any(thread.name == "storer" for thread in threading.enumerate())


class Steps(Pace):
    """Counts, and waits for the test."""

    def __init__(self) -> None:
        self.count = 0
        self.go_on = threading.Event()

    def step(self) -> None:
        self.go_on.wait(20)
        self.count += 1


def test_storing_asks_before_each_part() -> None:
    sink, pace = Recorder(), Steps()
    pump = Pump(sink, 4 << 20, NO_LIMIT, None)
    fill(pump, 3 << 20, 1)
    storing = threading.Thread(target=pump.finish, args=(pace,))
    storing.start()
    time.sleep(0.05)
    assert not sink.data
    pace.go_on.set()
    storing.join()
    assert len(sink.data) == 3 << 20
    assert pace.count >= 3


def test_storing_lowers_its_own_threads_and_not_the_one_that_reads_the_next_core() -> None:
    class Lowering(Pace):
        def begin(self) -> None:
            lower_storer()

    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    class Looking(Recorder):
        def write(self, data: memoryview) -> None:
            niceness["storer"] = nice()
            super().write(data)

    niceness: dict[str, int] = {}
    reader = Reader()
    reader.do(lambda: None, 10)
    pump = Pump(Looking(), 1 << 20, NO_LIMIT, None)
    fill(pump, 1 << 20, 1)
    pump.finish(Lowering())
    reader.do(lambda: niceness.update(reader=nice()), 10)
    assert niceness == {"storer": STORER_NICE, "reader": nice()}
    assert nice() < STORER_NICE


def test_gate_is_one_for_all_processes_and_opens_by_itself() -> None:
    gate = PaceGate()
    assert not gate.is_closed
    pid = os.fork()
    if pid == 0:
        gate.close_until(time.monotonic_ns() + 300_000_000)
        os._exit(0)
    os.waitpid(pid, 0)
    assert gate.is_closed
    time.sleep(0.35)
    assert not gate.is_closed
    gate.close_until(1 << 62)
    gate.close_until(0)
    assert not gate.is_closed
