"""The spill holds a core's bytes that do not fit the buffer: uncompressed, in an unnamed file.

The page cache takes them forty times as fast as they can be compressed, and their process is held
meanwhile. A byte has the same offset in the file as in the core. Parts that are stored are punched
out of the file, so a core never takes its space twice.
"""

import ctypes
import os

from crashd.base.files import read_space

SCRATCH_BYTES = 2 << 20
"""Bytes read and written at once: they stay in the CPU's cache between the two."""
_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, linux/falloc.h


class Spill:
    """Owns the file; used by one thread that writes and one that reads what was written."""

    def __init__(self, fd: int, *, most_bytes: int, least_free_bytes: int) -> None:
        """Take an empty file, which may grow to `most_bytes` while `least_free_bytes` stay free."""
        self.fd = fd
        self._most_bytes = most_bytes
        self._least_free_bytes = least_free_bytes
        self.is_open = most_bytes > 0
        """Whether the file takes more."""
        self.written_bytes = 0

    def write(self, offset: int, data: memoryview) -> bool:
        """Write a part. Return False if it is not, or not completely, in the file and must go
        elsewhere; the file takes nothing more then.
        """
        self.is_open = self._has_room(len(data)) and self._write(offset, data)
        if self.is_open:
            self.written_bytes += len(data)
        return self.is_open

    @property
    def has_room(self) -> bool:
        """Return whether as much of the disk is free as must stay free."""
        return read_space(self.fd).free_bytes >= self._least_free_bytes

    def _has_room(self, size: int) -> bool:
        if self.written_bytes + size > self._most_bytes:
            return False
        return read_space(self.fd).free_bytes >= self._least_free_bytes + size

    def _write(self, offset: int, data: memoryview) -> bool:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.fd, data[done:], offset + done)
        except OSError:  # a full disk, or a quota
            return False
        return True

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with what was written at `offset`.

        Raises:
            OSError: reading the disk fails, or the file was truncated.

        """
        done = 0
        while done < len(view):
            got = os.preadv(self.fd, [view[done:]], offset + done)
            if not got:
                raise OSError("the spilled core is cut")
            done += got

    def drop(self, offset: int, size: int) -> None:
        """Free the space of a part; if the file system cannot, `close` frees it."""
        libc = ctypes.CDLL(None)
        fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
        fallocate(self.fd, _PUNCH, ctypes.c_int64(offset), ctypes.c_int64(size))

    def close(self) -> None:
        """Close the file, which deletes it because it has no name."""
        os.close(self.fd)
