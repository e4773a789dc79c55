"""What one of all indexers does now and then: days, retention, counts of hosts, policies."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crashd.domain.fleet.keys import SIGNATURES, Part, core_key, want_key
from crashd.domain.fleet.policy import (
    SIGNATURES_MAX,
    WANT_MAX,
    Want,
    build_signatures,
    build_want,
)
from crashd.edge.fleet.bucket import Bucket
from crashd.edge.fleet.postgres import Connection, guard
from crashd.errors import FormatError
from crashd.fleet.counts import united
from crashd.fleet.schema import LOCK, UPKEEP
from crashd.fleet.summary import sum_up
from crashd.store.corefile import zstd_writer

SIGNATURE_DAYS = 400
"""Signatures are remembered so long after their last crash, if that is longer than crashes."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores that a fleet keeps."""

    days: int
    """How long they stay in the bucket."""
    per_signature: int
    """How many are enough."""


def upkeep(db: Connection, bucket: Bucket, keep_days: int, cores: Cores) -> int | None:
    """Do it, unless another indexer is at it; return the number of partitions dropped.

    Raises:
        UnavailableError: PostgreSQL or the bucket does not answer.

    """
    with guard():
        row = db.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK, UPKEEP)).fetchone()
        if not row or not row[0]:
            return None
        try:
            dropped = _keep(db, keep_days)
            sum_up(db)
            _recount(db)
            publish(db, bucket, cores)
            return dropped
        finally:
            if not db.closed:
                db.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK, UPKEEP))


def _keep(db: Connection, keep_days: int) -> int:
    """Make the next days, and drop those that are not kept any more."""
    today = datetime.now(UTC).date()
    for ahead in range(3):
        db.execute("SELECT add_day(%s)", (today + timedelta(days=ahead),))
    first = today - timedelta(days=keep_days)
    row = db.execute("SELECT drop_days(%s)", (first,)).fetchone()
    for table in ("summary", "unsummed", "tombstone"):
        db.execute(f"DELETE FROM {table} WHERE day < %s".encode(), (first,))
    db.execute("DELETE FROM request WHERE day < %s", (first,))
    db.execute("DELETE FROM quarantine WHERE seen < %s", (first,))
    forgotten = today - timedelta(days=max(keep_days, SIGNATURE_DAYS))
    db.execute("DELETE FROM signature_version WHERE last < %s", (forgotten,))
    db.execute("DELETE FROM host_version WHERE last < %s", (forgotten,))
    db.execute("DELETE FROM signature WHERE last_seen < %s", (forgotten,))
    return row[0] if row else 0


_LATELY = (
    "summary t JOIN signature n ON n.number = t.signature"
    " AND (n.last_seen > now() - interval '1 hour' OR n.hosts = 0)"
)
_RECOUNT = (
    "UPDATE signature s SET hosts = h.hosts, versions = v.versions FROM ("
    + united(
        f"SELECT t.signature AS name, t.many FROM {_LATELY} WHERE t.many IS NOT NULL",
        f"SELECT DISTINCT t.signature AS name, f.host FROM {_LATELY}, unnest(t.few) f(host)",
    )
    + ") h JOIN (SELECT t.signature AS name, count(DISTINCT t.version) AS versions"
    f" FROM {_LATELY} WHERE t.crashes > 0 GROUP BY 1) v USING (name)"
    " WHERE s.number = h.name AND (s.hosts, s.versions) IS DISTINCT FROM (h.hosts, v.versions)"
).encode()


def _recount(db: Connection) -> None:
    """Count hosts and versions of signatures that crashed lately."""
    db.execute(_RECOUNT)


# -- policies --------------------------------------------------------------------------------------


def publish(db: Connection, bucket: Bucket, cores: Cores) -> int:
    """Write the policies that have changed; return their number."""
    written = _publish_signatures(db, bucket, cores)
    hosts = db.execute(
        "SELECT DISTINCT host FROM request WHERE done IS NULL UNION"
        " SELECT right(key, 32) FROM published WHERE key LIKE 'policy/v1/want/%'"
    ).fetchall()
    for (host,) in hosts:
        written += _publish_want(db, bucket, host)
    return written


def _publish_signatures(db: Connection, bucket: Bucket, cores: Cores) -> int:
    first = datetime.now(UTC).date() - timedelta(days=cores.days)
    # one host must not keep the cores of all others from the bucket, by cores that it only claims
    rows = db.execute(
        "SELECT s.signature FROM signature s JOIN (SELECT signature, count(*) AS cores,"
        " min(host) <> max(host) AS are_several FROM crash WHERE core_key IS NOT NULL"
        " AND day >= %s AND signature <> 0 GROUP BY 1 HAVING count(*) >= %s) c"
        " ON c.signature = s.number WHERE c.are_several OR s.hosts < 2"
        " ORDER BY s.last_seen DESC LIMIT %s",
        (first, max(1, cores.per_signature), SIGNATURES_MAX),
    ).fetchall()
    raw = build_signatures(row[0] for row in rows)
    return _write(db, bucket, SIGNATURES, raw, _zstd(raw))


def _zstd(raw: bytes) -> bytes:
    packed = io.BytesIO()
    with zstd_writer(packed) as stream:
        stream.write(raw)
    return packed.getvalue()


def _publish_want(db: Connection, bucket: Bucket, host: str) -> int:
    def asked(what: str) -> tuple[str, ...]:
        rows = db.execute(
            "SELECT id FROM request WHERE host = %s AND what = %s AND done IS NULL"
            " ORDER BY made LIMIT %s",
            (host, what, WANT_MAX),
        ).fetchall()
        return tuple(row[0] for row in rows)

    raw = build_want(Want(asked("core"), asked("delete")))
    return _write(db, bucket, want_key(host), raw, raw)


def _write(db: Connection, bucket: Bucket, key: str, raw: bytes, data: bytes) -> int:
    digest = hashlib.sha256(raw).hexdigest()
    row = db.execute("SELECT digest FROM published WHERE key = %s", (key,)).fetchone()
    if row and row[0] == digest:
        return 0
    bucket.put(key, data)
    db.execute(
        "INSERT INTO published VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET digest ="
        " excluded.digest",
        (key, digest),
    )
    return 1


def delete_cores(bucket: Bucket, host: str, ids: Iterable[str]) -> None:
    """Delete the cores and logs of deleted crashes, whether they are there or not."""
    for crash_id in ids:
        for part in Part:
            for encrypted in (False, True):
                try:
                    bucket.delete(core_key(host, crash_id, encrypted=encrypted, part=part))
                except FormatError:
                    continue
