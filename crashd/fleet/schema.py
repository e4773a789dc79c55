"""The schema of the fleet's index: numbered migrations in migrations/, each applied once.

A migration is never changed after a release; a new one is added. All that are missing are applied
in one transaction, under a lock, so that several `init` do not meet.
"""

import re
from importlib import resources

from crashd.edge.fleet.postgres import Connection, guard
from crashd.fleet.settings import refuse_newer

LOCK = 0x63726173
"""First key of all advisory locks; the second one is a shard's number, or one of these."""
MIGRATING, UPKEEP, POLICIES, SUMMING = -1, -2, -3, -4
SHARDS = 16
"""Hosts are divided into so many parts; at most so many indexers share the work."""

_NAME = re.compile(r"(\d{4})_[a-z_]+\.sql")


def migrations() -> list[tuple[int, str]]:
    """Return the number and the text of each migration, in order."""
    found = []
    for file in resources.files("crashd.fleet").joinpath("migrations").iterdir():
        name = _NAME.fullmatch(file.name)
        if name:
            found.append((int(name[1]), file.read_text(encoding="utf-8")))
    return sorted(found)


def migrate(db: Connection) -> list[int]:
    """Apply the missing migrations, all or none; return their numbers.

    Raises:
        UnavailableError: a newer crashd has migrated the database further.
        PermissionDeniedError: the user may not create the schema or the roles.

    """
    done: list[int] = []
    with guard(), db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK, MIGRATING))
        db.execute("CREATE SCHEMA IF NOT EXISTS crashd")
        db.execute(
            "CREATE TABLE IF NOT EXISTS crashd.migration"
            " (number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
        )
        row = db.execute("SELECT coalesce(max(number), 0) FROM crashd.migration").fetchone()
        have = row[0] if row else 0
        refuse_newer(have)
        for number, text in migrations():
            if number > have:
                db.execute(text.encode())
                db.execute("INSERT INTO crashd.migration (number) VALUES (%s)", (number,))
                done.append(number)
    return done


def write_setting(db: Connection, name: str, value: str) -> None:
    """Write one setting of the fleet."""
    with guard():
        db.execute(
            "INSERT INTO setting VALUES (%s, %s)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )
