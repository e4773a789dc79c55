"""A bounded buffer between who reads a core and who stores it.

    engine ──room(), put(), hole()──▶ Pump ──write(), hole()──▶ Sink (zstd, disk)

A crashed process is held as long as its core is read, and reading is ten times as fast as storing.
So nothing is stored while the buffer has room: a core that fits is read at the speed of memory, the
process let go, and only then is anything compressed. Where the buffer is full a thread begins to
store behind the reader, which from then on waits for it.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from crashd.edge.capture.memory import populate

HOLE_COST_SHIFT = 15
"""A hole counts as what it takes in the store: 4 bytes for each 128 KiB (domain/zstdframes.py)."""
RECOUNT_BYTES = 1 << 20
"""Put in since the limit was last counted again, or it is not worth to wait for that."""
BASE_BYTES = 4 << 20
"""What every worker may hold without asking."""
_HUGE_FROM_BYTES = 8 << 20
_POPULATE_FROM_BYTES = 64 << 20
STORER_NICE = 10


class StopError(Exception):
    """The core ends here; the text says why."""


class Sink(Protocol):
    """Where a core's bytes go, in the order of the file."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes; StopError when the disk refuses."""

    def hole(self, size: int) -> None:
        """Take zeros without having them."""

    @property
    def resident_bytes(self) -> int:
        """Return how many bytes it was given that are not zeros, as far as it looked."""


class _Ring:
    """The memory; positions only ever grow, and are taken modulo its size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.head = self.tail = 0
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= _HUGE_FROM_BYTES:
            # a fault for 2 MiB instead of 4 KiB: 3.9 against 2.3 GB/s into fresh memory
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.filled = False
        """Whether there is nothing more to be read into it."""
        if size >= _POPULATE_FROM_BYTES and len(os.sched_getaffinity(0)) > 1:
            # another CPU makes the pages while this one reads
            threading.Thread(
                target=populate, args=(self.view, lambda: self.filled), name="pages", daemon=True
            ).start()

    def room(self) -> int:
        """Bytes that are free in one piece."""
        return min(self.size - self.head % self.size, self.size - (self.head - self.tail))


_Item = tuple[_Ring | None, memoryview | None, int]
"""Bytes of the ring, bytes of the caller's, or (without a view) zeros; and how many."""


class Pump:
    """One core's way through the buffer. Used by one reading thread."""

    def __init__(self, sink: Sink, size: int, limit: int, limit_reason: str | None) -> None:
        """Make a buffer of `size` bytes.

        The core is cut where more than `limit` bytes of it are not holes, for `limit_reason`: the
        kernel counts so for files, too (dump_skip() of fs/coredump.c). Zeros that a stream brings
        are counted as data at first, and no more once they are stored.
        """
        self._sink = sink
        self._limit = limit
        self._hole_cost = 0
        self._recounted_bytes = 0
        self._stored_bytes = 0
        self._ring = _Ring(max(size, 1 << 16))
        self._left = limit
        self._limit_reason = limit_reason or "limit"
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._storer: threading.Thread | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self.size_bytes = 0
        """Put in so far."""

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return not self._left

    def room(self, wanted: int, wait: Callable[[], float]) -> memoryview:
        """Give a piece of the buffer to read into, of 1 to `wanted` bytes.

        `wait` tells how many seconds may be waited for the storing side, or raises.

        Raises:
            StopError: nothing more is to be read.

        """
        if wanted > self._left:
            self._recount(wait)
        wanted = min(wanted, self._left)
        if not wanted:
            raise StopError(self._limit_reason)
        ring = self._ring
        if ring.room() < min(wanted, ring.size // 4):
            self._wait_for(ring, min(wanted, ring.size // 4), wait)
        self._check()
        at = ring.head % ring.size
        return ring.view[at : at + min(wanted, ring.room())]

    def put(self, size: int) -> None:
        """Tell that so many bytes were read into what `room` gave.

        Raises:
            StopError: they are more than the limit leaves, holes having been put in since; it is
            reached with them.

        """
        ring = self._ring
        at = ring.head % ring.size
        kept = min(size, self._left)
        if kept:
            ring.head += kept
            self._append(ring, ring.view[at : at + kept], kept)
        if kept < size:
            raise StopError(self._limit_reason)

    def put_bytes(self, data: bytes) -> None:
        """Put in bytes that the caller has already, and does not change.

        Raises:
            StopError: they are more than the limit leaves; it is reached with them.

        """
        kept = min(len(data), self._left)
        if kept:
            self._append(None, memoryview(data)[:kept], kept)
        if kept < len(data):
            raise StopError(self._limit_reason)

    def hole(self, size: int) -> None:
        """Put in zeros.

        Raises:
            StopError: they are more than the limit leaves; it is reached with them.

        """
        self._check()
        kept = min(size, ((self._left + 1) << HOLE_COST_SHIFT) - 1)
        self._hole_cost += kept >> HOLE_COST_SHIFT
        self._append(None, None, kept)
        if kept < size:
            raise StopError(self._limit_reason)

    def desert(self) -> None:
        """Leave the present buffer to a read that does not end, and go on with another."""
        self._ring.filled = True
        self._ring = _Ring(BASE_BYTES)

    def finish(self) -> None:
        """Store all that is left; the reading is over and the process let go.

        Raises:
            StopError: the disk refused.

        """
        self._ring.filled = True
        if self._storer is None and self.size_bytes <= BASE_BYTES:
            while self._items:
                self._store(self._items.popleft())
            return
        storer = self._start()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        storer.join()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _append(self, ring: _Ring | None, view: memoryview | None, size: int) -> None:
        self._left -= size if view is not None else size >> HOLE_COST_SHIFT
        self.size_bytes += size
        if self._storer is None:
            self._items.append((ring, view, size))
            return
        with self._changed:
            self._items.append((ring, view, size))
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
        """Give the limit back what turned out to be zeros, once all that was put in is stored."""
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
            storer = threading.Thread(target=self._run, name="storer", daemon=True)
            storer.start()  # may fail: there is none then
            self._storer = storer
        return self._storer

    def _run(self) -> None:
        # Of this thread alone, and of those that the compressor starts from here: another process
        # may be held by its crash meanwhile, and is to be read first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), STORER_NICE)
        try:
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
        ring, view, size = item
        if view is None:
            self._sink.hole(size)
        else:
            self._sink.write(view)
        with self._changed:
            self._stored_bytes += size
            if ring is not None:
                ring.tail += size
            self._changed.notify_all()
