"""Files of a file system in user space (FUSE), whose server answers reads never or late."""

import errno
import os
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

# linux/fuse.h
_GETATTR, _OPEN, _READ, _INIT = 3, 14, 15, 26
_SILENT = (2, 36, 42)
"""FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer."""
_IN = struct.Struct("=IIQQ")
_ATTR = struct.Struct("=QII6Q10I")
_HEADER_SIZE = 40
_READ_IN = struct.Struct("=8xQI")
"""Offset and size, behind the header and a handle."""
_SIZE = 1 << 20


class SilentFile:
    """A file that can be mapped, and of which no page ever comes, until `__exit__`."""

    def __init__(self, path: Path, size_bytes: int = _SIZE) -> None:
        self.path = path
        self.asked = 0
        """Reads that wait for an answer, or have had one."""
        self._size = size_bytes

    def __enter__(self) -> Self:
        self.path.touch()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=100000,user_id=0,group_id=0,allow_other"
        command = ["mount", "-i", "-t", "fuse", "-o", options, "silent", str(self.path)]
        subprocess.run(command, pass_fds=(self._fd,), check=True)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert (
            self.path.stat().st_size == self._size
        )  # until it is asked for, the kernel has it empty
        return self

    def __exit__(self, *details: object) -> None:
        # -f: whoever waits for a page gets an error, and the server its end
        subprocess.run(["umount", "-f", "-l", str(self.path)], check=True)
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError as e:
                if e.errno == errno.ENODEV:
                    return
                if e.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, operation, unique, _ = _IN.unpack_from(request)
            self.asked += operation == _READ
            if operation == _READ:
                self._read(unique, *_READ_IN.unpack_from(request, _HEADER_SIZE))
            elif operation not in _SILENT:
                self._answer(operation, unique)

    def _answer(self, operation: int, unique: int) -> None:
        answers = {
            # without FUSE_ASYNC_READ: a read that the server has is waited for to the end
            _INIT: struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 0, 0, 0),
            _GETATTR: _ATTR.pack(
                *(3600, 0, 0, 1, self._size, self._size >> 9, 0, 0, 0, 0, 0, 0),
                0o100644,
                1,
                0,
                0,
                0,
                4096,
                0,
            ),
            _OPEN: struct.pack("=QII", 1, 2, 0),  # FOPEN_KEEP_CACHE: no open waits for a page
        }
        body = answers.get(operation, b"")
        error = 0 if body else -errno.ENOSYS
        os.write(self._fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    def _read(self, unique: int, offset: int, size_bytes: int) -> None:
        """Answer a read, or not."""


class SlowFile(SilentFile):
    """The same, but each read gets its answer after a while, beginning with `start`."""

    def __init__(self, path: Path, size_bytes: int, start: bytes, seconds: float) -> None:
        super().__init__(path, size_bytes)
        self._start, self._seconds = start, seconds

    def _read(self, unique: int, offset: int, size_bytes: int) -> None:
        time.sleep(self._seconds)
        size_bytes = min(size_bytes, self._size - offset)
        body = self._start[offset : offset + size_bytes].ljust(size_bytes, b"x")
        os.write(self._fd, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)


class UserDirectory:
    """An empty directory of a user's own file system, which says that it is root's, 0755, until
    `__exit__`.
    """

    def __init__(self, path: Path, uid: int) -> None:
        self.path = path
        self._uid = uid

    def __enter__(self) -> Path:
        self.path.mkdir()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        ids = f"user_id={self._uid},group_id={self._uid}"  # as fusermount(1) has it for a user
        options = f"fd={self._fd},rootmode=40000,{ids},allow_other"
        command = ["mount", "-i", "-t", "fuse", "-o", options, "theirs", str(self.path)]
        subprocess.run(command, pass_fds=(self._fd,), check=True)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self.path

    def __exit__(self, *details: object) -> None:
        subprocess.run(["umount", "-f", "-l", str(self.path)], check=True)
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        attributes = (1, 0, 0, 0, 0, 0, 0, 0, 0), (0o40755, 2, 0, 0, 0, 4096, 0)
        answers = {
            _INIT: struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 0, 0, 0),
            _GETATTR: _ATTR.pack(3600, 0, 0, *attributes[0], *attributes[1]),
        }
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError as e:
                if e.errno == errno.ENODEV:
                    return
                if e.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, operation, unique, _ = _IN.unpack_from(request)
            if operation not in _SILENT:
                body = answers.get(operation, b"")
                error = 0 if body else -errno.ENOENT
                os.write(self._fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)
