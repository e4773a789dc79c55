"""Records of pstore on disk, in the kernel's file system and where systemd-pstore moves them."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crashd.base.files import DIRECTORY, open_regular, read_all
from crashd.domain.kernellog.pstore import PART_MAX, Part, is_record_name, parse_record

DEPTH_MAX = 3
"""systemd-pstore makes a directory for each event and for each part of its id."""
NAMES_MAX = 100_000
"""Entries examined in all."""
PARTS_READ_MAX = 4096
BYTES_READ_MAX = 64 << 20
"""Of the newest records, this much is read; nothing ever empties systemd-pstore's directory."""


class Record(NamedTuple):
    """A file with the name of a record."""

    mtime_ns: int
    size_bytes: int
    path: tuple[str, ...]
    """Names from the top directory down to the file."""


@dataclass(frozen=True, slots=True)
class PstoreDirectory:
    """The records below one directory, as far as their names show."""

    root: Path
    records: tuple[Record, ...] = ()
    """The newest first, so that the oldest are left out."""
    left_out: int = 0
    """Older records that are not read."""


def list_records(root: Path) -> PstoreDirectory:
    """List the newest records below a directory; empty if it does not exist."""
    found: list[Record] = []
    with contextlib.suppress(OSError):
        fd = os.open(root, DIRECTORY)
        try:
            for number, record in enumerate(_walk(fd, (), DEPTH_MAX)):
                if record is not None:
                    found.append(record)
                if number >= NAMES_MAX:
                    break
        finally:
            os.close(fd)
    found.sort(reverse=True)
    kept, size = 0, 0
    while kept < min(len(found), PARTS_READ_MAX):
        size += min(found[kept].size_bytes, PART_MAX)
        if size > BYTES_READ_MAX:
            break
        kept += 1
    return PstoreDirectory(root, tuple(found[:kept]), len(found) - kept)


def read_parts(directory: PstoreDirectory) -> list[Part]:
    """Read those records of a directory that are still there."""
    found: list[Part] = []
    with contextlib.suppress(OSError):
        root = os.open(directory.root, DIRECTORY)
        try:
            for record in directory.records:
                # systemd-pstore has moved it, or it cannot be read: firmware makes errors
                with contextlib.suppress(OSError):
                    part = _read(root, record.path)
                    if part is not None:
                        found.append(part)
        finally:
            os.close(root)
    return found


def _walk(directory: int, path: tuple[str, ...], depth: int) -> Iterator[Record | None]:
    """Yield None for every entry, so that all are counted, and then its record if it is one."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry, _ in zip(entries, range(NAMES_MAX), strict=False)]
    # systemd-pstore names directories by time: if there are too many, the oldest are left out
    for name in sorted(names, reverse=True):
        yield None
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and depth > 0:
                fd = os.open(name, DIRECTORY, dir_fd=directory)
                try:
                    yield from _walk(fd, (*path, name), depth - 1)
                finally:
                    os.close(fd)
            elif _is_trusted(status) and is_record_name(name):
                yield Record(status.st_mtime_ns, status.st_size, (*path, name))
        except OSError:
            continue


def _is_trusted(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid())


def _read(root: int, path: tuple[str, ...]) -> Part | None:
    *directories, name = path
    with contextlib.ExitStack() as opened:
        fd = root
        for part in directories:
            fd = os.open(part, DIRECTORY, dir_fd=fd)
            opened.callback(os.close, fd)
        file = open_regular(name, dir_fd=fd)
        opened.callback(os.close, file)
        status = os.fstat(file)
        if not _is_trusted(status):
            return None
        return parse_record(name, read_all(file, PART_MAX), status.st_mtime_ns)
