"""How many crashes there were in a span of time, on how many hosts and of how many versions.

A million crashes are not read for that. Whole days are counted in `summary`, which has a set of
hosts for each signature and version, and in `unsummed`, which is what was loaded since (see
`crashd.fleet.summary`). Where a span begins or ends within a day, that day's rows of `tally` are
counted, and the crashes themselves only of those rows that the moment divides. Questions about some
hosts or labels are answered by `tally` alone, which knows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from crashd.domain.crash.query import Query
from crashd.edge.fleet.reader import Reader
from crashd.fleet.selection import Condition, moment_of, where

Sql = tuple[str, list[Any]]
ALL: Final = -1
"""In place of a signature's number: crashes with whichever signature, or none."""
NO_HOSTS: Final = (
    "SELECT repeat('0', (coalesce(max(number), 0) / 1024 + 1) * 1024)::bit varying AS none"
    " FROM host"
)
"""A set without hosts, in which each host has a place."""
_COLUMNS = "c.signature, c.version, c.host"
_NUMBERS = "c.crashes, c.first, c.last"


def widened(hosts: str, none: str) -> str:
    """Build SQL for a set with a place for each host; it may be older than some of them."""
    return f"({hosts} || substring({none} FOR length({none}) - length({hosts})))"


def united(many: str, loose: str) -> str:
    """Build SQL that counts hosts by name: those of sets, and besides them single ones.

    Args:
        many: a table of `name` and the set `many`.
        loose: a table of `name` and `host`, each once.

    """
    return (
        f"WITH width AS MATERIALIZED ({NO_HOSTS}), whole AS MATERIALIZED (SELECT name,"
        f" bit_or({widened('many', '(SELECT none FROM width)')}) AS many FROM ({many}) m"
        f" GROUP BY 1), loose AS ({loose})"
        " SELECT coalesce(w.name, l.name) AS name, coalesce(w.hosts, 0) + coalesce(l.hosts, 0)"
        " AS hosts FROM (SELECT name, bit_count(many) AS hosts FROM whole) w FULL JOIN ("
        " SELECT l.name, count(*) AS hosts FROM loose l LEFT JOIN whole w USING (name)"
        " WHERE w.many IS NULL OR get_bit(w.many, l.host) = 0 GROUP BY 1) l USING (name)"
    )


@dataclass(frozen=True, slots=True)
class Span:
    """Which crashes are counted."""

    conditions: tuple[Condition, ...] = ()
    """On `c.day`, for the days that count as a whole, and on `c.version`."""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def cut(self) -> list[date]:
        """The days that count in part."""
        return sorted({moment.date() for moment in (self.since, self.until) if moment is not None})


def span_of(query: Query) -> Span:
    """Return the span that a query names."""
    conditions, moments = [], []
    for operator, time_ns in ((">", query.since_ns), ("<", query.until_ns)):
        moment = None if time_ns is None else moment_of(time_ns)
        moments.append(moment)
        if moment is not None:
            conditions.append(Condition(f"c.day {operator} %s", (moment.date(),)))
    return Span(tuple(conditions), *moments)


class Counts:
    """The counts of one span, for those hosts and labels that `scope` says."""

    def __init__(
        self, db: Reader, scope: Sequence[Condition], span: Span, kind: str | None
    ) -> None:
        self._db = db
        self._span = span
        self._scope = tuple(scope)
        self._common: tuple[Condition, ...] = ()
        if kind is not None:
            self._common = (Condition("c.kernel = %s", (kind == "kernel",)),)

    def top(self, limit: int | None, *more: Condition) -> list[tuple[Any, ...]]:
        """Return number, crashes, first, last and versions of signatures, most crashes first."""
        source, values = self._rows(more)
        return self._db.execute(
            "SELECT signature, sum(crashes)::bigint, min(first), max(last), count(*) FROM ("
            " SELECT signature, version, sum(crashes) AS crashes, min(first) AS first,"
            f" max(last) AS last FROM ({source}) c GROUP BY 1, 2 HAVING sum(crashes) > 0) c"
            " GROUP BY 1 ORDER BY 2 DESC, 4 DESC LIMIT %s",
            [*values, limit],
        ).fetchall()

    def top_versions(self, limit: int | None) -> list[tuple[Any, ...]]:
        """Return number, crashes, first and last of versions, most crashes first."""
        source, values = self._rows((), totals=True)
        return self._db.execute(
            f"SELECT version, sum(crashes)::bigint, min(first), max(last) FROM ({source}) c"
            " GROUP BY 1 HAVING sum(crashes) > 0 ORDER BY 2 DESC, 4 DESC LIMIT %s",
            [*values, limit],
        ).fetchall()

    def crashes(self) -> dict[int, int]:
        """Count crashes by signature."""
        source, values = self._rows(())
        return dict(
            self._db.execute(
                f"SELECT signature, sum(crashes)::bigint FROM ({source}) c GROUP BY 1", values
            ).fetchall()
        )

    def signatures(self, versions: Sequence[int]) -> dict[int, int]:
        """Count signatures by version."""
        source, values = self._rows([_among("version", versions)])
        return dict(
            self._db.execute(
                "SELECT version, count(*) FROM (SELECT version, signature FROM"
                f" ({source}) c GROUP BY 1, 2 HAVING sum(crashes) > 0) f GROUP BY 1",
                values,
            ).fetchall()
        )

    def hosts_of_signatures(self, signatures: Sequence[int]) -> dict[int, int]:
        """Count hosts by signature."""
        return self._hosts("c.signature", [_among("signature", signatures)], totals=False)

    def hosts_of_versions(self, versions: Sequence[int]) -> dict[int, int]:
        """Count hosts by version."""
        return self._hosts("c.version", [_among("version", versions)], totals=True)

    def hosts(self) -> int:
        """Count the hosts that had any crash."""
        return self._hosts("0", [], totals=True).get(0, 0)

    def tallies(self) -> Sql:
        """Build a table of tallies, which know builds and labels."""
        parts = [self._tallies(f"{_COLUMNS}, c.build, c.labels", ())]
        return _union(parts + self._cut(f"{_COLUMNS}, c.build, c.labels", ()))

    def _rows(self, more: Sequence[Condition], *, totals: bool = False) -> Sql:
        """Build a table of counts by signature and version, or only by version."""
        parts = self._loose(more, totals=totals)
        if not self._scope:
            sql, values = self._whole(more, totals=totals)
            columns = f"c.signature, c.version, NULL::int AS host, {_NUMBERS}"
            parts.append((f"SELECT {columns} FROM summary c {sql}", values))
        return _union(parts)

    def _hosts(self, name: str, more: Sequence[Condition], *, totals: bool) -> dict[int, int]:
        """Count hosts: those of sets, and besides them those of rows that are in no set."""
        parts = self._loose(more, totals=totals)
        if self._scope:
            source, values = _union(parts)
            found = self._db.execute(
                f"SELECT name, count(*) FROM (SELECT DISTINCT {name} AS name, host FROM"
                f" ({source}) c WHERE crashes > 0) l GROUP BY 1",
                values,
            ).fetchall()
            return dict(found)
        sql, own = self._whole(more, totals=totals)
        columns = "c.signature, c.version, f.host, 1, c.first, c.last"
        parts.append((f"SELECT {columns} FROM summary c, unnest(c.few) f(host) {sql}", own))
        source, values = _union(parts)
        many = f"SELECT {name} AS name, c.many FROM summary c {sql} AND c.many IS NOT NULL"
        loose = f"SELECT DISTINCT {name} AS name, host FROM ({source}) c WHERE crashes > 0"
        found = self._db.execute(united(many, loose), [*own, *values]).fetchall()
        return dict(found)

    def _whole(self, more: Sequence[Condition], *, totals: bool) -> Sql:
        own = Condition(f"c.signature = {ALL}" if totals else "c.signature > 0")
        return where([*self._span.conditions, *self._common, *more, own])

    def _loose(self, more: Sequence[Condition], *, totals: bool) -> list[Sql]:
        """Build tables of counts by host: what no summary has."""
        asked = [*more] if totals else [*more, Condition("c.signature > 0")]
        if self._scope:
            parts = [self._tallies(_COLUMNS, asked)]
        else:
            sql, values = where([*self._span.conditions, *self._common, *asked])
            parts = [(f"SELECT {_COLUMNS}, {_NUMBERS} FROM unsummed c {sql}", values)]
        return parts + self._cut(_COLUMNS, asked)

    def _tallies(self, columns: str, more: Sequence[Condition]) -> Sql:
        sql, values = where([*self._scope, *self._span.conditions, *self._common, *more])
        return f"SELECT {columns}, {_NUMBERS} FROM tally c {sql}", values

    def _cut(self, columns: str, more: Sequence[Condition]) -> list[Sql]:
        """Build tables of the days that count in part."""
        span = self._span
        if not span.cut:
            return []
        common = [*self._scope, *self._common, *more]
        common += [one for one in span.conditions if "c.day" not in one.sql]
        common.append(Condition("c.day = ANY(%s)", (span.cut,)))
        inside, touched, within = [], [], []
        for moment, operator, near, far in (
            (span.since, ">=", "c.first", "c.last"),
            (span.until, "<=", "c.last", "c.first"),
        ):
            if moment is not None:
                inside.append(Condition(f"{near} {operator} %s", (moment,)))
                touched.append(Condition(f"{far} {operator} %s", (moment,)))
                within.append(Condition(f"r.time {operator} %s", (moment,)))
        sql, values = where([*common, *inside])
        parts = [(f"SELECT {columns}, {_NUMBERS} FROM tally c {sql}", values)]
        text, values = where(inside)
        divided = Condition(f"NOT ({text.removeprefix('WHERE ')})", tuple(values))
        sql, values = where([*common, *touched, divided])
        own, own_values = where([Condition("r.day = ANY(%s)", (span.cut,)), *within])
        # OFFSET 0: for each of these few rows by the index on hosts, never all rows of a day
        parts.append(
            (
                f"SELECT {columns}, 1, f.time, f.time FROM tally c, LATERAL (SELECT r.time FROM"
                f" crash r {own} AND r.day = c.day AND r.host = c.host AND r.signature ="
                " c.signature AND r.version = c.version AND r.build = c.build AND r.labels ="
                f" c.labels AND (r.kind = 'kernel') = c.kernel OFFSET 0) f {sql}",
                [*own_values, *values],
            )
        )
        return parts


def _among(column: str, numbers: Sequence[int]) -> Condition:
    return Condition(f"c.{column} = ANY(%s)", (list(numbers),))


def _union(parts: Sequence[Sql]) -> Sql:
    return (
        " UNION ALL ".join(sql for sql, _ in parts),
        [value for _, values in parts for value in values],
    )
