"""The taking of one core: by which engine, through how large a buffer, and back to the stream where
memory is in doubt.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from crashd.daemon.capture import engines
from crashd.daemon.capture.pump import HOLE_COST_SHIFT, Pump, StopError
from crashd.daemon.capture.sink import CoreSink
from crashd.daemon.capture.timedread import Reader, StuckError
from crashd.domain.crash.model import Core, Engine
from crashd.domain.crash.procfs import parse_status
from crashd.domain.crash.record import Allowance
from crashd.domain.crash.scrub import EnvironMode
from crashd.domain.elf import elfcore, memorymap
from crashd.domain.elf.memorymap import Backing, DoubtError, Extent
from crashd.domain.elf.minicore import MINI_MAX, MiniCore, plan_mini
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.memory import GoneError, ProcessMemory, huge_devices, shmem_devices
from crashd.errors import reason_of
from crashd.store.entry import Entry

LATE = "the core did not arrive before capture.deadline"
SMALL_BYTES = 1 << 20
"""Up to here the stream brings a core sooner (13 ms against 17 for a `sleep`) than its memory is
looked up; a pipe's buffer holds it whole.
"""
_PIECE_MAX = 1 << 20
_SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of a capture; travels to the workers as JSON."""

    engine: str
    """`auto`, `memory` or `stream`."""
    max_core: int | None
    honour_rlimit: bool
    keep_free_bytes: int
    level: int
    threads: int
    deadline_ns: int
    page_timeout_ns: int
    environ: EnvironMode
    patterns: tuple[str, ...]
    credit_bytes: int = 0
    """Of `keep_free_bytes`, for a moment: what is being made up for."""
    leave_bytes: int = 0
    """More than `keep_free_bytes`, for the crashes of other users."""

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Options":
        """Parse what `to_json` made."""
        values = {item.name: document[item.name] for item in fields(cls)}
        values["patterns"] = tuple(values["patterns"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of a core."""

    core: Core = field(default_factory=Core)
    engine: Engine = Engine.NONE
    build_id: str | None = None
    expected_bytes: int | None = None
    """Bytes that it has when it is whole; None where its head does not tell."""
    reason: str | None = None
    """Why it is not whole; None when it was read to its end."""
    doubt: str | None = None
    """Why memory was not read, where it was to be."""
    no_room: bool = False
    """Whether there was no space for a core to begin with."""


class Source:
    """A core to be taken: its stream, its head, and its process's memory where that can be read.
    Owns the memory's descriptors.
    """

    def __init__(
        self,
        incoming: IncomingCore,
        raw: bytes,
        head: elfcore.CoreHead | None,
        options: Options,
        reader: Reader,
    ) -> None:
        self.incoming = incoming
        self.raw = raw
        self.head = head
        self.options = options
        self.doubt: str | None = None
        """Why memory is not read, where it was to be."""
        self.whole = self.late = False
        """Whether `raw` is the whole core, or all that came of it in time."""
        self.extents: list[Extent] = []
        self.estimate_bytes = 0
        """Of what is to be read of the memory, from above."""
        self._shared_bytes: dict[int, int | None] = {}
        """What the file behind each shared extent has, by its place in the core."""
        self.mini: MiniCore | None = None
        """What is taken instead of the whole."""
        self.memory: ProcessMemory | None = None
        self.reader = reader

    def swallow(self, deadline_ns: int) -> None:
        """Read a small core whole, and let its process go: sooner done than anything is decided.

        What is longer than its head says stays in the stream.
        """
        if (
            self.head is None
            or self.head.expected_size > SMALL_BYTES
            or self.options.engine == "memory"
        ):
            return
        room = bytearray(SMALL_BYTES + 1)
        held = len(self.raw)
        room[:held] = self.raw
        try:
            with memoryview(room) as view:
                while held <= SMALL_BYTES:
                    got = self.incoming.read_into(view[held:], deadline_ns)
                    if not got:
                        self.whole = True
                        break
                    held += got
        except DeadlineError:
            self.whole, self.late = True, True
        self.raw = bytes(room[:held])
        if self.whole:
            self.release()

    def open_memory(self, mountinfo: bytes) -> None:
        """Plan to read the memory; `doubt` says why not, where it cannot be."""
        if self.head is None or self.whole or self.options.engine == "stream":
            return
        try:
            self.memory = self.incoming.memory()
            if self.memory is not None:
                self.extents = memorymap.plan_extents(
                    self.head, self.memory.maps(), huge_devices(mountinfo), shmem_devices(mountinfo)
                )
                self._look_behind(self.memory)
        except (DoubtError, OSError, GoneError) as e:
            self.give_up(reason_of(e))

    def _look_behind(self, memory: ProcessMemory) -> None:
        """Estimate what files behind shared memory have.

        Raises:
            DoubtError: a program brings its pages when it likes.

        """
        sizes = {e.offset: memory.shared_bytes(e.behind) for e in self.extents if e.behind}
        if sizes and memory.faults_to_a_program(missing=None in sizes.values()):
            raise DoubtError("userfaultfd brings pages of shared memory")
        self._shared_bytes = sizes

    def give_up(self, why: str) -> None:
        """Do without the memory."""
        self.doubt = why
        self.extents = []
        self._close_memory()

    def wanted_bytes(self, status: bytes) -> int:
        """Estimate what is to be read, from above; `status` is that of /proc/PID."""
        if self.head is None or self.whole:
            return 0
        if self.memory is None:
            spooled = self.incoming.spooled_bytes()
            return self.head.expected_size if spooled is None else spooled
        known = parse_status(status)
        resident = (known.vm_rss_bytes or 0) + (known.vm_swap_bytes or 0)
        backed = sum(self._most_of(e) for e in self.extents)
        self.estimate_bytes = min(self.head.expected_size, resident + backed) + _SLACK_BYTES
        return self.estimate_bytes

    def _most_of(self, extent: Extent) -> int:
        """Return how much there may be of an extent besides what is counted as resident."""
        if extent.backing is Backing.ANONYMOUS:
            return 0
        known = self._shared_bytes.get(extent.offset)
        return extent.size if known is None else min(extent.size, known)

    def make_mini(self) -> None:
        """Take no more than a mini core, where the head lets one be made."""
        self.mini = self.plan_mini(MINI_MAX)

    def plan_mini(self, memory_max: int) -> MiniCore | None:
        """Plan a mini core; None where the head does not let one be made."""
        if self.head is None or not self.head.notes:
            return None
        memory = self.memory
        read = (lambda at, size: self._read(memory, at, size)) if memory is not None else None
        return plan_mini(self.head, self.raw, read, memory_max)

    @property
    def expected_bytes(self) -> int | None:
        """Bytes of the core that is taken, when it is whole; None where the head does not tell."""
        if self.mini is not None:
            return self.mini.size
        return self.head.expected_size if self.head is not None else None

    def build_id(self) -> str | None:
        """Read the executable's build-id, before anything else of the memory is."""
        wanted = elfcore.executable_range(self.head) if self.head is not None else None
        if wanted is None:
            return None
        offset, size = wanted
        image = self.raw[offset : offset + size]
        extent = next((e for e in self.extents if 0 <= offset - e.offset < e.size), None)
        if not image and extent is not None and self.memory is not None:
            image = self._read(self.memory, extent.address + offset - extent.offset, size)
        return elfcore.parse_build_id(image)

    def _read(self, memory: ProcessMemory, address: int, size: int) -> bytes:
        buffer, got = bytearray(size), [0]

        def task() -> None:
            got[0] = memory.read([(address, size)], memoryview(buffer))

        with contextlib.suppress(GoneError, StuckError):
            self.reader.do(task, self.options.page_timeout_ns / 1e9)
        return bytes(buffer[: got[0]])

    def release(self) -> None:
        """Let the process go. Only the first call does anything."""
        self.incoming.release()
        self._close_memory()

    def _close_memory(self) -> None:
        memory, self.memory = self.memory, None
        if memory is not None and not self.reader.stuck:  # a read that hangs still has them
            memory.close()


def take(
    source: Source, entry: Entry, limit: Allowance, buffer_bytes: int, deadline_ns: int
) -> Taken:
    """Take the core into its entry, and let the process go as soon as all is read.

    Memory first, where it can be; in doubt the stream, of which nothing but the head was read.
    """
    if source.memory is not None:
        try:
            return _take(source, entry, limit, buffer_bytes, deadline_ns)
        except DoubtError as e:
            source.give_up(reason_of(e))
    return _take(source, entry, limit, buffer_bytes, deadline_ns)


def _take(
    source: Source, entry: Entry, limit: Allowance, buffer_bytes: int, deadline_ns: int
) -> Taken:
    options = source.options
    wanted = elfcore.executable_range(source.head) if source.head is not None else None
    if source.mini is not None and wanted is not None:
        wanted = _in_mini(source.mini, *wanted)
    engine = Engine.STREAM if source.memory is None else Engine.MEMORY
    try:
        sink = CoreSink(
            entry,
            level=options.level,
            threads=options.threads,
            keep_free_bytes=options.keep_free_bytes,
            credit_bytes=options.credit_bytes,
            leave_bytes=options.leave_bytes,
            wanted=wanted,
        )
    except (StopError, OSError) as e:
        entry.drop_partial()
        return Taken(reason=reason_of(e), doubt=source.doubt, no_room=isinstance(e, StopError))
    try:
        pump = Pump(sink, buffer_bytes, limit.size_bytes, limit.reason)
        reason = _read(source, pump, limit, deadline_ns)
        source.release()
        try:
            pump.finish()
        except StopError as e:
            reason = reason_of(e)
        core = sink.finish()
    finally:
        sink.close()
    build_id, reason = elfcore.parse_build_id(sink.spied()), reason or sink.trouble
    if core.size_bytes == 0:  # the disk took nothing of it
        entry.drop_partial()
        return Taken(build_id=build_id, reason=reason, doubt=source.doubt)
    return Taken(core, engine, build_id, reason=reason, doubt=source.doubt)


def _read(source: Source, pump: Pump, limit: Allowance, deadline_ns: int) -> str | None:
    """Read the core into the pump; return why it is not whole, None when it is.

    Raises:
        DoubtError: the memory is not surely what the kernel would write.

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
    source: Source,
    memory: ProcessMemory,
    head: elfcore.CoreHead,
    pump: Pump,
    limit: Allowance,
    deadline_ns: int,
) -> str | None:
    """Copy the core from memory; return why it is not whole, None when it is.

    Of one that is larger than the limit the stacks are kept, wherever they are, then what comes
    first; the rest are holes.

    Raises:
        DoubtError: drain the stream.
        StopError: a limit was met or the disk refuses.
        DeadlineError: it took too long.

    """
    start, extents, trailer = source.raw, source.extents, elfcore.build_trailer(head)
    if source.mini is not None:
        start, extents, trailer = source.mini.head, _mini_extents(source, source.mini), b""
    resident = memory.resident(memorymap.scan_ranges(extents))
    pieces = memorymap.pieces(extents, resident, len(start), _PIECE_MAX)
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
        if pump.size_bytes == len(start):
            raise DoubtError("the process was killed before its memory was read") from e
        return "the process was killed while its core was taken"
    return limit.reason if spared.cut else blanks.reason()


def _spare(
    source: Source, pieces: Iterator[memorymap.Piece], around_bytes: int, limit_bytes: int
) -> memorymap.Spared:
    """Leave out what the limit does not allow, but not the stacks.

    `around_bytes` is what counts besides the pieces' data.
    """
    room = max(0, limit_bytes - around_bytes)
    kept: list[tuple[int, int]] = []
    if source.mini is None and source.estimate_bytes + around_bytes > limit_bytes:
        plan = source.plan_mini(min(room, MINI_MAX))
        kept = [(k.source, k.source + k.size) for k in plan.kept] if plan is not None else []
    reserved = sum(end - start for start, end in kept)
    return memorymap.Spared(pieces, kept, max(0, room - reserved))


def _mini_extents(source: Source, mini: MiniCore) -> list[Extent]:
    """Tell for each part of a mini core what is behind it in memory."""
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


def _select(source: Source, mini: MiniCore, pump: Pump, deadline_ns: int) -> None:
    """Take a mini core from the stream, which is read no further than it must."""
    wanted = [(kept.source, kept.offset, kept.size) for kept in mini.kept]
    engines.drain_selected(source.incoming, source.raw, mini.head, wanted, pump, deadline_ns)


def _in_mini(mini: MiniCore, offset: int, size: int) -> tuple[int, int] | None:
    """Find where a mini core has what is at `offset` of the whole one."""
    for kept in mini.kept:
        if kept.source <= offset < kept.source + kept.size:
            skipped = offset - kept.source
            return kept.offset + skipped, min(size, kept.size - skipped)
    return None
