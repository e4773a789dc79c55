"""One core: read while its process is held, stored once the process is released.

Chooses the engine and the size of the buffer, and returns to the stream if memory is in doubt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from crashd.daemon.capture import engines
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pace import Pace
from crashd.daemon.capture.pump import BASE_BYTES, HOLE_COST_SHIFT, Pump, StopError
from crashd.daemon.capture.sink import CoreSink
from crashd.daemon.capture.source import LATE, CoreSource
from crashd.daemon.capture.spill import Spill
from crashd.domain.crash.model import Core, Engine, Mode
from crashd.domain.crash.record import Allowance
from crashd.domain.elf import elfcore, memorymap
from crashd.domain.elf.memorymap import DoubtError, Extent
from crashd.domain.elf.minicore import MINI_MAX, MiniCore
from crashd.edge.capture.incoming import DeadlineError
from crashd.edge.capture.memory import GoneError, ProcessMemory
from crashd.edge.capture.successor import RAW_BYTES
from crashd.errors import reason_of
from crashd.store.entry import Entry

_PIECE_MAX = 1 << 20
LONG_BYTES = 64 << 20
"""A process with more memory to read has its stacks read first, in case it is killed meanwhile."""
STACKS_BYTES = 4 << 20
"""How much of the stacks is read first."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The resources for reading one core."""

    buffer_bytes: int = BASE_BYTES
    spill_bytes: int = 0
    """Space on the store's disk for data that does not fit the buffer; 0 to compress it at once."""
    spill_leaves_bytes: int = 0
    """How much the spill leaves free on that disk."""


@dataclass(frozen=True, slots=True)
class KeptCore:
    """The stored part of a core, and how it was read."""

    core: Core = field(default_factory=Core)
    engine: Engine = Engine.NONE
    build_id: str | None = None
    expected_bytes: int | None = None
    """Size of the whole core; None without a usable head."""
    spilled_bytes: int = 0
    """How many of its bytes went through the spill."""
    reason: str | None = None
    """Why it is not whole; None when it was read to its end."""
    doubt: str | None = None
    """Why memory was not read although it should have been."""
    no_room: bool = False
    """Whether there was no space for a core to begin with."""


class HeldCore:
    """A core that was read into the buffer and the spill; owns both, and the file in the store."""

    def __init__(
        self, source: CoreSource, entry: Entry, limit: Allowance, grant: Grant, pace: Pace | None
    ) -> None:
        """Create the file. Data stored before everything is read is stored at `pace`.

        Raises:
            StopError: the disk has no room for a core to begin with.
            OSError: the file cannot be created.

        """
        options = source.options
        wanted = elfcore.executable_range(source.head) if source.head is not None else None
        if source.mini is not None and wanted is not None:
            wanted = _in_mini(source.mini, *wanted)
        self.build_id: str | None = None
        """Build-id read from memory; the one in the stored core has precedence."""
        self._entry = entry
        self._source = source
        self._reason: str | None = None
        self._engine = source.incoming.engine if source.memory is None else Engine.MEMORY
        self._wanted = wanted
        self._is_guarded = False
        self._sink = self._make_sink(options)
        self._spill = _make_spill(entry, options, grant)
        self._pump = Pump(
            self._sink, grant.buffer_bytes, limit.size_bytes, limit.reason, self._spill, pace
        )

    def _make_sink(self, options: Options) -> CoreSink:
        return CoreSink(
            self._entry,
            level=options.level,
            threads=options.threads,
            keep_free_bytes=options.keep_free_bytes,
            credit_bytes=options.credit_bytes,
            leave_bytes=options.leave_bytes,
            wanted=self._wanted,
        )

    def guard(self, taken_over: Callable[[], None]) -> None:
        """Fork a copy of this process that stores the core if this process is killed; it calls
        `taken_over` first. The copy does not hold the process. Only the first call has an effect,
        and a copy has no copy: an input that kills workers must not do so for ever.
        """
        is_last = self._is_guarded or self._source.incoming.mode is Mode.SPOOL  # imported again
        if is_last or not self._pump.is_untouched or self.read_bytes < RAW_BYTES:
            return
        self._is_guarded = True
        if self._pump.guard.begin(self._source.release):
            taken_over()
            self._sink.close()
            self._sink = self._make_sink(self._source.options)
            self._pump.begin_again(self._sink)

    @property
    def read_bytes(self) -> int:
        """Return how many bytes of it were read, holes left out."""
        return self._pump.data_bytes

    @property
    def spilled_bytes(self) -> int:
        """Return how many bytes are in the spill."""
        return self._spill.written_bytes if self._spill is not None else 0

    def read(self, limit: Allowance, deadline_ns: int) -> None:
        """Read the core while its process is held.

        Raises:
            DoubtError: memory may differ from what the kernel would write.

        """
        self._reason = _read(self._source, self._pump, limit, deadline_ns)

    def store(self, threads: int, pace: Pace) -> KeptCore:
        """Store the core with `threads` compressing threads, at `pace`."""
        reason = self._reason
        self._sink.use_threads(threads)
        try:
            self._pump.finish(pace)
        except StopError as e:
            reason = reason_of(e)
        core = self._sink.finish()
        kept = KeptCore(
            build_id=elfcore.parse_build_id(self._sink.spied()) or self.build_id,
            expected_bytes=self._source.expected_bytes,
            spilled_bytes=self.spilled_bytes,
            reason=reason or self._sink.trouble,
            doubt=self._source.doubt,
        )
        if core.size_bytes == 0:  # nothing could be written
            self._entry.drop_partial()
            return kept
        return replace(kept, core=core, engine=self._engine)

    def close(self) -> None:
        """Free the buffer and the spill, and close the file."""
        self._pump.guard.end()
        self._pump.abandon()
        if self._spill is not None:
            self._spill.close()
        self._sink.close()


def _make_spill(entry: Entry, options: Options, grant: Grant) -> Spill | None:
    if not grant.spill_bytes:
        return None
    try:
        fd = entry.create_spill()
    except OSError:
        return None  # a file system without O_TMPFILE: the reader waits for the compressor
    least = options.keep_free_bytes + options.leave_bytes + grant.spill_leaves_bytes
    return Spill(fd, most_bytes=grant.spill_bytes, least_free_bytes=least)


def hold_core(
    source: CoreSource,
    entry: Entry,
    limit: Allowance,
    grant: Grant,
    deadline_ns: int,
    pace: Pace | None = None,
) -> HeldCore | KeptCore:
    """Read the core while its process is held; return a KeptCore without a core if there is no
    room for any of it.

    Tries memory first if it can be read; in doubt, reads the stream, of which only the head was
    read.
    """
    while True:
        try:
            held = HeldCore(source, entry, limit, grant, pace)
        except (StopError, OSError) as e:
            entry.drop_partial()
            return KeptCore(
                reason=reason_of(e), doubt=source.doubt, no_room=isinstance(e, StopError)
            )
        try:
            held.read(limit, deadline_ns)
        except DoubtError as e:  # only memory raises it: the second round reads the stream
            held.close()
            source.give_up(reason_of(e))
        except BaseException:
            held.close()
            raise
        else:
            return held


def _read(source: CoreSource, pump: Pump, limit: Allowance, deadline_ns: int) -> str | None:
    """Read the core into the pump; return why it is not whole, None when it is.

    Raises:
        DoubtError: memory may differ from what the kernel would write.

    """
    try:
        if source.mini is not None and source.memory is None:
            _select(source, source.mini, pump, deadline_ns)
            return None
        if source.whole:
            pump.put_bytes(source.raw)
            return LATE if source.late else None
        if source.memory is None or source.head is None:
            engines.drain(source.incoming, source.raw, pump, deadline_ns)
            return None
        return copy_memory(source, source.memory, source.head, pump, limit, deadline_ns)
    except engines.ShortError as e:
        return LATE if source.late else reason_of(e)
    except StopError as e:
        return reason_of(e)
    except DeadlineError:
        return LATE


def copy_memory(
    source: CoreSource,
    memory: ProcessMemory,
    head: elfcore.CoreHead,
    pump: Pump,
    limit: Allowance,
    deadline_ns: int,
) -> str | None:
    """Copy the core from memory; return why it is not whole, None when it is.

    If the core is larger than the limit, the stacks are kept, wherever they are, then the data that
    comes first; the rest becomes holes.

    Raises:
        DoubtError: drain the stream.
        StopError: a limit was reached, or writing to the disk fails.
        DeadlineError: copying took too long.

    """
    start, extents, trailer = source.raw, source.extents, elfcore.build_trailer(head)
    if source.mini is not None:
        start, extents, trailer = source.mini.head, _mini_extents(source, source.mini), b""
    resident = memory.resident(memorymap.scan_ranges(extents))
    pieces = memorymap.pieces(extents, resident, len(start), _PIECE_MAX)
    stacks = _read_stacks(source, memory)
    around = len(start) + len(trailer) + (head.expected_size >> HOLE_COST_SHIFT)
    spared = _spare(source, pieces, around, limit.size_bytes)
    try:
        blanks = engines.copy(
            memory,
            start,
            spared,
            pump,
            deadline_ns,
            source.options.page_timeout_ns,
            source.reader,
        )
        pump.put_bytes(trailer)
    except OSError as e:
        raise DoubtError(f"reading the memory failed: {reason_of(e)}") from e
    except GoneError as e:
        if pump.size_bytes == len(start) and not stacks:
            raise DoubtError("the process was killed before its memory was read") from e
        _put_stacks(stacks, pump, head.expected_size)
        return "the process was killed while its core was taken"
    return limit.reason if spared.cut else blanks.reason()


def _read_stacks(source: CoreSource, memory: ProcessMemory) -> list[tuple[int, bytes]]:
    """Return the stacks, with their offsets in the core, if reading all memory takes long: the
    process may be killed meanwhile.
    """
    if source.mini is not None or source.estimate_bytes < LONG_BYTES:
        return []
    plan = source.plan_mini(STACKS_BYTES)
    kept = plan.kept if plan is not None else ()
    stacks = [(k.source, source.read_memory(memory, k.address, k.size)) for k in kept]
    return stacks if memory.held() else []


def _put_stacks(stacks: list[tuple[int, bytes]], pump: Pump, end: int) -> None:
    """Put in the stacks that were not put in yet, in their places, and zeros up to the end.

    Raises:
        StopError: a limit was reached, or writing to the disk fails.

    """
    for offset, data in sorted(stacks):
        rest = data[max(0, pump.size_bytes - offset) :]
        if rest:
            pump.hole(offset + len(data) - len(rest) - pump.size_bytes)
            pump.put_bytes(rest)
    if end > pump.size_bytes:
        pump.hole(end - pump.size_bytes)


def _spare(
    source: CoreSource, pieces: Iterator[memorymap.Piece], around_bytes: int, limit_bytes: int
) -> memorymap.Spared:
    """Return the pieces that the limit allows, with the stacks always kept.

    `around_bytes` counts toward the limit in addition to the pieces' data.
    """
    room = max(0, limit_bytes - around_bytes)
    kept: list[tuple[int, int]] = []
    if source.mini is None and source.estimate_bytes + around_bytes > limit_bytes:
        plan = source.plan_mini(min(room, MINI_MAX))
        kept = [(k.source, k.source + k.size) for k in plan.kept] if plan is not None else []
    reserved = sum(end - start for start, end in kept)
    return memorymap.Spared(pieces, kept, max(0, room - reserved))


def _mini_extents(source: CoreSource, mini: MiniCore) -> list[Extent]:
    """Return, for each part of a mini core, the memory that backs it."""
    backing = {extent.offset: extent for extent in source.extents}
    return [
        Extent(
            kept.offset,
            kept.address,
            kept.size,
            backing[kept.segment.offset].backing,
            backing[kept.segment.offset].readable,
            backing[kept.segment.offset].behind,
        )
        for kept in mini.kept
    ]


def _select(source: CoreSource, mini: MiniCore, pump: Pump, deadline_ns: int) -> None:
    """Take a mini core from the stream, reading no further than necessary."""
    wanted = [(kept.source, kept.offset, kept.size) for kept in mini.kept]
    engines.drain_selected(source.incoming, source.raw, mini.head, wanted, pump, deadline_ns)


def _in_mini(mini: MiniCore, offset: int, size: int) -> tuple[int, int] | None:
    """Return the range in a mini core that holds `size` bytes at `offset` of the whole core, cut
    to the part that contains it; None if the mini core does not have it.
    """
    for kept in mini.kept:
        if kept.source <= offset < kept.source + kept.size:
            skipped = offset - kept.source
            return kept.offset + skipped, min(size, kept.size - skipped)
    return None
