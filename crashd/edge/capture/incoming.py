"""One core that is arriving, by any transport: the only type that the capture path takes.

A new transport costs one constructor here, not a second path.
"""

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence

from crashd.domain.crash.model import Engine, Mode
from crashd.edge.capture.kernelsock import shake_hands
from crashd.edge.capture.mappedfiles import open_mapped
from crashd.edge.capture.memory import ProcessMemory
from crashd.edge.capture.process import PidfdInfo, pidfd_info, pidfd_pid, read_snapshot
from crashd.edge.capture.successor import ReadOnce, Successor
from crashd.errors import FormatError

PIPE_BYTES = 1 << 20


class DeadlineError(Exception):
    """The core did not arrive in time."""


class IncomingCore:
    """Owns the source descriptor and the pidfd; `release` lets the crashed process exit.

    The kernel holds the process until the last copy of a pipe's read end is closed (KERNEL.md A3).
    So the process that passed the descriptor here must have closed its own copy by then.
    """

    def __init__(
        self,
        mode: Mode,
        source: int,
        pidfd: int | None,
        snapshot: Callable[[], Mapping[str, bytes]],
        engine: Engine = Engine.STREAM,
    ) -> None:
        self.mode = mode
        self.engine = engine
        """How the stream's bytes were read, or are."""
        self._source = source
        self._pidfd = pidfd
        self._snapshot = snapshot
        self.released_boottime_ns: int | None = None
        """CLOCK_BOOTTIME when the crashed process was released."""
        self.guard = Successor()
        """The copy of this process that reads the memory if this process is killed."""
        self._once: ReadOnce | None = None
        self._again = memoryview(b"")
        """Bytes that the killed process had read of the stream before its copy continued."""
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)

    @classmethod
    def from_pipe(cls, source: int, pidfd: int | None) -> "IncomingCore":
        """Take the pipe that the kernel writes into, and the pidfd of the crashed process."""
        with contextlib.suppress(OSError):  # over the user's limit: reads are just smaller
            fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(source, True)
        snapshot = (lambda: read_snapshot(pidfd)) if pidfd is not None else dict[str, bytes]
        return cls(Mode.PIPE, source, pidfd, snapshot)

    @classmethod
    def from_socket(cls, source: int, pidfd: int) -> "IncomingCore":
        """Take the socket on which the kernel offers a core, and its peer's pidfd."""
        return cls(Mode.SOCKET, source, pidfd, lambda: read_snapshot(pidfd))

    @classmethod
    def from_spool(
        cls, source: int, snapshot: Callable[[], Mapping[str, bytes]], engine: Engine
    ) -> "IncomingCore":
        """Take a core that the handler spooled, which it read by `engine`; its process is gone."""
        return cls(Mode.SPOOL, source, None, snapshot, engine)

    def spooled_bytes(self) -> int | None:
        """Return a spooled core's size on disk without its holes; None for any other core."""
        if self.mode is not Mode.SPOOL or self._source < 0:
            return None
        return os.fstat(self._source).st_blocks * 512

    def accept(self) -> None:
        """Ask for the core, if the kernel waits for an answer.

        Raises:
            FormatError: the handshake failed.

        """
        if self.mode is Mode.SOCKET:
            shake_hands(self._source, reject=False)

    def refuse(self) -> None:
        """Release the process without taking its core."""
        if self.mode is Mode.SOCKET and self._source >= 0:
            with contextlib.suppress(FormatError):  # the process is released in any case
                shake_hands(self._source, reject=True)
        self.release()

    def snapshot(self) -> Mapping[str, bytes]:
        """Read what /proc says (or said, in the spool). May block, see `read_snapshot`."""
        return self._snapshot()

    def pid(self) -> int | None:
        """Return the pidfd's process; None without a pidfd, or once the process is reaped."""
        return None if self._pidfd is None else pidfd_pid(self._pidfd)

    def identity(self) -> PidfdInfo | None:
        """Return the process's identity from the kernel; None if the kernel does not report it."""
        return None if self._pidfd is None else pidfd_info(self._pidfd)

    def distrust(self) -> None:
        """Close the pidfd, because it may not belong to the process of this core."""
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._pidfd = None

    def memory(self) -> ProcessMemory | None:
        """Open the memory of the held process; the caller owns it. None without a pidfd.

        Raises:
            GoneError: the process is not (or no longer) held in its coredump.
            OSError: /proc refuses it.

        """
        return None if self._pidfd is None else ProcessMemory(self._pidfd)

    def open_mapped(self, places: Sequence[str]) -> list[int | None]:
        """Open files that the held process has mapped, see `mappedfiles.open_mapped`."""
        return [] if self._pidfd is None else open_mapped(self._pidfd, places)

    def read_into(self, view: memoryview, deadline_ns: int) -> int:
        """Read the next bytes of the core; 0 at its end, and after `release`.

        Raises:
            DeadlineError: nothing came before `deadline_ns` (CLOCK_MONOTONIC).

        """
        if self._source < 0:
            return 0
        if self._again:
            got = min(len(view), len(self._again))
            view[:got], self._again = self._again[:got], self._again[got:]
            return got
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns <= 0 or not self._poll.poll(remaining_ns // 10**6 + 1):
            raise DeadlineError
        if self._once is None:
            return os.readv(self._source, [view])
        if len(view) <= self._once.room:
            return self._once.read(self._source, view)
        self.end_guard()  # more than a copy can be told
        return os.readv(self._source, [view])

    def begin_guard(self) -> bool:
        """Fork a copy of this process that holds the crashed process, too. Return False here; True
        in the copy, once this process has been killed.
        """
        self._once = ReadOnce()
        if not self.guard.begin():
            return False
        self._again, self._once = memoryview(self._once.bytes()), None
        return True

    def end_guard(self) -> None:
        """End the copy: from here on the stream is read, which it could not read again."""
        self.guard.end()
        self._once = None

    def skip_hole(self) -> int:
        """Skip a hole that begins here in a spooled core; return its bytes, 0 if there is none."""
        if self.mode is not Mode.SPOOL or self._source < 0:
            return 0
        at = os.lseek(self._source, 0, os.SEEK_CUR)
        try:
            data = os.lseek(self._source, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno != errno.ENXIO:  # no data from here to the end
                raise
            data = os.lseek(self._source, 0, os.SEEK_END)
        return max(0, data - at)

    def release(self) -> None:
        """Close the source, which releases the crashed process. Later calls do nothing."""
        if self._source < 0:
            return
        self.end_guard()
        self.released_boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for fd in (self._source, self._pidfd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._source, self._pidfd = -1, None
