"""What operators change: crashes that are deleted everywhere, cores that hosts are asked for."""

from collections.abc import Sequence
from typing import Any

from crashd.domain.fleet.policy import WANT_MAX
from crashd.edge.fleet.bucket import Bucket
from crashd.edge.fleet.postgres import Connection, guard
from crashd.errors import NotFoundError, UsageError
from crashd.fleet.indexer import shard_of
from crashd.fleet.rows import parse_day
from crashd.fleet.schema import LOCK
from crashd.fleet.upkeep import delete_cores


def want(db: Connection, rows: Sequence[dict[str, Any]]) -> int:
    """Ask hosts for the cores of crashes; return how many are asked for now that were not.

    Raises:
        UsageError: a host would be asked for too much.

    """
    hosts = [row["host"] for row in rows]
    with guard(), db.transaction():
        for host in sorted(set(hosts)):
            sql = "SELECT count(*) FROM request WHERE host = %s AND what = 'core' AND done IS NULL"
            found = db.execute(sql, (host,)).fetchone()
            if (found[0] if found else 0) + hosts.count(host) > WANT_MAX:
                raise UsageError(f"host {host} is asked for {WANT_MAX} cores already")
        return sum(_ask(db, row, "core") for row in rows)


def _ask(db: Connection, row: dict[str, Any], what: str) -> int:
    return db.execute(
        "INSERT INTO request AS r (host, id, what, day) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (host, id, what) DO UPDATE SET done = NULL, made = now(),"
        " made_by = session_user WHERE r.done IS NOT NULL",
        (row["host"], row["id"], what, parse_day(row["id"])),
    ).rowcount


def delete(db: Connection, bucket: Bucket, row: dict[str, Any]) -> None:
    """Delete one crash: its row now, its core in the bucket, and by a tombstone on its host.

    Objects with records are never changed: what they hold of the crash is never indexed again, and
    ends with their life in the bucket.

    Raises:
        NotFoundError: it was deleted meanwhile.
        CrashdError: PostgreSQL or the bucket refuses; all is still there, but perhaps the core.

    """
    key = (row["id"], row["host"])
    with guard(), db.transaction():
        # the indexer that has this host's shard must have seen either the row or the tombstone
        db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK, shard_of(row["host"])))
        found = db.execute(
            "DELETE FROM crash c USING host h WHERE c.host = h.number AND c.id = %s AND h.host = %s"
            " RETURNING c.day, c.signature, c.host, c.version, c.build, c.labels,"
            " c.kind = 'kernel', c.time, c.core_key IS NOT NULL",
            key,
        ).fetchone()
        if found is None:
            raise NotFoundError(f"crash {row['id']} was deleted meanwhile")
        *tally, time, has_core = found
        db.execute(
            "WITH tally AS (UPDATE tally SET crashes = crashes - 1 WHERE day = %s AND signature ="
            " %s AND host = %s AND version = %s AND build = %s AND labels = %s AND kernel = %s"
            " RETURNING day, signature, version, kernel, host)"
            " INSERT INTO unsummed SELECT *, -1, %s, %s FROM tally",
            (*tally, time, time),
        )
        db.execute(
            "UPDATE signature SET count = count - 1, cores = cores - %s,"
            " newest = nullif(newest, %s) WHERE number = %s",
            (int(has_core), row["id"], tally[1]),
        )
        db.execute(
            "INSERT INTO tombstone (id, host, day, reason) VALUES (%s, %s, %s, 'fleet')"
            " ON CONFLICT DO NOTHING",
            (row["id"], tally[2], tally[0]),
        )
        db.execute("DELETE FROM request WHERE id = %s AND host = %s AND what = 'core'", key)
        _ask(db, row, "delete")
        delete_cores(
            bucket, row["host"], [row["id"]]
        )  # if this fails, the crash can be named again
