"""Store and index together: what crashctl and the control socket ask of them.

The entries on disk are the truth, the index answers quickly; `verify` says where they differ,
`reindex` makes the index anew. A viewer who is not root sees only his own; what he may not see does
not exist.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crashd.domain.crash.match import Query
from crashd.domain.crash.model import ID_PATTERN, Crash, Kind, State, from_json, to_json
from crashd.domain.crash.viewer import Viewer
from crashd.errors import FormatError, IndexCorruptError, NotFoundError, UnavailableError, reason_of
from crashd.store import corefile, signatures
from crashd.store.entry import (
    ANALYSIS,
    CORE,
    RECORD,
    RECORD_MAX,
    Entry,
    entry_ids,
    foreign_names,
    open_entry,
    remove,
)
from crashd.store.index import COMPANIONS, Index
from crashd.store.kerneldumps import DumpRoot
from crashd.store.paths import Paths
from crashd.store.restoring import unreadable

Progress = Callable[[int, int], None]
"""Takes what is done, and the whole."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
    del done, total


_EXPECTED = frozenset({RECORD, CORE, ANALYSIS})
_Unread = tuple[int, int]
"""The descriptor of a core, and how many bytes it has to have."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify` found wrong."""

    kind: str
    """A short, stable word: `no-row`, `no-entry`, `row-differs`, `bad-record`, `no-core`, …"""
    subject: str
    """The crash's id, or the name of a file."""
    text: str


class Catalog:
    """The crashes of one root; for one thread, as its index is."""

    def __init__(self, paths: Paths, index: Index) -> None:
        self._paths = paths
        self._index = index

    def select(
        self, query: Query, viewer: Viewer | None, *, max_bytes: int | None = None
    ) -> list[dict[str, Any]]:
        """Find crashes; see `Index.select`."""
        return self._index.select(query, viewer, max_bytes=max_bytes)

    def top(self, query: Query, viewer: Viewer | None) -> list[dict[str, Any]]:
        """Count crashes by signature; see `signatures.top`."""
        return signatures.top(self._index, query, viewer)

    def info(self, crash_id: str, viewer: Viewer | None) -> dict[str, Any]:
        """Give all that is known of one crash: crash.json, and how many share its signature.

        Raises:
            NotFoundError: there is none, or the viewer may not see it.

        """
        fd, more = self.open_record(crash_id, viewer)
        if fd is None:
            return more
        with open(fd, "rb") as file:
            file.seek(0)
            return {**to_json(from_json(json.loads(file.read(RECORD_MAX)))), **more}

    def open_record(
        self, crash_id: str, viewer: Viewer | None
    ) -> tuple[int | None, dict[str, Any]]:
        """Open crash.json, which is whole and a record; return beside it how many crashes share its
        signature, and since when. Where it cannot be read it is None, beside what the index knows.
        The caller owns the descriptor.

        Raises:
            NotFoundError: there is none, or the viewer may not see it.

        """
        row = self._visible(crash_id, viewer)
        try:
            with open_entry(self._paths, crash_id) as entry:
                fd, crash = entry.open_record()
        except (NotFoundError, FormatError) as e:
            return None, {**row, "warnings": [f"only the index knows this crash: {e}"]}
        if viewer is not None and not viewer.owns(crash.owner_uid, crash.gid):
            os.close(fd)
            raise _not_found(crash_id)
        span = signatures.span(self._index, crash.signature, viewer) if crash.signature else {}
        return fd, {"count_of_signature": row["count_of_signature"], **span}

    def open_core(self, crash_id: str, viewer: Viewer | None) -> int:
        """Open the stored core; the caller owns the descriptor. Retention spares a core that root
        reads: other users' readers must not decide what is kept.

        Raises:
            NotFoundError: no such crash, no core, or not the viewer's.

        """
        self._visible(crash_id, viewer)
        with open_entry(self._paths, crash_id) as entry:
            if viewer is not None:
                crash = entry.read()
                if not viewer.owns(crash.owner_uid, crash.gid):
                    raise _not_found(crash_id)
            return entry.open_core(spared=viewer is None)

    def _visible(self, crash_id: str, viewer: Viewer | None) -> dict[str, Any]:
        if not ID_PATTERN.fullmatch(crash_id):
            raise _not_found(crash_id)
        seen = self._index.is_visible(crash_id, viewer)
        row = self._index.get(crash_id, viewer) if seen else None
        if row is None:
            raise _not_found(crash_id)
        return row

    def delete(self, crash_ids: Iterable[str]) -> int:
        """Delete crashes, entry first and then row; return the bytes freed.

        Raises:
            NotFoundError: neither entry nor row.
            UnavailableError: one is still being captured.
            FormatError: a kernel's dump is not to be trusted, and stays.

        """
        freed = 0
        for crash_id in crash_ids:
            freed += self._remove_dump(crash_id)
            try:
                freed += remove(self._paths, crash_id)
            except NotFoundError:
                if self._index.get(crash_id) is None:
                    raise
            self._index.remove([crash_id])
        return freed

    def _remove_dump(self, crash_id: str) -> int:
        """Remove the directory of a kernel's dump, where the crash has one."""
        try:
            with open_entry(self._paths, crash_id) as entry:
                crash = entry.read()
        except (NotFoundError, FormatError):
            return 0
        kernel = crash.kernel or {}
        path, inode = kernel.get("path"), kernel.get("inode")
        if crash.kind is not Kind.KERNEL or not isinstance(path, str) or type(inode) is not int:
            return 0
        if crash.state is State.CAPTURING:
            raise UnavailableError(f"crash {crash_id} is still being captured")
        try:
            with DumpRoot(Path(path).parent) as root:
                return root.remove(os.fsencode(Path(path).name), inode)[0]
        except NotFoundError:
            return 0

    def set_pinned(self, crash_ids: Iterable[str], pinned: bool) -> None:
        """Pin or unpin crashes, on disk on return.

        Raises:
            NotFoundError: no such crash.
            CrashdError: one is still being captured, or its record cannot be read.

        """
        for crash_id in crash_ids:
            with open_entry(self._paths, crash_id) as entry:
                entry.lock()
                crash = entry.write(replace(entry.read(), pinned=pinned), sync=True)
                self._index.put([crash])  # under the lock: nobody else changes it meanwhile

    def verify(self, *, deep: bool = False, progress: Progress = no_progress) -> list[Finding]:
        """Compare store and index; with `deep` every core is read and the index file checked as
        well.
        """
        return list(self._findings(deep, progress))

    def _findings(self, deep: bool, progress: Progress) -> Iterator[Finding]:
        if deep:
            for complaint in self._index.check():
                yield Finding("index-damaged", self._paths.index.name, complaint)
        index = self._paths.index
        yield from _privacy(self._paths.state_dir)
        yield from _privacy(self._paths.crashes)
        for path in (index, *(index.with_name(index.name + suffix) for suffix in COMPANIONS)):
            yield from _privacy(path)
        for name in foreign_names(self._paths):
            yield Finding("foreign", name, "is no crash's entry; crashd leaves it alone")
        doubtful: list[str] = []
        ids = entry_ids(self._paths)
        for number, crash_id in enumerate(ids):
            progress(number, len(ids))
            try:
                with open_entry(self._paths, crash_id) as entry:
                    unread = yield from self._of_entry(entry, deep, doubtful)
            except NotFoundError:
                continue  # deleted while we looked
            if unread is not None:  # without the lock: the daemon shall not wait for a large core
                yield from _read_through(crash_id, *unread)
        for crash_id in doubtful:  # again: a running daemon may just have been about to put it
            yield from self._of_row(crash_id)
        for crash_id in self._index.ids():
            gone = not (self._paths.crashes / crash_id).exists()
            if gone and self._index.row(crash_id) is not None:
                yield Finding("no-entry", crash_id, "is in the index but not on disk")

    def _of_row(self, crash_id: str) -> Iterator[Finding]:
        try:
            with open_entry(self._paths, crash_id) as entry:
                if not entry.try_lock():
                    return
                crash = entry.read()
        except (FormatError, NotFoundError):
            return  # told of already, or deleted while we looked
        row = self._index.row(crash_id)
        if row is None:
            yield Finding("no-row", crash_id, "is on disk but not in the index")
        elif differing := Index.differing(row, crash):
            what = ", ".join(differing)
            yield Finding(
                "row-differs", crash_id, f"the index and {RECORD} say different things of {what}"
            )

    def _of_entry(
        self, entry: Entry, deep: bool, doubtful: list[str]
    ) -> Generator[Finding, None, _Unread | None]:
        """Look at all but a core's content; that is returned for the caller, to read and close."""
        if not entry.try_lock():
            return None  # being written: whatever it looks like now, it is not finished
        try:
            crash = entry.read()
        except (FormatError, NotFoundError) as e:
            yield Finding("bad-record", entry.id, reason_of(e))
            return None
        status = os.fstat(entry.fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            yield Finding("not-private", entry.id, "its directory is another's, or open to others")
        for name in entry.file_names():
            if name not in _EXPECTED:
                yield Finding(
                    "leftover", entry.id, f"has the file {name!r}, left by a writer that died"
                )
        if crash.state is State.CAPTURING and crash.kind is Kind.PROCESS:
            yield Finding(
                "unfinished", entry.id, "was never finished; a running crashd salvages it"
            )
        if self._index.row(entry.id) != Index.row_of(crash):
            doubtful.append(entry.id)
        return (yield from self._of_core(entry, crash, deep))

    def _of_core(
        self, entry: Entry, crash: Crash, deep: bool
    ) -> Generator[Finding, None, _Unread | None]:
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
        elif deep:
            return entry.open_core(), crash.core.size_bytes
        return None


def _read_through(crash_id: str, fd: int, size_bytes: int) -> Iterator[Finding]:
    """Decompress a whole core, whose checksums zstd compares; close it."""
    try:
        for _ in corefile.read_core(fd, size_bytes):
            pass
    except FormatError as e:
        yield Finding("core-damaged", crash_id, reason_of(e))
    finally:
        os.close(fd)


def _privacy(path: Path) -> Iterator[Finding]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return  # SQLite's companions come and go
    if status.st_uid != os.geteuid():
        yield Finding("wrong-owner", str(path), f"belongs to uid {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield Finding("not-private", str(path), f"has the mode {stat.S_IMODE(status.st_mode):o}")


def _not_found(crash_id: str) -> NotFoundError:
    return NotFoundError(f"no crash {crash_id}")


WAL_ALARM_BYTES = 64 << 20
"""No WAL grows to this but for a reader that does not end: crashctl's take milliseconds."""


def wal_bytes(path: Path) -> int:
    """Tell the size of the index's WAL; nothing of it is written back behind a reader's back, so it
    grows while one has a transaction open.
    """
    try:
        return os.stat(path.with_name(path.name + "-wal")).st_size
    except FileNotFoundError:
        return 0


def set_index_aside(path: Path) -> str:
    """Rename an index that cannot be read, so that a new one can be made; return its new name."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    os.rename(path, aside)
    for suffix in COMPANIONS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside.name


def reindex(paths: Paths, progress: Progress = no_progress) -> int:
    """Make the index anew from the entries; return how many crashes it has.

    In one transaction: who reads it meanwhile sees the old rows, or after it the new. A running
    daemon goes on writing to the same file, but for one that could not be read: that is set aside.

    Raises:
        UnavailableError: the store cannot be read or the index not be written.

    """
    try:
        with Index.open(paths.index) as old:
            damaged = bool(old.check())
    except IndexCorruptError:
        damaged = True
    if damaged:
        set_index_aside(paths.index)
    with Index.open(paths.index) as index:
        read: dict[str, _Stamp] = {}
        ids = entry_ids(paths)
        index.replace_all(_readable(paths, ids, read, lambda done: progress(done, len(ids))))
        # what was finished, changed or deleted meanwhile, by who put it into the old rows
        now = {crash_id: _stamp(paths, crash_id) for crash_id in entry_ids(paths)}
        changed = [crash_id for crash_id in now if now[crash_id] != read.get(crash_id)]
        gone = read.keys() - now.keys()
        index.put(_readable(paths, changed, read))
        index.remove(gone)
    return len(read) - len(gone)


_Stamp = tuple[int, int] | None
"""Inode and mtime of a crash.json: a new one has another."""


def _stamp(paths: Paths, crash_id: str) -> _Stamp:
    try:
        status = os.stat(paths.crashes / crash_id / RECORD, follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _readable(
    paths: Paths,
    ids: Iterable[str],
    read: dict[str, _Stamp],
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[Crash]:
    """Read the records of entries, one at a time, and note in `read` which ones those were."""
    for number, crash_id in enumerate(ids):
        done(number)
        stamp = _stamp(paths, crash_id)
        try:
            with open_entry(paths, crash_id) as entry:
                try:
                    crash = entry.read()
                except FormatError as e:  # `verify` reports it, retention deletes it in its time
                    crash = unreadable(entry, e)
        except (NotFoundError, FormatError):
            continue
        read[crash_id] = stamp
        yield crash
