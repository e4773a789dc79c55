"""The store and the index together, for crashctl and the control socket.

The entries on disk are the truth and the index answers quickly. check.py reports where they differ;
`reindex` rebuilds the index. A viewer who is not root sees only their own crashes; to them the
others do not exist.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crashd.domain.crash.model import ID_PATTERN, Crash, Kind, State, from_json, to_json
from crashd.domain.crash.query import Query
from crashd.domain.crash.viewer import Viewer
from crashd.errors import (
    FormatError,
    IndexCorruptError,
    IndexOutdatedError,
    NotFoundError,
    UnavailableError,
)
from crashd.store import changes, signatures
from crashd.store.entry import (
    RECORD,
    RECORD_MAX,
    Progress,
    entry_ids,
    no_progress,
    open_entry,
    remove,
    walk,
)
from crashd.store.index import Index
from crashd.store.indexfile import remove_index, set_index_aside
from crashd.store.keptfiles import remove_unneeded
from crashd.store.kerneldumps import DumpRoot
from crashd.store.paths import Paths
from crashd.store.restoring import unreadable


class Catalog:
    """The crashes of one root. Use it in one thread only, as its index requires."""

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
        """Return everything known about one crash: crash.json, and how many share its signature.

        Raises:
            NotFoundError: there is no such crash, or the viewer may not see it.

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
        """Open crash.json, checked to be a whole record, and return it with the number of crashes
        that share its signature, and since when. If it cannot be read, return None with what the
        index knows. The caller owns the descriptor.

        Raises:
            NotFoundError: there is no such crash, or the viewer may not see it.

        """
        row = self._visible(crash_id, viewer)
        try:
            with open_entry(self._paths, crash_id) as entry:
                fd, crash = entry.open_record()
        except (NotFoundError, FormatError) as e:
            return None, {**row, "warnings": [f"only the index knows this crash: {e}"]}
        try:
            if viewer is not None and not viewer.owns(crash.owner_uid, crash.gid):
                raise _not_found(crash_id)
            span = signatures.span(self._index, crash.signature, viewer) if crash.signature else {}
        except BaseException:
            os.close(fd)
            raise
        return fd, {"count_of_signature": row["count_of_signature"], **span}

    def open_core(self, crash_id: str, viewer: Viewer | None) -> int:
        """Open the stored core; the caller owns the descriptor. Retention spares only a core that
        root reads: other users' readers must not decide what is kept.

        Raises:
            NotFoundError: there is no such crash or core, or it is not the viewer's.

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

    def delete(self, crash_ids: Iterable[str], gone: changes.Gone = changes.Gone.DELETED) -> int:
        """Delete crashes, each entry before its row; return the bytes freed. `gone` says on whose
        behalf.

        Raises:
            NotFoundError: a crash has neither entry nor row.
            UnavailableError: a crash is still being captured.
            FormatError: a kernel dump is not to be trusted, and stays.

        """
        freed = 0
        for crash_id in crash_ids:
            freed += self._remove_dump(crash_id)
            try:
                freed += remove(self._paths, crash_id)
            except NotFoundError:
                if self._index.get(crash_id) is None:
                    raise
            changes.remove_for_good(self._index, crash_id, gone)
        with contextlib.suppress(OSError):  # retention removes what is left
            remove_unneeded(self._paths)
        return freed

    def _remove_dump(self, crash_id: str) -> int:
        """Remove the directory of a kernel dump, if the crash has one."""
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
            NotFoundError: there is no such crash.
            CrashdError: a crash is still being captured, or its record cannot be read.

        """
        for crash_id in crash_ids:
            with open_entry(self._paths, crash_id) as entry:
                entry.lock()
                crash = entry.write(replace(entry.read(), pinned=pinned), sync=True)
                self._index.put([crash])  # under the lock: nothing else changes it meanwhile


def _not_found(crash_id: str) -> NotFoundError:
    return NotFoundError(f"no crash {crash_id}")


def reindex(paths: Paths, progress: Progress = no_progress) -> int:
    """Rebuild the index from the entries; return how many crashes it has.

    This is one transaction: a reader sees either the old rows or the new ones. A running daemon
    keeps writing to the same file, unless the file could not be read and is set aside. An index
    that an older crashd made is removed.

    Raises:
        UnavailableError: the store cannot be read, or the index cannot be written.

    """
    try:
        with Index.open(paths.index) as old:
            damaged = bool(old.check())
    except IndexOutdatedError:
        remove_index(paths.index)
        damaged = False
    except IndexCorruptError:
        damaged = True
    if damaged:
        set_index_aside(paths.index)
    with Index.open(paths.index) as index:
        read: dict[str, _Stamp] = {}
        index.replace_all(_readable(paths, entry_ids(paths), read, progress))
        # entries finished, changed or deleted meanwhile: their writers changed only the old rows
        now = {crash_id: _stamp(paths, crash_id) for crash_id in entry_ids(paths)}
        changed = [crash_id for crash_id in now if now[crash_id] != read.get(crash_id)]
        gone = read.keys() - now.keys()
        index.put(_readable(paths, changed, read))
        index.remove(gone)
    return len(read) - len(gone)


_Stamp = tuple[int, int] | None
"""Inode and mtime of a crash.json; a new file has other ones."""


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
    progress: Progress = no_progress,
) -> Iterator[Crash]:
    """Yield the records of entries one at a time; note in `read` the stamp of each record read."""
    for entry in walk(paths, progress, ids):
        stamp = _stamp(paths, entry.id)
        try:
            try:
                crash = entry.read()
            except FormatError as e:  # `verify` reports it, retention deletes it when it is due
                crash = unreadable(entry, e)
        except (NotFoundError, FormatError):
            continue
        read[entry.id] = stamp
        yield crash
