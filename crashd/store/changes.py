"""Which rows of the index changed, for the outbox. Triggers note that, so that every writer is
covered, crashctl too, and a change is noted if and only if its row is written.

    changed (n, id, gone)    one row for each crash that changed since it was last taken

The table exists only while crashes are shipped. A new or rebuilt index has none: it is made with
every crash in it, and the outbox finds which of them it has sent already.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from crashd.store.index import Index

TAKEN_MAX: Final = 1000


class Gone(IntEnum):
    """Whether a crash that changed is still there, and who removed it."""

    NO = 0
    AGED = 1
    """Retention removed its record."""
    DELETED = 2
    """An operator deleted it."""
    WANTED = 3
    """The fleet had it deleted."""


@dataclass(frozen=True, slots=True)
class Change:
    """A crash that changed."""

    number: int
    id: str
    gone: Gone


_NOTE = """
    DELETE FROM changed WHERE id = {row}.id;
    INSERT INTO changed (id, gone) VALUES ({row}.id, {gone});
"""
_ON = {
    "changed_added": ("AFTER INSERT ON crash WHEN new.state != 'capturing'", "new", Gone.NO),
    "changed_again": ("AFTER UPDATE ON crash WHEN new.state != 'capturing'", "new", Gone.NO),
    "changed_removed": ("AFTER DELETE ON crash", "old", Gone.AGED),
}
_MAKE = (
    # never a number twice: what changes again while it is taken must not look taken
    "CREATE TABLE changed (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " gone INTEGER NOT NULL)",
    *(
        f"CREATE TRIGGER {name} {when} BEGIN {_NOTE.format(row=row, gone=int(gone))} END"
        for name, (when, row, gone) in _ON.items()
    ),
    "INSERT INTO changed (id, gone) SELECT id, 0 FROM crash WHERE state != 'capturing'"
    " ORDER BY time_ns",
)
_DROP = (*(f"DROP TRIGGER IF EXISTS {name}" for name in _ON), "DROP TABLE IF EXISTS changed")


def is_watched(index: Index) -> bool:
    """Return whether changes are noted."""
    sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'changed'"
    return bool(index.fetch(sql)[0][0])


def watch(index: Index) -> None:
    """Note changes from now on, beginning with every crash in the index."""
    index.run([(sql, ()) for sql in (*_DROP, *_MAKE)])


def unwatch(index: Index) -> None:
    """Note changes no more."""
    if is_watched(index):
        index.run([(sql, ()) for sql in _DROP])


def read_changes(index: Index) -> list[Change]:
    """Return the oldest changes, at most TAKEN_MAX."""
    rows = index.fetch(f"SELECT n, id, gone FROM changed ORDER BY n LIMIT {TAKEN_MAX}")
    return [Change(number, crash_id, Gone(gone)) for number, crash_id, gone in rows]


def drop_changes(index: Index, taken: list[Change]) -> None:
    """Forget changes that the outbox has on disk; not those made since."""
    index.run([("DELETE FROM changed WHERE n = ?", [change.number]) for change in taken])


def remove_for_good(index: Index, crash_id: str, gone: Gone = Gone.DELETED) -> None:
    """Remove a row because somebody wants the crash gone, and not because it is old."""
    statements: list[tuple[str, list[str | int]]] = [("DELETE FROM crash WHERE id = ?", [crash_id])]
    if is_watched(index):
        note = "INSERT OR REPLACE INTO changed (id, gone) VALUES (?, ?)"
        statements.append((note, [crash_id, int(gone)]))
    index.run(statements)
