"""What people ask the fleet's index: listings, records, counts. Reads only."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from crashd.domain.crash.model import BYTES_KEYS, LIST_KEYS, from_json, time_text, to_json
from crashd.domain.crash.query import Query
from crashd.domain.crash.tally import NO_NAME, NO_UNIT, Group, Tally, Timeline
from crashd.edge.fleet.reader import Reader
from crashd.errors import FormatError, NotFoundError
from crashd.fleet.counts import Counts, span_of
from crashd.fleet.countsby import count_by
from crashd.fleet.selection import Condition, Scope, conditions, scope_conditions, where

FLEET_KEYS = (*LIST_KEYS, "host", "labels")
"""Keys of a listing: those of one host, and whose crash it is."""
ROWS_MAX = 100_000
"""Crashes of one listing without -n."""
NAMES_MAX = 1000
"""Names of one subject in a count."""
_NEWEST = "c.time DESC, c.id DESC"
_SMALL_BYTES = 16 << 10
"""A record that takes so little is fetched whole: choosing keys takes longer. Not as packed: lists
of brackets take a hundredth.
"""
_VALUE_BYTES = 256 << 10
"""A value of a record that is larger is not in listings: some megabytes of brackets, of a hostile
host, are a hundred in memory.
"""
_OF_LISTING = (
    f"CASE WHEN octet_length(c.doc::text) <= {_SMALL_BYTES} THEN c.doc ELSE ("
    "SELECT json_object_agg(d.key, d.value) FROM json_each(c.doc) d WHERE d.key = ANY(%s)"
    f" AND octet_length(d.value::text) <= {_VALUE_BYTES}) END"
)
_NEEDED = [*LIST_KEYS, "schema", "time_ns", "argv"]
_NEEDED += [f"{key}_base64" for key in _NEEDED if key in BYTES_KEYS]


EVERYWHERE = Scope()


class Questions:
    """Questions over one connection, about all hosts or some."""

    def __init__(self, db: Reader, scope: Scope = EVERYWHERE) -> None:
        self._db = db
        self._scope = scope

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Find crashes as listings show them: the newest `query.limit`, newest first."""
        with self._db.transaction():
            limit = ROWS_MAX if query.limit is None else min(query.limit, ROWS_MAX)
            sql, values = where(self._conditions(query))
            rows = self._db.execute(
                f"SELECT {_OF_LISTING}, h.host, l.labels, s.count FROM crash c"
                " JOIN host h ON h.number = c.host LEFT JOIN labelset l ON l.number = c.labels"
                f" LEFT JOIN signature s ON s.number = c.signature {sql} ORDER BY {_NEWEST}"
                " LIMIT %s",
                [_NEEDED, *values, limit],
            ).fetchall()
        found = [_listed(*row) for row in rows]
        return found[::-1] if query.reverse else found

    def info(self, crash_id: str, host: str | None = None) -> dict[str, Any]:
        """Return everything known about one crash.

        Raises:
            NotFoundError: there is no such crash.

        """
        own = [Condition("c.id = %s", (crash_id,))]
        if host is not None:
            own.append(Condition("h.host = %s", (host,)))
        with self._db.transaction():
            sql, values = where([*own, *scope_conditions(self._db, self._scope)])
            row = self._db.execute(
                "SELECT c.doc, h.host, l.labels, s.count, s.first_seen, s.last_seen, c.object,"
                " c.core_key, c.log_key FROM crash c JOIN host h ON h.number = c.host"
                " LEFT JOIN labelset l ON l.number = c.labels"
                f" LEFT JOIN signature s ON s.number = c.signature {sql} LIMIT 1",
                values,
            ).fetchone()
        if row is None:
            raise NotFoundError(f"no crash {crash_id}")
        doc, host, labels, count, first, last, key, core, log = row
        found = {
            **doc,
            **by_model(doc),
            "count_of_signature": count,
            "host": host,
            "labels": labels or {},
        }
        if first is not None:
            found |= {"first_of_signature": _iso(first), "last_of_signature": _iso(last)}
        return found | {"object": key, "core_object": core, "log_object": log}

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, the most frequent first; see `store.signatures.top`.

        Rows also have `hosts` and `versions`: how many have had it, in the same span.
        """
        with self._db.transaction():
            if query.terms:
                return self._top_of_rows(query)
            counts = self._counts(query)
            found = self._explained(counts, counts.top(query.limit))
        return [row for _, row, _ in found]

    def counted(
        self, query: Query, since: datetime, numbers: Sequence[int]
    ) -> list[tuple[int, dict[str, Any]]]:
        """Count the crashes of some signatures since a moment; their rows are those of `top`."""
        since_ns = int(since.timestamp()) * 10**9
        own = Condition("c.signature = ANY(%s)", (list(numbers),))
        with self._db.transaction():
            counts = self._counts(query._replace(since_ns=since_ns, until_ns=None))
            found = self._explained(counts, counts.top(None, own))
        return [(number, row | {"first": _iso(first)}) for number, row, first in found]

    def _counts(self, query: Query) -> Counts:
        scope = scope_conditions(self._db, self._scope)
        return Counts(self._db, scope, span_of(query), query.kind)

    def _explained(
        self, counts: Counts, found: Sequence[tuple[Any, ...]]
    ) -> list[tuple[int, dict[str, Any], datetime]]:
        """Say what counted signatures are: number, row of `top`, when each was first seen."""
        numbers = [row[0] for row in found]
        hosts = counts.hosts_of_signatures(numbers)
        rows = self._db.execute(
            "SELECT number, signature, title, kind, exe, unit, newest, first_seen FROM signature"
            " WHERE number = ANY(%s)",
            (numbers,),
        ).fetchall()
        known = {row[0]: row[1:] for row in rows}
        explained = []
        for number, count, first, last, versions in found:
            if number in known:
                name, *more, seen = known[number]
                row = _top_row(name, count, first, last, hosts.get(number, 0), versions, *more)
                explained.append((number, row, seen))
        return explained

    def _top_of_rows(self, query: Query) -> list[dict[str, Any]]:
        """Count the crashes themselves, because MATCH may name anything."""
        sql, values = where([*self._conditions(query), Condition("c.signature <> 0")])
        rows = self._db.execute(
            "SELECT s.signature, f.count, f.first, f.last, f.hosts, f.versions, s.title, s.kind,"
            " s.exe, s.unit, s.newest FROM (SELECT c.signature, count(*) AS count,"
            " min(c.time) AS first, max(c.time) AS last, count(DISTINCT c.host) AS hosts,"
            f" count(DISTINCT c.version) AS versions FROM crash c {sql} GROUP BY 1"
            " ORDER BY 2 DESC, 4 DESC LIMIT %s) f JOIN signature s ON s.number = f.signature"
            " ORDER BY f.count DESC, f.last DESC",
            [*values, query.limit],
        ).fetchall()
        return [_top_row(*row) for row in rows]

    def top_by(self, query: Query, by: str) -> list[dict[str, Any]]:
        """Count crashes by `build`, `host`, `version` or `label:NAME`, the most frequent first.

        Rows of hosts also have `hostname`: what the host calls itself.
        """
        if by == "version" and not query.terms:
            return self._top_versions(query)
        with self._db.transaction():
            if query.terms:
                sql, values = where(self._conditions(query))
                source = "SELECT c.signature, c.host, c.version, c.build, c.labels, 1 AS crashes,"
                source += f" c.time AS first, c.time AS last FROM crash c {sql}"
            else:
                source, values = self._counts(query).tallies()
            rows = count_by(self._db, source, values, by, query.limit)
        label = by.removeprefix("label:")
        return [_by_row(label, *row) | names for row, names in rows]

    def _top_versions(self, query: Query) -> list[dict[str, Any]]:
        with self._db.transaction():
            counts = self._counts(query)
            found = counts.top_versions(query.limit)
            numbers = [row[0] for row in found]
            hosts, signatures = counts.hosts_of_versions(numbers), counts.signatures(numbers)
            rows = self._db.execute(
                "SELECT number, version FROM version WHERE number = ANY(%s)", (numbers,)
            ).fetchall()
        names = {0: "", **dict(rows)}
        return [
            _by_row(
                "version",
                names.get(number, ""),
                count,
                first,
                last,
                hosts.get(number, 0),
                signatures.get(number, 0),
            )
            for number, count, first, last in found
        ]

    def _conditions(self, query: Query) -> list[Condition]:
        return conditions(self._db, query, self._scope)

    # -- counts over time --------------------------------------------------------------------------

    def tally(self, query: Query, timeline: Timeline) -> Tally:
        """Count crashes by subject and over time, in the database."""
        found = Tally(timeline, names={subject: Counter() for subject in _SUBJECTS})
        with self._db.transaction():
            sql, values = where(self._conditions(query))
            # one pass over the crashes; of each grouping only the most frequent names
            rows = self._db.execute(
                f"SELECT {_NAMES}, step, grouped, count FROM (SELECT *, row_number() OVER"
                " (PARTITION BY grouped ORDER BY count DESC) AS rank FROM ("
                f"SELECT {_NAMES}, step, GROUPING({_NAMES}, step) AS grouped, count(*) AS count"
                f" FROM (SELECT {_NAMED}, floor((extract(epoch FROM c.time) - %s) / %s)::bigint"
                " AS step FROM crash c LEFT JOIN version v ON v.number = c.version"
                f" {sql}) c GROUP BY GROUPING SETS ({_SETS}, (kinds, step))) g) r"
                " WHERE rank <= %s OR step IS NOT NULL",
                [timeline.start_ns / 1e9, timeline.step_ns / 1e9, *values, NAMES_MAX],
            )
            for *names, step, grouped, count in rows:
                if step is None:
                    number = _GROUPED.index(grouped)
                    found.names[list(_SUBJECTS)[number]][str(names[number])] = count
                    continue
                found.total += count
                if names[0] in timeline.counts and 0 <= step < len(timeline):
                    timeline.counts[names[0]][step] += count
        return found

    def groups(self, query: Query, found: Tally, limit: int) -> None:
        """Add the most frequent signatures to a tally, with their newest crashes."""
        for row in self.top(query._replace(limit=limit)):
            newest = self.select(query._replace(signature=row["signature"], limit=1))
            if newest:
                group = Group(row["signature"], newest[0], row["count"], row["first"], row["last"])
                found.groups[row["signature"],] = group

    def since(self, moment: datetime, limit: int) -> list[tuple[datetime, dict[str, Any]]]:
        """Return crashes first indexed after a moment, oldest first, each with its moment."""
        with self._db.transaction():
            extra = scope_conditions(self._db, self._scope)
            sql, values = where([Condition("c.seen > %s", (moment,)), *extra])
            rows = self._db.execute(
                "SELECT c.seen, c.doc, h.host, l.labels, s.count FROM crash c"
                " JOIN host h ON h.number = c.host LEFT JOIN labelset l ON l.number = c.labels"
                f" LEFT JOIN signature s ON s.number = c.signature {sql} ORDER BY c.seen,"
                " c.time LIMIT %s",
                [*values, limit],
            ).fetchall()
        return [(row[0], _listed(*row[1:])) for row in rows]

    def now(self) -> datetime:
        """Return the server's time."""
        row = self._db.execute("SELECT now()").fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment


_SUBJECTS = {
    "kinds": "c.kind",
    "signals": "coalesce(nullif(c.what, ''),"
    f" CASE c.kind WHEN 'kernel' THEN 'kernel' ELSE '{NO_NAME}' END)",
    "units": "coalesce(c.unit, 'container ' || left(c.container_id, 12), '" + NO_UNIT + "')",
    "programs": "CASE c.kind WHEN 'kernel' THEN rtrim('kernel ' || coalesce(v.version, ''))"
    f" ELSE coalesce(nullif(c.exe, ''), nullif(c.comm, ''), '{NO_NAME}') END",
    "dispositions": "c.disposition",
    "states": "c.state",
}
"""SQL for the names of `domain.crash.tally.SUBJECTS`."""
_NAMES = ", ".join(_SUBJECTS)
_NAMED = ", ".join(f"{sql} AS {name}" for name, sql in _SUBJECTS.items())
_SETS = ", ".join(f"({name})" for name in _SUBJECTS)
_GROUPED = [(2 << len(_SUBJECTS)) - 1 - (1 << len(_SUBJECTS) - n) for n in range(len(_SUBJECTS))]
"""GROUPING() of each set of one name: a bit is 1 for what is not in the set."""


def by_model(doc: dict[str, Any]) -> dict[str, Any]:
    """Return what the model makes of a stored record: what a host said beside it does not count."""
    try:
        return to_json(from_json(doc))
    except FormatError:  # an older indexer took it
        return {key: doc.get(key) for key in ("id", "kind", "state", "time")}


def _listed(doc: dict[str, Any], host: str, labels: Any, count: int | None) -> dict[str, Any]:
    canonical = by_model(doc)
    row = {key: canonical.get(key) for key in LIST_KEYS}
    row["count_of_signature"] = count
    return row | {"host": host, "labels": labels or {}}


_TOP_KEYS = tuple(
    [
        "signature",
        "count",
        "first",
        "last",
        "hosts",
        "versions",
        "title",
        "kind",
        "exe",
        "unit",
        "id",
    ]
)


def _top_row(*values: Any) -> dict[str, Any]:
    """Build a row of `top` from the values of _TOP_KEYS."""
    row = dict(zip(_TOP_KEYS, values, strict=True))
    return row | {"first": _iso(row["first"]), "last": _iso(row["last"])}


def _by_row(
    by: str, name: str, count: int, first: datetime, last: datetime, hosts: int, signatures: int
) -> dict[str, Any]:
    """Build a row of `top --by`."""
    row = {"by": by, "name": name, "count": count, "first": _iso(first), "last": _iso(last)}
    return row | {"hosts": hosts, "signatures": signatures}


def _iso(moment: datetime) -> str:
    return time_text(int(moment.timestamp()) * 10**9 + moment.microsecond * 1000)


def json_rows(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of one JSON array, one crash per line; ASCII only."""
    separator = "["
    for row in rows:
        yield separator + json.dumps({key: row.get(key) for key in FLEET_KEYS})
        separator = ","
    yield "]" if separator == "," else "[]"
