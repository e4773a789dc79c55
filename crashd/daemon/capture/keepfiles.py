"""Keeps the executables and libraries of a crashed process that no path of the host leads to: the
deleted and replaced ones, memfds, and those in private mounts.

They are opened while the process is held, which cannot block, and copied after its release. Only
what the crash's own credentials may read is kept, because its stack, with the names from those
files, is shown to that user.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pace import Pace
from crashd.daemon.capture.timedread import Reader, StuckError
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.crash.model import Crash
from crashd.domain.crash.record import foreign_mount_ns
from crashd.domain.crash.searchplan import plan_search
from crashd.domain.elf.elfcore import IMAGE_MAX, parse_build_id
from crashd.domain.elf.executables import Executable, find_executables, kept_name_of
from crashd.domain.elf.modules import COMPARED_BYTES, Module
from crashd.domain.text import printable
from crashd.edge.capture.incoming import IncomingCore
from crashd.edge.capture.mappedfiles import close_all
from crashd.edge.sandbox.modulefiles import may_read, open_modules, read_own_mounts
from crashd.errors import reason_of
from crashd.store.entry import Entry
from crashd.store.keptfiles import CHUNK_BYTES, NoRoomError, Room, keep_file

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
WARNINGS_MAX = 5
TIMEOUTS_MAX = 10
"""Reading the files of one crash takes no longer than so many times `capture.page_timeout`: every
read may end just in time, and until they have ended, another user's core is not stored.
"""
T = TypeVar("T")


class MappedFiles:
    """The files that a process had mapped; owns their descriptors."""

    def __init__(
        self, incoming: IncomingCore, snapshot: Mapping[str, bytes], options: Options
    ) -> None:
        self._options = options
        self._files = find_executables(snapshot.get("maps", b""))
        if not options.keep_files_bytes:
            self._files = []
        elif foreign_mount_ns(snapshot) is None and snapshot.get("root") == b"/":
            # what has a name is found by it: the process is held for no more than needed
            self._files = [file for file in self._files if file.is_nameless]
        self._fds = incoming.open_mapped([file.place for file in self._files])

    def __enter__(self) -> "MappedFiles":
        return self

    def __exit__(self, *details: object) -> None:
        close_all(self._fds)
        self._fds = []

    def keep(self, crash: Crash, entry: Entry, reader: Reader, pace: Pace) -> Crash:
        """Keep for the entry what cannot be found otherwise; return the crash with a warning for
        each file that should have been kept.
        """
        keeper = _Keeper(crash, entry, self._options, reader, pace)
        warnings: list[str] = []
        for index, file in enumerate(self._files[: len(self._fds)]):
            fd = self._fds[index]
            if fd is None:
                continue
            try:
                keeper.keep(file, fd)
            except StuckError:
                self._fds[index] = None  # the stuck thread still uses it, to the worker's end
                warnings.append(f"{printable(file.name)} was not kept: it cannot be read in time")
            except (NoRoomError, OSError) as e:
                warnings.append(f"{printable(file.name)} was not kept: {reason_of(e)}")
        return replace(crash, warnings=(*crash.warnings, *warnings[:WARNINGS_MAX]))


class _Keeper:
    """Keeps files for one entry; each access to a file system that a user may have mounted runs in
    the reader's thread, with a time limit.
    """

    def __init__(
        self, crash: Crash, entry: Entry, options: Options, reader: Reader, pace: Pace
    ) -> None:
        self._entry, self._reader, self._pace = entry, reader, pace
        self._search = plan_search(crash, host_mounts=read_own_mounts())
        self._room = Room(options.keep_files_bytes, options.keep_free_bytes)
        self._seconds = options.page_timeout_ns / 1e9
        self._left_seconds = TIMEOUTS_MAX * self._seconds

    def keep(self, file: Executable, fd: int) -> None:
        """Keep an open file, unless it can be found, is no ELF image, or is not the user's to read.

        Raises:
            NoRoomError: it is too large.
            StuckError: its file system does not answer.
            OSError: it cannot be read, or not be written.

        """
        self._pace.step()
        found = self._timed(lambda: _examine(file, fd, self._search))
        if found is None:
            return
        name, size, opened = found

        def read(at: int) -> bytes:
            self._pace.step()
            return self._timed(lambda: os.pread(opened, CHUNK_BYTES, at))

        try:
            keep_file(self._entry, name, read, size, self._room)
        except StuckError:
            raise  # the stuck thread still uses the descriptor
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)

    def _timed(self, task: Callable[[], T]) -> T:
        if self._left_seconds <= 0:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        result: list[T] = []
        began = time.monotonic()
        try:
            self._reader.do(lambda: result.append(task()), self._seconds)
        finally:
            self._left_seconds -= time.monotonic() - began
        return result[0]


def _examine(file: Executable, fd: int, search: FileSearch) -> tuple[str, int, int] | None:
    """Return name, size and a descriptor of a file to keep; None for others."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) or not may_read(fd, search.credentials):
        return None
    opened = os.open(f"/proc/self/fd/{fd}", _READ)
    try:
        start = os.pread(opened, IMAGE_MAX, 0)
        name = kept_name_of(start)
        if name is None or _is_found(file.name, start, search):
            os.close(opened)
            return None
        return name, os.fstat(opened).st_size, opened
    except BaseException:
        os.close(opened)
        raise


def _is_found(name: bytes, start: bytes, search: FileSearch) -> bool:
    """Return whether an analysis would find the file without our help."""
    module = Module(name, 0, 0, parse_build_id(start), start[:COMPARED_BYTES], deleted=False)
    fd = open_modules([module], search, 1)[0].fd
    if fd is None:
        return False
    os.close(fd)
    return True
