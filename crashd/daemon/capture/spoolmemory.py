"""Read the memory of a crashed process into the spool. The handler starts this program when no
daemon answers and the core is large.

    crashd-core ─ fork, exec ─▶ python -I -m crashd.daemon.capture.spoolmemory USER ENTRY …
                ◀─ stdout: "RECEIVED REASON", exit status 0; any other: drain the stream

The handler holds the process meanwhile; it has read only the head of the stream and the bytes right
after it. This program writes into the same file as the handler, with the same limits
(corehandler.SparseCore). An alarm that the handler has set ends it.
"""

import os
import sys
import time
from collections.abc import Sequence

from crashd.corehandler import MEMORY_SECONDS, Share, SparseCore
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pump import Pump, StopError
from crashd.daemon.capture.source import LATE, CoreSource
from crashd.daemon.capture.store_core import copy_memory
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash.model import Disposition
from crashd.domain.crash.record import Allowance
from crashd.domain.elf import elfcore
from crashd.domain.elf.memorymap import DoubtError
from crashd.edge.capture.incoming import DeadlineError, IncomingCore
from crashd.edge.capture.process import read_proc_files
from crashd.errors import FormatError, reason_of

BUFFER_BYTES = 32 << 20
"""Small, because nothing limits the memory of this process; the file is written as fast as the
memory is read.
"""
_CHUNK_BYTES = 1 << 20
_PAGE_TIMEOUT_NS = 5 * 10**9
_MARGIN_NS = 10 * 10**9
"""Time between our own deadline and the alarm."""
_ALL = (1 << 63) - 1
_OPTIONS = Options(
    engine="memory",
    max_core=None,
    honour_rlimit=False,
    keep_free_bytes=0,
    level=1,
    threads=0,
    deadline_ns=MEMORY_SECONDS * 10**9 - _MARGIN_NS,
    page_timeout_ns=_PAGE_TIMEOUT_NS,
    environ="drop",
    patterns=(),
)


class SpoolSink:
    """Puts a core's bytes into the handler's file, and checks the disk for each piece."""

    def __init__(self, core: SparseCore) -> None:
        self._core = core

    def write(self, data: memoryview) -> None:
        """Put bytes.

        Raises:
            StopError: a limit is reached, or the disk is full.

        """
        for at in range(0, len(data), _CHUNK_BYTES):
            self._core.put(bytes(data[at : at + _CHUNK_BYTES]))
            if self._core.reason:
                raise StopError(self._core.reason)

    def hole(self, size: int) -> None:
        """Put zeros, which take no space."""
        self._core.received += size

    @property
    def resident_bytes(self) -> int:
        """Return how many bytes are not zeros."""
        return self._core.kept


def read_head(core: int) -> tuple[bytes, elfcore.CoreHead]:
    """Read headers and notes from the part of the core that the handler has so far.

    Raises:
        DoubtError: the file is not a core, or its head is incomplete.

    """
    raw, needed = b"", 1
    try:
        while len(raw) < needed:
            part = os.pread(core, needed - len(raw), len(raw))
            if not part:
                raise DoubtError(f"the head of the core has more than {len(raw)} bytes")
            raw += part
            if len(raw) == needed:
                needed = elfcore.head_size(raw)
        return raw, elfcore.parse_head(raw)
    except FormatError as e:
        raise DoubtError(str(e)) from e


def copy_process(core: SparseCore, pidfd: int) -> str:
    """Read the memory of a held process into its core; return why the core is not whole, "" when it
    is.

    Raises:
        DoubtError: drain the stream.

    """
    deadline_ns = time.monotonic_ns() + _OPTIONS.deadline_ns
    raw, head = read_head(core.out)
    facts = read_proc_files(pidfd, ("status", "mountinfo"))
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    incoming = IncomingCore.from_pipe(nothing, pidfd)
    source = CoreSource(incoming, raw, head, _OPTIONS, Reader())
    source.open_memory(facts.get("mountinfo", b""))
    if source.memory is None:
        raise DoubtError(source.doubt or "the process is gone")
    source.wanted_bytes(facts.get("status", b""))
    pump = Pump(SpoolSink(core), BUFFER_BYTES, core.maximum, "size limit")
    limit = Allowance(core.maximum, Disposition.FULL, "size limit")
    try:
        reason = copy_memory(source, source.memory, head, pump, limit, deadline_ns)
        pump.finish()
    except StopError as e:
        reason = reason_of(e)
    except DeadlineError:
        reason = LATE
    return reason or ""


def main(argv: Sequence[str]) -> int:
    """Copy the memory of one process; print the result for the handler."""
    user, entry, spool, pidfd, maximum, keep_free = argv[1], *map(int, argv[2:7])
    out = os.open("core", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry)
    core = SparseCore(out, maximum, Share(spool, user, keep_free))
    try:
        reason = copy_process(core, pidfd)
    except (DoubtError, OSError) as e:
        print(reason_of(e), file=sys.stderr)  # for tests: the handler gives us /dev/null
        return 3
    print(f"{core.received} {reason}", end="", flush=True)
    os._exit(0)  # without waiting for the threads of stuck reads


if __name__ == "__main__":
    sys.exit(main(sys.argv))
