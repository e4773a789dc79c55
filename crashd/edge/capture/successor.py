"""A copy of a worker that continues its capture if the worker is killed.

What a worker has read of a core, only that worker has: the memory of the process is gone once the
process is released, and its stream cannot be read twice. So the worker forks a copy, which waits.
The two share their pages (fork(2), copy on write): a copy costs page tables, not memory.

    worker ──begin()──▶ reads, or stores … ──end()──▶
       └── fork ──▶ copy: waits ─── the worker was killed ──▶ continues behind begin()
                              └──── end() ──▶ ends

If memory is short, the kernel kills worker and copy alike, and the crash keeps what is on disk.
"""

import contextlib
import mmap
import os
from collections.abc import Callable

HELD_BYTES = 16 << 20
"""Less memory is read in some ten milliseconds, and would be held longer by the fork."""
RAW_BYTES = 1 << 20
"""A smaller core is stored in a few milliseconds."""
HEAD_BYTES = 4 << 20
"""How much of a stream a copy can be told: headers and notes."""
_PATTERN_BYTES = 4096
_COUNTS_BYTES = 16


class Successor:
    """The copy of this process for one stage of a capture; `end` must be called."""

    def __init__(self) -> None:
        self._alive_fd = -1

    @property
    def is_there(self) -> bool:
        """Return whether there is a copy."""
        return self._alive_fd >= 0

    def begin(self, let_go: Callable[[], object] = lambda: None) -> bool:
        """Fork the copy. Return False here; True in the copy, once this process has been killed.

        The copy calls `let_go` first, to close what it does not need. Threads are not copied.
        """
        watched_fd, alive_fd = os.pipe()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: the capture continues without a copy
            os.close(watched_fd)
            os.close(alive_fd)
            return False
        if pid:
            os.close(watched_fd)
            self._alive_fd = alive_fd
            return False
        os.close(alive_fd)
        let_go()
        if os.read(watched_fd, 1):
            os._exit(0)
        os.close(watched_fd)
        return True

    def end(self) -> None:
        """End the copy, which is not needed any more. Only the first call has an effect."""
        alive_fd, self._alive_fd = self._alive_fd, -1
        if alive_fd >= 0:
            with contextlib.suppress(BrokenPipeError):  # the copy was killed
                os.write(alive_fd, b".")
            os.close(alive_fd)


class ReadOnce:
    """The first bytes of a stream, in memory that a copy of this process shares: what one of the
    two has read, the other cannot read a second time.

    A process may be killed between a read and noting its size. So the memory has a random pattern
    before each read, and the copy sees how far it has been overwritten.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, HEAD_BYTES)
        self._counts = memoryview(self._memory)[:_COUNTS_BYTES].cast("Q")
        """How many bytes were read; and where the pattern ends behind them."""
        self._bytes = memoryview(self._memory)[_COUNTS_BYTES:]
        self._pattern = os.urandom(_PATTERN_BYTES)

    @property
    def room(self) -> int:
        """Return how many more bytes fit."""
        return len(self._bytes) - self._counts[0]

    def read(self, fd: int, view: memoryview) -> int:
        """Read from `fd` into `view`, at most `room` bytes; return how many."""
        start = self._counts[0]
        target = self._bytes[start : start + len(view)]
        size = len(target)
        target[:] = (self._pattern * (size // _PATTERN_BYTES + 1))[:size]
        self._counts[1] = start + size
        got = os.readv(fd, [target])
        view[:got] = target[:got]
        self._counts[0] = start + got
        return got

    def bytes(self) -> bytes:
        """Return all that was read, also by a read whose process was killed before it returned."""
        start, end = self._counts
        while (
            end > start
            and self._bytes[end - 1] == self._pattern[(end - 1 - start) % _PATTERN_BYTES]
        ):
            end -= 1
        return bytes(self._bytes[: max(start, end)])
