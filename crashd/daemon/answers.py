"""Send the control socket's answers to their readers, however slow these are.

Large answers (records and cores) are not held in memory, but read from their file while they are
sent. Answers held in memory (lists) count toward a limit for their reader and a limit for all. A
descriptor of the store is never passed to a reader, because a user could keep it open for ever, and
with it the disk space.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from crashd.errors import UnavailableError

ANSWER_SECONDS: Final = 30.0
"""Time to send a whole answer that is not a core; a reader of a core must make progress within it.
"""
CORE_SECONDS: Final = 60.0
CORE_BYTES_PER_SECOND: Final = 1 << 20
"""A reader of a core has CORE_SECONDS, plus the time for the core's size at this rate."""
CORES_PER_USER: Final = 2
"""Limit on cores sent to one user at the same time."""
HELD_FOR_USERS: Final = 24 << 20
HELD_FOR_USER: Final = 8 << 20
HELD_FOR_ROOT: Final = 16 << 20
"""Limits on bytes of answers in memory; a reader without other answers may have one larger one."""
FREE_BYTES: Final = 64 << 10
"""Answers up to this size are not counted, because connections are limited."""
CHUNK_BYTES: Final = 256 << 10
POLL_SECONDS: Final = 0.5


class SlowReaderError(TimeoutError):
    """A reader reads an answer too slowly."""


@dataclass(slots=True)
class Answer:
    """Bytes to send: `head`, `size_bytes` of a file, which the answer owns, and `tail`."""

    head: bytes
    fd: int = -1
    size_bytes: int = 0
    tail: bytes = b""
    is_core: bool = False

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def send(self, peer: socket.socket) -> None:
        """Send the whole answer.

        Raises:
            SlowReaderError: the reader is too slow.
            OSError: the reader is gone, or the file is: a core that retention deletes does not
            stay on disk for a reader.

        """
        seconds = ANSWER_SECONDS
        if self.is_core:
            seconds = CORE_SECONDS + self.size_bytes / CORE_BYTES_PER_SECOND
        deadline = time.monotonic() + seconds
        self._send(peer, self.head, deadline)
        sent = 0
        while sent < self.size_bytes:
            chunk = os.pread(self.fd, min(CHUNK_BYTES, self.size_bytes - sent), sent)
            if not chunk:
                raise ConnectionAbortedError("a file of the store became shorter")
            self._send(peer, chunk, deadline)
            sent += len(chunk)
        self._send(peer, self.tail, deadline)

    def _send(self, peer: socket.socket, data: bytes, deadline: float) -> None:
        view, progress = memoryview(data), time.monotonic()
        while view:
            now = time.monotonic()
            left = min(deadline, progress + ANSWER_SECONDS) - now
            if left <= 0:
                raise SlowReaderError
            if self.is_core and os.fstat(self.fd).st_nlink == 0:
                raise ConnectionAbortedError("the core was deleted")
            peer.settimeout(min(left, POLL_SECONDS))
            try:
                view = view[peer.send(view) :]
            except TimeoutError:
                continue
            progress = time.monotonic()


class Shares:
    """Counts what each reader and all readers hold; for any thread. A reader is a uid, or None for
    root.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[int | None] = Counter()
        self._cores: Counter[int | None] = Counter()

    @contextmanager
    def held(self, reader: int | None, size_bytes: int) -> Iterator[None]:
        """Count an answer while it is in memory.

        Raises:
            UnavailableError: too many bytes are held already.

        """
        size_bytes = size_bytes if size_bytes > FREE_BYTES else 0
        with self._lock:
            if size_bytes and not self._has_room(reader, size_bytes):
                raise UnavailableError(
                    "too many answers wait to be read", hint="try again in a moment"
                )
            self._held[reader] += size_bytes
        try:
            yield
        finally:
            self._give_back(self._held, reader, size_bytes)

    def _has_room(self, reader: int | None, size_bytes: int) -> bool:
        if reader is None:
            return not self._held[None] or self._held[None] + size_bytes <= HELD_FOR_ROOT
        users = self._held.total() - self._held[None]
        if users and users + size_bytes > HELD_FOR_USERS:
            return False
        return not self._held[reader] or self._held[reader] + size_bytes <= HELD_FOR_USER

    @contextmanager
    def core(self, reader: int | None) -> Iterator[None]:
        """Count a core while it is sent.

        Raises:
            UnavailableError: CORES_PER_USER cores are being sent to this reader already.

        """
        with self._lock:
            if reader is not None and self._cores[reader] >= CORES_PER_USER:
                raise UnavailableError(
                    f"{CORES_PER_USER} cores are being read by uid {reader} already",
                    hint="try again when one of them is done",
                )
            self._cores[reader] += 1
        try:
            yield
        finally:
            self._give_back(self._cores, reader, 1)

    def _give_back(self, of: Counter[int | None], reader: int | None, count: int) -> None:
        with self._lock:
            of[reader] -= count
            if of[reader] <= 0:
                del of[reader]
