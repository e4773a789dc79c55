"""Reads /dev/kmsg: the kernel's messages, as they come."""

import errno
import os

from crashd.domain.crash.losses import LogRecord, parse_record
from crashd.errors import UnavailableError, reason_of

DEVICE = "/dev/kmsg"
RECORD_MAX = 8192
"""Bytes; the kernel refuses a shorter buffer (CONSOLE_EXT_LOG_MAX)."""


class Kmsg:
    """Owns the descriptor; a selector can wait for it."""

    def __init__(self, fd: int | None = None) -> None:
        """Open the log at its oldest record, or use the given descriptor.

        Raises:
            UnavailableError: the device does not exist (a container), or may not be read.
        """
        self.overrun = 0
        """How often records were overwritten before they were read."""
        if fd is not None:
            self._fd = fd
            return
        try:
            self._fd = os.open(DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            raise UnavailableError(f"cannot read {DEVICE}: {reason_of(e)}") from e

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._fd

    def read(self, at_most: int) -> list[LogRecord]:
        """Read pending records, at most `at_most`; return only the kernel's own."""
        found: list[LogRecord] = []
        for _ in range(at_most):
            try:
                raw = os.read(self._fd, RECORD_MAX)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno == errno.EPIPE:  # the next read continues with the oldest record left
                    self.overrun += 1
                    continue
                if e.errno == errno.EINVAL:  # too long to be read
                    continue
                raise
            record = parse_record(raw)
            if record is not None:
                found.append(record)
        return found

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
