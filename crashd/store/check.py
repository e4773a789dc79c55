"""What `crashctl verify` finds: where the entries on disk and the index differ. With `deep` it also
reads every core; with `--strict` it also checks that every file of the state directory belongs to
something. It reads, and changes nothing.

One look walks once over the entries and once over the rows. It skips a locked entry, which is being
written. An entry that a running daemon is about to finish briefly looks like one that will never be
finished. So rows that differ are read again at the end, and a strict look that found something is
repeated for some seconds; only what is found each time is reported.
"""

import os
import stat
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from crashd.domain.crash.consistency import contradictions
from crashd.domain.crash.model import Crash, Kind, State
from crashd.domain.elf.executables import is_kept_name
from crashd.domain.elf.zstdframes import SEEK_FOOTER_SIZE, parse_seek_table, seek_table_size
from crashd.errors import FormatError, NotFoundError, reason_of
from crashd.store import corefile, spool
from crashd.store.checkfiles import (
    Finding,
    find_odd,
    find_open,
    look_at_kept_files,
    look_at_spool,
    look_at_state_directory,
)
from crashd.store.entry import (
    ANALYSIS,
    CORE,
    RECORD,
    Entry,
    Progress,
    foreign_names,
    no_progress,
    open_entry,
    walk,
)
from crashd.store.index import Index
from crashd.store.indexfile import COMPANIONS
from crashd.store.paths import Paths

__all__ = ["Finding", "verify", "verify_strictly"]

LOOKS: Final = 5
LOOK_SECONDS: Final = 1.0
COUNTS_MAX: Final = 20
"""Wrong counts reported, of each kind."""

_LASTING: Final = frozenset({"index-damaged", "core-damaged", "seek-table"})
"""Findings about things that nothing changes any more: looking once is enough."""
_EXPECTED: Final = frozenset({RECORD, CORE, ANALYSIS})

_Unread = tuple[int, int]
"""The descriptor of a core, and how many bytes it has to have."""
_Found = Generator[Finding, None, _Unread | None]

_USAGE = """
SELECT kind, sum(rows), sum(held), sum(told_rows), sum(told_held) FROM (
    SELECT kind, 1 AS rows, stored_bytes AS held, 0 AS told_rows, 0 AS told_held FROM crash
    UNION ALL SELECT kind, 0, 0, entries, bytes FROM usage
) GROUP BY kind HAVING sum(rows) != sum(told_rows) OR sum(held) != sum(told_held)
"""
_RECORDS = """
SELECT kind, sum(held), sum(told) FROM (
    SELECT kind, record_bytes AS held, 0 AS told FROM crash
    UNION ALL SELECT kind, 0, bytes FROM record_usage
) GROUP BY kind HAVING sum(held) != sum(told)
"""
_SIGNATURES = f"""
SELECT signature, sum(rows), sum(told) FROM (
    SELECT signature, 1 AS rows, 0 AS told FROM crash WHERE signature IS NOT NULL
    UNION ALL SELECT signature, 0, count FROM signature_count
) GROUP BY signature HAVING sum(rows) != sum(told) LIMIT {COUNTS_MAX}
"""
_TWICE = f"""
SELECT token, count(*), min(id), max(id) FROM crash WHERE token != ''
GROUP BY token HAVING count(*) > 1 LIMIT {COUNTS_MAX}
"""


def verify(
    paths: Paths, index: Index, *, deep: bool = False, progress: Progress = no_progress
) -> list[Finding]:
    """Compare store and index; with `deep`, also read every core and check the index file.

    Raises:
        UnavailableError: the store or the index cannot be read at all.

    """
    return list(_Look(paths, index, deep=deep).findings(progress))


def verify_strictly(
    paths: Paths,
    index: Index,
    *,
    is_live: Callable[[], bool],
    pause: Callable[[float], None] = time.sleep,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Look at everything; `is_live` returns whether a daemon runs, `pause` waits that many seconds.

    Raises:
        UnavailableError: the store or the index cannot be read at all.

    """
    first = _StrictLook(paths, index, deep=True, live=is_live())
    found = list(dict.fromkeys(first.findings(progress)))
    for _ in range(LOOKS - 1):
        if all(finding.kind in _LASTING for finding in found) or not is_live():
            break
        pause(LOOK_SECONDS)
        look = _StrictLook(paths, index, deep=False, live=True)
        again = {(f.kind, f.subject) for f in look.findings(no_progress)}
        found = [f for f in found if f.kind in _LASTING or (f.kind, f.subject) in again]
    return found


class _Look:
    """One look at the whole store and its index."""

    def __init__(self, paths: Paths, index: Index, *, deep: bool) -> None:
        self._paths = paths
        self._index = index
        self._deep = deep
        self._doubtful: list[str] = []
        """Crashes whose rows differ from their records."""

    def findings(self, progress: Progress) -> Iterator[Finding]:
        """Yield what is found, whatever a daemon is doing meanwhile."""
        if self._deep:
            for complaint in self._index.check():
                yield Finding("index-damaged", self._paths.index.name, complaint)
        yield from self._beside_entries()
        for entry in walk(self._paths, progress):
            unread = yield from self._of_entry(entry)
            entry.close()
            if unread is not None:  # unlocked: the daemon must not wait for a large core
                yield from _read_through(entry.id, *unread)
        for crash_id in self._doubtful:  # again: a daemon may have been about to put the row
            yield from self._of_row(crash_id)
        for crash_id in self._index.ids():
            gone = not (self._paths.crashes / crash_id).exists()
            if gone and self._index.row(crash_id) is not None:
                yield Finding("no-entry", crash_id, "is in the index but not on disk")

    def _beside_entries(self) -> Iterator[Finding]:
        index = self._paths.index
        yield from find_open(self._paths.state_dir)
        yield from find_open(self._paths.crashes)
        for path in (index, *(index.with_name(index.name + suffix) for suffix in COMPANIONS)):
            yield from find_open(path)
        for name in foreign_names(self._paths):
            yield Finding("foreign", name, "is no crash's entry; crashd leaves it alone")

    def _of_row(self, crash_id: str) -> Iterator[Finding]:
        try:
            with open_entry(self._paths, crash_id) as entry:
                if not entry.try_lock():
                    return
                crash = entry.read()
        except (FormatError, NotFoundError):
            return  # already reported, or deleted meanwhile
        row = self._index.row(crash_id)
        if row is None:
            yield Finding("no-row", crash_id, "is on disk but not in the index")
        elif differing := Index.differing(row, crash):
            what = ", ".join(differing)
            yield Finding(
                "row-differs", crash_id, f"the index and {RECORD} say different things of {what}"
            )

    def _of_entry(self, entry: Entry) -> _Found:
        """Check all but a core's content; return the core for the caller to read and close."""
        if not entry.try_lock():
            return None  # being written: whatever it looks like now, it is not finished
        yield from self._of_files(entry)
        try:
            crash = entry.read()
        except (FormatError, NotFoundError) as e:
            yield Finding("bad-record", entry.id, reason_of(e))
            return None
        status = os.fstat(entry.fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            yield Finding("not-private", entry.id, "its directory is another's, or open to others")
        for name in entry.file_names():
            if name not in _EXPECTED and not is_kept_name(name):
                yield Finding(
                    "leftover", entry.id, f"has the file {name!r}, left by a writer that died"
                )
        yield from self._of_crash(entry, crash)
        if self._index.row(entry.id) != Index.row_of(crash):
            self._doubtful.append(entry.id)
        return (yield from self._of_core(entry, crash))

    def _of_files(self, entry: Entry) -> Iterator[Finding]:
        """Check an entry's files, whatever they contain."""
        yield from ()

    def _of_crash(self, entry: Entry, crash: Crash) -> Iterator[Finding]:
        """Check what a record says."""
        if crash.state is State.CAPTURING and crash.kind is Kind.PROCESS:
            yield Finding(
                "unfinished", entry.id, "was never finished; a running crashd salvages it"
            )

    def _of_core(self, entry: Entry, crash: Crash) -> _Found:
        stored = entry.stored_bytes()
        if crash.core.path is None:
            if stored is not None and crash.state is not State.CAPTURING:
                yield Finding("extra-core", entry.id, f"has a core of which {RECORD} knows nothing")
        elif stored is None:
            yield Finding("no-core", entry.id, "its core is missing")
        elif stored != crash.core.stored_bytes:
            promised = crash.core.stored_bytes
            yield Finding(
                "core-size", entry.id, f"its core has {stored} bytes on disk, not {promised}"
            )
        elif self._deep:
            return entry.open_core(), crash.core.size_bytes
        return None


class _StrictLook(_Look):
    """One look at everything that `--strict` checks."""

    def __init__(self, paths: Paths, index: Index, *, deep: bool, live: bool) -> None:
        super().__init__(paths, index, deep=deep)
        self._live = live

    def findings(self, progress: Progress) -> Iterator[Finding]:
        """Yield what is found, whatever a daemon is doing meanwhile."""
        yield from super().findings(progress)
        yield from look_at_state_directory(self._paths)
        yield from look_at_kept_files(self._paths)
        yield from look_at_spool(self._paths, live=self._live)
        yield from self._of_counts()

    def _of_files(self, entry: Entry) -> Iterator[Finding]:
        for name in entry.file_names():
            shared = is_kept_name(name)
            yield from find_odd(Path(name), entry.id, name, directory=entry.fd, shared=shared)

    def _of_crash(self, entry: Entry, crash: Crash) -> Iterator[Finding]:
        for finding in super()._of_crash(entry, crash):
            # it is unfinished because its handler is still writing the core to the spool
            if not (finding.kind == "unfinished" and self._live and self._is_spooled(crash)):
                yield finding
        for text in contradictions(crash):
            yield Finding("contradiction", entry.id, text)
        yield from _of_analysis(entry, crash)
        yield from _of_dump(crash)
        if self._deep and crash.core.path is not None:
            yield from _of_seek_table(entry, crash)

    def _is_spooled(self, crash: Crash) -> bool:
        try:
            return crash.token in spool.tokens(self._paths)
        except OSError:
            return False

    def _of_counts(self) -> Iterator[Finding]:
        if self._deep:
            for (text,) in self._index.fetch("PRAGMA integrity_check(20)"):
                if text != "ok":
                    yield Finding("index-damaged", self._paths.index.name, text)
        for kind, rows, held, told_rows, told_held in self._index.fetch(_USAGE):
            text = f"has {rows} rows of {held} bytes, and counts {told_rows} of {told_held}"
            yield Finding("wrong-count", f"kind {kind}", text)
        for kind, held, told in self._index.fetch(_RECORDS):
            text = f"has records of {held} bytes, and counts {told}"
            yield Finding("wrong-count", f"kind {kind}", text)
        for signature, rows, told in self._index.fetch(_SIGNATURES):
            yield Finding("wrong-count", signature, f"has {rows} rows, and {told} are counted")
        for token, count, first, last in self._index.fetch(_TWICE):
            yield Finding("twice", first, f"is recorded {count} times, by {last} too ({token})")


# -- of one entry ----------------------------------------------------------------------------------


def _read_through(crash_id: str, fd: int, size_bytes: int) -> Iterator[Finding]:
    """Decompress a whole core, which makes zstd check its checksums; close it."""
    try:
        for _ in corefile.read_core(fd, size_bytes):
            pass
    except FormatError as e:
        yield Finding("core-damaged", crash_id, reason_of(e))
    finally:
        os.close(fd)


def _of_analysis(entry: Entry, crash: Crash) -> Iterator[Finding]:
    """Compare analysis.json, which is written last, with what the record says about it."""
    if ANALYSIS not in entry.file_names():
        if crash.analysis is not None:
            yield Finding("no-analysis", entry.id, f"its {ANALYSIS} is missing")
        return
    found = entry.read_analysis()
    if found is None:
        yield Finding("bad-analysis", entry.id, f"its {ANALYSIS} cannot be read")
    elif found.get("state") != "running" and crash.analysis is None:
        yield Finding("no-analysis", entry.id, "was analysed, but its record knows nothing of it")


def _of_dump(crash: Crash) -> Iterator[Finding]:
    """Check that a kernel dump is where its record says, or gone as its record says."""
    kernel = crash.kernel or {}
    path, inode = kernel.get("path"), kernel.get("inode")
    if crash.kind is not Kind.KERNEL or not isinstance(path, str) or type(inode) is not int:
        return
    try:
        there = os.lstat(path).st_ino == inode
    except (OSError, ValueError):
        there = False
    if crash.state.has_core and not there:
        yield Finding("no-dump", crash.id, f"its dump {path} is missing")
    elif crash.state is State.EVICTED and there:
        yield Finding("dump-left", crash.id, f"its dump {path} was deleted, and is still there")


def _of_seek_table(entry: Entry, crash: Crash) -> Iterator[Finding]:
    """Check that the seek table at the core's end, if there is one, matches the core's frames."""
    try:
        fd = entry.open_core()
    except NotFoundError:
        return  # `verify` reports it
    try:
        stored = os.fstat(fd).st_size
        size = seek_table_size(os.pread(fd, SEEK_FOOTER_SIZE, max(0, stored - SEEK_FOOTER_SIZE)))
        if size is None:
            return  # repaired after its writer died: such a core has no table
        frames = parse_seek_table(os.pread(fd, size, max(0, stored - size)), stored)
    finally:
        os.close(fd)
    if frames is None or sum(frame.size for frame in frames) != crash.core.size_bytes:
        yield Finding("seek-table", entry.id, f"the table at the end of its {CORE} is wrong")
