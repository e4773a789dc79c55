"""The index: SQLite, one row for each crash, a cache of the entries' crash.json.

Every column is computed by `_row` from a `Crash` alone, for a new crash and for a rebuilt row
alike. indexfile.py says how the file is opened and what SQLite's errors mean.

Over 400 lines because it is one class: all questions to the table, beside the code that fills its
columns.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashd.domain.crash.model import LIST_KEYS, Crash, Kind, State, encode, to_json
from crashd.errors import (
    UnavailableError,
    reason_of,
)
from crashd.store.indexfile import connect, connect_readonly, damaged, guard, make_private
from crashd.store.indexread import IndexReader
from crashd.store.schema import COLUMNS, SCHEMA, VERSION

BLOCK_BYTES = 4096
"""Files take whole blocks of a file system; this is the block size of most."""
FILE_MAX = 32 << 20
"""The largest possible size of a record or an analysis."""

_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != "id")
_PUT = (
    f"INSERT INTO crash ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (id) DO UPDATE SET {_REPLACED}"
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of finished crashes, for counters that survive a restart. They include crashes whose
    rows are gone: a counter that restarts at a lower value is taken for that many new crashes.
    """

    by_disposition: dict[tuple[str, str], int]
    by_signal: dict[int | None, int]
    last_ns: dict[str, int]


def record_bytes(crash: Crash, document: Mapping[str, Any]) -> int:
    """Compute a crash's bytes on disk without its core: its directory, record and analysis."""
    analysis = (crash.analysis or {}).get("stored_bytes")
    sizes = [1, len(encode(document))]
    if isinstance(analysis, int) and 0 <= analysis <= FILE_MAX:
        sizes.append(analysis)
    return sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes)


def _row(crash: Crash) -> tuple[Any, ...]:
    """Build the row of a crash from it alone."""
    document = to_json(crash)
    # unknown values are left out: tombstones come in tens of thousands and must be small
    listed = {key: document[key] for key in LIST_KEYS if document.get(key) is not None}
    values: dict[str, Any] = {
        **{name: getattr(crash, name) for name in COLUMNS if hasattr(crash, name)},
        "short": crash.short_id,
        "kind": crash.kind.value,
        "state": crash.state.value,
        "disposition": crash.capture.disposition.value,
        "signal_name": document["signal_name"],
        "fault_address": document["fault_address"],
        "rlimit_core": None if crash.rlimit_core is None else str(crash.rlimit_core),
        "pinned": int(crash.pinned),
        "stored_bytes": crash.core.stored_bytes,
        "record_bytes": record_bytes(crash, document),
        "doc": encode(listed).decode(),
    }
    return tuple(values[name] for name in COLUMNS)


class Index(IndexReader):
    """An open index; only the thread that opened it may use and close it."""

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> "Index":
        """Open the index; unless `readonly`, create a missing one.

        Raises:
            UnavailableError: it is missing, or cannot be read or locked.
            IndexOutdatedError: an older crashd made it; see `catalog.reindex`.
            IndexCorruptError: it is damaged, or a newer crashd's.

        """
        try:
            if not readonly:
                make_private(path)
            inode = os.stat(path).st_ino
        except OSError as e:
            raise UnavailableError(f"cannot open the index {path}: {reason_of(e)}") from e
        with guard(path):
            connection = connect_readonly(path) if readonly else connect(path)
            index = cls(path, connection, inode)
            try:
                if not readonly:
                    index._make_new()
                index._check_version()
            except BaseException:
                connection.close()
                raise
            return index

    def is_current(self) -> bool:
        """Return whether this is still the file at its path: `reindex` may have replaced a corrupt
        file.
        """
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def _make_new(self) -> None:
        """Make the tables of a new file."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version:
            return
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()  # under the lock
            if version == 0:
                for statement in SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- writing ---------------------------------------------------------------------------------

    def put(self, crashes: Iterable[Crash]) -> None:
        """Insert or replace rows, all or none; on disk on return.

        `crashes` is iterated only after the transaction locks out other writers. Every writer
        writes a record before its row, so none can get between a record read there and its row.
        """
        with guard(self._path), self._transaction():
            self._db.executemany(_PUT, (_row(crash) for crash in crashes))

    def replace_all(self, crashes: Iterable[Crash]) -> int:
        """Replace all rows with `crashes` in one transaction; return how many there are."""
        rows = [_row(crash) for crash in crashes]
        with guard(self._path), self._transaction():
            past = self._db.execute("SELECT what, name, count FROM past").fetchall()
            self._db.execute("DELETE FROM crash")
            self._db.execute("DELETE FROM past")  # has counted the rows put again below
            self._db.executemany("INSERT INTO past VALUES (?, ?, ?)", past)
            self._db.execute("DELETE FROM signature_count")
            self._db.execute("DELETE FROM usage")
            self._db.execute("DELETE FROM record_usage")
            self._db.executemany(_PUT, rows)
        return len(rows)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove rows; an id without a row is not an error."""
        with guard(self._path), self._transaction():
            self._db.executemany("DELETE FROM crash WHERE id = ?", [(i,) for i in ids])

    def mark_missing(self, ids: Iterable[str]) -> None:
        """Mark rows whose entries are gone from the disk."""
        missing = State.MISSING.value
        with guard(self._path), self._transaction():
            self._db.executemany(
                "UPDATE crash SET state = ?, stored_bytes = 0, doc = json_set(doc, '$.state', ?)"
                " WHERE id = ?",
                [(missing, missing, i) for i in ids],
            )

    def run(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """Run statements, all or none; for tables beside this one (`changes`)."""
        with guard(self._path), self._transaction():
            for sql, values in statements:
                self._db.execute(sql, values)

    # -- reading ---------------------------------------------------------------------------------

    def id_of_token(self, token: str) -> str | None:
        """Return the id of the crash to which the handler gave this token."""
        with guard(self._path):
            sql = "SELECT id FROM crash WHERE token = ? AND token != ''"
            row = self._db.execute(sql, [token]).fetchone()
        return row[0] if row else None

    def ids(self) -> list[str]:
        """List all ids."""
        with guard(self._path):
            return [row[0] for row in self._db.execute("SELECT id FROM crash ORDER BY id")]

    def ids_in_state(self, state: State, kind: Kind = Kind.PROCESS) -> list[str]:
        """List the ids of all crashes of one kind in one state."""
        with guard(self._path):
            sql = f"SELECT id FROM crash WHERE state = '{state.value}' AND kind = ? ORDER BY id"
            return [row[0] for row in self._db.execute(sql, [kind.value])]

    def row(self, crash_id: str) -> tuple[Any, ...] | None:
        """Read one whole row, to compare it with `row_of`."""
        sql = f"SELECT {', '.join(COLUMNS)} FROM crash WHERE id = ?"
        with guard(self._path):
            found: tuple[Any, ...] | None = self._db.execute(sql, [crash_id]).fetchone()
        return found

    @staticmethod
    def row_of(crash: Crash) -> tuple[Any, ...]:
        """Build the row that `crash` must have; its first column is the id."""
        return _row(crash)

    @staticmethod
    def differing(row: Sequence[Any], crash: Crash) -> list[str]:
        """Name the columns in which a row differs from the one that `crash` must have."""
        wanted = zip(COLUMNS, row, _row(crash), strict=True)
        return [name for name, has, should in wanted if has != should]

    def check(self) -> list[str]:
        """Have SQLite check the whole file; return its complaints. Reads everything."""
        with guard(self._path):
            found = [row[0] for row in self._db.execute("PRAGMA quick_check(20)")]
        return [] if found == ["ok"] else found

    def usage(self) -> dict[str, tuple[int, int]]:
        """Return the number of entries and the stored bytes of each kind."""
        found = {kind.value: (0, 0) for kind in Kind}
        with guard(self._path):
            for kind, entries, size in self._db.execute("SELECT kind, entries, bytes FROM usage"):
                found[kind] = (entries, size)
        return found

    def records_bytes(self, kind: Kind = Kind.PROCESS) -> int:
        """Return the bytes on disk of all records of one kind."""
        found = self.fetch("SELECT bytes FROM record_usage WHERE kind = ?", [kind.value])
        return found[0][0] if found else 0

    def last_sequence(self) -> int:
        """Return the highest sequence number; 0 without any crash. Reads every row."""
        ((last,),) = self.fetch("SELECT max(sequence) FROM crash")
        return last or 0

    def totals(self) -> Totals:
        """Count all finished crashes, including those whose rows are gone."""
        done = "FROM crash WHERE state != 'capturing'"
        by_disposition: Counter[tuple[str, str]] = Counter()
        by_signal: Counter[int | None] = Counter()
        with guard(self._path):
            for kind, disposition, count in self._db.execute(
                f"SELECT kind, disposition, count(*) {done} GROUP BY kind, disposition"
            ):
                by_disposition[kind, disposition] += count
            sql = f"SELECT signal, count(*) {done} AND kind = 'process' GROUP BY signal"
            for signal, count in self._db.execute(sql):
                by_signal[signal] += count
            last = dict(
                self._db.execute("SELECT kind, max(time_ns) FROM crash GROUP BY kind").fetchall()
            )
            if not all(type(time_ns) is int for time_ns in last.values()):
                raise damaged(self._path)
            for kind_disposition, count in self._past("disposition"):
                kind, _, disposition = kind_disposition.partition(" ")
                by_disposition[kind, disposition] += count
            for number, count in self._past("signal"):
                by_signal[int(number) if number.isdecimal() else None] += count
        return Totals(dict(by_disposition), dict(by_signal), last)

    def unit_totals(self, limit: int) -> dict[str | None, int]:
        """Count finished process crashes by unit, for the units that crashed most, these first.

        None counts all others: those of other units, or of no unit.
        """
        counts: Counter[str | None] = Counter()
        with guard(self._path):
            for unit, count in self._db.execute(
                "SELECT unit, count(*) FROM crash WHERE state != 'capturing' AND kind = 'process' "
                "GROUP BY unit"
            ):
                counts[unit or None] += count
            for name, count in self._past("unit"):
                counts[name or None] += count
        named = Counter({unit: count for unit, count in counts.items() if unit is not None})
        found: dict[str | None, int] = dict(named.most_common(limit))
        found[None] = counts.total() - sum(found.values())
        return found

    def _past(self, what: str) -> list[tuple[str, int]]:
        sql = "SELECT CAST(name AS TEXT), count FROM past WHERE what = ?"
        return self._db.execute(sql, [what]).fetchall()
