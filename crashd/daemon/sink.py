"""Where a core's bytes go: compressed into the entry, as long as the disk has room."""

import os

from crashd.daemon.pump import StopError
from crashd.domain.model import Core
from crashd.store import corefile
from crashd.store.entry import CORE, Entry

FREE_CHECK_BYTES = 64 << 20
"""Free space is looked at again after so many bytes stored."""


class CoreSink:
    """Owns the partial core until `close`."""

    def __init__(
        self,
        entry: Entry,
        *,
        level: int,
        threads: int,
        keep_free_bytes: int,
        wanted: tuple[int, int] | None,
    ) -> None:
        """Create the partial core; `wanted` is the range of it that `spied` gives in the end.

        Raises:
            StopError: the disk has no room to begin with.
            OSError: it cannot be created.

        """
        self._keep_free_bytes = keep_free_bytes
        self._fd = entry.create_core()
        self._writer = corefile.CoreWriter(self._fd, level=level, threads=threads)
        self._checked = 0
        self._spy = _Spy(wanted)
        try:
            self._check_free()
        except StopError:
            os.close(self._fd)
            raise

    def write(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            StopError: the disk refuses.

        """
        self._spy.see(data)
        try:
            self._writer.write(data)
        except OSError as e:
            raise StopError(f"writing the core failed: {e.strerror}") from e
        if self._writer.stored_bytes - self._checked >= FREE_CHECK_BYTES:
            self._checked = self._writer.stored_bytes
            self._check_free()

    def hole(self, size: int) -> None:
        """Take zeros.

        Raises:
            StopError: the disk refuses.

        """
        self._spy.skip(size)
        try:
            self._writer.hole(size)
        except OSError as e:
            raise StopError(f"writing the core failed: {e.strerror}") from e

    def spied(self) -> bytes:
        """Give what came by of the range that was wanted; zeros left out."""
        return self._spy.bytes()

    def _check_free(self) -> None:
        filesystem = os.fstatvfs(self._fd)
        free = filesystem.f_bavail * filesystem.f_frsize
        if free < self._keep_free_bytes:
            raise StopError(
                f"{free} bytes free on the store's file system, "
                f"retention.process.keep_free is {self._keep_free_bytes}"
            )

    def finish(self) -> Core:
        """End the stream, sync the file, and tell what is in it; `Core.complete` is for the caller
        to say.
        """
        try:
            self._writer.finish()
            os.fsync(self._fd)
        except OSError:
            corefile.repair(self._fd)
            size = sum(len(chunk) for chunk in corefile.read_core(self._fd))
            stored = os.fstat(self._fd).st_size
            return Core(CORE, size, stored, min(size, self._writer.resident_bytes))
        writer = self._writer
        return Core(CORE, writer.size_bytes, writer.stored_bytes, writer.resident_bytes)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        os.close(self._fd)


class _Spy:
    """Picks one range of the core's bytes out as they go by."""

    def __init__(self, wanted: tuple[int, int] | None) -> None:
        self._start, size = wanted or (0, 0)
        self._end = self._start + size
        self._position = 0
        self._parts: list[bytes] = []

    def see(self, data: memoryview) -> None:
        """Look at the next bytes."""
        begin, self._position = self._position, self._position + len(data)
        if begin < self._end and self._position > self._start:
            self._parts.append(bytes(data[max(0, self._start - begin) : self._end - begin]))

    def skip(self, size: int) -> None:
        """Let zeros go by."""
        self._position += size

    def bytes(self) -> bytes:
        """Tell what was seen of the range."""
        return b"".join(self._parts)
