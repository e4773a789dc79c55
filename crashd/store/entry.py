"""Entries: one directory for each crash.

    <state>/crashes/                  0700 root
      <id>/                           flock(2)ed (on the directory) while a writer lives
        crash.json                    the record; always whole (crash.json.new is renamed)
        core.zst.partial              a core that is being written
        core.zst                      a committed core; crash.json says how whole it is
        analysis.json                 what its analysis found, or that it has begun
        file-BUILD_ID                 an executable or library that the host does not have; another
                                      name of a file of crashd.store.keptfiles
      .new-<id>/                    an entry that is being created; renamed once it has its record

An entry is finished when its crash.json says so; `state: capturing` without a lock means that the
writer died. Everything is reached through the directory's descriptor, never by its path again. A
name that is not a well-formed id is not ours and is never touched.

Over 400 lines because it is the only door to the entries: nothing else opens, locks, writes or
removes one, so what must hold for each of them is checked here.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from crashd.base.files import (
    DIRECTORY,
    NotRegularError,
    open_regular,
    read_all,
    read_space,
    replace_file,
)
from crashd.domain.crash.boundedrecord import LEAST_BYTES, RECORD_BYTES, bounded
from crashd.domain.crash.model import ID_PATTERN, Crash, from_json
from crashd.domain.elf.executables import is_kept_name
from crashd.errors import FormatError, NotFoundError, UnavailableError, reason_of
from crashd.store.paths import Paths

RECORD = "crash.json"
RECORD_STAGED = "crash.json.new"
CORE = "core.zst"
CORE_PARTIAL = "core.zst.partial"
ANALYSIS = "analysis.json"
ANALYSIS_MAX = (8 << 20) + 4096
"""At most this many bytes of an analysis.json are written, or read."""
RECORD_MAX = 32 << 20
"""At most this many bytes of a crash.json are read; RECORD_BYTES are written, but earlier crashds
wrote more."""
SPARE_PART = 16
"""A record takes at most this part of the space above `keep_free`: that many are written at the
same time."""

Progress = Callable[[int, int], None]
"""Called with the number done and the total."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""
    del done, total


LOCK_SECONDS = 2.0
"""A command that checks or pins an entry holds its lock for milliseconds."""

_STAGED_PREFIX = ".new-"
"""Before the id: an entry that is being created."""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry:
    """One entry; owns the descriptor of its directory (and with it the lock, once taken)."""

    def __init__(self, crash_id: str, fd: int) -> None:
        self.id = crash_id
        self.fd = fd

    def __enter__(self) -> "Entry":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; the lock goes with its last copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def try_lock(self) -> bool:
        """Take the entry's lock without waiting; False when a writer holds it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self) -> None:
        """Take the entry's lock; wait for a command that checks or pins it.

        Raises:
            UnavailableError: not within LOCK_SECONDS: a capture is writing to it.

        """
        end = time.monotonic() + LOCK_SECONDS
        while not self.try_lock():
            if time.monotonic() > end:
                raise UnavailableError(f"crash {self.id} is still being captured")
            time.sleep(0.005)

    def read(self) -> Crash:
        """Read the record.

        Raises:
            FormatError: it is not a record, too large, not a regular file, or another entry's.
            NotFoundError: there is no record.

        """
        fd, crash = self.open_record()
        os.close(fd)
        return crash

    def open_record(self) -> tuple[int, Crash]:
        """Open and read the record's file; the caller owns the descriptor. See `read`."""
        fd = self._open_record()
        try:
            return fd, self._parse(read_all(fd, RECORD_MAX))
        except BaseException:
            os.close(fd)
            raise

    def _parse(self, raw: bytes) -> Crash:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise FormatError(f"{RECORD} of crash {self.id} is not JSON: {e}") from e
        crash = from_json(document)
        if crash.id != self.id:
            raise FormatError(f"{RECORD} of crash {self.id} is that of {crash.id}")
        return crash

    def _open_record(self) -> int:
        wrong = FormatError(f"{RECORD} of crash {self.id} is not a regular file of sane size")
        try:
            fd = open_regular(RECORD, dir_fd=self.fd)
        except FileNotFoundError as e:
            raise NotFoundError(f"crash {self.id} has no {RECORD}") from e
        except NotRegularError as e:
            raise wrong from e
        except OSError as e:
            raise FormatError(
                f"{RECORD} of crash {self.id} cannot be opened: {reason_of(e)}"
            ) from e
        if os.fstat(fd).st_size > RECORD_MAX:
            os.close(fd)
            raise wrong
        return fd

    def write(self, crash: Crash, *, sync: bool, max_bytes: int = RECORD_BYTES) -> Crash:
        """Replace the record and return it as written: cut to `max_bytes`. With `sync` it is on
        disk on return, with all that was renamed before.
        """
        crash, raw = bounded(crash, max_bytes)
        replace_file(
            RECORD, raw, staged=RECORD_STAGED, dir_fd=self.fd, sync=sync, sync_directory=sync
        )
        return crash

    def spare_bytes(self, keep_free_bytes: int) -> int:
        """Return how large a record may be so that `keep_free_bytes` stay free."""
        spare = read_space(self.fd).free_bytes - keep_free_bytes
        return max(LEAST_BYTES, min(RECORD_BYTES, spare // SPARE_PART))

    def write_file(self, name: str, data: bytes) -> None:
        """Replace another of the entry's files, on disk on return."""
        replace_file(name, data, staged=name + ".new", dir_fd=self.fd, sync=True)

    def read_file(self, name: str, max_bytes: int) -> bytes | None:
        """Read another of the entry's files; None when it is missing, or larger."""
        try:
            fd = open_regular(name, dir_fd=self.fd)
        except OSError:
            return None
        try:
            raw = read_all(fd, max_bytes + 1)
        finally:
            os.close(fd)
        return raw if len(raw) <= max_bytes else None

    def read_analysis(self) -> dict[str, Any] | None:
        """Read analysis.json; None if it cannot be read."""
        raw = self.read_file(ANALYSIS, ANALYSIS_MAX)
        if raw is None:
            return None
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        return document if isinstance(document, dict) else None

    def open_core(self, *, spared: bool = True) -> int:
        """Open the committed core for reading; the caller owns the descriptor. Retention leaves a
        `spared` core alone.

        Raises:
            NotFoundError: this crash has no core.

        """
        try:
            fd = open_regular(CORE, dir_fd=self.fd)
        except NotRegularError as e:
            raise NotFoundError(f"the core of crash {self.id} is not a regular file") from e
        except OSError as e:
            raise NotFoundError(f"crash {self.id} has no core: {reason_of(e)}") from e
        if spared:
            with contextlib.suppress(OSError):  # only retention asks for this lock
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    def is_core_in_use(self) -> bool:
        """Return whether a reader has the core open and wants it spared."""
        try:
            fd = open_regular(CORE, dir_fd=self.fd)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def create_core(self) -> int:
        """Create the partial core for reading and writing; the caller owns the descriptor."""
        return os.open(CORE_PARTIAL, _CREATE, 0o600, dir_fd=self.fd)

    def create_spill(self) -> int:
        """Create an unnamed file on the store's file system; the caller owns the descriptor.

        Raises:
            OSError: the disk is full, or its file system has no unnamed files.

        """
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.fd)

    def open_partial(self) -> int | None:
        """Open a partial core that a dead writer left; the caller owns the descriptor."""
        try:
            return os.open(CORE_PARTIAL, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None

    def commit_core(self) -> None:
        """Give the partial core, already synced by its writer, its final name."""
        os.rename(CORE_PARTIAL, CORE, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def drop_partial(self) -> None:
        """Remove a partial core, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CORE_PARTIAL, dir_fd=self.fd)

    def drop_core(self) -> None:
        """Remove the committed core, if there is one, and the files that only it needed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CORE, dir_fd=self.fd)
        self.drop_kept_files()

    def drop_kept_files(self) -> None:
        """Remove this entry's names of kept files; other entries keep theirs."""
        for name in filter(is_kept_name, self.file_names()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)

    def stored_bytes(self) -> int | None:
        """Return the committed core's size on disk; None without a core."""
        try:
            return os.stat(CORE, dir_fd=self.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def file_names(self) -> list[str]:
        """List all names in the entry's directory, sorted."""
        return sorted(os.listdir(self.fd))


def prepare(paths: Paths) -> None:
    """Make the store's directories, private to their owner; close those that are open to others.

    Raises:
        UnavailableError: a directory belongs to another user, who could put anything into it.
        OSError: a directory cannot be made.

    """
    for directory in (paths.state_dir, paths.crashes, paths.spool):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, DIRECTORY & ~os.O_NOFOLLOW)  # the administrator may use a link
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid():
                raise UnavailableError(
                    f"{directory} belongs to uid {status.st_uid} and not to uid {os.geteuid()}",
                    hint="what is in it cannot be trusted: move it away",
                )
            if status.st_mode & 0o077:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


def create(paths: Paths, crash: Crash) -> Entry:
    """Create the locked entry of a new crash with its first record (not synced). It has its name
    only once the record is in it: a daemon that is killed meanwhile leaves no entry without one.

    Raises:
        OSError: the disk is full, read-only or broken; nothing is left behind.

    """
    parent = os.open(paths.crashes, DIRECTORY)
    staged = _STAGED_PREFIX + crash.id
    try:
        os.mkdir(staged, 0o700, dir_fd=parent)
        entry = Entry(crash.id, -1)
        try:
            entry.fd = os.open(staged, DIRECTORY, dir_fd=parent)
            fcntl.flock(entry.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.write(crash, sync=False)
            _rename_new(staged, crash.id, parent)
        except BaseException:
            # by name: listing a directory takes a descriptor, and there may be none left
            with contextlib.suppress(OSError):
                for name in (RECORD_STAGED, RECORD) if entry.fd >= 0 else ():
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=entry.fd)
                os.rmdir(staged, dir_fd=parent)
            entry.close()
            raise
    finally:
        os.close(parent)
    return entry


def _rename_new(staged: str, name: str, parent: int) -> None:
    """Rename a directory; a directory that is not empty is not replaced."""
    try:
        os.rename(staged, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as e:
        if e.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from e
        raise


def remove_staged(paths: Paths) -> list[str]:
    """Remove what a daemon that was killed in `create` left; return the ids. Only for a daemon that
    starts: nothing else may be creating an entry. Their handlers had no answer, so they spool these
    crashes.

    Raises:
        UnavailableError: the store cannot be read.
        OSError: it cannot be changed.

    """
    found = [name for name in _names(paths) if _is_staged(name)]
    for name in found:
        directory = os.open(paths.crashes / name, DIRECTORY)
        try:
            _empty(directory)
        finally:
            os.close(directory)
        os.rmdir(paths.crashes / name)
    return [name.removeprefix(_STAGED_PREFIX) for name in found]


def _is_staged(name: str) -> bool:
    prefix, crash_id = name[: len(_STAGED_PREFIX)], name[len(_STAGED_PREFIX) :]
    return prefix == _STAGED_PREFIX and ID_PATTERN.fullmatch(crash_id) is not None


def change(paths: Paths, crash_id: str, how: Callable[[Crash], Crash]) -> tuple[Crash, Crash]:
    """Change the current record under its lock, on disk on return; return it as it was and as it
    is now.

    Raises:
        CrashdError: there is no such entry, its record cannot be read, or a capture writes to it.
        OSError: the disk is full, read-only or broken; the record is unchanged.

    """
    with open_entry(paths, crash_id) as entry:
        entry.lock()
        before = entry.read()
        after = how(before)
        if after != before:
            after = entry.write(after, sync=True)
        return before, after


def open_entry(paths: Paths, crash_id: str) -> Entry:
    """Open an entry by its id.

    Raises:
        NotFoundError: there is no such entry, or `crash_id` does not have the form of an id.
        UnavailableError: the store cannot be read.

    """
    if not ID_PATTERN.fullmatch(crash_id):
        raise NotFoundError(f"{crash_id!r} is not a crash id")
    try:
        return Entry(crash_id, os.open(paths.crashes / crash_id, DIRECTORY))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise NotFoundError(f"no crash {crash_id} in {paths.crashes}") from e
    except OSError as e:
        raise UnavailableError(f"cannot open {paths.crashes / crash_id}: {reason_of(e)}") from e


def record_size(paths: Paths, crash_id: str) -> int:
    """Return the size of an entry's record; 0 without one."""
    try:
        return os.stat(paths.crashes / crash_id / RECORD, follow_symlinks=False).st_size
    except OSError:
        return 0


def _names(paths: Paths) -> list[str]:
    try:
        return sorted(os.listdir(paths.crashes))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UnavailableError(f"cannot read {paths.crashes}: {reason_of(e)}") from e


def entry_ids(paths: Paths) -> list[str]:
    """List the ids of all entries, oldest first."""
    return [name for name in _names(paths) if ID_PATTERN.fullmatch(name)]


def walk(
    paths: Paths, progress: Progress = no_progress, ids: Iterable[str] | None = None
) -> Iterator[Entry]:
    """Open one entry after the other, oldest first, or those of `ids` in their order. Skip an entry
    that was deleted meanwhile. Each is closed when the next is asked for, if not before.

    Raises:
        UnavailableError: the store cannot be read.

    """
    wanted = entry_ids(paths) if ids is None else list(ids)
    for number, crash_id in enumerate(wanted):
        progress(number, len(wanted))
        try:
            entry = open_entry(paths, crash_id)
        except NotFoundError:
            continue
        with entry:
            yield entry


def foreign_names(paths: Paths) -> list[str]:
    """List names in the store that are not entries: they are reported, never touched."""
    ours = paths.kept_files.name
    return [
        name
        for name in _names(paths)
        if name != ours and not ID_PATTERN.fullmatch(name) and not _is_staged(name)
    ]


def _empty(directory: int) -> int:
    """Unlink the files in an entry's directory, the record first; return the bytes freed."""
    freed = 0
    for name in sorted(os.listdir(directory), key=lambda name: name != RECORD):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        os.unlink(name, dir_fd=directory)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            freed += status.st_blocks * 512
    return freed


def remove(paths: Paths, crash_id: str) -> int:
    """Remove an entry and all its files; return the bytes freed.

    Raises:
        NotFoundError: there is no such entry.
        UnavailableError: a capture is still writing to it.

    """
    with open_entry(paths, crash_id) as entry:
        entry.lock()
        return remove_locked(paths, entry)


def remove_locked(paths: Paths, entry: Entry) -> int:
    """Remove an entry that the caller has locked; return the bytes freed."""
    freed = _empty(entry.fd)
    os.rmdir(paths.crashes / entry.id)
    return freed
