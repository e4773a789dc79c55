"""Directories of kernel dumps on disk: examined, read and removed without following any link.

/var/crash is hostile ground (SECURITY B3): many distributions let every user write to it. So each
step goes from a descriptor to a name inside it, O_NOFOLLOW, and fstat(2) checks what was opened. A
directory that is not root's alone is listed by name and never opened. Nothing blocks: no FIFO and
no device is opened for reading.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crashd.base.files import DIRECTORY, NotRegularError, open_regular, read_at, read_space
from crashd.domain.kdump.directory import (
    FILES_MAX,
    DumpDirectory,
    DumpFile,
    classify,
    parse_directory_name,
)
from crashd.domain.text import printable
from crashd.errors import FormatError, NotFoundError, UnavailableError, reason_of
from crashd.store.trusted import distrust

NAMES_MAX = 200_000
"""At most this many names of a directory are examined; the rest are only counted."""
COUNTED_MAX = 2_000_000
"""Names that are counted at most."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A directory entry that is named like a dump's directory, not yet opened."""

    entry: DumpFile
    device: int
    inode: int
    ctime_ns: int

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """Values that change when a file in it appears, disappears or is renamed."""
        return self.device, self.inode, self.entry.mtime_ns, self.ctime_ns


class DumpRoot:
    """One directory in which kernel dumps are saved; owns its descriptor."""

    def __init__(self, path: Path) -> None:
        """Open it; a link to it is followed, because the administrator made it.

        Raises:
            NotFoundError: it does not exist.
            UnavailableError: it is not a directory, or cannot be opened.

        """
        self.path = path
        name = printable(os.fsencode(path))
        try:
            self._fd = os.open(path, DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError as e:
            raise NotFoundError(f"{name} does not exist") from e
        except OSError as e:
            raise UnavailableError(f"cannot open {name}: {reason_of(e)}") from e
        status = os.fstat(self._fd)
        self._device = status.st_dev
        self._trusted = frozenset({0, os.geteuid()})
        owner = 0 if status.st_uid in self._trusted else status.st_uid
        self.distrust = distrust(owner, status.st_mode, 0)
        """Why others can replace what is in it; None if they cannot (a sticky directory)."""
        self.unseen = 0
        """Names that the last list() did not examine, because there were too many."""

    def __enter__(self) -> "DumpRoot":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def space(self) -> tuple[int, int]:
        """Return the file system's size, and what it has free for root; bytes."""
        space = read_space(self._fd)
        return space.total_bytes, space.root_free_bytes

    def list(self) -> Iterator[Seen]:
        """Yield every entry with the name of a dump's directory, whatever it is; `unseen` says how
        many names were not examined.
        """
        self.unseen = 0
        with os.scandir(self._fd) as names:
            for number, found in enumerate(names):
                if number >= NAMES_MAX:
                    self.unseen += 1
                    if number >= COUNTED_MAX:
                        return
                    continue
                name = os.fsencode(found.name)
                if parse_directory_name(name) is not None:
                    with contextlib.suppress(FileNotFoundError):
                        yield self.look(name)

    def look(self, name: bytes) -> Seen:
        """Return one entry as lstat(2) sees it.

        Raises:
            FileNotFoundError: it is gone.

        """
        status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return Seen(_entry(name, status), status.st_dev, status.st_ino, status.st_ctime_ns)

    def classify(self, seen: Seen) -> DumpDirectory | None:
        """Classify a directory by its files' names; one with faults is not opened.

        Raises:
            OSError: it is gone, or cannot be read.

        """
        told = classify(seen.entry, (), trusted_uids=self._trusted)
        if told is None or told.faults:
            return told
        with self.open(seen) as directory:
            return classify(seen.entry, directory.entries(), trusted_uids=self._trusted)

    def open(self, seen: Seen) -> "OpenDump":
        """Open a directory that was seen.

        Raises:
            OSError: it is gone, was replaced by something else, or lies on another file system.

        """
        fd = os.open(seen.entry.name, DIRECTORY, dir_fd=self._fd)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (seen.device, seen.inode):
            os.close(fd)
            raise FileNotFoundError(f"{printable(seen.entry.name)} was replaced")
        if status.st_dev != self._device:
            os.close(fd)
            raise OSError(f"{printable(seen.entry.name)} is on another file system")
        return OpenDump(fd, self._trusted)

    def remove(self, name: bytes, inode: int) -> tuple[int, tuple[bytes, ...]]:
        """Remove a dump's files, and its directory if nothing else is in it; return the bytes
        freed, and the names of files that stay because no dump tool wrote them.

        Raises:
            NotFoundError: it is gone, or another directory is in its place.
            FormatError: it is not to be trusted (any more), or cannot be removed.
            OSError: the file system refuses.

        """
        try:
            seen = self.look(name)
        except FileNotFoundError as e:
            raise NotFoundError(f"{printable(name)} is gone") from e
        if seen.inode != inode:
            raise NotFoundError(f"{printable(name)} is another directory by now")
        told = self.classify(seen)
        if self.distrust is not None or told is None or told.faults:
            why = self.distrust or (told.faults[0] if told else "it is no kernel dump's")
            raise FormatError(f"{printable(name)} is left alone: {why}")
        with self.open(seen) as directory:
            freed, left = directory.unlink(told.known)
        if left:
            return freed, left
        try:
            os.rmdir(name, dir_fd=self._fd)
        except FileNotFoundError:
            return freed, ()
        except OSError as e:
            raise FormatError(f"{printable(name)} cannot be removed: {reason_of(e)}") from e
        return freed, ()


class OpenDump:
    """A dump's directory; owns its descriptor."""

    def __init__(self, fd: int, trusted: frozenset[int]) -> None:
        self._fd = fd
        self._trusted = trusted

    def __enter__(self) -> "OpenDump":
        return self

    def __exit__(self, *details: object) -> None:
        os.close(self._fd)

    def entries(self) -> list[DumpFile]:
        """List its files: at most one more than any dump tool writes."""
        found: list[DumpFile] = []
        with os.scandir(self._fd) as names:
            for file in names:
                with contextlib.suppress(FileNotFoundError):
                    name = os.fsencode(file.name)
                    status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                    found.append(_entry(name, status))
                if len(found) > FILES_MAX:
                    break
        return found

    def open_file(self, name: bytes) -> int:
        """Open a file for reading; the caller owns the descriptor.

        Raises:
            OSError: it is gone.
            FormatError: it is not a regular file that only root can change.

        """
        wrong = FormatError(f"{printable(name)} is not a file that only root can change")
        try:
            fd = open_regular(name, dir_fd=self._fd)
        except NotRegularError as e:
            raise wrong from e
        status = os.fstat(fd)
        if status.st_uid not in self._trusted or status.st_nlink != 1 or status.st_mode & 0o022:
            os.close(fd)
            raise wrong
        return fd

    def read_ends(self, name: bytes, head: int, tail: int) -> tuple[bytes, bytes, int]:
        """Read a file's first and last bytes; return these and its size.

        Raises:
            OSError: it is gone, or cannot be read.
            FormatError: see `open_file`.

        """
        fd = self.open_file(name)
        try:
            size = os.fstat(fd).st_size
            first = read_at(fd, min(head, size), 0)
            return first, read_at(fd, min(tail, size), max(0, size - tail)), size
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def reader(self, name: bytes) -> Iterator[Callable[[int, int], bytes]]:
        """Open a file; yield a function that reads up to `size` bytes at any offset.

        Raises:
            OSError: it is gone.
            FormatError: see `open_file`.

        """
        fd = self.open_file(name)
        try:
            yield lambda at, size: read_at(fd, size, at)
        finally:
            os.close(fd)

    def unlink(self, names: Iterable[bytes]) -> tuple[int, tuple[bytes, ...]]:
        """Unlink only the named files, so that a file that appears meanwhile stays; return the
        bytes freed, and the names of the files left.
        """
        freed = 0
        for name in names:
            try:
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                freed += status.st_blocks * 512
        return freed, tuple(sorted(map(os.fsencode, os.listdir(self._fd))))


def _entry(name: bytes, status: os.stat_result) -> DumpFile:
    size, mtime_ns = status.st_size, status.st_mtime_ns
    return DumpFile(name, status.st_mode, status.st_uid, status.st_nlink, size, mtime_ns)
