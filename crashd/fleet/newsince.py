"""Signatures that are new since a time or a version, and those that became more frequent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from crashd.domain.crash.match import Query
from crashd.domain.fleet.frequency import HOSTS_MIN, RATIO_MIN, Share, is_more_frequent
from crashd.edge.fleet.reader import Reader
from crashd.errors import NotFoundError
from crashd.fleet.questions import Questions
from crashd.fleet.selection import Condition, Scope, moment_of, scope_conditions, where
from crashd.fleet.texts import text

CANDIDATES_MAX = 200
"""Signatures whose hosts are counted: those that grew most."""
_SPAN_MAX = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class _Span:
    """What is compared: rows of tally that match `sql`, among so many hosts."""

    conditions: tuple[Condition, ...]
    hosts: int


class NewSince:
    """Compares what came since a time or a version with what was before."""

    def __init__(self, db: Reader, scope: Scope) -> None:
        self._db = db
        self._scope = scope
        self._questions = Questions(db, scope)

    def time(self, since_ns: int, query: Query) -> list[dict[str, Any]]:
        """Return new signatures, and those on more hosts than in as much time before."""
        moment = moment_of(since_ns)
        with self._db.transaction():
            common = self._common(query)
            new = self._signatures(
                "SELECT number FROM signature s WHERE first_seen >= %s AND count > 0"
                " ORDER BY count DESC LIMIT %s",
                (moment, query.limit),
            )
            length = min(datetime.now(UTC) - moment, _SPAN_MAX)
            day, first = moment.date(), (moment - length).date()
            # days are compared as a whole: the one of the moment counts for after it
            after = [*common, Condition("c.day >= %s", (day,))]
            before = [*common, Condition("c.day >= %s AND c.day < %s", (first, day))]
            more = self._more(self._span(after), self._span(before), new)
        return self._rows(query, moment, new, more)

    def version(self, name: str, query: Query) -> list[dict[str, Any]]:
        """Return signatures that no earlier version had, and those that a version made more
        frequent.

        Earlier versions are those that the fleet saw before this one.

        Raises:
            NotFoundError: no host has run this version.

        """
        with self._db.transaction():
            row = self._db.execute(
                "SELECT number, first_seen FROM version WHERE version = %s", (text(name),)
            ).fetchone()
            if row is None or row[1] is None:
                raise NotFoundError(
                    f"no crash of version {name}",
                    hint='versions are the hosts\' label "version", and releases of kernels',
                )
            number, moment = row
            new = self._signatures(
                "SELECT s.number FROM signature s WHERE s.count > 0 AND EXISTS (SELECT FROM"
                " signature_version o JOIN version v ON v.number = o.version"
                " WHERE o.signature = s.number AND v.first_seen >= %s) AND NOT EXISTS (SELECT FROM"
                " signature_version o LEFT JOIN version v ON v.number = o.version"
                " WHERE o.signature = s.number AND (v.first_seen IS NULL OR v.first_seen < %s))"
                " ORDER BY s.count DESC LIMIT %s",
                (moment, moment, query.limit),
            )
            length = min(datetime.now(UTC) - moment, _SPAN_MAX)
            common = self._common(query)
            first = (moment - length).date()
            before = [*common, Condition("c.version <> %s", (number,))]
            before.append(Condition("c.day >= %s AND c.day <= %s", (first, moment.date())))
            after = [*common, Condition("c.version = %s", (number,))]
            more = self._more(self._span(after), self._span(before), new)
        return self._rows(query, moment, new, more)

    def _common(self, query: Query) -> list[Condition]:
        found = scope_conditions(self._db, self._scope)
        if query.kind is not None:
            found.append(Condition("c.kernel = %s", (query.kind == "kernel",)))
        return found

    def _signatures(self, sql: str, values: Sequence[Any]) -> list[int]:
        return [row[0] for row in self._db.execute(sql, values).fetchall()]

    def _span(self, conditions: Sequence[Condition]) -> _Span:
        """Count the hosts that had any crash: those without one send nothing."""
        sql, values = where(conditions)
        row = self._db.execute(
            f"SELECT count(*) FROM (SELECT DISTINCT c.host FROM tally c {sql}) f", values
        ).fetchone()
        return _Span(tuple(conditions), row[0] if row else 0)

    def _more(
        self, after: _Span, before: _Span, new: Sequence[int]
    ) -> dict[int, tuple[Share, Share]]:
        """Return the signatures on a larger share of hosts than before."""
        if after.hosts < HOSTS_MIN or not before.hosts:
            return {}
        now, then = self._crashes(after), self._crashes(before)
        scale = after.hosts / before.hosts
        grown = {
            number: count / (then.get(number, 0) * scale + 1)
            for number, count in now.items()
            if count >= HOSTS_MIN and number not in new
        }
        chosen = sorted(grown, key=lambda number: -grown[number])[:CANDIDATES_MAX]
        chosen = [number for number in chosen if grown[number] * RATIO_MIN >= 1]
        hosts_now, hosts_then = self._hosts(after, chosen), self._hosts(before, chosen)
        found = {}
        for number in chosen:
            share = Share(hosts_now.get(number, 0), after.hosts)
            other = Share(hosts_then.get(number, 0), before.hosts)
            if is_more_frequent(share, other):
                found[number] = (share, other)
        return found

    def _crashes(self, span: _Span) -> dict[int, int]:
        sql, values = where([*span.conditions, Condition("c.signature <> 0")])
        return dict(
            self._db.execute(
                f"SELECT c.signature, sum(c.crashes) FROM tally c {sql} GROUP BY 1", values
            ).fetchall()
        )

    def _hosts(self, span: _Span, signatures: Sequence[int]) -> dict[int, int]:
        own = Condition("c.signature = ANY(%s) AND c.crashes > 0", (list(signatures),))
        sql, values = where([*span.conditions, own])
        return dict(
            self._db.execute(
                "SELECT signature, count(*) FROM (SELECT DISTINCT c.signature, c.host"
                f" FROM tally c {sql}) f GROUP BY 1",
                values,
            ).fetchall()
        )

    def _rows(
        self,
        query: Query,
        moment: datetime,
        new: Sequence[int],
        more: dict[int, tuple[Share, Share]],
    ) -> list[dict[str, Any]]:
        """Build the rows: new ones first, then by how much their share has grown."""
        rows = self._questions.counted(query, moment, [*new, *more])
        found = []
        for number, row in rows:
            now, before = more.get(number, (None, None))
            row["change"] = "more" if now else "new"
            row["rate"] = None if now is None else round(now.rate, 6)
            row["rate_before"] = None if before is None else round(before.rate, 6)
            found.append(row)
        found.sort(key=lambda row: (row["change"] != "new", -(row["count"])))
        return found[: query.limit]
