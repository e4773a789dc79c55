"""A bounded buffer between the reader of a core and its storer.

    engine ──room(), put(), hole()──▶ Pump ──write(), hole()──▶ Sink (zstd, disk)
                                       └─▶ Spill ─▶┘

A crashed process is held while its core is read, and reading is thirty times as fast as storing.
So nothing is stored while the core is read: data that does not fit the buffer goes uncompressed
into the spill. Then the process is released, and a thread stores everything, in the order of the
file. Only without a spill, or once it is full, does that thread start to store earlier, and the
reader waits for room.
"""

import contextlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from crashd.daemon.capture.pace import STORER_NAME, Pace
from crashd.daemon.capture.spill import SCRATCH_BYTES, Spill
from crashd.edge.capture.memory import populate
from crashd.edge.capture.successor import Successor
from crashd.errors import reason_of

HOLE_COST_SHIFT = 15
"""A hole counts by its size in the store: 4 bytes for each 128 KiB (domain/zstdframes.py)."""
RECOUNT_BYTES = 1 << 20
"""Bytes that must be put in between two recounts of the limit; fewer are not worth the wait."""
BASE_BYTES = 4 << 20
"""Buffer that every worker may hold without asking."""
_HUGE_FROM_BYTES = 8 << 20
_POPULATE_FROM_BYTES = 64 << 20
_POPULATE_AHEAD_BYTES = 128 << 20
"""How far ahead of the reader memory is faulted in: the rest may never be used."""
_POPULATE_WAIT_SECONDS = 0.002
STORE_BYTES = 1 << 20
"""Bytes stored between two checks for a held process: about ten milliseconds."""


class StopError(Exception):
    """The core ends here; the text says why."""


class Sink(Protocol):
    """Takes a core's bytes, in the order of the file."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes; raise StopError when writing to the disk fails."""

    def hole(self, size: int) -> None:
        """Take `size` zeros, which are not passed as bytes."""

    @property
    def resident_bytes(self) -> int:
        """Return how many bytes taken so far are not zeros, as far as the sink has checked."""


class _Ring:
    """The buffer's memory; positions only grow, and count modulo its size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.head = self.tail = 0
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= _HUGE_FROM_BYTES:
            # faults of 2 MiB instead of 4 KiB: 3.9 against 2.3 GB/s into fresh memory
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.filled = False
        """Whether no more data will be read into it."""
        if size >= _POPULATE_FROM_BYTES and len(os.sched_getaffinity(0)) > 1:
            # another CPU allocates the pages while this one reads
            threading.Thread(
                target=populate, args=(self.view, self._is_populated), name="pages", daemon=True
            ).start()

    def _is_populated(self, at: int) -> bool:
        """Wait until the reader is near `at`; return whether that will not be."""
        while not self.filled and at > self.head + _POPULATE_AHEAD_BYTES:
            time.sleep(_POPULATE_WAIT_SECONDS)
        return self.filled

    def room(self) -> int:
        """Return how many bytes are free in one piece."""
        return min(self.size - self.head % self.size, self.size - (self.head - self.tail))


class _Item(NamedTuple):
    """A part of the core that waits to be stored."""

    offset: int
    size: int
    view: memoryview | None = None
    """The bytes; None for zeros, or when they are spilled."""
    ring: _Ring | None = None
    """The ring with the bytes, which gets their space back once they are stored."""
    spilled: bool = False


class Pump:
    """The buffer for one core; only one thread may put data in."""

    def __init__(
        self,
        sink: Sink,
        size: int,
        limit: int,
        limit_reason: str | None,
        spill: Spill | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Allocate a buffer of `size` bytes. The caller keeps ownership of the spill.

        Data stored before the end goes at `pace`; None if a process is held meanwhile.

        The core is cut, for `limit_reason`, once more than `limit` bytes of it are not holes. The
        kernel counts files in the same way (dump_skip() of fs/coredump.c). Zeros in a stream count
        as data at first, but no longer once they are stored.
        """
        self._sink = sink
        self._limit = limit
        self._hole_cost = 0
        self._recounted_bytes = 0
        self._stored_bytes = self._dropped_bytes = 0
        self._ring = _Ring(max(size, 1 << 16))
        self._left = limit
        self._limit_reason = limit_reason or "limit"
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._spill = spill
        self._scratch: _Ring | None = None
        """The buffer for data on its way to the spill; None while nothing is spilled."""
        self._pace = pace or Pace()
        self.guard = Successor()
        """The copy of this process that stores the same data if this process is killed."""
        self._storer: threading.Thread | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self.size_bytes = 0
        """Bytes put in so far."""
        self.data_bytes = 0
        """The same without holes: bytes to compress."""

    @property
    def full(self) -> bool:
        """Return whether the limit is reached."""
        return not self._left

    def room(self, wanted: int, wait: Callable[[], float]) -> memoryview:
        """Return a piece of the buffer to read into, of 1 to `wanted` bytes.

        `wait` returns how many seconds to wait at most for the storing side, or raises.

        Raises:
            StopError: nothing more may be read.

        """
        if wanted > self._left:
            self._recount(wait)
        wanted = min(wanted, self._left)
        if not wanted:
            raise StopError(self._limit_reason)
        ring = self._ring
        if self._scratch is None and ring.room() < min(wanted, ring.size // 4):
            if self._spill is not None and self._spill.is_open:
                self._scratch = _Ring(SCRATCH_BYTES)
            else:
                self._wait_for(ring, min(wanted, ring.size // 4), wait)
        self._check()
        if self._scratch is not None:
            return self._scratch.view[: min(wanted, SCRATCH_BYTES)]
        at = ring.head % ring.size
        return ring.view[at : at + min(wanted, ring.room())]

    def put(self, size: int) -> None:
        """Note that `size` bytes were read into the piece that `room` returned.

        Raises:
            StopError: the limit leaves fewer bytes, because holes were put in since; the bytes
            that fit are kept.

        """
        kept = min(size, self._left)
        if kept and self._scratch is not None:
            self._put_spilled(self._scratch, kept)
        elif kept:
            self._put_in_ring(self._ring, kept)
        if kept < size:
            raise StopError(self._limit_reason)

    def _put_in_ring(self, ring: _Ring, size: int) -> None:
        at = ring.head % ring.size
        ring.head += size
        self._append(_Item(self.size_bytes, size, ring.view[at : at + size], ring))

    def _put_spilled(self, scratch: _Ring, size: int) -> None:
        if self._spill is not None and self._spill.write(self.size_bytes, scratch.view[:size]):
            self._append(_Item(self.size_bytes, size, spilled=True))
            return
        # The spill takes no more: these bytes stay in the scratch until they are stored, and for
        # the next ones the reader waits until there is room in the ring.
        self._scratch = None
        self._put_in_ring(scratch, size)

    def put_bytes(self, data: bytes) -> None:
        """Put in bytes that the caller already has and does not change.

        Raises:
            StopError: the limit leaves fewer bytes; the bytes that fit are kept.

        """
        kept = min(len(data), self._left)
        if kept:
            self._append(_Item(self.size_bytes, kept, memoryview(data)[:kept]))
        if kept < len(data):
            raise StopError(self._limit_reason)

    def hole(self, size: int) -> None:
        """Put in zeros.

        Raises:
            StopError: the limit leaves fewer bytes; the zeros that fit are kept.

        """
        self._check()
        kept = min(size, ((self._left + 1) << HOLE_COST_SHIFT) - 1)
        self._hole_cost += kept >> HOLE_COST_SHIFT
        self._append(_Item(self.size_bytes, kept))
        if kept < size:
            raise StopError(self._limit_reason)

    def desert(self) -> None:
        """Leave the present buffer to a stuck read, and continue with another."""
        if self._scratch is not None:
            self._scratch = _Ring(SCRATCH_BYTES)
            return
        self._ring.filled = True
        self._ring = _Ring(BASE_BYTES)

    @property
    def is_untouched(self) -> bool:
        """Return whether nothing has been stored: all data is in the buffer and the spill."""
        return self._storer is None

    def begin_again(self, sink: Sink) -> None:
        """Store everything into `sink`, in a copy of the process whose data this was.

        The copy was made when nothing had been stored.
        """
        self._sink = sink
        self._changed = threading.Condition(threading.Lock())

    def finish(self, pace: Pace | None = None) -> None:
        """Store everything left, at `pace`; reading is over and the process is released.

        Raises:
            StopError: writing to the disk failed.

        """
        self._ring.filled = True
        self._pace = pace or self._pace
        try:
            storer = self._start()
        except RuntimeError:  # cannot start a thread: store in this one
            while self._items:
                self._store(self._items.popleft())
            return
        self._pace.begin()
        self._end(storer)
        self._check()

    def abandon(self) -> None:
        """Store nothing more: the core is read again by the other engine."""
        self._ring.filled = True
        if self._storer is not None:
            with self._changed:
                self._items.clear()
            self._end(self._storer)

    def _end(self, storer: threading.Thread) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        storer.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _append(self, item: _Item) -> None:
        is_hole = item.view is None and not item.spilled
        self._left -= item.size >> HOLE_COST_SHIFT if is_hole else item.size
        self.size_bytes += item.size
        self.data_bytes += 0 if is_hole else item.size
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def _wait_for(self, ring: _Ring, wanted: int, wait: Callable[[], float]) -> None:
        self._start()
        with self._changed:
            while self._failure is None:
                rest = ring.size - ring.head % ring.size  # before the ring's end
                if ring.room() >= min(wanted, rest):
                    return
                self._changed.wait(wait())

    def _recount(self, wait: Callable[[], float]) -> None:
        """Wait until all data put in is stored, then stop counting its zeros against the limit."""
        if self.size_bytes - self._recounted_bytes < RECOUNT_BYTES:
            return
        self._recounted_bytes = self.size_bytes
        self._start()
        with self._changed:
            while self._failure is None and self._stored_bytes < self.size_bytes:
                self._changed.wait(wait())
        self._left = max(self._left, self._limit - self._sink.resident_bytes - self._hole_cost)

    def _start(self) -> threading.Thread:
        if self._storer is None:
            storer = threading.Thread(target=self._run, name=STORER_NAME, daemon=True)
            storer.start()  # may fail: `_storer` stays None then
            self._storer = storer
        return self._storer

    def _run(self) -> None:
        try:
            self._pace.begin()
            while True:
                with self._changed:
                    while not self._items:
                        if self._ended:
                            return
                        self._changed.wait()
                    item = self._items.popleft()
                self._store(item)
        except BaseException as e:  # the reader raises it
            self._failure = e
        finally:
            with self._changed:
                self._items.clear()
                self._changed.notify_all()

    def _store(self, item: _Item) -> None:
        if item.spilled:
            self._store_spilled(item)
        elif item.view is None:
            self._pace.step()
            self._sink.hole(item.size)
        else:
            for at in range(0, item.size, STORE_BYTES):
                self._pace.step()
                self._sink.write(item.view[at : at + STORE_BYTES])
        with self._changed:
            self._stored_bytes += item.size
            if item.ring is not None:
                item.ring.tail += item.size
            self._changed.notify_all()

    def _store_spilled(self, item: _Item) -> None:
        if self._spill is None:
            raise StopError("nothing was spilled")
        buffer = memoryview(bytearray(STORE_BYTES))
        for at in range(0, item.size, STORE_BYTES):
            part = buffer[: min(STORE_BYTES, item.size - at)]
            self._pace.step()
            try:
                self._spill.read_into(item.offset + at, part)
            except OSError as e:
                raise StopError(f"reading the spilled core failed: {reason_of(e)}") from e
            self._sink.write(part)
        self._dropped_bytes = self._drop_spilled(self._spill, item.offset + item.size)

    def _drop_spilled(self, spill: Spill, end: int) -> int:
        """Free the space of spilled data that is stored, if it is needed: our copy still needs the
        data. Return up to where it is free.
        """
        if self.guard.is_there:
            if spill.has_room:
                return self._dropped_bytes
            self.guard.end()
        with contextlib.suppress(OSError):
            spill.drop(self._dropped_bytes, end - self._dropped_bytes)
        return end
