"""A core to be read: its stream, its head, and its process's memory."""

import contextlib
import functools
import mmap

from crashd.daemon.capture.options import Options
from crashd.daemon.capture.timedread import Reader, StuckError
from crashd.domain.crash.procfs import parse_status
from crashd.domain.elf import elfcore, memorymap
from crashd.domain.elf.memorymap import Backing, DoubtError, Extent
from crashd.domain.elf.minicore import MINI_MAX, MiniCore, plan_mini
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.memory import GoneError, ProcessMemory, huge_devices, shmem_devices
from crashd.errors import reason_of

LATE = "the core did not arrive before capture.deadline"
SMALL_BYTES = 1 << 20
"""Up to this size, draining the stream is faster (13 ms against 17 for a `sleep`) than looking up
the memory, and a pipe's buffer holds the whole core.
"""
_SLACK_BYTES = 1 << 20


@functools.cache
def small_room() -> memoryview:
    """Return the room for a small core, which a worker keeps: to fault it in again, while a process
    is held, takes 1 to 3 ms for a core of 400 KiB.
    """
    return memoryview(mmap.mmap(-1, SMALL_BYTES + 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class CoreSource:
    """A core to be read: its stream, its head, and its process's memory if that is readable.
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
        """Why memory is not read although it should have been."""
        self.whole = self.late = False
        """Whether `raw` is the whole core; or, if also `late`, all of it that arrived in time."""
        self.extents: list[Extent] = []
        self.estimate_bytes = 0
        """Upper estimate of the memory to read."""
        self._shared_bytes: dict[int, int | None] = {}
        """Bytes in the file that backs each shared extent, keyed by its offset in the core."""
        self.mini: MiniCore | None = None
        """The mini core to take instead of the whole."""
        self.memory: ProcessMemory | None = None
        self.reader = reader

    def swallow(self, deadline_ns: int) -> None:
        """Read a small core whole, and release its process; that takes less time than a decision.

        If a core is longer than its head says, the rest stays in the stream.
        """
        if (
            self.head is None
            or self.head.expected_size > SMALL_BYTES
            or self.options.engine == "memory"
        ):
            return
        self.incoming.end_guard()
        room = small_room()
        held = len(self.raw)
        room[:held] = self.raw
        try:
            while held <= SMALL_BYTES:
                got = self.incoming.read_into(room[held:], deadline_ns)
                if not got:
                    self.whole = True
                    break
                held += got
        except DeadlineError:
            self.whole, self.late = True, True
        if self.whole:
            self.release()
        self.raw = room[:held].tobytes()

    def open_memory(self, mountinfo: bytes) -> None:
        """Plan to read the memory; if that is impossible, `doubt` says why."""
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
        """Record how many bytes the files that back shared memory have.

        Raises:
            DoubtError: a program supplies its pages, and may do so late or never.

        """
        sizes = {e.offset: memory.shared_bytes(e.behind) for e in self.extents if e.behind}
        if sizes and memory.faults_to_a_program(missing=None in sizes.values()):
            raise DoubtError("userfaultfd brings pages of shared memory")
        self._shared_bytes = sizes

    def give_up(self, why: str) -> None:
        """Give up reading memory, for the reason `why`."""
        self.incoming.end_guard()
        self.doubt = why
        self.extents = []
        self._close_memory()

    def wanted_bytes(self, status: bytes) -> int:
        """Return an upper estimate of the bytes to read; `status` is that of /proc/PID."""
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
        """Return the most that an extent may have beyond what counts as resident."""
        if extent.backing is Backing.ANONYMOUS:
            return 0
        known = self._shared_bytes.get(extent.offset)
        return extent.size if known is None else min(extent.size, known)

    def make_mini(self) -> None:
        """Take only a mini core, if the head allows one."""
        self.mini = self.plan_mini(MINI_MAX)

    def plan_mini(self, memory_max: int) -> MiniCore | None:
        """Return the plan of a mini core; None if the head does not allow one, for example because
        the notes follow the memory (gcore).
        """
        if self.head is None or not self.head.notes:
            return None
        if any(offset + size > len(self.raw) for offset, size in self.head.notes):
            return None
        memory = self.memory
        read = (lambda at, size: self.read_memory(memory, at, size)) if memory is not None else None
        return plan_mini(self.head, self.raw, read, memory_max)

    @property
    def expected_bytes(self) -> int | None:
        """Return the size that the core to take has if it is whole; None without a usable head."""
        if self.mini is not None:
            return self.mini.size
        return self.head.expected_size if self.head is not None else None

    def build_id(self) -> str | None:
        """Return the executable's build-id; it is read before any other memory."""
        wanted = elfcore.executable_range(self.head) if self.head is not None else None
        if wanted is None:
            return None
        offset, size = wanted
        image = self.raw[offset : offset + size]
        extent = next((e for e in self.extents if 0 <= offset - e.offset < e.size), None)
        if not image and extent is not None and self.memory is not None:
            image = self.read_memory(self.memory, extent.address + offset - extent.offset, size)
        return elfcore.parse_build_id(image)

    def read_memory(self, memory: ProcessMemory, address: int, size: int) -> bytes:
        """Read a range of memory; return the part that could be read before the page timeout."""
        buffer, got = bytearray(size), [0]

        def task() -> None:
            got[0] = memory.read([(address, size)], memoryview(buffer))

        with contextlib.suppress(GoneError, StuckError):
            self.reader.do(task, self.options.page_timeout_ns / 1e9)
        return bytes(buffer[: got[0]])

    def release(self) -> None:
        """Release the process. Only the first call has an effect."""
        self.incoming.release()
        self._close_memory()

    def _close_memory(self) -> None:
        memory, self.memory = self.memory, None
        if memory is not None and not self.reader.stuck:  # a stuck read still uses them
            memory.close()
