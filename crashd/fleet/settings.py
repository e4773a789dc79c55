"""What an index says of itself: its schema's number, and its settings. For readers and writers."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

from crashd.errors import UnavailableError

NEWEST: Final = 4
"""Number of this version's last migration."""


class _Rows(Protocol):
    def fetchone(self) -> tuple[Any, ...] | None: ...
    def fetchall(self) -> list[tuple[Any, ...]]: ...


class Database(Protocol):
    """A connection, reading or writing; it raises its own errors (see `guard` of writers)."""

    def execute(self, sql: str | bytes, values: Sequence[Any] = (), /) -> _Rows:
        """Run one statement."""
        ...


def check(db: Database) -> None:
    """Check that the database has exactly this version's schema.

    Raises:
        UnavailableError: it has none, an older or a newer one.

    """
    row = db.execute("SELECT max(number) FROM crashd.migration").fetchone()
    have = (row[0] if row else 0) or 0
    refuse_newer(have)
    if have < NEWEST:
        raise UnavailableError(
            f"the fleet index has schema {have}, older than {NEWEST}",
            hint="migrate it with crashd-fleet init",
        )


def refuse_newer(have: int) -> None:
    """Raise UnavailableError if a newer crashd has migrated the database further."""
    if have > NEWEST:
        raise UnavailableError(
            f"the fleet index has schema {have}, newer than {NEWEST}", hint="upgrade crashd here"
        )


def read_setting(db: Database, name: str) -> str | None:
    """Read one setting of the fleet."""
    row = db.execute("SELECT value FROM setting WHERE name = %s", (name,)).fetchone()
    return None if row is None else str(row[0])
