"""Records of pstore on disk: the kernel's own file system, and where systemd-pstore moves them."""

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
"""Directories that systemd-pstore makes, one for each event and part of its id."""
NAMES_MAX = 100_000
"""Entries that are looked at in all."""
PARTS_READ_MAX = 4096
BYTES_READ_MAX = 64 << 20
"""Of the newest records that are read; nobody ever empties systemd-pstore's directory."""


class Record(NamedTuple):
    """A file that is named like a record."""

    mtime_ns: int
    size_bytes: int
    path: tuple[str, ...]
    """Names from the directory above all down to the file."""


@dataclass(frozen=True, slots=True)
class PstoreDirectory:
    """What lies below one directory, as far as names tell."""

    root: Path
    records: tuple[Record, ...] = ()
    """The newest first: what there is no room for is the oldest."""
    left_out: int = 0
    """Older records that are not read."""


def list_records(root: Path) -> PstoreDirectory:
    """List the newest records below a directory; none where there is none."""
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
    """Read the records of a directory, those that are still there."""
    found: list[Part] = []
    with contextlib.suppress(OSError):
        root = os.open(directory.root, DIRECTORY)
        try:
            for record in directory.records:
                # moved on by systemd-pstore, or unreadable: firmware is what it is
                with contextlib.suppress(OSError):
                    part = _read(root, record.path)
                    if part is not None:
                        found.append(part)
        finally:
            os.close(root)
    return found


def _walk(directory: int, path: tuple[str, ...], depth: int) -> Iterator[Record | None]:
    """Give each entry's record; None for what is none, so that all are counted."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry, _ in zip(entries, range(NAMES_MAX), strict=False)]
    # systemd-pstore names directories by time: were there too many, the oldest go short
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
