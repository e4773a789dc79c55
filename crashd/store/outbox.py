"""The outbox: what the fleet's object storage has of this host's crashes, and what it still lacks.

    <state>/outbox.sqlite
      sent      for each crash the revision sent last, a digest of its line, and its core's part
      pending   crashes whose record changed: their lines are made when they are sent
      batch     objects that were made and are not stored yet: always the same bytes by one name
      core      cores that are to be sent
      per       how many cores of a signature were sent
      state     counters, and what is known of the fleet's policies

It is a file of its own, because the index is a cache: rebuilding that one neither sends anything
again nor forgets anything. Without this file, everything in the store is sent again, with higher
revisions, which does no harm. A damaged one is set aside.

Over 400 lines because it is one class: what is decided of a crash, its line and its core at the
same time is written in one transaction.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from crashd.domain.fleet.keys import SEQUENCE_MAX
from crashd.errors import IndexCorruptError, UnavailableError, reason_of
from crashd.store.changes import Change, Gone
from crashd.store.indexfile import connect, guard, make_private, set_index_aside

VERSION: Final = 1
PENDING_MAX: Final = 100_000
"""Crashes that wait; the oldest one falls out for another one."""
CORES_MAX: Final = 10_000
"""Cores that wait; the oldest one falls out for another one."""
_SCHEMA = (
    "CREATE TABLE sent (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, digest BLOB NOT NULL,"
    " core INTEGER NOT NULL, files TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pending (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " since_ns INTEGER NOT NULL, gone INTEGER NOT NULL)",
    "CREATE TABLE batch (sequence INTEGER PRIMARY KEY, key TEXT NOT NULL, named_ns INTEGER NOT"
    " NULL, lines INTEGER NOT NULL, since_ns INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE core (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, since_ns"
    " INTEGER NOT NULL, key TEXT, log_key TEXT)",
    "CREATE TABLE per (signature TEXT PRIMARY KEY, cores INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    f"PRAGMA user_version = {VERSION}",
)


class CorePart(IntEnum):
    """What was decided of a crash's core."""

    OPEN = 0
    """Nothing yet."""
    SENT = 1
    """It is sent, or was."""
    KEPT = 2
    """It stays here."""
    LOST = 3
    """It was to be sent, and was deleted before."""
    WANTED = 4
    """The fleet has asked for it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The newest line of a crash."""

    revision: int
    digest: bytes
    core: CorePart
    files: str = "{}"
    """The crash's objects, as its line had them; JSON."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A crash whose record changed."""

    number: int
    id: str
    since_ns: int
    gone: Gone


@dataclass(frozen=True, slots=True)
class Made:
    """A line that goes into a batch."""

    id: str
    sent: Sent
    forget: bool = False
    """The crash is deleted: nothing more will come."""


@dataclass(frozen=True, slots=True)
class Batch:
    """An object with lines, complete."""

    sequence: int
    key: str
    named_ns: int
    lines: int
    since_ns: int
    """When the oldest of its changes was noted."""
    body: bytes


@dataclass(frozen=True, slots=True)
class WaitingCore:
    """A core, and perhaps a kernel's log, to be sent."""

    id: str
    since_ns: int
    key: str | None
    log_key: str | None


def open_outbox(path: Path) -> tuple["Outbox", str | None]:
    """Open the outbox, and make a missing one. A damaged one, or a newer crashd's, is set aside:
    return its new name as well.

    Raises:
        UnavailableError: it cannot be read or written.

    """
    try:
        return Outbox(path), None
    except IndexCorruptError:
        try:
            name = set_index_aside(path)
        except OSError as e:
            raise UnavailableError(f"cannot set {path} aside: {reason_of(e)}") from e
        return Outbox(path), name


class Outbox:
    """The open outbox; one thread of the daemon has it."""

    def __init__(self, path: Path) -> None:
        """See `open_outbox`.

        Raises:
            IndexCorruptError: it is damaged, or a newer crashd's.
            UnavailableError: it cannot be read or written.

        """
        self._path = path
        try:
            make_private(path)
        except OSError as e:
            raise UnavailableError(f"cannot open the outbox {path}: {reason_of(e)}") from e
        with self._guarded():
            self._db = connect(path)
            try:
                self._make()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        with guard(self._path):
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _make(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise IndexCorruptError(f"the outbox {self._path} has version {version}")
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA:
                    self._db.execute(statement)
        self._db.execute("SELECT count(*) FROM sent WHERE id = ''").fetchone()

    def _one(self, sql: str, values: Iterable[Any] = ()) -> Any:
        with self._guarded():
            row = self._db.execute(sql, tuple(values)).fetchone()
        return None if row is None else row[0]

    # -- what waits --------------------------------------------------------------------------------

    def take(self, changes: Iterable[Change], now_ns: int) -> int:
        """Note crashes that changed, on disk on return; return how many fell out for them."""
        with self._transaction():
            for change in changes:
                self._note(change.id, change.gone, now_ns)
            return self._shorten("pending", PENDING_MAX)

    def note(self, crash_id: str, gone: Gone, now_ns: int) -> None:
        """Note one crash that changed, on disk on return."""
        with self._transaction():
            self._note(crash_id, gone, now_ns)

    def age_out(self, ids: AbstractSet[str], now_ns: int) -> None:
        """Note that of the crashes with lines only these are left: nobody saw the others go."""
        with self._transaction():
            known = [row[0] for row in self._db.execute("SELECT id FROM sent")]
            for crash_id in known:
                if crash_id not in ids:
                    self._note(crash_id, Gone.AGED, now_ns)

    def _note(self, crash_id: str, gone: Gone, now_ns: int) -> None:
        """A crash that waits already keeps its place, and its time."""
        self._db.execute(
            "INSERT INTO pending (id, since_ns, gone) VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET gone = max(gone, excluded.gone)",
            (crash_id, now_ns, int(gone)),
        )

    def _shorten(self, table: str, limit: int) -> int:
        (count,) = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()
        if count <= limit:
            return 0
        over = f"SELECT n FROM {table} ORDER BY n LIMIT ?"
        self._db.execute(f"DELETE FROM {table} WHERE n IN ({over})", (count - limit,))
        return int(count - limit)

    def waiting(self) -> tuple[int, int | None]:
        """Return how many records wait, those in batches too, and since when the oldest does."""
        with self._guarded():
            row = self._db.execute(
                "SELECT (SELECT count(*) FROM pending)"
                " + (SELECT ifnull(sum(lines), 0) FROM batch),"
                " (SELECT min(s) FROM (SELECT min(since_ns) AS s FROM pending"
                " UNION ALL SELECT min(since_ns) FROM batch))"
            ).fetchone()
        return row[0], row[1]

    def pending(self, limit: int) -> list[Pending]:
        """Return the crashes that have waited longest."""
        sql = "SELECT n, id, since_ns, gone FROM pending ORDER BY n LIMIT ?"
        with self._guarded():
            rows = self._db.execute(sql, (limit,)).fetchall()
        return [Pending(n, crash_id, since, Gone(gone)) for n, crash_id, since, gone in rows]

    def pending_count(self) -> tuple[int, int | None]:
        """Return how many crashes wait for a batch, and since when the oldest one does."""
        with self._guarded():
            row = self._db.execute("SELECT count(*), min(since_ns) FROM pending").fetchone()
        return row[0], row[1]

    def sent(self, crash_id: str) -> Sent | None:
        """Return the newest line of a crash; None if none was made."""
        with self._guarded():
            row = self._db.execute(
                "SELECT revision, digest, core, files FROM sent WHERE id = ?", (crash_id,)
            ).fetchone()
        return None if row is None else Sent(row[0], row[1], CorePart(row[2]), row[3])

    # -- batches -----------------------------------------------------------------------------------

    def next_sequence(self, now_ns: int) -> int:
        """Return the number of the next object: microseconds, but always more than the last."""
        last = self._one("SELECT value FROM state WHERE name = 'sequence'") or 0
        return int(min(SEQUENCE_MAX, max(last + 1, now_ns // 1000)))

    def put_batch(
        self,
        batch: Batch | None,
        made: Iterable[Made],
        done: Iterable[Pending],
        cores: Iterable[tuple[WaitingCore, str | None]],
    ) -> int:
        """Keep a batch, and what it stands for, all or none, on disk on return. Return how many
        cores fell out for new ones.

        Args:
            batch: the object; None if nothing was worth a line.
            made: its lines.
            done: the crashes that no longer wait.
            cores: the cores that its lines announce, with their signatures.

        """
        with self._transaction():
            if batch is not None:
                self._db.execute(
                    "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        batch.sequence,
                        batch.key,
                        batch.named_ns,
                        batch.lines,
                        batch.since_ns,
                        batch.body,
                    ),
                )
                self._set("sequence", batch.sequence)
            for line in made:
                self._put_sent(line)
            for core, signature in cores:
                self._db.execute(
                    "INSERT OR IGNORE INTO core (id, since_ns, key, log_key) VALUES (?, ?, ?, ?)",
                    (core.id, core.since_ns, core.key, core.log_key),
                )
                if signature is not None:
                    self._db.execute(
                        "INSERT INTO per VALUES (?, 1)"
                        " ON CONFLICT (signature) DO UPDATE SET cores = cores + 1",
                        (signature,),
                    )
            for one in done:
                self._db.execute("DELETE FROM pending WHERE n = ?", (one.number,))
            return self._shorten("core", CORES_MAX)

    def _put_sent(self, line: Made) -> None:
        if line.forget:
            self._db.execute("DELETE FROM sent WHERE id = ?", (line.id,))
            self._db.execute("DELETE FROM core WHERE id = ?", (line.id,))
            return
        sent = line.sent
        self._db.execute(
            "INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)",
            (line.id, sent.revision, sent.digest, int(sent.core), sent.files),
        )

    def batches(self) -> int:
        """Return how many batches are not stored yet."""
        return int(self._one("SELECT count(*) FROM batch"))

    def oldest_batch(self) -> Batch | None:
        """Return the batch to send next."""
        with self._guarded():
            row = self._db.execute(
                "SELECT sequence, key, named_ns, lines, since_ns, body FROM batch"
                " ORDER BY sequence LIMIT 1"
            ).fetchone()
        return None if row is None else Batch(*row)

    def rename_batch(self, batch: Batch, sequence: int, key: str, now_ns: int) -> None:
        """Give a batch another name: its hour is over."""
        with self._transaction():
            self._db.execute(
                "UPDATE batch SET sequence = ?, key = ?, named_ns = ? WHERE sequence = ?",
                (sequence, key, now_ns, batch.sequence),
            )
            self._set("sequence", sequence)

    def batch_stored(self, sequence: int) -> None:
        """Forget a batch: the object is stored."""
        with self._transaction():
            self._db.execute("DELETE FROM batch WHERE sequence = ?", (sequence,))

    # -- cores -------------------------------------------------------------------------------------

    def cores_of(self, signature: str) -> int:
        """Return how many cores of a signature were sent, or wait."""
        return int(self._one("SELECT cores FROM per WHERE signature = ?", (signature,)) or 0)

    def cores_waiting(self) -> int:
        """Return how many cores wait."""
        return int(self._one("SELECT count(*) FROM core"))

    def oldest_core(self) -> WaitingCore | None:
        """Return the core to send next."""
        with self._guarded():
            row = self._db.execute(
                "SELECT id, since_ns, key, log_key FROM core ORDER BY n LIMIT 1"
            ).fetchone()
        return None if row is None else WaitingCore(*row)

    def core_done(self, crash_id: str, *, lost: bool, now_ns: int) -> None:
        """Forget a core that was stored, or that is lost: then its line must say so."""
        with self._transaction():
            self._db.execute("DELETE FROM core WHERE id = ?", (crash_id,))
            if lost:
                self._set_core(crash_id, CorePart.LOST, now_ns)

    def core_is_stored(self, crash_id: str) -> None:
        """Note that of a waiting core only its kernel's log is left."""
        with self._transaction():
            self._db.execute("UPDATE core SET key = NULL WHERE id = ?", (crash_id,))

    def core_later(self, crash_id: str) -> None:
        """Put a core behind the others that wait."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO core (id, since_ns, key, log_key)"
                " SELECT id, since_ns, key, log_key FROM core WHERE id = ?",
                (crash_id,),
            )

    def want_core(self, crash_id: str, now_ns: int) -> None:
        """Note that the fleet asks for a core: its line is made again."""
        with self._transaction():
            self._set_core(crash_id, CorePart.WANTED, now_ns)

    def _set_core(self, crash_id: str, part: CorePart, now_ns: int) -> None:
        changed = self._db.execute(
            "UPDATE sent SET core = ? WHERE id = ?", (int(part), crash_id)
        ).rowcount
        if changed:
            self._note(crash_id, Gone.NO, now_ns)

    # -- state -------------------------------------------------------------------------------------

    def lost(self, counts: dict[str, int]) -> dict[str, int]:
        """Add to the numbers of what was lost, by reason, and return them."""
        with self._transaction():
            known: dict[str, int] = json.loads(self._value("lost") or "{}")
            for reason, count in counts.items():
                known[reason] = known.get(reason, 0) + count
            if counts:
                self._set("lost", json.dumps(known))
        return known

    def remember(self, name: str, value: str | bytes | None) -> None:
        """Keep a value by its name."""
        with self._transaction():
            self._set(name, value)

    def recall(self, name: str) -> Any:
        """Return a value kept by its name; None without one."""
        with self._guarded():
            return self._value(name)

    def _value(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _set(self, name: str, value: object) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))


def outbox_bytes(path: Path) -> int:
    """Return the size of the outbox's files."""
    size = 0
    for name in (path, path.with_name(path.name + "-wal")):
        with contextlib.suppress(OSError):
            size += os.stat(name).st_size
    return size
