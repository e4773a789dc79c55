"""Records of pstore on disk: the kernel's own file system, and where systemd-pstore moves them."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from crashd.base.files import DIRECTORY, open_regular, read_all
from crashd.domain.kernellog.pstore import PART_MAX, PARTS_MAX, Part, parse_part

DEPTH_MAX = 3
"""Directories that systemd-pstore makes, one for each event and part of its id."""


def read_parts(root: Path) -> list[Part]:
    """Read all records below a directory, as many as PARTS_MAX; none where there is none."""
    found: list[Part] = []
    with contextlib.suppress(OSError):
        fd = os.open(root, DIRECTORY)
        try:
            for part in _walk(fd, DEPTH_MAX):
                found.append(part)
                if len(found) >= PARTS_MAX:
                    break
        finally:
            os.close(fd)
    return found


def _walk(directory: int, depth: int) -> Iterator[Part]:
    for name in sorted(os.listdir(directory))[:PARTS_MAX]:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and depth > 0:
                fd = os.open(name, DIRECTORY, dir_fd=directory)
                try:
                    yield from _walk(fd, depth - 1)
                finally:
                    os.close(fd)
            elif stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid()):
                part = _read(directory, name)
                if part is not None:
                    yield part
        except OSError:
            continue  # moved on by systemd-pstore, or unreadable: firmware is what it is


def _read(directory: int, name: str) -> Part | None:
    fd = open_regular(name, dir_fd=directory)
    try:
        return parse_part(name, read_all(fd, PART_MAX), os.fstat(fd).st_mtime_ns)
    finally:
        os.close(fd)
