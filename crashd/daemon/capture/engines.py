"""The two ways to read a core, both into a pump: drain what the kernel writes, or read the memory.

The stream is always right, but takes time in proportion to the process's address space. Reading
memory takes time in proportion to the resident part. If anything casts doubt on whether memory is
exactly what the kernel would write, the memory engine raises DoubtError; the stream, read only up
to its head, is still available then.
"""

import functools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from crashd.daemon.capture.pump import Pump, StopError
from crashd.daemon.capture.timedread import Reader, StuckError
from crashd.domain.elf.memorymap import Backing, DoubtError, Piece
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.memory import IOV_MAX, PAGE_BYTES, GoneError, ProcessMemory, is_zeros

STREAM_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
"""Bytes read from memory at once, which takes a few milliseconds."""
ZEROS_BYTES = 64 << 10
"""Zeros of this length that were read at once take no place in the buffer. A process can have
gigabytes of them, and fresh memory for a copy costs more than reading them.
"""
HALVE_BYTES = 1 << 20
"""Reads of anonymous memory from this size on are divided between two threads: the kernel copies
with one CPU for each, 4.7 against 8.5 GB/s.
"""
STUCK_MAX = 4
"""Limit on stuck reads, each of which costs a thread: beyond it, memory that may hang is not read.
"""
STUCK_OF_MAPPING = 2
"""The same limit for one mapping: the rest of it becomes zeros; other mappings are still read."""


class ShortError(StopError):
    """The stream ended before all wanted parts had arrived."""


def drain(incoming: IncomingCore, raw: bytes, pump: Pump, deadline_ns: int) -> None:
    """Drain the stream after its head `raw`: the engine that is always right.

    Raises:
        StopError: a limit was reached, or writing to the disk fails.
        DeadlineError: the stream did not end in time.

    """
    pump.put_bytes(raw)
    wait = _waiting(deadline_ns)
    while True:
        if hole := incoming.skip_hole():
            pump.hole(hole)
            continue
        try:
            view = pump.room(STREAM_BYTES, wait)
        except StopError:
            # exactly as long as the limit? Then nothing is missing.
            if pump.full and not incoming.read_into(memoryview(bytearray(1)), deadline_ns):
                return
            raise
        size = incoming.read_into(view, deadline_ns)
        if not size:
            return
        if _is_hole(view[:size]):
            pump.hole(size)
        else:
            pump.put(size)


def drain_selected(
    incoming: IncomingCore,
    raw: bytes,
    head: bytes,
    wanted: Sequence[tuple[int, int, int]],
    pump: Pump,
    deadline_ns: int,
) -> None:
    """Build another core from a stream: `head`, then the `wanted` parts of the stream, which begins
    with `raw`. A part is (offset in the stream, offset in the new core, size); parts are in
    ascending order. The stream is not read beyond the last part.

    Raises:
        ShortError: the stream ended too soon.
        StopError: a limit was reached, or writing to the disk fails.
        DeadlineError: the parts did not arrive in time.

    """
    pump.put_bytes(head)
    window, at = memoryview(raw), 0
    buffer = memoryview(bytearray(STREAM_BYTES))
    for source, target, size in wanted:
        if target > pump.size_bytes:
            pump.hole(target - pump.size_bytes)
        end = source + size
        while source < end:
            while source >= at + len(window):
                at += len(window)
                got = incoming.read_into(buffer, deadline_ns) if at >= len(raw) else 0
                if not got:
                    raise ShortError(f"the stream ended after {at} bytes")
                window = buffer[:got]
            part = window[source - at : end - at]
            pump.put_bytes(bytes(part))
            source += len(part)


@dataclass(slots=True)
class Blanks:
    """Memory that did not answer; the core has zeros in its place."""

    size_bytes: int = 0
    first: int = 0

    def add(self, address: int, size: int) -> None:
        """Note a range."""
        self.first = self.first or address
        self.size_bytes += size

    def reason(self) -> str | None:
        """Return the reason in words; None when all memory answered."""
        if not self.size_bytes:
            return None
        return (
            f"{self.size_bytes} bytes from {self.first:#x} on are zeros: "
            "their file system did not answer before capture.page_timeout"
        )


def copy(
    memory: ProcessMemory,
    head: bytes,
    pieces: Iterable[Piece],
    pump: Pump,
    deadline_ns: int,
    page_timeout_ns: int,
    reader: Reader,
) -> Blanks:
    """Copy the head, then the pieces of a core from the process's memory, into the pump.

    Raises:
        DoubtError: memory may differ from what the kernel would write; drain the stream.
        GoneError: the process was killed; everything in the pump was read before that.
        StopError: a limit was reached, or writing to the disk fails.
        DeadlineError: copying took too long.

    """
    copier = _Copier(memory, pump, deadline_ns, page_timeout_ns, reader)
    pump.put_bytes(head)
    for batch in _batches(pieces):
        copier.take(batch)
    return copier.blanks


def _is_hole(read: memoryview) -> bool:
    """Return whether what was read at once is kept as a hole: see ZEROS_BYTES."""
    return len(read) >= ZEROS_BYTES and is_zeros(read)


def _waiting(deadline_ns: int) -> Callable[[], float]:
    def wait() -> float:
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns <= 0:
            raise DeadlineError
        return remaining_ns / 1e9

    return wait


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces in groups that one read can take."""
    batch: list[Piece] = []
    size = reads = 0
    for piece in pieces:
        data = piece.size if piece.address is not None else 0
        if batch and (size + data > BATCH_BYTES or reads >= IOV_MAX or len(batch) > 4 * IOV_MAX):
            yield batch
            batch, size, reads = [], 0, 0
        batch.append(piece)
        size += data
        reads += bool(data)
    if batch:
        yield batch


class _Copier:
    """Reads batches of pieces into the pump; the caller owns the reader."""

    def __init__(
        self,
        memory: ProcessMemory,
        pump: Pump,
        deadline_ns: int,
        page_timeout_ns: int,
        reader: Reader,
    ) -> None:
        self._memory = memory
        self._pump = pump
        self._deadline_ns = deadline_ns
        self._page_timeout_ns = page_timeout_ns
        self._wait = _waiting(deadline_ns)
        self._reader = reader
        self._stuck: Counter[int] = Counter()
        """Stuck reads per mapping, keyed by the mapping's offset in the core."""
        self._two_at_once = len(os.sched_getaffinity(0)) > 1
        self.blanks = Blanks()

    def take(self, batch: list[Piece]) -> None:
        """Put a batch into the pump; a stuck read is repeated piece by piece."""
        left = deque(batch)
        while left:
            if self._is_given_up(left[0]):
                self._blank(left.popleft())
                continue
            if left[0].address is None:
                self._pump.hole(left.popleft().size)
                continue
            view = self._pump.room(sum(p.size for p in left if p.address is not None), self._wait)
            group, size = _fitting(left, len(view))
            if any(self._is_given_up(piece) for piece in group):
                self._one_by_one(group)
                continue
            try:
                is_hole = self._read(group, view[:size])
            except StuckError:
                self._pump.desert()  # the stuck read may still write there
                self._one_by_one(group)
            else:
                if is_hole:
                    self._pump.hole(sum(piece.size for piece in group))
                else:
                    self._put(group)

    def _put(self, group: list[Piece]) -> None:
        """Report to the pump what was read into its room, with the holes in their places."""
        run = 0
        for piece in group:
            if piece.address is not None:
                run += piece.size
                continue
            self._pump.put(run)
            run = 0
            self._pump.hole(piece.size)
        self._pump.put(run)

    def _one_by_one(self, group: list[Piece]) -> None:
        """Find out which pieces do not answer, and put zeros in their places."""
        for piece in group:
            if piece.address is None:
                self._pump.hole(piece.size)
                continue
            if self._is_given_up(piece):
                self._blank(piece)
                continue
            data = bytearray(piece.size)
            try:
                self._read([piece], memoryview(data))
            except StuckError:
                self._stuck[piece.extent.offset if piece.extent else 0] += 1
                self._blank(piece)
            else:
                self._pump.put_bytes(bytes(data))

    def _is_given_up(self, piece: Piece) -> bool:
        """Return whether a piece belongs to a mapping that failed to answer too often.

        Anonymous memory always answers: the stacks are read even if other mappings hang.
        """
        extent = piece.extent
        if piece.address is None or extent is None or extent.backing is Backing.ANONYMOUS:
            return False
        return self._reader.stuck > STUCK_MAX or self._stuck[extent.offset] >= STUCK_OF_MAPPING

    def _blank(self, piece: Piece) -> None:
        """Put zeros in place of a piece that is not read."""
        self.blanks.add(piece.address or 0, piece.size)
        self._pump.hole(piece.size)

    def _read(self, group: list[Piece], view: memoryview) -> bool:
        """Fill `view`, and check that the process was held throughout; return whether what was read
        is kept as a hole.
        """
        pieces = [piece for piece in group if piece.address is not None]
        timeout_ns = self._deadline_ns - time.monotonic_ns()
        if timeout_ns <= 0:
            raise DeadlineError
        only_anonymous = all(p.extent.backing is Backing.ANONYMOUS for p in pieces if p.extent)
        if not only_anonymous:
            timeout_ns = min(timeout_ns, self._page_timeout_ns)
        parts = _halve(pieces, view) if only_anonymous and self._two_at_once else [(pieces, view)]
        holes: list[bool] = []
        tasks = [functools.partial(self._fill_part, *part, holes) for part in parts]
        try:
            self._reader.do(tasks[0], timeout_ns / 1e9, *tasks[1:])
        except StuckError:
            if time.monotonic_ns() >= self._deadline_ns:
                raise DeadlineError from None
            raise
        if not self._memory.held():
            raise GoneError
        return all(holes)

    def _fill_part(self, pieces: list[Piece], view: memoryview, holes: list[bool]) -> None:
        """Fill `view`, and add whether it is kept as a hole; runs in a thread of the reader."""
        self._fill(pieces, view)
        holes.append(_is_hole(view))

    def _fill(self, pieces: list[Piece], view: memoryview) -> None:
        """Read pieces one after the other into `view`."""
        left = deque(pieces)
        while left:
            got = self._memory.read([(p.address or 0, p.size) for p in left], view)
            view = view[got:]
            while left and got >= left[0].size:
                got -= left.popleft().size
            if left:
                piece = _behind(left.popleft(), got)
                page = self._fill_page(piece, view)
                view = view[page:]
                if page < piece.size:
                    left.appendleft(_behind(piece, page))

    def _fill_page(self, piece: Piece, view: memoryview) -> int:
        """Fill at least one page that the fast way could not read; return how many bytes."""
        address, extent = piece.address or 0, piece.extent
        got = self._memory.force(address, view[: piece.size])
        if got:
            return got
        if extent is None or not (extent.readable or extent.backing is Backing.GATE):
            # with proc_mem.force_override the kernel itself can read pages that we cannot
            raise DoubtError(f"memory at {address:#x} cannot be read")
        got = min(piece.size, PAGE_BYTES - address % PAGE_BYTES)
        view[:got] = bytes(got)  # as get_dump_page() does with pages that it cannot fault in
        return got


def _halve(pieces: list[Piece], view: memoryview) -> list[tuple[list[Piece], memoryview]]:
    """Divide a large read into two, each with its part of `view`."""
    if len(view) < HALVE_BYTES:
        return [(pieces, view)]
    left = deque(pieces)
    first, size = _fitting(left, len(view) // 2 // PAGE_BYTES * PAGE_BYTES)
    return [(first, view[:size]), (list(left), view[size:])]


def _fitting(left: "deque[Piece]", size: int) -> tuple[list[Piece], int]:
    """Remove pieces with at most `size` bytes of data from `left`, cutting the last; return them
    and the size of their data.
    """
    group: list[Piece] = []
    taken = 0
    while left and (left[0].address is None or taken < size):
        piece = left.popleft()
        if piece.address is not None:
            if piece.size > size - taken:
                left.appendleft(_behind(piece, size - taken))
                piece = piece._replace(size=size - taken)
            taken += piece.size
        group.append(piece)
    return group, taken


def _behind(piece: Piece, size: int) -> Piece:
    """Return the rest of a piece with data, after its first `size` bytes."""
    return Piece(piece.offset + size, piece.size - size, (piece.address or 0) + size, piece.extent)
