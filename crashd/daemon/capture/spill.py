"""Where a core's bytes wait that the buffer has no room for: as they are, in a file without a name.

The page cache takes them forty times as fast as they can be compressed, and the process that they
are read from is held meanwhile. A byte stands in the file where it stands in the core; what was
stored is cut out behind the reader, so that a core never takes its space twice.
"""

import ctypes
import os

from crashd.base.files import read_space

SCRATCH_BYTES = 2 << 20
"""Read and written at once: stays in the CPU's cache between the two."""
_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, linux/falloc.h


class Spill:
    """Owns the file; used by one writing thread, and one that reads what was written."""

    def __init__(self, fd: int, *, most_bytes: int, least_free_bytes: int) -> None:
        """Take an empty file: of at most so many bytes, and as long as so much stays free."""
        self.fd = fd
        self._most_bytes = most_bytes
        self._least_free_bytes = least_free_bytes
        self.is_open = most_bytes > 0
        """Whether more may go in."""
        self.written_bytes = 0

    def write(self, offset: int, data: memoryview) -> bool:
        """Write a part; False where it is not (or not whole) in the file, and must go elsewhere:
        then the file takes nothing more.
        """
        self.is_open = self._has_room(len(data)) and self._write(offset, data)
        if self.is_open:
            self.written_bytes += len(data)
        return self.is_open

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
        """Read what was written.

        Raises:
            OSError: the disk refuses, or somebody cut the file.

        """
        done = 0
        while done < len(view):
            got = os.preadv(self.fd, [view[done:]], offset + done)
            if not got:
                raise OSError("the spilled core is cut")
            done += got

    def drop(self, offset: int, size: int) -> None:
        """Give the space of a part back; where the file system cannot, it is given back at the
        end.
        """
        libc = ctypes.CDLL(None)
        fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
        fallocate(self.fd, _PUNCH, ctypes.c_int64(offset), ctypes.c_int64(size))

    def close(self) -> None:
        """Close the file: it is gone."""
        os.close(self.fd)
