"""Loads rows into PostgreSQL: a batch is one transaction, and loading it twice changes nothing.

The batch is compared with what is there; the higher revision of a crash wins, and replaces the row.
There is no staging table, because nearly all rows are new: they are copied to their place at once.
What changes is also what the tallies change by, so that they always agree with the rows. The caller
holds the lock of the hosts' shard on the same connection: nobody else writes rows of these hosts.
Rows that all hosts share (signatures, versions) are locked last, and in the order of their numbers.

Over 400 lines, because it is one transaction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from crashd.domain.fleet.lines import CoreReason
from crashd.edge.fleet.postgres import Connection, array
from crashd.fleet.numbers import Numbers
from crashd.fleet.rows import COLUMNS, TYPES, Refused, Row, read_row, values
from crashd.fleet.texts import clean

EXCERPT_BYTES = 200
DETAIL_MAX = 300
QUARANTINED_MAX = 1000
"""Rows in quarantine for one host; further ones are only counted."""


class Result(StrEnum):
    """What became of a record."""

    NEW = "new"
    UPDATED = "updated"
    STALE = "stale"
    """The index has this revision, or a newer one."""
    DELETED = "deleted"
    """The crash is deleted, or this record says so."""
    EXPIRED = "expired"
    """Its day is not kept any more."""
    QUARANTINED = "quarantined"


_COPY = f"COPY crash ({', '.join(COLUMNS)}, seen) FROM STDIN (FORMAT binary)".encode()


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that was refused; line 0 is the whole object."""

    host: str
    object: str
    line: int
    reason: str
    detail: str
    excerpt: bytes = b""


@dataclass(slots=True)
class Batch:
    """What one transaction loads."""

    rows: list[Row] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    expired: int = 0
    size_bytes: int = 0

    def __len__(self) -> int:
        return len(self.rows) + len(self.bad)


_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Tally:
    crashes: int = 0
    first: datetime = _LATEST
    last: datetime = _EARLIEST

    def add(self, time: datetime) -> None:
        self.crashes += 1
        self.widen(time, time)

    def widen(self, first: datetime, last: datetime) -> None:
        """Take in a span; comparisons, because calls of min() and max() cost more."""
        if first < self.first:
            self.first = first
        if last > self.last:
            self.last = last


@dataclass(slots=True)
class _Changes:
    """What a batch changes besides rows."""

    tallies: dict[tuple[Any, ...], _Tally] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    cores: Counter[int] = field(default_factory=Counter)
    newest: dict[int, Row] = field(default_factory=dict)
    spans: dict[int, _Tally] = field(default_factory=dict)
    of_signature: dict[tuple[int, int], _Tally] = field(default_factory=dict)
    of_host: dict[tuple[int, int], _Tally] = field(default_factory=dict)


class Loader:
    """Loads batches over one connection."""

    def __init__(self, db: Connection, keep_days: int) -> None:
        self._db = db
        self._keep_days = keep_days
        self._numbers = Numbers(db)
        self._days: set[date] = set()

    def load(self, batch: Batch, also: Iterable[tuple[str, Sequence[Any]]] = ()) -> Counter[Result]:
        """Load a batch in one transaction, with further statements; return the results."""
        rows = _newest(batch.rows)
        results = Counter({Result.STALE: len(batch.rows) - len(rows)})
        results[Result.EXPIRED] += batch.expired
        self._learn(rows)
        changes = _Changes()
        with self._db.transaction():
            kept = self._compare(rows, changes, results)
            self._delete([row for row in kept if row.facts is None])
            self._put([row for row in kept if row.facts is not None])
            self._count(changes)
            self._note_hosts(rows)
            self._quarantine(batch.bad, results)
            for text, arguments in also:
                self._db.execute(text.encode(), arguments)
            self._share(changes, results)
        return +results

    # -- before the transaction --------------------------------------------------------------------

    def _learn(self, rows: Sequence[Row]) -> None:
        learn = self._numbers.learn
        learn("host", (row.host for row in rows))
        learn("signature", (row.signature for row in rows))
        learn(
            "version", {row.version for row in rows} | {r.labels.get("version", "") for r in rows}
        )
        learn("build", (row.build for row in rows))
        learn("labelset", (row.labels_text for row in rows))
        for day in {row.day for row in rows if row.facts is not None} - self._days:
            self._db.execute("SELECT add_day(%s)", (day,))
            self._days.add(day)
        if len(self._days) > 2 * self._keep_days + 10:
            self._days.clear()

    def numbers_of(self, row: Row) -> dict[str, int]:
        """Return the numbers of a row's texts."""
        if not row.numbers:
            get = self._numbers.get
            row.numbers = {
                "host": get("host", row.host),
                "signature": get("signature", row.signature),
                "version": get("version", row.version),
                "build": get("build", row.build),
                "labels": get("labelset", row.labels_text),
            }
        return row.numbers

    # -- within the transaction --------------------------------------------------------------------

    def _compare(
        self, rows: Sequence[Row], changes: _Changes, results: Counter[Result]
    ) -> list[Row]:
        """Compare with what is there; delete rows that are replaced; return the rows to put."""
        # nested loops alone can leave out the days that no row is of
        self._db.execute("SET LOCAL enable_hashjoin = off")
        self._db.execute("SET LOCAL enable_mergejoin = off")
        found = self._db.execute(
            "SELECT s.n - 1, t.id IS NOT NULL, c.revision, c.seen, c.signature, c.version, c.build,"
            " c.labels, c.kind = 'kernel', c.core_key IS NOT NULL, c.time"
            " FROM unnest(%s::text[], %s::int[], %s::date[]) WITH ORDINALITY s(id, host, day, n)"
            " LEFT JOIN tombstone t ON t.id = s.id AND t.host = s.host"
            " LEFT JOIN crash c ON c.id = s.id AND c.host = s.host AND c.day = s.day"
            " WHERE t.id IS NOT NULL OR c.id IS NOT NULL",
            self._keys(rows),
        ).fetchall()
        there = {row[0]: row[1:] for row in found}
        kept, replaced = [], []
        for number, row in enumerate(rows):
            is_deleted, revision, seen, *old = there.get(number, (False, None, None))
            if is_deleted:
                results[Result.DELETED] += 1
                if row.facts is None:  # the host's confirmation of what it was asked
                    kept.append(row)
                continue
            if revision is not None and row.facts is not None and revision >= row.revision:
                results[Result.STALE] += 1
                continue
            kept.append(row)
            if revision is not None:
                replaced.append(row)
                row.seen = seen
                _subtract(changes, row.day, self._numbers.get("host", row.host), old)
            if row.facts is None:
                results[Result.DELETED] += 1
                continue
            results[Result.NEW if revision is None else Result.UPDATED] += 1
            _add(changes, row, self.numbers_of(row))
        self._remove(replaced)
        return kept

    def _remove(self, rows: Sequence[Row]) -> None:
        if rows:
            self._db.execute(
                "DELETE FROM crash c USING unnest(%s::text[], %s::int[], %s::date[]) s(id,"
                " host, day)"
                " WHERE c.id = s.id AND c.host = s.host AND c.day = s.day",
                self._keys(rows),
            )

    def _keys(self, rows: Sequence[Row]) -> tuple[str, str, str]:
        """Return the ids, hosts and days of rows as arrays."""
        return (
            array(row.id for row in rows),
            array(self._numbers.get("host", row.host) for row in rows),
            array(row.day for row in rows),
        )

    def _put(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        row = self._db.execute("SELECT now()").fetchone()
        assert row is not None
        with self._db.cursor().copy(_COPY) as copy:
            copy.set_types(TYPES)
            for one in rows:
                copy.write_row((*values(one, self.numbers_of(one)), one.seen or row[0]))
        cores = [(one.host, one.id) for one in rows if _answers(one)]
        if cores:
            self._db.execute(
                "UPDATE request r SET done = now() FROM unnest(%s::text[], %s::text[]) w(host, id)"
                " WHERE r.host = w.host AND r.id = w.id AND r.what = 'core' AND r.done IS NULL",
                ([host for host, _ in cores], [crash_id for _, crash_id in cores]),
            )

    def _delete(self, gone: Sequence[Row]) -> None:
        """Delete crashes that their hosts have deleted, and remember that."""
        for row in gone:
            host = self._numbers.get("host", row.host)
            key = (row.id, host, row.day)
            self._db.execute(
                "INSERT INTO tombstone (id, host, day, reason) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (*key, row.reason),
            )
            self._db.execute(
                "UPDATE request SET done = now() WHERE host = %s AND id = %s AND done IS NULL",
                (row.host, row.id),
            )

    def _count(self, changes: _Changes) -> None:
        items = [(key, tally) for key, tally in sorted(changes.tallies.items()) if tally.crashes]
        if not items:
            return
        columns = [array(column) for column in zip(*(key for key, _ in items), strict=True)]
        self._db.execute(
            "WITH news AS (SELECT * FROM unnest(%s::date[], %s::int[], %s::int[], %s::int[],"
            " %s::int[], %s::int[], %s::bool[], %s::int[], %s::timestamptz[], %s::timestamptz[])"
            " n(day, signature, host, version, build, labels, kernel, crashes, first, last)),"
            " unsummed AS (INSERT INTO unsummed SELECT day, signature, version, kernel, host,"
            " crashes, first, last FROM news)"
            " INSERT INTO tally AS t SELECT * FROM news"
            " ON CONFLICT (day, signature, host, version, build, labels, kernel)"
            " DO UPDATE SET crashes = t.crashes + excluded.crashes,"
            " first = least(t.first, excluded.first), last = greatest(t.last, excluded.last)",
            (
                *columns,
                array(tally.crashes for _, tally in items),
                array(tally.first for _, tally in items),
                array(tally.last for _, tally in items),
            ),
        )

    def _note_hosts(self, rows: Sequence[Row]) -> None:
        """Note what hosts say of themselves, by the newest record of each."""
        newest: dict[str, Row] = {}
        for row in rows:
            if row.host not in newest or row.revision > newest[row.host].revision:
                newest[row.host] = row
        ordered = [newest[host] for host in sorted(newest)]
        self._db.execute(
            "UPDATE host h SET last_seen = now(), labels = w.labels, crashd_version = w.version,"
            " hostname = CASE WHEN w.hostname = '' THEN h.hostname ELSE w.hostname END"
            " FROM unnest(%s::int[], %s::text[], %s::jsonb[], %s::text[])"
            " w(number, hostname, labels, version) WHERE h.number = w.number",
            (
                [self._numbers.get("host", row.host) for row in ordered],
                [row.hostname for row in ordered],
                [row.labels_text for row in ordered],
                [row.crashd for row in ordered],
            ),
        )

    def _quarantine(self, bad: Sequence[Bad], results: Counter[Result]) -> None:
        """Keep what was refused, of each host so many; count the rest."""
        results[Result.QUARANTINED] += len(bad)
        for host in sorted({one.host for one in bad}):
            own = [one for one in bad if one.host == host]
            sql = "SELECT count(*) FROM (SELECT FROM quarantine WHERE host = %s LIMIT %s) q"
            row = self._db.execute(sql, (host, QUARANTINED_MAX)).fetchone()
            room = QUARANTINED_MAX - (row[0] if row else 0)
            self._db.cursor().executemany(
                "INSERT INTO quarantine (host, object, line, reason, detail, excerpt)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [(b.host, b.object, b.line, b.reason, b.detail, b.excerpt) for b in own[:room]],
            )
            self._db.execute(
                "INSERT INTO host AS h (host, quarantined) VALUES (%s, %s) ON CONFLICT (host)"
                " DO UPDATE SET quarantined = h.quarantined + excluded.quarantined",
                (host, len(own)),
            )

    def _share(self, changes: _Changes, results: Counter[Result]) -> None:
        """Change the rows that indexers share, in an order that cannot deadlock."""
        touched = sorted({*changes.counts, *changes.cores, *changes.newest} - {0})
        if touched:
            self._share_signatures(changes, touched)
        versions: dict[int, _Tally] = {}
        for (_, version), tally in (*changes.of_signature.items(), *changes.of_host.items()):
            _span(versions, version).widen(tally.first, tally.last)
        self._execute_pairs(
            "UPDATE version v SET first_seen = least(v.first_seen, w.first) FROM unnest(%s::int[],"
            " %s::timestamptz[]) w(number, first) WHERE v.number = w.number"
            " AND (v.first_seen IS NULL OR w.first < v.first_seen)",
            [(number, versions[number].first) for number in sorted(versions)],
        )
        for table, pairs in (
            ("signature_version", changes.of_signature),
            ("host_version", changes.of_host),
        ):
            self._execute_pairs(
                f"INSERT INTO {table} AS t SELECT * FROM unnest(%s::int[], %s::int[],"
                " %s::timestamptz[], %s::timestamptz[]) ON CONFLICT "
                f"({table.replace('_', ', ')}) DO UPDATE SET first = least(t.first,"
                " excluded.first),"
                " last = greatest(t.last, excluded.last)"
                " WHERE excluded.first < t.first OR excluded.last > t.last",
                [(*key, tally.first, tally.last) for key, tally in sorted(pairs.items())],
            )
        self._execute_pairs(
            "INSERT INTO total AS t SELECT * FROM unnest(%s::text[], %s::bigint[])"
            " ON CONFLICT (result) DO UPDATE SET records = t.records + excluded.records",
            [(result.value, results[result]) for result in sorted(Result) if results[result]],
        )

    def _share_signatures(self, changes: _Changes, touched: Sequence[int]) -> None:
        self._db.execute(
            "SELECT FROM signature WHERE number = ANY(%s) ORDER BY number FOR NO KEY UPDATE",
            (list(touched),),
        )
        rows = [changes.newest.get(number) for number in touched]
        spans = [changes.spans.get(number) for number in touched]
        self._db.execute(
            "UPDATE signature s SET count = s.count + w.count, cores = s.cores + w.cores,"
            " first_seen = least(s.first_seen, w.first), last_seen = greatest(s.last_seen, w.last),"
            " kind = CASE WHEN w.renew THEN w.kind ELSE s.kind END,"
            " title = CASE WHEN w.renew THEN w.title ELSE s.title END,"
            " exe = CASE WHEN w.renew THEN w.exe ELSE s.exe END,"
            " unit = CASE WHEN w.renew THEN w.unit ELSE s.unit END,"
            " newest = CASE WHEN w.renew THEN w.id ELSE s.newest END"
            " FROM (SELECT u.*, u.id IS NOT NULL"
            " AND (s.last_seen IS NULL OR u.last >= s.last_seen) AS renew"
            " FROM unnest(%s::int[], %s::int[], %s::int[], %s::timestamptz[], %s::timestamptz[],"
            " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])"
            " u(number, count, cores, first, last, kind, title, exe, unit, id)"
            " JOIN signature s USING (number)) w WHERE s.number = w.number",
            (
                list(touched),
                [changes.counts[number] for number in touched],
                [changes.cores[number] for number in touched],
                [span.first if span else None for span in spans],
                [span.last if span else None for span in spans],
                [row.facts.kind if row and row.facts else None for row in rows],
                [row.title if row else None for row in rows],
                [row.facts.exe or None if row and row.facts else None for row in rows],
                [row.facts.unit if row and row.facts else None for row in rows],
                [row.id if row else None for row in rows],
            ),
        )

    def _execute_pairs(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            columns = [array(column) for column in zip(*rows, strict=True)]
            self._db.execute(sql.encode(), columns)


def _newest(rows: Iterable[Row]) -> list[Row]:
    """Return the newest revision of each crash; a deletion is the last one whatever it says."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = found.get((row.host, row.id))
        if before is None or (before.facts is not None and _rank(row) > _rank(before)):
            found[row.host, row.id] = row
    return list(found.values())


def _rank(row: Row) -> tuple[bool, int]:
    return row.facts is None, row.revision


def _answers(row: Row) -> bool:
    """Return whether a record answers the question for its core: it is there, or never will be."""
    return row.core_key is not None or row.core_reason in (CoreReason.POLICY, CoreReason.NO_CORE)


def _key(row: Row, numbers: Mapping[str, int]) -> tuple[Any, ...]:
    return (
        row.day,
        numbers["signature"],
        numbers["host"],
        numbers["version"],
        numbers["build"],
        numbers["labels"],
        row.is_kernel,
    )


def _add(changes: _Changes, row: Row, numbers: Mapping[str, int]) -> None:
    signature, host, time = numbers["signature"], numbers["host"], row.time
    _span(changes.tallies, _key(row, numbers)).add(time)
    changes.counts[signature] += 1
    changes.cores[signature] += row.core_key is not None
    _span(changes.spans, signature).widen(time, time)
    newest = changes.newest.get(signature)
    if newest is None or time >= newest.time:
        changes.newest[signature] = row
    if signature:
        _span(changes.of_signature, (signature, numbers["version"])).widen(time, time)
    _span(changes.of_host, (host, numbers["version"])).widen(time, time)


def _subtract(changes: _Changes, day: date, host: int, old: Sequence[Any]) -> None:
    signature, version, build, labels, is_kernel, has_core, time = old
    key = (day, signature, host, version, build, labels, is_kernel)
    tally = _span(changes.tallies, key)
    tally.add(time)
    tally.crashes -= 2
    changes.counts[signature] -= 1
    changes.cores[signature] -= has_core


def _span(spans: dict[Any, _Tally], key: Any) -> _Tally:
    span = spans.get(key)
    if span is None:
        span = spans[key] = _Tally()
    return span


def judge(
    raw: bytes, host: str, key: str, line: int, batch: Batch, days: tuple[date, date]
) -> None:
    """Add one line to a batch: as a row, or as what was refused."""
    try:
        row = read_row(raw, host, key)
        if row.day > days[1]:
            raise Refused("future", f"the id's day {row.day} is in the future")
        if row.day < days[0]:
            batch.expired += 1
            return
    except Refused as e:
        batch.bad.append(bad_line(host, key, line, e, raw))
        return
    row.line = line
    batch.rows.append(row)
    batch.size_bytes += len(raw)


def bad_line(host: str, key: str, line: int, error: Refused, raw: bytes) -> Bad:
    """Describe a line that was refused."""
    detail = clean(str(error)[:DETAIL_MAX])
    return Bad(host, key, line, error.reason, detail, raw[:EXCERPT_BYTES])
