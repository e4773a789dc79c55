"""Deletions are written down first, so that the next process finishes one whose process was killed.

    <state>/retention.pending     ids, a line each; flock(2)ed by the daemon or crashctl

The file is empty when nothing is under way. A torn line is not an id; its crash has not been
touched yet.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

from crashd.base.files import write_all
from crashd.domain.crash.model import ID_PATTERN
from crashd.errors import UnavailableError
from crashd.store.paths import Paths

BATCH = 64
"""Crashes deleted between two fsyncs of the file."""
_BYTES_MAX = 1 << 20
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Pending:
    """The open, locked file; belongs to `open_pending`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ids(self) -> list[str]:
        """List the crashes whose deletion was under way when the file was last written."""
        lines = os.pread(self._fd, _BYTES_MAX, 0).decode("ascii", "replace").split("\n")
        return [line for line in lines if ID_PATTERN.fullmatch(line)]

    def note(self, crash_ids: Iterable[str]) -> None:
        """Write down what will be deleted; on disk on return."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, "".join(f"{crash_id}\n" for crash_id in crash_ids).encode())
        os.fsync(self._fd)

    def clear(self) -> None:
        """Note that nothing is under way. Not synced: at worst an old id is checked for nothing."""
        os.ftruncate(self._fd, 0)


@contextlib.contextmanager
def open_pending(paths: Paths) -> Iterator[Pending]:
    """Lock out every other process that deletes.

    Raises:
        UnavailableError: another process is deleting.
        OSError: the file cannot be made.

    """
    fd = os.open(paths.pending_deletions, _FLAGS, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UnavailableError("another process is deleting crashes at the moment") from e
        yield Pending(fd)
    finally:
        os.close(fd)
