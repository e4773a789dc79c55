"""All that `crashctl verify --strict` looks at: what `verify --deep` does, and that every file of
the state directory is owned by a row, or told of. It reads, and changes nothing.

What a running daemon is about to finish looks, for a moment, as what it will never finish. So where
one runs all is looked at again, some seconds long, and told is what was found each time. What is
locked is being written and is not looked at.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from crashd.corehandler import LIMITS_NAME, PROC_FILES, PROC_LINKS
from crashd.domain.crash.consistency import contradictions
from crashd.domain.crash.model import Crash, Kind, State
from crashd.domain.elf.zstdframes import SEEK_FOOTER_SIZE, parse_seek_table, seek_table_size
from crashd.errors import FormatError, NotFoundError
from crashd.store import spool
from crashd.store.catalog import Catalog, Finding, Progress, no_progress
from crashd.store.entry import ANALYSIS, CORE, Entry, entry_ids, open_entry
from crashd.store.index import COMPANIONS, Index
from crashd.store.paths import Paths

LOOKS: Final = 5
LOOK_SECONDS: Final = 1.0
SPOOL_PATIENCE_NS: Final = 120 * 10**9
"""A running daemon looks into the spool once a minute at least."""
COUNTS_MAX: Final = 20
"""Wrong counts that are told of, of each sort."""
ANALYSIS_MAX: Final = 8 << 20

_LASTING: Final = frozenset({"index-damaged", "core-damaged", "seek-table"})
"""Findings of what nobody changes any more: once is enough."""
_IN_SPOOL: Final = frozenset({"meta", "core", "done", *(f"proc.{n}" for n in PROC_LINKS)}) | {
    f"proc.{name}" for name in PROC_FILES
}

_USAGE = """
SELECT kind, sum(rows), sum(held), sum(told_rows), sum(told_held) FROM (
    SELECT kind, 1 AS rows, stored_bytes AS held, 0 AS told_rows, 0 AS told_held FROM crash
    UNION ALL SELECT kind, 0, 0, entries, bytes FROM usage
) GROUP BY kind HAVING sum(rows) != sum(told_rows) OR sum(held) != sum(told_held)
"""
_RECORDS = """
SELECT kind, sum(held), sum(told) FROM (
    SELECT kind, coalesce(record_bytes, 0) AS held, 0 AS told FROM crash
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


def verify_strictly(
    paths: Paths,
    index: Index,
    *,
    is_live: Callable[[], bool],
    pause: Callable[[float], None] = time.sleep,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Look at everything; `is_live` tells whether a daemon runs, `pause` waits so many seconds.

    Raises:
        UnavailableError: store or index cannot be read at all.

    """
    found = list(dict.fromkeys(_Look(paths, index, is_live(), progress, deep=True).findings()))
    for _ in range(LOOKS - 1):
        if all(finding.kind in _LASTING for finding in found) or not is_live():
            break
        pause(LOOK_SECONDS)
        again = {(f.kind, f.subject) for f in _Look(paths, index, True, deep=False).findings()}
        found = [f for f in found if f.kind in _LASTING or (f.kind, f.subject) in again]
    return found


class _Look:
    """One look at the whole store."""

    def __init__(
        self,
        paths: Paths,
        index: Index,
        live: bool,
        progress: Progress = no_progress,
        *,
        deep: bool,
    ) -> None:
        self._progress = progress
        self._paths = paths
        self._index = index
        self._live = live
        self._deep = deep

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, whatever a daemon may be doing at this moment."""
        yield from self._of_catalog()
        yield from self._of_state_directory()
        yield from self._of_spool()
        for crash_id in entry_ids(self._paths):
            try:
                with open_entry(self._paths, crash_id) as entry:
                    yield from self._of_entry(entry)
            except NotFoundError:
                continue  # deleted while we looked
        yield from self._of_counts()

    def _of_catalog(self) -> Iterator[Finding]:
        """Leave out what is unfinished because its handler still writes the core to the spool."""
        for finding in self._verified():
            if not (finding.kind == "unfinished" and self._live and self._is_spooled(finding)):
                yield finding

    def _verified(self) -> list[Finding]:
        catalog = Catalog(self._paths, self._index)
        return catalog.verify(deep=self._deep, progress=self._progress)

    def _is_spooled(self, finding: Finding) -> bool:
        try:
            with open_entry(self._paths, finding.subject) as entry:
                return entry.read().token in spool.tokens(self._paths)
        except (NotFoundError, FormatError, OSError):
            return False

    # -- beside the entries ----------------------------------------------------------------------

    def _of_state_directory(self) -> Iterator[Finding]:
        paths = self._paths
        directories = {paths.crashes.name, paths.spool.name}
        states = {paths.limiter_state.name, paths.kernel_log_state.name}
        indexes = {paths.index.name, *(paths.index.name + suffix for suffix in COMPANIONS)}
        previous = paths.previous_core_pattern.name
        others = {previous, paths.pending_deletions.name}
        for name in sorted(os.listdir(paths.state_dir)):
            path = paths.state_dir / name
            if name == "lost+found" and paths.state_dir.is_mount():
                continue  # that of the file system
            if name in directories:
                yield from _of_directory(path, private=name == paths.spool.name)
            elif name in indexes:
                yield from _of_file(path, name, name, private=False)  # `verify` looked
            elif name in states or name in others:
                yield from _of_file(path, name, name)
            elif name.removesuffix(".new") in states or name.startswith(f".{previous}."):
                yield Finding("leftover", name, "was left by a writer that died")
            elif name.startswith(paths.index.name + ".corrupt-"):
                text = "is an index that could not be read; it can go once nobody wants to know why"
                yield Finding("set-aside", name, text)
            else:
                yield Finding("unknown-file", name, "is no file of crashd's")

    def _of_spool(self) -> Iterator[Finding]:
        try:
            names = sorted(os.listdir(self._paths.spool))
        except FileNotFoundError:
            return
        ready = set(spool.ready_names(self._paths, time.time_ns()))
        for name in names:
            subject = f"{self._paths.spool.name}/{name}"
            if name == LIMITS_NAME:
                yield from _of_file(self._paths.spool / name, subject, name)
            elif name == f".{LIMITS_NAME}.new":
                yield Finding("leftover", subject, "was left by a writer that died")
            elif name.endswith(".bad") and spool.is_entry_name(name.removesuffix(".bad")):
                yield Finding("spool-bad", subject, "could not be understood; crashd keeps it")
            elif not spool.is_entry_name(name):
                yield Finding("unknown-file", subject, "is no file of crashd's")
            elif name in ready:
                yield from self._of_waiting(name, subject)

    def _of_waiting(self, name: str, subject: str) -> Iterator[Finding]:
        directory = self._paths.spool / name
        try:
            age_ns = time.time_ns() - directory.lstat().st_mtime_ns
            unknown = sorted(set(os.listdir(directory)) - _IN_SPOOL)
        except FileNotFoundError:
            return  # taken in while we looked
        except NotADirectoryError:
            yield Finding("odd-file", subject, "is no directory")
            return
        if not self._live:
            yield Finding("spooled", subject, "waits for crashd to run and take it in")
        elif age_ns > SPOOL_PATIENCE_NS:
            text = f"has not been taken in by the running crashd for {age_ns // 10**9} seconds"
            yield Finding("spooled", subject, text)
        for odd in unknown:
            yield Finding("unknown-file", f"{subject}/{odd}", "is nothing that the handler writes")

    # -- one entry -------------------------------------------------------------------------------

    def _of_entry(self, entry: Entry) -> Iterator[Finding]:
        if not entry.try_lock():
            return  # being written
        for name in entry.file_names():
            yield from _of_file(Path(name), entry.id, name, directory=entry.fd)
        try:
            crash = entry.read()
        except (FormatError, NotFoundError):
            return  # `verify` tells of it
        for text in contradictions(crash):
            yield Finding("contradiction", entry.id, text)
        yield from _of_analysis(entry, crash)
        yield from _of_dump(crash)
        if self._deep and crash.core.path is not None:
            yield from _of_seek_table(entry, crash)

    # -- the index -------------------------------------------------------------------------------

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


def _of_directory(path: Path, *, private: bool) -> Iterator[Finding]:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("odd-file", path.name, "is no directory")
    elif private:
        yield from _ownership(status, path.name, path.name)


def _of_file(
    path: Path, subject: str, name: str, *, directory: int | None = None, private: bool = True
) -> Iterator[Finding]:
    try:
        status = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        yield Finding("odd-file", subject, f"{name!r} is no regular file")
    elif status.st_nlink != 1:
        yield Finding("odd-file", subject, f"{name!r} has {status.st_nlink} names")
    elif private:
        yield from _ownership(status, subject, name)


def _ownership(status: os.stat_result, subject: str, name: str) -> Iterator[Finding]:
    if status.st_uid != os.geteuid():
        yield Finding("wrong-owner", subject, f"{name!r} belongs to uid {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield Finding("not-private", subject, f"{name!r} has mode {status.st_mode & 0o7777:o}")


def _of_analysis(entry: Entry, crash: Crash) -> Iterator[Finding]:
    """Compare analysis.json, which is written last, with what the record says of it."""
    if ANALYSIS not in entry.file_names():
        if crash.analysis is not None:
            yield Finding("no-analysis", entry.id, f"its {ANALYSIS} is missing")
        return
    raw = entry.read_file(ANALYSIS, ANALYSIS_MAX)
    found = None if raw is None else _parse_object(raw)
    if found is None:
        yield Finding("bad-analysis", entry.id, f"its {ANALYSIS} cannot be read")
    elif found.get("state") != "running" and crash.analysis is None:
        yield Finding("no-analysis", entry.id, "was analysed, but its record knows nothing of it")


def _parse_object(raw: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _of_dump(crash: Crash) -> Iterator[Finding]:
    """Look whether a kernel's dump is where its record says, or gone as it says."""
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
    """Check that the table at the core's end, where there is one, names the frames there are."""
    try:
        fd = entry.open_core()
    except NotFoundError:
        return  # `verify` tells of it
    try:
        stored = os.fstat(fd).st_size
        size = seek_table_size(os.pread(fd, SEEK_FOOTER_SIZE, max(0, stored - SEEK_FOOTER_SIZE)))
        if size is None:
            return  # mended after its writer died: such a core has none
        frames = parse_seek_table(os.pread(fd, size, max(0, stored - size)), stored)
    finally:
        os.close(fd)
    if frames is None or sum(frame.size for frame in frames) != crash.core.size_bytes:
        yield Finding("seek-table", entry.id, f"the table at the end of its {CORE} is wrong")
