"""The files of a dump as libraries can read them: at any place, so without what a compressor put
around them.

A compressed file is unpacked by a sealed worker into a file without a name, which is gone when its
descriptor is closed, however the daemon ends. Only one dump at a time is read (the dumps' thread),
so UNPACKED_MAX and the space that stays free bound the disk that all of it takes.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from crashd.base.files import read_space
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.unpack import NotJudged, unpack
from crashd.domain.kdump.compressed import find_wrapper
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import FormatError, reason_of
from crashd.store.kerneldumps import OpenDump

UNPACKED_MAX: Final = 64 << 30
"""Bytes of one unpacked file, holes included."""
KEEP_FREE_MAX: Final = 4 << 30
"""Space that stays free on the file system: at most this, and at most a tenth of it."""
_HEAD: Final = 16


@contextlib.contextmanager
def opened_files(
    opened: OpenDump, names: Sequence[bytes], options: AnalysisOptions, scratch: Path
) -> Iterator[list[int]]:
    """Open a dump's files read-only; a compressed one is unpacked on the file system of `scratch`.
    Yields their descriptors, which are closed at the end.

    Raises:
        FormatError: a file is not to be trusted, gone, damaged at its start, or too large.

    """
    with contextlib.ExitStack() as stack:
        fds: list[int] = []
        for name in names:
            try:
                fd = opened.open_file(name)
            except OSError as e:
                raise FormatError(f"{printable(name)}: {reason_of(e)}") from e
            stack.callback(os.close, fd)
            if find_wrapper(os.pread(fd, _HEAD, 0)) is not None:
                fd = _unpacked(name, fd, options, scratch)
                stack.callback(os.close, fd)
            fds.append(fd)
        yield fds


def _unpacked(name: bytes, fd: int, options: AnalysisOptions, scratch: Path) -> int:
    """Unpack a file; return the descriptor of what was in it."""
    try:
        target = os.open(scratch, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise FormatError(f"{printable(name)} cannot be unpacked: {reason_of(e)}") from e
    try:
        space = read_space(target)
        room = space.free_bytes - min(KEEP_FREE_MAX, space.total_bytes // 10)
        if room <= 0:
            raise FormatError(f"{printable(name)} cannot be unpacked: there is no room on the disk")
        room = min(room, UNPACKED_MAX)
        found = unpack(fd, options, target, room)
        if isinstance(found, NotJudged):
            limit = format_size(room)
            raise FormatError(
                f"{printable(name)} cannot be unpacked: {found.reason} (room for {limit})"
            )
        return os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise FormatError(f"{printable(name)} cannot be unpacked: {reason_of(e)}") from e
    finally:
        os.close(target)
