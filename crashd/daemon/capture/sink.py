"""The sink of a core's bytes: compresses them into the entry as long as the disk has room."""

import os
import time
from typing import Final

from crashd.base.files import read_space
from crashd.daemon.capture.pump import HOLE_COST_SHIFT, StopError
from crashd.domain.crash.model import Core
from crashd.errors import reason_of
from crashd.store import corefile
from crashd.store.entry import CORE, Entry

FREE_CHECK_BYTES = 1 << 20
"""Free space is checked each time after this many bytes. A check costs 2 us; compressing the bytes
between two checks takes 2 ms.
"""

HOLE_CHECK_BYTES = FREE_CHECK_BYTES << HOLE_COST_SHIFT
"""The same for holes, which take far less space."""

CREDIT_SECONDS = 3.0
"""The longest time that retention needs to make the room that a capture was promised."""

MARGIN_MIN, MARGIN_MAX = 8 << 20, 256 << 20
MARGIN_SHARE = 50
"""A core longer than FREE_CHECK_BYTES leaves a fiftieth of the file system in addition, between
MARGIN_MIN and MARGIN_MAX: for records, index and small cores. Otherwise one large core would leave
no room for any other.
"""

NEAR_BYTES = 64 << 20
"""This near to the end the compressor is flushed before free space is checked: other writers may
flush at the same time, and each compressor holds up to FRAME_MAX.
"""

_SPARE: Final = corefile.SpareCompressor()
"""A worker stores one core after the other."""


class CoreSink:
    """Owns the partial core until `close`."""

    def __init__(
        self,
        entry: Entry,
        *,
        level: int,
        threads: int,
        keep_free_bytes: int,
        credit_bytes: int = 0,
        leave_bytes: int = 0,
        wanted: tuple[int, int] | None,
    ) -> None:
        """Create the partial core; `spied` later returns its `wanted` range. While retention makes
        room, free space may be `credit_bytes` below `keep_free_bytes`; `leave_bytes` more stay free
        for others.

        Raises:
            StopError: the disk has no room to begin with.
            OSError: the partial core cannot be created.

        """
        self._keep_free_bytes = keep_free_bytes
        self._leave_bytes = leave_bytes
        self._credit_bytes = credit_bytes
        self._credit_ends_s = time.monotonic() + CREDIT_SECONDS
        self._fd = entry.create_core()
        self._writer = corefile.CoreWriter(self._fd, level=level, threads=threads, spare=_SPARE)
        self._unchecked = 0
        self._spy = _Spy(wanted)
        self.trouble: str | None = None
        """Why the end of the core is not on disk."""
        try:
            self._refuse_below(self._least_bytes())
        except StopError:
            os.close(self._fd)
            raise

    def write(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            StopError: writing failed, or too little space is free.

        """
        self._spy.see(data)
        for start in range(0, len(data), FREE_CHECK_BYTES):
            part = data[start : start + FREE_CHECK_BYTES]
            try:
                self._writer.write(part)
                self._unchecked += len(part)
                if self._unchecked >= FREE_CHECK_BYTES:
                    self._unchecked = 0
                    self._check_free()
            except OSError as e:
                raise StopError(f"writing the core failed: {reason_of(e)}") from e

    def hole(self, size: int) -> None:
        """Take zeros.

        Raises:
            StopError: writing failed, or too little space is free.

        """
        self._spy.skip(size)
        try:
            for at in range(0, size, HOLE_CHECK_BYTES):
                part = min(HOLE_CHECK_BYTES, size - at)
                self._writer.hole(part)
                self._unchecked += part >> HOLE_COST_SHIFT
                if self._unchecked >= FREE_CHECK_BYTES:
                    self._unchecked = 0
                    self._writer.flush()
                    self._check_free()
        except OSError as e:
            raise StopError(f"writing the core failed: {reason_of(e)}") from e

    def use_threads(self, count: int) -> None:
        """Compress with `count` threads if compressing has not begun; 0 means only the caller's."""
        self._writer.threads = count

    @property
    def resident_bytes(self) -> int:
        """Return how many bytes taken so far are not zeros."""
        return self._writer.resident_bytes

    def spied(self) -> bytes:
        """Return the bytes of the wanted range taken so far; zeros left out."""
        return self._spy.bytes()

    def _check_free(self) -> None:
        share = read_space(self._fd).total_bytes // MARGIN_SHARE
        margin = min(MARGIN_MAX, max(MARGIN_MIN, share))
        wanted = self._least_bytes() + max(0, margin - self._leave_bytes)
        if self._free() < wanted + NEAR_BYTES:
            self._writer.flush()
            self._refuse_below(wanted)

    def _least_bytes(self) -> int:
        """Return how much must stay free: less as long as retention makes room for this core."""
        credit = self._credit_bytes if time.monotonic() < self._credit_ends_s else 0
        return max(0, self._keep_free_bytes - credit + self._leave_bytes)

    def _free(self) -> int:
        return read_space(self._fd).free_bytes

    def _refuse_below(self, wanted: int) -> None:
        free = self._free()
        if free < wanted:
            raise StopError(f"only {free} bytes are free on the store's file system (keep_free)")

    def finish(self) -> Core:
        """End the stream, sync the file, and return what it holds; the caller sets `Core.complete`.
        If writing to the disk fails, `trouble` says so.
        """
        try:
            self._writer.finish()
            os.fsync(self._fd)
        except OSError as e:
            self.trouble = f"writing the core failed: {reason_of(e)}"
            corefile.repair(self._fd)
            size = sum(len(chunk) for chunk in corefile.read_core(self._fd))
            stored = os.fstat(self._fd).st_size
            return Core(CORE, size, stored, min(size, self._writer.resident_bytes))
        writer = self._writer
        return Core(CORE, writer.size_bytes, writer.stored_bytes, writer.resident_bytes)

    def close(self) -> None:
        """Close the file; its content stays."""
        os.close(self._fd)


class _Spy:
    """Picks one range out of the core's bytes as they pass."""

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
        """Count zeros that pass."""
        self._position += size

    def bytes(self) -> bytes:
        """Return the bytes of the range seen so far."""
        return b"".join(self._parts)
