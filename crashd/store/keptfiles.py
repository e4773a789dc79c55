"""Executables and libraries that only the crashed process could reach, kept for its analysis.

    <state>/crashes/
      files/                    0700 root, flock(2)ed while names are added or removed
        KEY-DIGEST              a file's content; KEY is its build-id (or its first page's digest)
      <id>/
        file-KEY                a second name of the same file, for each crash that needs it

So the file system itself counts who needs a file: it is removed when no crash has a name for it.
Crashes share a file only if its whole content is the same, so that nobody can slip a false one to
another user's crash. Names consist of hexadecimal digits; none comes from a path of the process.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashd.base.files import DIRECTORY, read_space, write_all
from crashd.domain.elf.executables import KEPT_PREFIX, is_kept_name
from crashd.errors import CrashdError
from crashd.store.entry import Entry, entry_ids, open_entry
from crashd.store.paths import KEPT_FILES, Paths

FILES_MAX: Final = 4096
"""Files that are kept at most, for all crashes together."""
CHUNK_BYTES: Final = 1 << 20
_NAME = re.compile(r"(?:page-)?[0-9a-f]{4,128}-[0-9a-f]{32}")


class NoRoomError(Exception):
    """A file is not kept; the message says which limit it exceeds."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What all kept files use."""

    size_bytes: int = 0
    count: int = 0


def is_file_name(name: str) -> bool:
    """Return whether a name in the directory of kept files is one of ours."""
    return _NAME.fullmatch(name) is not None


def read_kept(directory: Path | int) -> Kept:
    """Return what the files in the directory of kept files use on disk, each counted once."""
    size = count = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for item in found:
            with contextlib.suppress(FileNotFoundError):
                size += item.stat(follow_symlinks=False).st_blocks * 512
                count += 1
    return Kept(size, count)


@dataclass(frozen=True, slots=True)
class Room:
    """The limits for kept files."""

    limit_bytes: int
    """For all of them."""
    keep_free_bytes: int
    """Space of the file system that stays free."""

    def most(self, directory: int) -> int:
        """Return how large the next file may be: at most half of what is left of the limit, so that
        one crash does not take everything.
        """
        kept = read_kept(directory)
        if kept.count >= FILES_MAX:
            return 0
        free = read_space(directory).free_bytes - self.keep_free_bytes
        return max(0, min((self.limit_bytes - kept.size_bytes) // 2, free))


def keep_file(entry: Entry, name: str, read: Callable[[int], bytes], size: int, room: Room) -> None:
    """Keep a file for an entry as `name` (`kept_name`), on disk on return. `read` returns the bytes
    at an offset, CHUNK_BYTES at most, and may raise.

    Raises:
        NoRoomError: it is too large for what is left.
        OSError: the disk refuses it, or its file system has no unnamed files.

    """
    where = f"../{KEPT_FILES}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(where, 0o700, dir_fd=entry.fd)
    directory = os.open(where, DIRECTORY, dir_fd=entry.fd)
    try:
        if size > (most := room.most(directory)):
            raise NoRoomError(f"it has {size} bytes, and capture.keep_files leaves {most} for it")
        copy = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            digest = _copy(copy, read, size)
            os.fsync(copy)
            fcntl.flock(directory, fcntl.LOCK_EX)  # until `directory` is closed
            shared = f"{name.removeprefix(KEPT_PREFIX)}-{digest}"
            with contextlib.suppress(FileExistsError):  # the same content, by its digest
                os.link(f"/proc/self/fd/{copy}", shared, dst_dir_fd=directory, follow_symlinks=True)
            with contextlib.suppress(FileExistsError):
                os.link(shared, name, src_dir_fd=directory, dst_dir_fd=entry.fd)
        finally:
            os.close(copy)
    finally:
        os.close(directory)


def _copy(target: int, read: Callable[[int], bytes], size: int) -> str:
    """Copy `size` bytes at most; return the digest of what was there."""
    digest, at = hashlib.sha256(), 0
    while at < size and (part := read(at)):
        part = part[: size - at]
        digest.update(part)
        write_all(target, part)
        at += len(part)
    return digest.hexdigest()[:32]


def remove_unneeded(paths: Paths) -> None:
    """Remove the files that no crash needs any more.

    Raises:
        OSError: the directory cannot be read or changed.

    """
    try:
        directory = os.open(paths.kept_files, DIRECTORY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for name in filter(is_file_name, os.listdir(directory)):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_nlink == 1:
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)


def make_room(paths: Paths, limit_bytes: int) -> int:
    """If files fill three quarters of their limit, take them from the oldest crashes that are not
    pinned, until they fill a half of it. Return from how many crashes.

    Raises:
        OSError: the directory cannot be read or changed.
        UnavailableError: the store cannot be read.

    """
    kept, count = read_kept(paths.kept_files), 0
    if 4 * kept.size_bytes <= 3 * limit_bytes and 4 * kept.count <= 3 * FILES_MAX:
        return 0
    for crash_id in entry_ids(paths):
        if 2 * kept.size_bytes <= limit_bytes and 2 * kept.count <= FILES_MAX:
            break
        with contextlib.suppress(CrashdError), open_entry(paths, crash_id) as entry:
            if not any(map(is_kept_name, entry.file_names())):
                continue
            if entry.try_lock() and not entry.read().pinned:
                entry.drop_kept_files()
                count += 1
                remove_unneeded(paths)
                kept = read_kept(paths.kept_files)
    return count
