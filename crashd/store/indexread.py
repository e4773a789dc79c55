"""Reading the index: what `crashctl list`, `info` and `top` need, without the code that writes it.

index.py adds to this what needs the record's class; loading that takes as long as a listing.
"""

from __future__ import annotations

import os

from crashd.domain.crash.keys import LIST_KEYS
from crashd.domain.crash.query import Query
from crashd.errors import (
    IndexCorruptError,
    IndexOutdatedError,
    UnavailableError,
    UsageError,
    reason_of,
)
from crashd.store.indexfile import connect_readonly, damaged, guard
from crashd.store.schema import VERSION

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from typing import Any, Self, TypeGuard

    from crashd.domain.crash.viewer import Viewer
    from crashd.store.indexfile import AnyPath
    from crashd.store.selection import Selector

_NEWEST = "time_ns DESC, id DESC"
_AT_ONCE = 256

_SHOWN = """id, time_ns, kind, state, pid, uid, signal_name, comm, exe, title, stored_bytes,
    CASE state WHEN 'evicted' THEN json_extract(doc, '$.evicted.reason') END,
    CASE kind WHEN 'kernel' THEN json_extract(doc, '$.kernel.release') END"""


def _shown(row: tuple[Any, ...]) -> dict[str, Any]:
    """Build what a table shows of one row, by the keys of a record.

    Raises:
        TypeError: it is not a row that crashd wrote.
    """
    crash_id, time_ns, kind, state, pid, uid, signal, comm, exe, title, stored, limit, release = row
    names = (comm or b"") + (exe or b"")
    if type(time_ns) is not int or type(stored) is not int or type(names) is not bytes:
        raise TypeError
    return {
        "id": crash_id,
        "time_ns": time_ns,  # what a text of it would have to be parsed for
        "kind": kind,
        "state": state,
        "pid": pid,
        "uid": uid,
        "signal_name": signal,
        "comm": comm.decode("utf-8", "backslashreplace") if comm else "",
        "exe": exe.decode("utf-8", "backslashreplace") if exe else "",
        "title": title,
        "core": {"path": stored > 0, "stored_bytes": stored},
        "evicted": {"reason": limit} if limit else None,
        "kernel": {"release": release} if release else None,
    }


def _is_ours(document: object) -> TypeGuard[dict[str, Any]]:
    """Return whether a row's JSON has texts and objects where others look into them."""
    if not isinstance(document, dict):
        return False
    texts = (document.get("id"), document.get("time"))
    parts = [document.get(key) or {} for key in ("core", "capture", "evicted", "kernel")]
    return all(type(text) is str for text in texts) and all(type(part) is dict for part in parts)


class IndexReader:
    """An index open for reading; only the thread that opened it may use and close it."""

    def __init__(self, path: AnyPath, connection: sqlite3.Connection, inode: int) -> None:
        self._path = path
        self._db = connection
        self._inode = inode

    @classmethod
    def open_readonly(cls, path: AnyPath) -> IndexReader:
        """Open the index for reading.

        Raises:
            UnavailableError: it is missing, or cannot be read or locked.
            IndexOutdatedError: an older crashd made it; see `catalog.reindex`.
            IndexCorruptError: it is damaged, or a newer crashd's.

        """
        try:
            inode = os.stat(path).st_ino
        except OSError as e:
            raise UnavailableError(f"cannot open the index {path}: {reason_of(e)}") from e
        with guard(path):
            reader = cls(path, connect_readonly(path), inode)
            try:
                reader._check_version()
            except BaseException:
                reader.close()
                raise
            return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise IndexCorruptError(
                f"the index {self._path} has version {version}, newer than {VERSION}",
                hint="a newer crashd made it; crashctl reindex makes one for this version",
            )
        if version:  # another program's database is not an old one of ours
            self._db.execute("SELECT id FROM crash LIMIT 1").fetchone()
        if version < VERSION:
            raise IndexOutdatedError(
                f"the index {self._path} has version {version}, older than {VERSION}",
                hint="start crashd, or run crashctl reindex",
            )

    def get(self, crash_id: str, viewer: Viewer | None = None) -> dict[str, Any] | None:
        """Read one row as `crashctl list --json` shows it, even one that `viewer` may not see."""
        found = self._documents("WHERE id = ?", [crash_id], 1, viewer)
        return found[0] if found else None

    def is_visible(self, crash_id: str, viewer: Viewer | None) -> bool:
        """Return whether there is such a row and `viewer` may see it."""
        with guard(self._path):
            sql = "SELECT owner_uid, gid FROM crash WHERE id = ?"
            row = self._db.execute(sql, [crash_id]).fetchone()
        return row is not None and (viewer is None or viewer.owns(*row))

    def select(
        self, query: Query, viewer: Viewer | None, *, max_bytes: int | None = None
    ) -> list[dict[str, Any]]:
        """Find crashes: the newest `query.limit`, newest first unless `query.reverse`.

        Args:
            query: what to find.
            viewer: who sees only what they own; None sees all.
            max_bytes: largest size of the result as JSON.

        Raises:
            UsageError: a term names an unknown field, or begins the ids of several
            crashes; or more than `max_bytes` were found.

        """
        where, values = self.where(query, viewer)
        limit = -1 if query.limit is None else query.limit
        documents = self._documents(where, values, limit, viewer, max_bytes)
        return documents[::-1] if query.reverse else documents

    def listing(self, query: Query) -> list[dict[str, Any]]:
        """Find crashes as `select` does for root, with only what a table shows of them.

        Read from the columns, because parsing each row's JSON takes most of a long listing's time.
        """
        where, values = self.where(query, None)
        sql = f"SELECT {_SHOWN} FROM crash {where} ORDER BY {_NEWEST} LIMIT ?"
        values.append(-1 if query.limit is None else query.limit)
        with guard(self._path):
            try:
                found = [_shown(row) for row in self._db.execute(sql, values)]
            except TypeError as e:
                raise damaged(self._path) from e
        return found[::-1] if query.reverse else found

    def each(self, query: Query) -> Iterator[dict[str, Any]]:
        """Yield what `select` returns for root, read a few at a time: neither the memory nor a
        transaction, which would keep the log of the database from ending, grows with their number.
        """
        where, values = self.where(query, None)
        limit = -1 if query.limit is None else query.limit
        sql = f"SELECT id FROM crash {where} ORDER BY {_NEWEST} LIMIT ?"
        ids = [row[0] for row in self.fetch(sql, [*values, limit])]
        if query.reverse:
            ids.reverse()
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            found = self._documents(f"WHERE id IN ({', '.join('?' * len(some))})", some, -1, None)
            yield from reversed(found) if query.reverse else found

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query that only reads."""
        with guard(self._path):
            return self._db.execute(sql, values).fetchall()

    def where(self, query: Query, viewer: Viewer | None) -> tuple[str, list[Any]]:
        """Build the WHERE of a query, and its values; see `select`."""
        if viewer is None and query == Query(limit=query.limit, reverse=query.reverse):
            return "", []  # everything: a plain listing needs no more code
        with guard(self._path):
            return self._selector(viewer).where(query)

    def _selector(self, viewer: Viewer | None) -> Selector:
        from crashd.store.selection import Selector

        return Selector(self._db, viewer)

    def _documents(
        self,
        where: str,
        values: list[Any],
        limit: int,
        viewer: Viewer | None,
        max_bytes: int | None = None,
    ) -> list[dict[str, Any]]:
        """Read rows as listings show them; `viewer` only limits the signature's count. Rows are
        read one by one, so that `max_bytes` also bounds the memory.
        """
        sql = (
            "SELECT doc, (SELECT count FROM signature_count s WHERE s.signature = crash.signature)"
            f" FROM crash {where} ORDER BY {_NEWEST} LIMIT ?"
        )
        import contextlib
        import json  # a table of crashes is read without either

        found, size = [], 0
        of_viewer: dict[Any, int] = {}
        with (
            guard(self._path),
            contextlib.closing(self._db.execute(sql, [*values, limit])) as rows,
        ):
            for doc, count in rows:
                try:
                    document = json.loads(doc) if isinstance(doc, str) else None
                except (json.JSONDecodeError, RecursionError) as e:
                    raise damaged(self._path, "a text is not what crashd wrote") from e
                if not _is_ours(document):
                    raise damaged(self._path)
                size += 0 if max_bytes is None else len(doc.encode())
                if max_bytes is not None and size > max_bytes:
                    raise UsageError(
                        f"more than {max_bytes >> 20} MiB of crashes match",
                        hint="ask for fewer: -n, --since, or a narrower MATCH",
                    )
                if viewer is not None and count is not None:
                    count = self._count_of(document.get("signature"), viewer, of_viewer)
                document["count_of_signature"] = count
                found.append({key: document.get(key) for key in LIST_KEYS})
        return found

    def _count_of(self, signature: Any, viewer: Viewer, known: dict[Any, int]) -> int:
        """Count a signature among the viewer's own crashes: those of others must not leak."""
        if signature not in known:
            where, values = self._selector(viewer).where(Query(signature=signature))
            sql = f"SELECT count(*) FROM crash {where}"
            (known[signature],) = self._db.execute(sql, values).fetchone()
        return known[signature]
