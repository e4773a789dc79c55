"""/dev/kmsg: the kernel's own messages, as they come."""

import errno
import os

from crashd.domain.crash.losses import LogRecord, parse_record
from crashd.errors import UnavailableError, reason_of

DEVICE = "/dev/kmsg"
RECORD_MAX = 8192
"""Bytes; a shorter buffer is an error to the kernel (CONSOLE_EXT_LOG_MAX)."""


class Kmsg:
    """Owns the descriptor; a selector can wait for it."""

    def __init__(self, fd: int | None = None) -> None:
        """Open the log at its oldest record, or take a descriptor of it that somebody else opened.

        Raises:
            UnavailableError: there is none (a container), or it may not be read.

        """
        self.overrun = 0
        """How often records were gone before they were read."""
        if fd is not None:
            self._fd = fd
            return
        try:
            self._fd = os.open(DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            raise UnavailableError(f"cannot read {DEVICE}: {reason_of(e)}") from e

    def fileno(self) -> int:
        """Tell the descriptor, for a selector."""
        return self._fd

    def read(self, at_most: int) -> list[LogRecord]:
        """Read what is there, as far as `at_most` records; the kernel's own only."""
        found: list[LogRecord] = []
        for _ in range(at_most):
            try:
                raw = os.read(self._fd, RECORD_MAX)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno == errno.EPIPE:  # the next read goes on with the oldest there is
                    self.overrun += 1
                    continue
                if e.errno == errno.EINVAL:  # too long for anybody
                    continue
                raise
            record = parse_record(raw)
            if record is not None:
                found.append(record)
        return found

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
